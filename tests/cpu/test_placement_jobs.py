"""Jobs of models that are split over the cpu and the disk, or quantized: the same values, or refused in words."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers

import packhorse
from packhorse.backends.torch.loading import load_on_devices
from packhorse.backends.torch.placement import Placer
from packhorse.config import RunConfig, validated
from packhorse.devices.inputs import is_split
from packhorse.errors import InterruptedRunError, ModelError, PackhorseError, UsageError
from packhorse.executors.local import Stop
from packhorse.generation import Placement
from packhorse.loading import Loader
from packhorse.loading.stepping import trial_prompts
from packhorse.placing import as_planned
from tests.models import WORDS, save_classifier
from tests.null.runs import AfterLooks
from tests.writers_of_text import save_writer, texts

pytest.importorskip("accelerate")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files that no other process uses."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("bert") / "model", num_hidden_layers=4)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_writer(tmp_path_factory.mktemp("llama") / "model", "llama")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 texts of 1 to 40 words."""
    draw = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = (json.dumps({"text": " ".join(draw.choice(WORDS, draw.integers(1, 40)))}) for _ in range(60))
    path.write_text("\n".join(lines))
    return path


def run(model: Path, rows: Path, out: Path, **settings: Any) -> tuple[Any, dict[str, Any]]:
    """Rows as they were written, and the plan."""
    packhorse.run(model, rows, out, **({"tune": "off", "overwrite": True} | settings))
    plan = json.loads((out / "_packhorse" / "manifest.json").read_text())["plan"]
    return pq.read_table(out).to_pylist(), plan


@pytest.mark.parametrize("batching", ["padded", "packed"])
@pytest.mark.parametrize("task", ["text-classification", "feature-extraction"])
def test_a_split_encoder_gives_the_values_of_the_whole_one(
    bert: Path, rows: Path, tmp_path: Path, task: str, batching: str
) -> None:
    column = "scores" if task == "text-classification" else "embedding"
    asked: dict[str, Any] = {"precision": "fp32", "task": task} | ({"scores": "all"} if column == "scores" else {})
    whole, _ = run(bert, rows, tmp_path / "whole", **asked)
    settings = asked | {"device_map": "auto", "max_memory": "cpu=80KB,disk=1GB", "batching": batching}
    split, plan = run(bert, rows, tmp_path / "split", **settings)
    assert (plan["batching"], plan["workers"]) == (batching, 1)
    assert any(note.startswith("split over cpu") for note in plan["notes"])
    assert all(row["error"] is None for row in split)
    np.testing.assert_allclose(
        _numbers(split, column), _numbers(whole, column), atol=1e-6 if column == "scores" else 1e-5
    )
    assert not list(Path(tempfile.gettempdir()).glob("packhorse-offload-*"))


def _numbers(rows: list[dict[str, Any]], column: str) -> np.ndarray:
    values = [row[column] for row in rows]
    if isinstance(values[0], dict):
        values = [list(v.values()) for v in values]
    elif isinstance(values[0][0], dict):
        values = [[v["score"] for v in sorted(row, key=lambda s: str(s["label"]))] for row in values]
    return np.array(values, np.float64)


def test_a_writer_whose_embeddings_lie_on_the_disk_writes_the_same(llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts(10)))
    whole, _ = run(llama, path, tmp_path / "whole", max_new_tokens=6)
    limits = {"device_map": "auto", "max_memory": "cpu=150KB,disk=1GB"}
    split, plan = run(llama, path, tmp_path / "split", max_new_tokens=6, **limits)
    assert any("disk" in note for note in plan["notes"])
    assert split == whole
    sampled, _ = run(llama, path, tmp_path / "sampled", max_new_tokens=6, do_sample=True, **limits)
    assert all(row["error"] is None for row in sampled)


ROOM = {"device_map": "auto", "max_memory": "cpu=1GB"}  # where nothing would have to lie on the disk


@pytest.mark.parametrize(("kind", "room"), [("bert", 80), ("llama", 250)])
def test_a_run_goes_on_with_the_device_map_that_it_began_with(
    bert: Path, llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, room: int
) -> None:
    """A map decided anew, with other memory, would put all of it on the cpu."""
    model, auto = (
        (bert, transformers.AutoModelForSequenceClassification)
        if kind == "bert"
        else (llama, transformers.AutoModelForCausalLM)
    )
    asked: dict[str, Any] = {"precision": "fp32", "shard_rows": 8, "limit": 32, "tune": "off"}
    asked |= {"max_new_tokens": 4} if kind == "llama" else {}
    split = {"device_map": "auto", "max_memory": f"cpu={room}KB,disk=1GB"}
    whole, plan = run(model, rows, tmp_path / "whole", **asked, **split)
    limits = {"device_map": "auto", "max_memory": {"cpu": room * 1000, "disk": 10**9}}
    loaded = auto.from_pretrained(model, offload_folder=str(tmp_path / "offload"), dtype=torch.float32, **limits)
    assert plan["device_map"] == {name: str(device) for name, device in loaded.hf_device_map.items()}
    assert set(plan["device_map"].values()) == {"cpu", "disk"}

    stopped = tmp_path / "stopped"
    with pytest.raises(InterruptedRunError):
        packhorse.run(model, rows, stopped, stop=Stop(AfterLooks(4), signum=15), **asked, **split)
    maps: list[Any] = []
    original = load_on_devices

    def seen(request: Any, *args: Any, **others: Any) -> Any:
        made = original(request, *args, **others)
        maps.append(made.device_map)
        return made

    for module in ("model", "generation.model"):
        monkeypatch.setattr(f"packhorse.backends.torch.{module}.load_on_devices", seen)
    packhorse.run(model, rows, stopped, **asked, **ROOM)
    assert [lying(loaded, found) for found in maps] == [lying(loaded, plan["device_map"])]
    assert pq.read_table(stopped).to_pylist() == whole
    anew, other = run(model, rows, tmp_path / "anew", **asked, **ROOM)
    assert set(other["device_map"].values()) == {"cpu"}
    assert run(model, rows, tmp_path / "plain", **asked)[1]["device_map"] is None
    assert len(anew) == len(whole)


