"""ONNX files that others exported, in Optimum's layout: which is run, how it is fed, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from packhorse.backends.onnx import providers
from packhorse.backends.onnx.session import run_bound
from packhorse.errors import HostileModelError, ModelError, UsageError
from tests.cpu import reference
from tests.cpu.engine import load

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TEXTS = reference.texts_of_all_lengths(24)
TOLERANCE = 1e-4


def write_onnx(folder: Path, path: Path, output: str, inputs: tuple[str, ...]) -> None:
    """The folder's model by torch.onnx.export alone: inputs as named, one output as transformers names it."""
    import torch

    auto = "AutoModelForSequenceClassification" if output == "logits" else "AutoModel"
    model, _ = reference.load(folder, auto)

    class Body(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None, position_ids: Any = None
        ) -> Any:
            output_ = self.model(
                input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, position_ids=position_ids
            )
            return output_.logits if output == "logits" else output_.last_hidden_state

    ids = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]])
    arrays = {
        "input_ids": ids, "attention_mask": (ids != 0).long(), "token_type_ids": torch.zeros_like(ids),
        "position_ids": torch.arange(4).expand(2, 4).contiguous(),
    }  # fmt: skip
    dim = torch.export.Dim.DYNAMIC
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        Body().eval(), (), str(path), kwargs={name: arrays[name] for name in inputs}, dynamo=True, external_data=False,
        dynamic_shapes={name: {0: dim, 1: dim} for name in inputs}, output_names=[output],
        input_names=list(inputs), verbose=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def optimum(bert: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Folders without weights: a classifier, a body, a body that takes positions; a cache of their own."""
    root = tmp_path_factory.mktemp("optimum")
    made = {
        "classifier": (bert, "model.onnx", "logits", ("input_ids", "attention_mask", "token_type_ids")),
        "body": (encoder, "onnx/model.onnx", "last_hidden_state", ("input_ids", "attention_mask")),
        "positions": (encoder, "model.onnx", "token_embeddings", ("input_ids", "attention_mask", "position_ids")),
    }
    for name, (source, file, output, inputs) in made.items():
        shutil.copytree(source, root / name)
        write_onnx(source, root / name / file, output, inputs)
        (root / name / "model.safetensors").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        yield {name: root / name for name in made}


def embedded(folder: Path, **settings: Any) -> np.ndarray:
    with load(folder, task="feature-extraction", **settings) as engine:
        assert engine.plan.backend == "onnx"
        return np.asarray(engine.embed(TEXTS))


def test_a_classifier_without_weights_runs_its_onnx_file(optimum: dict[str, Path], bert: Path) -> None:
    wanted = reference.logits(bert, TEXTS, TEXTS[::-1]).softmax(1).numpy()
    with load(optimum["classifier"], scores="all") as engine:
        assert engine.plan.backend == "onnx"
        table = engine.predict(TEXTS, TEXTS[::-1])
        assert engine._loader.model("fp32").cost.per_token > 0
    np.testing.assert_allclose(np.array(table["scores"].to_pylist()), wanted, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["body", "positions"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_token_vectors_are_pooled_as_asked(optimum: dict[str, Path], encoder: Path, name: str, pooling: str) -> None:
    states = reference.hidden_states(encoder, TEXTS)
    wanted = np.stack([(s.mean(0) if pooling == "mean" else s[-1]).numpy() for s in states])
    np.testing.assert_allclose(embedded(optimum[name], pooling=pooling), wanted, atol=TOLERANCE)


def test_a_file_can_be_made_int8(optimum: dict[str, Path]) -> None:
    plain, int8 = embedded(optimum["body"]), embedded(optimum["body"], precision="int8")
    cosine = (plain * int8).sum(1) / np.linalg.norm(plain, axis=1) / np.linalg.norm(int8, axis=1)
    assert 0.995 < cosine.min() < 0.9999999


def test_the_file_is_chosen_or_asked_for(optimum: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(optimum["body"], tmp_path / "model"))
    wanted = embedded(folder)
    (folder / "onnx" / "model.onnx").rename(folder / "onnx" / "model_O2.onnx")
    np.testing.assert_array_equal(embedded(folder), wanted)
    shutil.copy(folder / "onnx" / "model_O2.onnx", folder / "onnx" / "model_O1.onnx")
    with pytest.raises(UsageError, match=r"onnx/model_O1\.onnx, onnx/model_O2\.onnx.*--onnx-file"):
        embedded(folder)
    np.testing.assert_array_equal(embedded(folder, onnx_file="onnx/model_O1.onnx"), wanted)
    with pytest.raises(UsageError, match=r"--onnx-file other\.onnx.*onnx/model_O1\.onnx"):
        embedded(folder, backend="onnx", onnx_file="other.onnx")


def test_a_folder_with_neither_is_refused(optimum: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(optimum["classifier"], tmp_path / "model"))
    (folder / "model.onnx").unlink()
    with pytest.raises(UsageError, match="neither"):
        load(folder, backend="onnx")


def test_a_graph_for_another_task_is_refused(optimum: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"outputs are logits.*feature-extraction needs last_hidden_state"):
        load(optimum["classifier"], task="feature-extraction")


# -- files from strangers


def outside_path(folder: Path) -> dict[str, Any]:
    shutil.copy(folder / "model.onnx", folder.parent / "outside.onnx")
    return {"onnx_file": "../outside.onnx"}


def absolute_path(folder: Path) -> dict[str, Any]:
    return {"onnx_file": str(folder / "model.onnx")}


def linked_file(folder: Path) -> dict[str, Any]:
    (folder / "model.onnx").rename(folder.parent / "linked.onnx")
    (folder / "model.onnx").symlink_to(folder.parent / "linked.onnx")
    return {}


def external(folder: Path, location: str) -> dict[str, Any]:
    model = onnx.load(folder / "model.onnx")
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    (folder.parent / "secret").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return {}


def external_data_above(folder: Path) -> dict[str, Any]:
    return external(folder, "../secret")


def external_data_absolute(folder: Path) -> dict[str, Any]:
    return external(folder, str(folder.parent / "secret"))


def external_data_linked(folder: Path) -> dict[str, Any]:
    (folder / "weights.bin").symlink_to(folder.parent / "secret")
    return external(folder, "weights.bin")


def custom_operator(folder: Path) -> dict[str, Any]:
    model = onnx.load(folder / "model.onnx")
    model.graph.node[0].domain = "their.library"
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return {}


def compiled_engine(folder: Path) -> dict[str, Any]:
    model = onnx.load(folder / "model.onnx")
    model.graph.node.append(onnx.helper.make_node("EPContext", [], ["x"], domain="com.microsoft"))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return {}


@pytest.mark.parametrize(
    "attack",
    [outside_path, absolute_path, linked_file, external_data_above, external_data_absolute, external_data_linked,
     custom_operator, compiled_engine],
)  # fmt: skip
def test_what_leads_outside_or_to_code_is_refused(optimum: dict[str, Path], tmp_path: Path, attack: Any) -> None:
    folder = Path(shutil.copytree(optimum["classifier"], tmp_path / "model"))
    settings = attack(folder)
    with pytest.raises(HostileModelError):
        load(folder, backend="onnx", **settings)


@pytest.mark.parametrize("content", [b"", b"not a graph", bytes(range(256)) * 40])
def test_a_broken_file_is_named(optimum: dict[str, Path], tmp_path: Path, content: bytes) -> None:
    folder = Path(shutil.copytree(optimum["classifier"], tmp_path / "model"))
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.onnx"):
        load(folder, backend="onnx")


# -- providers


@pytest.mark.parametrize(
    ("asked", "package"),
    [("cuda", "onnxruntime-gpu"), ("tensorrt", "tensorrt"), ("migraphx", "migraphx"), ("rocm", "migraphx"),
     ("openvino", "onnxruntime-openvino"), ("directml", "onnxruntime-directml"), ("coreml", "macOS")],
)  # fmt: skip
def test_a_missing_provider_is_an_error_that_names_the_package(bert: Path, asked: str, package: str) -> None:
    if asked in [p.name for p in providers.PROVIDERS if p.execution_provider in providers.available()]:
        pytest.skip("it is here")
    with pytest.raises(UsageError, match=rf"--provider {asked}.*cpu.*{package}"):
        load(bert, backend="onnx", provider=asked, devices="auto")


@pytest.mark.parametrize(
    ("asked", "devices", "here", "chosen"),
    [
        ("auto", "auto", ["CPUExecutionProvider"], "CPUExecutionProvider"),
        ("auto", "cuda:1", ["TensorrtExecutionProvider", "CUDAExecutionProvider"], "CUDAExecutionProvider"),
        ("auto", "cuda", ["MIGraphXExecutionProvider", "CPUExecutionProvider"], "MIGraphXExecutionProvider"),
        ("rocm", "auto", ["MIGraphXExecutionProvider", "ROCMExecutionProvider"], "MIGraphXExecutionProvider"),
        ("rocm", "cuda", ["ROCMExecutionProvider"], "ROCMExecutionProvider"),
        ("tensorrt", "cuda", ["TensorrtExecutionProvider", "CUDAExecutionProvider"], "TensorrtExecutionProvider"),
        ("auto", "mps", ["CoreMLExecutionProvider"], "CoreMLExecutionProvider"),
    ],
)
def test_the_provider_follows_device_and_runtime(
    monkeypatch: pytest.MonkeyPatch, asked: str, devices: str, here: list[str], chosen: str
) -> None:
    monkeypatch.setattr(providers, "available", lambda: here)
    assert providers.choose_provider(asked, devices).execution_provider == chosen


def test_provider_and_device_must_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "available", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(UsageError, match=r"--provider cuda drives cuda, --devices says cpu"):
        providers.choose_provider("cuda", "cpu")


class FakeSession:
    """What check_assignment and run_bound ask of an InferenceSession."""

    def __init__(self, names: list[str], nodes: dict[str, list[str]]) -> None:
        self._names, self._nodes = names, nodes
        self.calls: list[Any] = []

    def get_providers(self) -> list[str]:
        return self._names

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [
            SimpleNamespace(ep_name=name, get_nodes=lambda ops=ops: [SimpleNamespace(op_type=op) for op in ops])
            for name, ops in self._nodes.items()
        ]

    def io_binding(self) -> FakeSession:
        return self

    def bind_cpu_input(self, name: str, array: np.ndarray) -> None:
        self.calls.append((name, array.shape))

    def bind_output(self, *where: Any) -> None:
        self.calls.append(where)

    def run_with_iobinding(self, binding: Any) -> None:
        self.calls.append("run")

    def copy_outputs_to_cpu(self) -> list[np.ndarray]:
        return [np.ones((2, 3), np.float32)]


CUDA = next(p for p in providers.PROVIDERS if p.name == "cuda")


def test_a_silent_fall_back_to_the_processor_is_an_error() -> None:
    cpu, cuda = "CPUExecutionProvider", CUDA.execution_provider
    with pytest.raises(ModelError, match=r"--provider cuda.*fell back to CPUExecutionProvider"):
        providers.check_assignment(FakeSession([cpu], {}), CUDA)
    with pytest.raises(ModelError, match=r"gave MatMul to the CPU"):
        providers.check_assignment(FakeSession([cuda, cpu], {cuda: ["Softmax"], cpu: ["MatMul", "Shape"]}), CUDA)
    providers.check_assignment(FakeSession([cuda, cpu], {cuda: ["MatMul"], cpu: ["Shape"]}), CUDA)


def test_on_a_gpu_inputs_and_outputs_are_bound() -> None:
    session = FakeSession([], {})
    (values,) = run_bound(session, {"input_ids": np.zeros((2, 5), np.int64)}, ["values"], "cuda", "cuda:1")
    assert session.calls == [("input_ids", (2, 5)), ("values", "cuda", 1), "run"]
    assert values.shape == (2, 3)


def test_provider_options_follow_precision_and_device(tmp_path: Path) -> None:
    tensorrt = next(p for p in providers.PROVIDERS if p.name == "tensorrt")
    chosen = providers.options(tensorrt, "cuda:2", "fp16", tmp_path)
    assert chosen["trt_fp16_enable"] == "1" and chosen["trt_bf16_enable"] == "0"
    assert chosen["device_id"] == "2" and chosen["trt_engine_cache_path"] == str(tmp_path)
    assert providers.options(CUDA, "cuda", "fp32", tmp_path)["use_tf32"] == "0"
