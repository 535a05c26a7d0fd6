"""packhorse doctor: against figures counted otherwise, and against made-up file trees of /proc and /sys."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import psutil
import pytest
import torch

from packhorse.config import EngineConfig
from packhorse.devices.host import cpu_precisions, num_cores
from packhorse.doctor.examine import examine
from packhorse.doctor.found import nvidia_driver, read_environment
from packhorse.doctor.limits import cpu_limit, disk, limit_notes, memory_limit, numa_nodes, read_limits
from packhorse.doctor.packages import installed, tried
from packhorse.doctor.placing import place_model
from packhorse.errors import HostileModelError, ModelError, PackhorseError, UsageError
from tests.cpu.command import ENVIRONMENT, forked
from tests.models import save_null_model


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


# -- the machine


def test_limits_of_control_groups_version_2_are_the_least_of_all_around(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/pod/job")
    groups = tmp_path / "sys/fs/cgroup"
    write(groups / "pod/job/cpu.max", "max 100000")
    write(groups / "pod/cpu.max", "150000 100000")
    write(groups / "pod/job/memory.max", "8000000000")
    write(groups / "pod/memory.max", "max")
    assert cpu_limit(tmp_path) == 1.5 and memory_limit(tmp_path) == 8_000_000_000


def test_limits_of_control_groups_version_1(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "4:memory:/job\n2:cpu,cpuacct:/job\n1:name=systemd:/x\n0::/")
    groups = tmp_path / "sys/fs/cgroup"
    write(groups / "cpu,cpuacct/job/cpu.cfs_quota_us", "50000")
    write(groups / "cpu,cpuacct/job/cpu.cfs_period_us", "100000")
    write(groups / "cpu,cpuacct/cpu.cfs_quota_us", "-1")
    write(groups / "cpu,cpuacct/cpu.cfs_period_us", "100000")
    write(groups / "memory/memory.limit_in_bytes", "9223372036854771712")
    assert cpu_limit(tmp_path) == 0.5 and memory_limit(tmp_path) is None
    write(groups / "memory/job/memory.limit_in_bytes", "2000000000")
    assert memory_limit(tmp_path) == 2_000_000_000


def test_no_control_groups_and_no_nodes(tmp_path: Path) -> None:
    assert (cpu_limit(tmp_path), memory_limit(tmp_path), numa_nodes(tmp_path)) == (None, None, [])


def test_memory_nodes_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number, cores in ((10, "20-21"), (2, "4-5"), (0, "0-3")):
        write(tmp_path / f"sys/devices/system/node/node{number}/cpulist", cores)
    assert numa_nodes(tmp_path) == ["0-3", "4-5", "20-21"]


def test_notes_where_less_may_be_used_than_is_seen() -> None:
    limits = read_limits() | {"cgroup_cpus": 0.5, "cgroup_memory_bytes": 10**9, "numa_nodes": ["0", "1"]}
    cores, memory, nodes = limit_notes(limits)
    assert "0.5 cores" in cores and f"shows {num_cores()}" in cores
    assert "1.0 GB" in memory and f"{psutil.virtual_memory().total / 1e9:,.1f} GB" in memory and "2 memory" in nodes
    assert not list(limit_notes(limits | {"cgroup_cpus": None, "cgroup_memory_bytes": None, "numa_nodes": ["0"]}))


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    found = disk("cache", tmp_path / "a" / "b")
    stat = os.statvfs(tmp_path)
    assert found["folder"] == str(tmp_path / "a" / "b") and found["total_bytes"] == stat.f_blocks * stat.f_frsize


def test_the_driver_is_read_from_its_own_file(tmp_path: Path) -> None:
    write(
        tmp_path / "version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23\nGCC version: 12"
    )
    assert nvidia_driver(tmp_path / "version") == "570.86.15"


def test_variables_are_shown_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    seen = {v.name: v.value for v in read_environment({"HF_HUB_OFFLINE": None})}
    assert seen["HF_HUB_OFFLINE"] is None and seen["CUDA_VISIBLE_DEVICES"] == "3"


# -- trials


def test_a_trial_works_or_says_why_not() -> None:
    assert tried("a", "b", lambda: "1.0", "pip install b").state == "works"

    def fails() -> str:
        raise ImportError("libcudart.so.12: cannot open shared object file")

    broken = tried("a", "b", fails, "pip install b")
    assert broken.state == "broken" and "libcudart" in broken.detail and broken.command == "pip install b"
    missing = tried("a", "b", fails, "pip install b", ("no_such_package",))
    assert (missing.state, missing.command) == ("missing", "pip install b") and "no_such_package" in missing.detail


def test_what_a_trial_prints_is_nowhere_even_from_compiled_code(capfd: pytest.CaptureFixture[str]) -> None:
    def loud() -> str:
        print("hello")
        os.write(1, b"from C\n")
        return ""

    assert tried("a", "b", loud, None).state == "works"
    print("after")
    assert capfd.readouterr() == ("after\n", "")


def test_a_torch_that_cannot_be_imported_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(PackhorseError, match=r"torch cannot be imported.*pip install --force-reinstall torch"):
        examine()


def test_what_takes_long_is_tried_when_measuring_alone() -> None:
    calls = []
    trial = lambda: calls.append(1) or "run"  # noqa: E731
    assert installed("a", "b", ("json",), "pip install b", trial, measure=False).state == "installed" and not calls
    assert installed("a", "b", ("json",), "pip install b", trial, measure=True).state == "works" and calls
    assert installed("a", "b", ("no.such",), "pip install b", trial, measure=False).command == "pip install b"


# -- a model


def test_where_a_model_would_lie_is_what_it_takes_once_loaded(bert: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    found = place_model(EngineConfig(model=str(bert), devices="cpu"))
    model = AutoModelForSequenceClassification.from_pretrained(bert)
    lying = {row.kind: row for row in found.lying}
    assert lying["parameter"].num_bytes == sum(p.nbytes for p in model.parameters())
    assert lying["parameter"].count == len(list(model.parameters()))
    assert lying["buffer"].num_bytes == sum(b.nbytes for b in model.buffers())
    assert {(row.device, row.kind, row.dtype) for row in found.lying if row.kind in ("parameter", "input")} == {
        ("cpu", "parameter", "float32"), ("cpu", "input", "int64"),
    }  # fmt: skip
    assert lying["output"].num_bytes == 4 * 3  # labels
    assert found.need is not None and found.need["weights_bytes"] == lying["parameter"].num_bytes
    assert found.fits and (found.task, found.precision) == ("text-classification", "fp32")


def test_half_precision_takes_half(bert: Path) -> None:
    found = place_model(EngineConfig(model=str(bert), devices="cpu", precision="bf16"))
    whole = place_model(EngineConfig(model=str(bert), devices="cpu"))
    of = [next(row for row in each.lying if row.kind == "parameter") for each in (found, whole)]
    assert of[0].num_bytes * 2 == of[1].num_bytes and of[0].dtype == "bfloat16"


def test_quantized_weights_and_their_scales_apart(bert: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    found = place_model(EngineConfig(model=str(bert), devices="cpu", precision="int8"))
    model = AutoModelForSequenceClassification.from_pretrained(bert)
    linear = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "classifier"]
    small = next(row for row in found.lying if row.dtype == "int8")
    scales = next(row for row in found.lying if row.kind == "quantization")
    assert small.num_bytes == sum(m.weight.numel() for m in linear)
    assert scales.num_bytes == 4 * sum(m.out_features for m in linear)
    assert found.need is not None
    weights = sum(row.num_bytes for row in found.lying if row.kind in ("parameter", "quantization"))
    assert found.need["weights_bytes"] == weights


def test_a_limit_that_is_too_small_is_told_with_what_would_make_it_fit(bert: Path) -> None:
    found = place_model(EngineConfig(model=str(bert), devices="cpu"), memory_limit=10**6)
    assert found.fits is False and found.free_bytes == {"cpu": 10**6}
    assert "too little" in found.advice[0] and any("--precision bf16" in line for line in found.advice)


def test_a_folder_without_weights_has_no_answer_to_whether_it_fits(tmp_path: Path) -> None:
    found = place_model(EngineConfig(model=str(save_null_model(tmp_path / "model")), devices="cpu"))
    assert found.need is None and found.fits is None


REMOTE_CODE = '{"auto_map": {"AutoModel": "code.Model"}}'


@pytest.mark.parametrize(
    ("config", "error"),
    [("{", ModelError), ('{"architectures": ["BertModel"]}', ModelError), (REMOTE_CODE, HostileModelError)],
)
def test_a_model_that_cannot_be_read(tmp_path: Path, config: str, error: type[PackhorseError]) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(error, match=r"config\.json"):
        place_model(EngineConfig(model=str(tmp_path)))


def test_a_device_that_is_not_here(bert: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("it is")
    with pytest.raises(UsageError, match="--devices cuda"):
        place_model(EngineConfig(model=str(bert), devices="cuda"))


# -- the command


def test_the_command_as_json(bert: Path, tmp_path: Path) -> None:
    home = ENVIRONMENT | {"XDG_CACHE_HOME": str(tmp_path), "OMP_WAIT_POLICY": "ACTIVE", "HF_HUB_OFFLINE": "0"}
    done = forked("doctor", bert, "--json", env=home)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["model"]["fits"] is True and found["ceilings"] == []
    assert found["devices"][-1]["name"] == "cpu" and tuple(found["devices"][-1]["precisions"]) == cpu_precisions()
    states = {(c["area"], c["name"]): c["state"] for c in found["checks"]}
    assert states["backend", "torch"] == states["attention", "packed"] == states["tokenizer", "hf"] == "works"
    assert all(c["state"] not in ("missing", "broken") or c["command"] for c in found["checks"])
    values = {v["name"]: v["value"] for v in found["environment"]}
    assert (values["OMP_WAIT_POLICY"], values["HF_HUB_OFFLINE"]) == ("ACTIVE", "0")
    assert any("PASSIVE" in note for note in found["notes"])
    assert found["libraries"]["torch"] == torch.__version__ and not (tmp_path / "packhorse").exists()


def test_the_command_as_text() -> None:
    done = forked("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    for heading in ("machine", "devices", "ceilings", "what works", "versions", "environment"):
        assert f"\n{heading}\n" in "\n" + done.stdout
    assert f"torch {torch.__version__}" in done.stdout


def test_a_model_that_is_not_there_ends_the_command() -> None:
    done = forked("doctor", "./nothing")
    assert done.returncode == 2 and "no such folder" in done.stderr