def lying(model: Any, device_map: dict[str, str]) -> dict[str, str]:
    """Device of every parameter: that of the longest name before it."""
    names = sorted(device_map, key=len)
    return {
        p: [device_map[n] for n in names if f"{p}.".startswith(f"{n}." if n else "")][-1] for p in model.state_dict()
    }


def test_devices_that_a_run_began_on_and_that_are_gone_are_named(bert: Path) -> None:
    placement = as_planned(Placement("auto", {"cpu": 10**9}), {"bert": "7", "classifier": "cpu"})
    with pytest.raises(UsageError, match=r"begun with layers on 7, cpu, and here are .*cpu.*--device-map FILE.json"):
        Placer(placement, "cuda")
    given = Placement({"": "cpu"})
    assert as_planned(given, {"": "7"}) == given  # a file's map is what was asked for


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"precision": "int8"}, "--precision int8: packhorse's own int8 is for a model on one device"),
        (
            {"precision": "int8", "quantization": "torchao"},
            "by torchao: quantized layers are not brought from the disk",
        ),
        ({"precision": "int8", "quantization": "bitsandbytes"}, "by bitsandbytes: quantized layers are not brought"),
        ({"compile": True}, "--compile: not for a model whose layers lie on several devices"),
        ({"offload_folder": "/proc/none"}, "--offload-folder /proc/none: cannot be made"),
    ],
)
def test_what_a_split_model_cannot_be(
    bert: Path, rows: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    for package in settings.get("quantization", "").split():
        pytest.importorskip(package)
    with pytest.raises(UsageError, match=words):
        run(bert, rows, tmp_path / "out", device_map="auto", max_memory="cpu=80KB,disk=1GB", **settings)


def test_quantized_layers_that_found_no_room_are_refused(llama: Path, bert: Path, rows: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    for model in (bert, llama):
        with pytest.raises(ModelError, match="Quantized layers are not brought there"):
            run(
                model, rows, tmp_path / "out", device_map="auto", max_memory="cpu=40KB", precision="int8",
                quantization="torchao",
            )  # fmt: skip


def test_the_temporary_folder_goes_with_the_exception(bert: Path) -> None:
    """While the exception, and with it the frame that holds the placer, is still alive."""
    settings = {"model": str(bert), "input": "-", "output": "o/", "device_map": "auto", "max_memory": "cpu=50KB"}
    loader = Loader(validated(RunConfig, settings))
    with pytest.raises(ModelError, match="would have to lie on the disk") as caught:
        load_on_devices(loader.request("fp32"), generates=False)
    assert caught.tb is not None
    assert not list(Path(tempfile.gettempdir()).glob("packhorse-offload-*"))


def test_an_encoder_in_int4_is_held_against_fp32(bert: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": " ".join(WORDS[i % 30 :][: i % 7 + 1])}) for i in range(2_100)))
    settings = {"precision": "int4", "quantization": "torchao", "quantization_options": {"group_size": 32}}
    _, plan = run(bert, path, tmp_path / "out", tune="quick", **settings)
    assert any("fp32" in note and "int4" in note for note in plan["notes"])
    explained = packhorse.plan(bert, path, **settings)
    assert explained.weight_bytes is not None and explained.weight_bytes > 0


def test_a_writer_quantized_by_name_is_held_against_the_one_that_is_not(llama: Path, tmp_path: Path) -> None:
    """On rows spread over the lengths: about as many tokens as 24 rows of the job have."""
    pytest.importorskip("torchao")
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts(80)))
    asked = {"precision": "int8", "quantization": "torchao", "max_new_tokens": 4, "tune": "quick"}
    written, plan = run(llama, path, tmp_path / "out", **asked)
    lengths = [row["num_prompt_tokens"] for row in written]
    assert plan["quality"]["reference"] == "fp32"
    assert plan["quality"]["num_tokens"] == pytest.approx(24 * (sum(lengths) / len(lengths) - 1), rel=0.2)


@pytest.mark.parametrize("group_size", [16, 48, 512])
def test_groups_that_int4_products_lack(bert: Path, rows: Path, tmp_path: Path, group_size: int) -> None:
    pytest.importorskip("torchao")
    asked = {"precision": "int4", "quantization": "torchao", "quantization_options": {"group_size": group_size}}
    with pytest.raises(UsageError, match=f"group_size={group_size}: int4 has groups of 32, 64, 128, 256"):
        run(bert, rows, tmp_path / "out", **asked)


def test_a_classifier_saved_in_int8_runs_as_plain_transformers_runs_it(bert: Path, rows: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig

    saved = tmp_path / "saved"
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    model = AutoModelForSequenceClassification.from_pretrained(bert, quantization_config=config, device_map={"": "cpu"})
    model.save_pretrained(saved)
    for file in bert.glob("tokenizer*"):
        shutil.copy(file, saved)
    reference = AutoModelForSequenceClassification.from_pretrained(saved, device_map={"": "cpu"}).eval()
    tokenizer = AutoTokenizer.from_pretrained(saved)
    written, plan = run(saved, rows, tmp_path / "out", scores="all")
    assert plan["precision"] == "int8"
    with torch.inference_mode():
        inputs = [tokenizer(row["text"], return_tensors="pt", truncation=True) for row in written]
        expected = np.array([reference(**i).logits[0].float().softmax(-1).max() for i in inputs])
    found = np.array([row["score"] for row in written])
    assert np.quantile(np.abs(found - expected), 0.9) < 0.1  # bf16 here, float32 there


@pytest.mark.parametrize(
    ("options", "words"),
    [({"group_size": "abc"}, "group_size=abc"), ({"group_size": 0}, "group_size=0"), ({"nope": 1}, "nope")],
)
def test_a_plan_checks_the_options_that_the_job_would(
    llama: Path, rows: Path, options: dict[str, Any], words: str
) -> None:
    pytest.importorskip("torchao")
    with pytest.raises(UsageError, match=words):
        packhorse.plan(llama, rows, precision="int4", quantization="torchao", quantization_options=options)


def test_a_second_copy_of_the_weights_is_not_counted(llama: Path, rows: Path, tmp_path: Path) -> None:
    """Mistral's folders have consolidated.safetensors beside the files that transformers reads."""
    alone = packhorse.plan(llama, rows)
    copied = Path(shutil.copytree(llama, tmp_path / "model"))
    shutil.copy(copied / "model.safetensors", copied / "consolidated.safetensors")
    assert packhorse.plan(copied, rows).weight_bytes == alone.weight_bytes


def test_ways_that_would_put_a_split_model_together_are_not_tried(bert: Path, rows: Path) -> None:
    explained = packhorse.plan(bert, rows, device_map="auto", max_memory="cpu=80KB,disk=1GB")
    assert {way.backend for way in explained.alternatives} == {"torch"}
    assert not any(way.compiled for way in explained.alternatives)


def test_a_plan_of_a_job_that_wrote_is_not_replayed(llama: Path, rows: Path, tmp_path: Path) -> None:
    run(llama, rows, tmp_path / "out", max_new_tokens=2)
    plan = str(tmp_path / "out" / "_packhorse" / "manifest.json")
    with pytest.raises(PackhorseError, match="give its decisions as flags: --engine"):
        packhorse.run(llama, rows, tmp_path / "other", plan=plan, max_new_tokens=2)


def test_trials_are_made_with_prompts_of_all_lengths(llama: Path) -> None:
    loader = Loader(validated(RunConfig, {"model": str(llama), "input": "-", "output": "o/"}))
    loader.see([str(text) for text in texts(60)], None, True)
    lengths = loader.material.rows.lengths
    assert trial_prompts(loader, 12).tokens.lengths.mean() == pytest.approx(np.minimum(lengths, 64).mean(), rel=0.25)
    assert trial_prompts(loader, 100).num_rows == 100
    loader.close()


@pytest.mark.parametrize(("device", "chosen"), [("cuda", []), ("cuda:1", ["cuda:1"])])
def test_a_gpu_is_made_torchs_own_where_it_has_a_number(
    llama: Path, monkeypatch: pytest.MonkeyPatch, device: str, chosen: list[str]
) -> None:
    """torch.cuda.set_device("cuda") is a ValueError."""
    seen: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_device", seen.append)
    loader = Loader(validated(RunConfig, {"model": str(llama), "input": "-", "output": "o/"}))
    placement = Placement(tensor_parallel=True)
    request = dataclasses.replace(loader.request("fp32"), device=device, placement=placement)
    with pytest.raises(UsageError, match="--tensor-parallel"):  # what comes next: this process is alone
        load_on_devices(request, generates=True)
    assert seen == chosen


def test_a_map_that_needs_no_second_device_splits_nothing(bert: Path) -> None:
    settings = {"model": str(bert), "input": "-", "output": "o/", "device_map": "auto"}
    made = load_on_devices(Loader(validated(RunConfig, settings)).request("fp32"), generates=False)
    assert not made.is_split and not is_split(made.model) and made.is_plain
    made.close()
