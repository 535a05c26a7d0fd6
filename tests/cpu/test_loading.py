"""What is loaded, what is refused before it is loaded, and in which precision it runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from packhorse.config import EngineConfig
from packhorse.devices.host import cpu_precisions
from packhorse.errors import HostileModelError, ModelError, RefusedError, UsageError
from packhorse.loading import Loader
from packhorse.loading.choosing import Texts, choose
from tests.cpu import embedders
from tests.cpu.engine import load
from tests.models import save_null_model


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertForSequenceClassification", "text-classification"),
        ("DebertaV2ForSequenceClassification", "text-classification"),
        ("BertModel", "feature-extraction"),
        ("Qwen3Model", "feature-extraction"),
    ],
)
def test_the_task_is_read_from_the_architecture(tmp_path: Path, architecture: str, task: str) -> None:
    folder = save_null_model(tmp_path, architecture=architecture)
    with load(folder, backend="null") as engine:
        assert engine.task == task


@pytest.mark.parametrize("architectures", [["BertForMultipleChoice"], ["BertForPreTraining"], [], None])
def test_without_a_task_in_the_config_the_message_offers_the_flag(tmp_path: Path, architectures: Any) -> None:
    folder = save_null_model(tmp_path)
    embedders.edit_json(folder / "config.json", architectures=architectures)
    with pytest.raises(UsageError, match=r"--task.*text-classification.*feature-extraction"):
        load(folder, backend="null")
    with load(folder, backend="null", task="feature-extraction") as engine:
        assert engine.task == "feature-extraction"


def test_a_sentence_transformers_folder_embeds(bodies: dict[str, Path], tmp_path: Path) -> None:
    folder = embedders.save_older(tmp_path / "model", bodies["uncased"])
    embedders.edit_json(folder / "config.json", architectures=["BertForMaskedLM"])
    with load(folder, backend="null") as engine:
        assert engine.task == "feature-extraction"


def test_missing_head_weights_are_named(encoder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(encoder, tmp_path / "model"))
    embedders.edit_json(folder / "config.json", architectures=["BertForSequenceClassification"])
    with pytest.raises(ModelError, match=r"classifier\.bias, classifier\.weight") as caught:
        load(folder)
    assert caught.value.exit_code == 1


def test_loading_and_computing_print_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """transformers would show a loading bar, the missing pooler and the text that is too long."""
    folder = embedders.save_body(tmp_path, pooler=False)
    capfd.readouterr()
    with load(folder) as engine:
        engine.embed(["a good film " * 50])
    assert capfd.readouterr() == ("", "")


def test_missing_body_weights_are_named(encoder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(encoder, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"encoder\.layer\.1\.output\.dense\.weight"):
        load(folder)


def test_more_labels_in_the_config_than_in_the_weights_is_an_error(bert: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bert, tmp_path / "model"))
    embedders.edit_json(folder / "config.json", id2label={str(i): f"L{i}" for i in range(5)})
    with pytest.raises(ModelError):
        load(folder)


# -- refused before anything of it is loaded


def only_pickle(folder: Path) -> str:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return "pytorch_model.bin"


def pickle_beside_a_stray_safetensors_file(folder: Path) -> str:
    only_pickle(folder)
    embedders.write_json(folder / "onnx" / "extra.safetensors", {})
    return "pytorch_model.bin"


def auto_map(folder: Path) -> str:
    (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Model: ...\n")
    embedders.edit_json(folder / "config.json", auto_map={"AutoModel": "code.Model", "AutoConfig": "code.Model"})
    return "auto_map"


def auto_map_of_the_tokenizer(folder: Path) -> str:
    embedders.edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Tokenizer", None]})
    return "tokenizer_config.json"


def auto_map_deep_in_the_config(folder: Path) -> str:
    embedders.edit_json(folder / "config.json", text_config={"inner": [{"auto_map": {"AutoModel": "code.Model"}}]})
    return "auto_map"


def attention_hook(folder: Path) -> str:
    embedders.edit_json(folder / "config.json", _attn_implementation_internal="somebody/kernel")
    return "_attn_implementation_internal"


def weight_map_outside(folder: Path) -> str:
    embedders.write_json(
        folder / "model.safetensors.index.json", {"weight_map": {"pooler.dense.weight": "../x.safetensors"}}
    )
    return "../x.safetensors"


def module_path_outside(folder: Path) -> str:
    prefix = "sentence_transformers.models."
    embedders.write_modules(folder, [(f"{prefix}Transformer", "../.."), (f"{prefix}Pooling", "1_Pooling")])
    return "../.."


@pytest.mark.parametrize(
    "spoil",
    [
        only_pickle,
        pickle_beside_a_stray_safetensors_file,
        auto_map,
        auto_map_of_the_tokenizer,
        auto_map_deep_in_the_config,
        attention_hook,
        weight_map_outside,
        module_path_outside,
    ],
    ids=lambda f: f.__name__,
)
def test_a_folder_of_a_stranger_is_refused(encoder: Path, tmp_path: Path, spoil: Callable[[Path], str]) -> None:
    folder = Path(shutil.copytree(encoder, tmp_path / "a" / "b" / "model"))
    named = spoil(folder)
    with pytest.raises(RefusedError) as caught:
        load(folder)
    assert named in str(caught.value)
    assert caught.value.exit_code == 3
    assert isinstance(caught.value, HostileModelError) or "pickle" in spoil.__name__
    assert not (folder / "ran").exists()


# -- names


def test_a_hub_id_without_a_network_ends_with_a_clear_message(tmp_path: Path) -> None:
    rows = tmp_path / "in.jsonl"
    rows.write_text('{"text": "a"}\n')
    command = [sys.executable, "-m", "packhorse", "run", "some-org/none-such", str(rows), "-o", f"{tmp_path}/out/"]
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "PATH": ""}
    done = subprocess.run([*command, "--backend", "null"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("packhorse: model some-org/none-such: ")
    assert "no such folder" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "name",
    ["no such model?!", "./nowhere", "/nowhere/at/all", "a/b/c", "", "foo--bar", "a..b", "-x", "x.git", "m" * 120],
)
def test_a_name_that_can_be_no_model_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError):
        load(name, backend="null")


def test_a_folder_that_is_no_model_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"config\.json"):
        load(tmp_path, backend="null")


CLASSIFIER = '{"architectures": ["BertForSequenceClassification"], "hidden_size": 8, "id2label": %s}'
BROKEN = {
    "no JSON": ("config.json", "{"),
    "a list": ("config.json", "[]"),
    "a word for a number": ("config.json", '{"architectures": ["BertModel"], "hidden_size": "wide"}'),
    "a list of labels": ("config.json", CLASSIFIER % '["a"]'),
    "labels from 1 on": ("config.json", CLASSIFIER % '{"1": "a"}'),
    "tokenizer: a list": ("tokenizer_config.json", "[]"),
    "modules: an object": ("modules.json", "{}"),
    "modules: no path": ("modules.json", '[{"idx": 0}]'),
    "index: a list": ("model.safetensors.index.json", '{"weight_map": []}'),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_file_of_the_folder_is_named(tmp_path: Path, broken: str) -> None:
    file, content = BROKEN[broken]
    folder = save_null_model(tmp_path)
    (folder / file).write_text(content)
    with pytest.raises(ModelError, match=re.escape(file)):
        load(folder, backend="null")


# -- precision


def test_few_rows_stay_in_fp32_and_the_note_says_why(bert: Path) -> None:
    loader = Loader(EngineConfig(model=str(bert), devices="cpu"))
    loader.see(["good film"] * 10, None)
    plan = choose(loader, 10, Texts("text", None)).plan
    loader.close()
    assert plan.precision == "fp32" and not plan.alternatives
    if len(cpu_precisions()) > 1:
        assert "10 rows" in plan.notes[0] and "too few" in plan.notes[0]


def test_exact_is_fp32_and_contradicts_any_other_precision(bert: Path) -> None:
    with load(bert, exact=True) as engine:
        assert (engine.plan.precision, engine.plan.threads) == ("fp32", 1)
    with pytest.raises(UsageError, match="--precision"):
        load(bert, exact=True, precision="bf16")


def test_a_device_that_is_not_here_is_a_usage_error(bert: Path) -> None:
    for devices in ("cuda:99", "tpu", "cpu,cuda"):
        with pytest.raises(UsageError, match=devices.replace(",", ".")):
            load(bert, devices=devices)


def test_an_unknown_setting_is_a_usage_error_that_suggests(bert: Path) -> None:
    with pytest.raises(UsageError, match="batch_size"):
        load(bert, batchsize=3)
