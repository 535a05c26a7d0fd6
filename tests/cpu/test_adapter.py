"""--adapter against plain peft and transformers, row by row in fp32."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from packhorse.config import EngineConfig
from packhorse.errors import HostileModelError, ModelError, UsageError
from packhorse.loading.material import Material
from tests.cpu import reference
from tests.cpu.command import forked, write_rows
from tests.cpu.embedders import edit_json
from tests.cpu.engine import load
from tests.fork_server import TORCH
from tests.hub_server import files_of, serving
from tests.models import save_classifier

pytest.importorskip("peft")
ATOL = 1e-5
TEXTS = reference.texts_of_all_lengths()
TARGETS = ["query", "value", "dense"]


def save_adapter(
    base: Path, folder: Path, task: str = "SEQ_CLS", seed: int = 1, labels: int = 3, **config: Any
) -> Path:
    """A LoRA adapter whose layers are random, not the identity that a fresh one is."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    settings = {"r": 4, "target_modules": TARGETS, "init_lora_weights": False} | config
    get_peft_model(_base(base, task, labels), LoraConfig(task_type=task, **settings)).save_pretrained(folder)
    return folder


def _base(base: Path, task: str, labels: int | None) -> Any:
    from transformers import AutoModel, AutoModelForSequenceClassification

    if task != "SEQ_CLS":
        return AutoModel.from_pretrained(base)
    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels, ignore_mismatched_sizes=True)


def plain(
    base: Path, adapter: Path, texts: Sequence[str], task: str = "SEQ_CLS", labels: int = 3
) -> list[torch.Tensor]:
    """Logits [labels] or hidden states [tokens, hidden] a row, with the adapter beside the weights, not merged."""
    from peft import PeftModel
    from transformers import AutoTokenizer

    model = PeftModel.from_pretrained(_base(base, task, labels), adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = []
    with torch.inference_mode():
        for text in texts:
            output = model(**tokenizer([text], truncation=True, max_length=reference.MAX_LENGTH, return_tensors="pt"))
            rows.append(output.logits[0] if task == "SEQ_CLS" else output.last_hidden_state[0])
    return rows


def scores(base: Path, texts: Sequence[str] = TEXTS, **settings: Any) -> np.ndarray:
    with load(base, scores="all", **{"precision": "fp32"} | settings) as engine:
        assert engine.task == "text-classification"
        return np.array(engine.predict(texts)["scores"].to_pylist())


@pytest.fixture(scope="module")
def tuned(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(bert, tmp_path_factory.mktemp("adapters") / "tuned")


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_classifier_gives_what_peft_gives(classifiers: dict[str, Path], kind: str, tmp_path: Path) -> None:
    base = classifiers[kind]
    adapter = save_adapter(base, tmp_path / "adapter")
    expected = torch.stack(plain(base, adapter, TEXTS)).softmax(-1).numpy()
    np.testing.assert_allclose(scores(base, adapter=str(adapter)), expected, atol=ATOL)
    without = reference.logits(base, TEXTS).softmax(-1).numpy()
    assert np.abs(expected - without).max() > 0.1  # the adapter is no trifle


def test_a_body_without_a_head_takes_the_adapters(encoder: Path, tmp_path: Path) -> None:
    """Its task, its four labels and the weights of its classifier come from the adapter alone."""
    adapter = save_adapter(encoder, tmp_path / "adapter", labels=4)
    expected = torch.stack(plain(encoder, adapter, TEXTS, labels=4)).softmax(-1).numpy()
    np.testing.assert_allclose(scores(encoder, adapter=str(adapter)), expected, atol=ATOL)


def test_embeddings_are_those_of_peft(encoder: Path, tmp_path: Path) -> None:
    adapter = save_adapter(encoder, tmp_path / "adapter", "FEATURE_EXTRACTION")
    states = plain(encoder, adapter, TEXTS, "FEATURE_EXTRACTION")
    expected = torch.stack([hidden.mean(0) for hidden in states]).numpy()
    with load(encoder, adapter=str(adapter), precision="fp32") as engine:
        assert engine.task == "feature-extraction"
        np.testing.assert_allclose(engine.embed(TEXTS), expected, atol=ATOL)
    with load(encoder, precision="fp32") as engine:
        assert np.abs(engine.embed(TEXTS) - expected).max() > 0.1


def test_the_weights_are_merged_in_fp32_and_then_cast(bert: Path, tuned: Path) -> None:
    """Not merged in bf16, where a small change of a weight is lost."""
    from packhorse.backends.torch.weights import load_weights

    material = Material(EngineConfig(model=str(bert), adapter=str(tuned)))
    reduction = material.task.reduction()
    full, half = (load_weights(material.description, reduction, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert not any("lora" in name for name, _ in full.named_parameters())
    for (name, a), (_, b) in zip(full.named_parameters(), half.named_parameters(), strict=True):
        assert torch.equal(a.to(torch.bfloat16), b), name


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_other_backends_run_the_merged_model(bert: Path, tuned: Path, tmp_path: Path, backend: str) -> None:
    pytest.importorskip("onnxruntime" if backend == "onnx" else backend)
    texts = TEXTS[:12]
    expected = torch.stack(plain(bert, tuned, texts)).softmax(-1).numpy()
    plain_scores = scores(bert, texts, backend=backend)  # its export is cached first, and must not be taken
    np.testing.assert_allclose(scores(bert, texts, backend=backend, adapter=str(tuned)), expected, atol=1e-4)
    other = save_adapter(bert, tmp_path / "other", seed=2)
    assert np.abs(scores(bert, texts, backend=backend, adapter=str(other)) - expected).max() > 0.05
    assert np.abs(plain_scores - expected).max() > 0.05


def test_what_is_cached_is_kept_apart_by_adapter(bert: Path, tuned: Path, tmp_path: Path) -> None:
    other = save_adapter(bert, tmp_path / "other", seed=2)
    copy = Path(shutil.copytree(tuned, tmp_path / "copy"))
    plain_one, one, two, same = (
        Material(EngineConfig(model=str(bert), adapter=a)) for a in (None, str(tuned), str(other), str(copy))
    )
    assert len({m.key for m in (plain_one, one, two)}) == 3
    assert one.key == same.key
    assert set(one.identity()["adapter"]["files"]) == {"adapter_config.json", "adapter_model.safetensors"}
    assert "adapter" not in plain_one.identity()
    assert one.identity() == same.identity() != two.identity()


def test_a_run_with_another_adapter_is_refused(bert: Path, tuned: Path, tmp_path: Path) -> None:
    rows, output = write_rows(tmp_path / "rows.parquet", 5), f"{tmp_path}/out/"
    other = save_adapter(bert, tmp_path / "other", seed=2)
    common = (bert, rows, "-o", output, "--precision", "fp32", "--adapter")
    assert forked("run", *common, tuned).returncode == 0
    assert forked("run", *common, tuned).returncode == 0
    for arguments in ((*common, other), common[:-1]):
        done = forked("run", *arguments)
        assert done.returncode == 3
        assert "model.adapter" in done.stderr


def test_another_base_is_a_note_and_another_shape_an_error(
    classifiers: dict[str, Path], tuned: Path, tmp_path: Path
) -> None:
    renamed = Path(shutil.copytree(classifiers["bert"], tmp_path / "renamed"))
    with load(renamed, adapter=str(tuned), precision="fp32") as engine:
        assert any("was trained on" in note and "renamed" in note for note in engine.plan.notes)
    with load(classifiers["bert"], adapter=str(tuned), precision="fp32") as engine:
        assert not any("was trained on" in note for note in engine.plan.notes)
    wide = save_classifier(tmp_path / "wide", hidden_size=48)
    with pytest.raises(ModelError, match=r"does not fit .*wide.*size mismatch"):
        load(wide, adapter=str(tuned), precision="fp32")
    with pytest.raises(ModelError, match="does not fit"):
        load(classifiers["distilbert"], adapter=str(tuned), precision="fp32")
    deep = save_classifier(tmp_path / "deep", num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"does not fit.*layer\.2"):
        load(deep, adapter=str(tuned), precision="fp32")
    flat = save_classifier(tmp_path / "flat", num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"does not fit.*layer\.1"):
        load(flat, adapter=str(tuned), precision="fp32")


def test_hostile_adapters_are_refused_before_they_are_loaded(bert: Path, tuned: Path, tmp_path: Path) -> None:
    pickled = Path(shutil.copytree(tuned, tmp_path / "pickled"))
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(HostileModelError, match=r"adapter_model\.bin, which can run code"):
        load(bert, adapter=str(pickled))
    code = Path(shutil.copytree(tuned, tmp_path / "code"))
    edit_json(code / "adapter_config.json", megatron_config={"a": 1}, megatron_core="os")
    with pytest.raises(HostileModelError, match="megatron_config"):
        load(bert, adapter=str(code))
    edit_json(code / "adapter_config.json", megatron_config=None, auto_map={"AutoModel": "x.y"})
    with pytest.raises(HostileModelError, match="auto_map"):
        load(bert, adapter=str(code))
    broken = Path(shutil.copytree(tuned, tmp_path / "broken"))
    (broken / "adapter_model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors"):
        load(bert, adapter=str(broken))


def test_what_is_no_adapter_is_told_so(bert: Path, tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no adapter_config\.json"):
        load(bert, adapter=str(bert))
    with pytest.raises(UsageError, match=r"--adapter .*nothing/at/all: no such folder"):
        load(bert, adapter="nothing/at/all")
    with pytest.raises(UsageError, match=r"PEFT adapter: give its base model.*--adapter"):
        load(tuned)
    with pytest.raises(UsageError, match=r"--onnx-file .*drop one"):
        load(bert, adapter=str(tuned), backend="onnx", onnx_file="model.onnx")


@pytest.mark.parametrize("graph", ["onnx/model.onnx", "openvino_model.xml"])
def test_a_folder_with_graphs_alone_has_no_weights_to_merge_into(
    bert: Path, tuned: Path, tmp_path: Path, graph: str
) -> None:
    folder = shutil.copytree(bert, tmp_path / "graph", ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / graph).parent.mkdir(exist_ok=True)
    (folder / graph).write_bytes(b"graph")
    with pytest.raises(UsageError, match=f"--adapter .*merged into weights, and .* has {Path(graph).name}"):
        load(folder, adapter=str(tuned))


def test_an_adapter_that_cannot_be_merged_is_told_so(bert: Path, tmp_path: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model

    made = get_peft_model(_base(bert, "SEQ_CLS", 3), PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))
    made.save_pretrained(tmp_path / "prompt")
    with pytest.raises(ModelError, match=r"--adapter .*prompt"):
        load(bert, adapter=str(tmp_path / "prompt"))


def test_without_the_package_the_message_says_what_to_install(
    bert: Path, tuned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("packhorse.models.adapter.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'packhorse\[peft\]'"):
        load(bert, adapter=str(tuned))
    with load(bert, adapter=str(tuned), backend="null") as engine:
        assert len(engine.predict(["a"])) == 1


def test_an_adapter_of_the_hub_is_found_and_its_commit_recorded(bert: Path, tuned: Path, tmp_path: Path) -> None:
    import os

    rows = write_rows(tmp_path / "rows.parquet", 5)
    with serving() as hub:
        repo = hub.model("org/tuned")
        commit = repo.push(files_of(tuned))
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {
            "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", "COLUMNS": "300",
        }  # fmt: skip
        common = ("run", bert, rows, "-o", f"{tmp_path}/out/", "--precision", "fp32", "--adapter")
        done = forked(*common, "org/tuned", env=environment, preload=TORCH)
        assert done.returncode == 0, done.stderr
        manifest = json.loads((tmp_path / "out/_packhorse/manifest.json").read_text())
        assert manifest["model"]["adapter"]["commit"] == commit
        repo.push(files_of(save_adapter(bert, tmp_path / "other", seed=2)))
        moved = forked(*common, "org/tuned", env=environment, preload=TORCH)
        assert moved.returncode == 3
        assert f"--adapter org/tuned@{commit} goes on" in " ".join(moved.stderr.split())
        assert forked(*common, f"org/tuned@{commit}", env=environment, preload=TORCH).returncode == 0
        repo.push({"adapter_config.json": b"{}", "adapter_model.bin": b"x"})
        unsafe = forked(*common, "org/tuned", env=environment, preload=TORCH)
        assert unsafe.returncode == 3 and "adapter_model.bin" in unsafe.stderr
        assert not hub.gets("adapter_model.bin")


def test_exporting_writes_the_merged_model(bert: Path, tuned: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    done = forked("export", bert, tmp_path / "made", "--backend", "onnx", "--adapter", tuned)
    assert done.returncode == 0, done.stderr
    texts = TEXTS[:8]
    expected = torch.stack(plain(bert, tuned, texts)).softmax(-1).numpy()
    np.testing.assert_allclose(scores(tmp_path / "made", texts), expected, atol=1e-4)


@pytest.mark.parametrize(
    "config", [{"modules_to_save": ["LayerNorm"]}, {"target_modules": ["query", "word_embeddings"]}, {"use_dora": True}]
)
def test_other_kinds_of_changes_are_merged_too(encoder: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    """Layers that were trained whole, embedding tables (whose base values peft saves with them), DoRA."""
    adapter = save_adapter(encoder, tmp_path / "adapter", "FEATURE_EXTRACTION", **config)
    states = plain(encoder, adapter, TEXTS[:10], "FEATURE_EXTRACTION")
    expected = torch.stack([hidden.mean(0) for hidden in states]).numpy()
    with load(encoder, adapter=str(adapter), precision="fp32") as engine:
        np.testing.assert_allclose(engine.embed(TEXTS[:10]), expected, atol=ATOL)
