"""Graphs of ONNX Runtime and OpenVINO for every kind of reduction, against transformers row by row in fp32."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from packhorse.backends import find_backend
from packhorse.data import Batch, ModelDescription, Reduction, Tokens, offsets_of
from packhorse.errors import ModelError, UsageError
from packhorse.load_request import LoadRequest
from packhorse.sequences import num_values
from tests.cpu import architectures, reference

for package in ("onnx", "onnxruntime", "onnxscript", "openvino"):
    pytest.importorskip(package)

BACKENDS = ("onnx", "openvino")
TOLERANCE = 1e-4
MASK, VOCAB, LABELS = 4, architectures.VOCAB, architectures.LABELS
LENGTHS = (1, 2, 5, 5, 17, 63, 64, 9, 3, 40)


class Case(NamedTuple):
    architecture: str
    auto: str
    reduction: Reduction


CASES = {
    "tokens": Case("electra", "AutoModelForTokenClassification", Reduction("tokens", LABELS, "softmax")),
    "spans": Case("xlm-roberta", "AutoModelForQuestionAnswering", Reduction("spans", 2)),
    "vectors": Case("electra", "AutoModel", Reduction("vectors", post=("normalize",))),
    "fill": Case("electra", "AutoModelForMaskedLM", Reduction("fill", 10, top_k=5, mask_id=MASK)),
    "fill-columns": Case("albert", "AutoModelForMaskedLM", Reduction("fill", 3, columns=(7, 90, 11), mask_id=MASK)),
    "sparse": Case("electra", "AutoModelForMaskedLM", Reduction("sparse", 3, pooling=("max",))),
    "sparse-sum": Case("albert", "AutoModelForMaskedLM", Reduction("sparse", 3, "log1p", pooling=("sum",))),
    "score-masked": Case("modernbert", "AutoModelForMaskedLM", Reduction("score", 1, is_masked=True)),
    "score-causal": Case("llama", "AutoModelForCausalLM", Reduction("score", 1)),
}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    root = tmp_path_factory.mktemp("models")
    wanted = {(case.architecture, case.auto) for case in CASES.values()}
    size = {"num_hidden_layers": 1}
    few = {"AutoModelForQuestionAnswering": {"num_labels": 2}}
    return {
        (kind, auto): architectures.save(root / kind / auto, kind, auto, **size, **few.get(auto, {}))
        for kind, auto in wanted
    }


def folder_of(folders: dict[tuple[str, str], Path], name: str) -> Path:
    return folders[CASES[name].architecture, CASES[name].auto]


def tokens_of(lengths: tuple[int, ...], seed: int = 0) -> Tokens:
    """Ids at random, a sixth of them the mask token; targets for a sixth; two kinds of tokens."""
    rng, total = np.random.default_rng(seed), sum(lengths)
    ids = np.where(rng.random(total) < 1 / 6, MASK, rng.integers(5, VOCAB, total)).astype(np.int32)
    targets = np.where(rng.random(total) < 1 / 6, rng.integers(5, VOCAB, total), -1).astype(np.int32)
    return Tokens(ids, offsets_of(np.array(lengths)), None, targets)


def trial() -> Tokens:
    """The first two rows equal; a mask and a target in each."""
    tokens = tokens_of((4, 9, 6), seed=1)
    tokens.ids[tokens.offsets[:-1] + 1] = MASK
    assert tokens.targets is not None
    tokens.targets[tokens.offsets[:-1] + 1] = 7
    return tokens.take(np.array([0, 0, 1, 2]))


def request(folder: Path, reduction: Reduction, precision: str = "fp32", rows: Tokens | None = None) -> LoadRequest:
    about = ModelDescription(folder, None, "its task", 2, 32, 64, source="folder")
    return LoadRequest(
        description=about, reduction=reduction, device="cpu", precision=precision, workers=2, threads=1, trial=trial(),
        rows=rows or tokens_of((3, 7)), longest=None, attention="auto", provider="auto", onnx_file=None,
        compiled=False, model_key=lambda: str(folder),
    )  # fmt: skip


def values_of(model: Any, tokens: Tokens, rows_a_batch: int = 4) -> list[np.ndarray]:
    """[N, width] of each row, from padded batches."""
    found = []
    for start in range(0, tokens.num_rows, rows_a_batch):
        some = tokens.take(np.arange(start, min(start + rows_a_batch, tokens.num_rows)))
        values = model.forward(Batch(some)).numpy()
        assert values.dtype == np.float32 and values.shape[1] == model.reduction.width
        counts = num_values(model.reduction, some, values)
        found += np.split(values, np.cumsum(np.ones(some.num_rows) if counts is None else counts)[:-1].astype(int))
    return found


def expected(folder: Path, auto: str, reduction: Reduction, tokens: Tokens) -> list[np.ndarray]:
    """By transformers, a row at a time; the formulas are those of Reduction's docstring."""
    model, _ = reference.load(folder, auto)
    assert tokens.targets is not None
    rows = []
    for a, b in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True):
        ids, targets = (torch.from_numpy(x[a:b].astype(np.int64)) for x in (tokens.ids, tokens.targets))
        with torch.inference_mode():
            rows.append(_row(model(input_ids=ids[None]), reduction, ids, targets).numpy())
    return rows


def _row(output: Any, reduction: Reduction, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if reduction.kind == "tokens":
        return output.logits[0].softmax(-1)
    if reduction.kind == "spans":
        return torch.stack([output.start_logits[0], output.end_logits[0]], 1)
    if reduction.kind == "vectors":
        return torch.nn.functional.normalize(output.last_hidden_state[0], dim=-1)
    logits = output.logits[0]
    if reduction.kind == "fill":
        probabilities = logits[ids == reduction.mask_id].softmax(-1)
        if reduction.columns:
            return probabilities[:, list(reduction.columns)]
        best = probabilities.topk(reduction.top_k, -1)
        return torch.cat([best.indices.float(), best.values], 1)
    if reduction.kind == "sparse":
        of_tokens = torch.log1p(torch.relu(logits))
        weights = of_tokens.amax(0) if reduction.pooling == ("max",) else torch.log1p(of_tokens).sum(0)
        places = weights.nonzero()[:, 0]
        return torch.stack([places.float(), weights[places]], 1)
    of_all = logits.log_softmax(-1)
    if reduction.is_masked:
        return of_all[targets >= 0].gather(1, targets[targets >= 0][:, None])
    return torch.cat([torch.zeros(1, 1), of_all[:-1].gather(1, ids[1:, None])])


def check(model: Any, wanted: list[np.ndarray], tokens: Tokens) -> None:
    is_sparse, is_filled = model.reduction.kind == "sparse", model.reduction.top_k > 0
    for of_row, values in zip(wanted, values_of(model, tokens), strict=True):
        found = values[:, 1:] if is_sparse else values
        assert found.shape == of_row.shape
        places = slice(0, model.reduction.top_k if is_filled else int(is_sparse))  # numbers of tokens
        np.testing.assert_array_equal(found[:, places], of_row[:, places])
        np.testing.assert_allclose(found, of_row, atol=TOLERANCE)


QUICK = ("tokens", "fill")  # torch's exporter to ONNX takes seconds
EACH = [
    pytest.param(name, backend, marks=[] if backend == "openvino" or name in QUICK else pytest.mark.slow)
    for name in CASES
    for backend in BACKENDS
]


@pytest.mark.parametrize(("name", "backend"), EACH)
def test_values_equal_transformers_row_by_row(folders: dict[tuple[str, str], Path], name: str, backend: str) -> None:
    case, folder, tokens = CASES[name], folder_of(folders, name), tokens_of(LENGTHS)
    model = find_backend(backend).load(request(folder, case.reduction))
    assert model.pads_safely
    assert not [note for note in model.notes if "not fused" in note or "logits of all" in note]
    check(model, expected(folder, case.auto, case.reduction, tokens), tokens)
    if case.reduction.per in ("mask", "target"):  # a batch without any
        tokens = Tokens(np.full(5, 9, np.int32), np.array([0, 4, 5]), None, np.full(5, -1, np.int32))
        assert model.forward(Batch(tokens)).numpy().shape == (0, model.reduction.width)
    model.close()


@pytest.mark.parametrize("backend", [pytest.param("onnx", marks=pytest.mark.slow), "openvino"])
def test_int8_is_near(folders: dict[tuple[str, str], Path], backend: str) -> None:
    case, folder, tokens = CASES["fill-columns"], folder_of(folders, "fill"), tokens_of(LENGTHS)
    model = find_backend(backend).load(request(folder, case.reduction, "int8", tokens_of((9,) * 40, seed=3)))
    wanted = np.concatenate(expected(folder, case.auto, case.reduction, tokens))
    found = np.concatenate(values_of(model, tokens))
    assert 1e-6 < np.abs(found - wanted).mean() < 0.3 * wanted.std()
    model.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_exported_graph_gives_fewer_of_the_likeliest_but_no_more(
    folders: dict[tuple[str, str], Path], tmp_path: Path, backend: str
) -> None:
    case, folder = CASES["fill"], folder_of(folders, "fill")
    find_backend(backend).export(request(folder, case.reduction), tmp_path / "made")
    assert not list(tmp_path.rglob("*.safetensors"))
    fewer, tokens = dataclasses.replace(case.reduction, top_k=2, width=4), tokens_of(LENGTHS)
    model = find_backend(backend).load(request(tmp_path / "made", fewer))
    check(model, expected(folder, case.auto, fewer, tokens), tokens)
    model.close()
    for asked, words in (
        (dataclasses.replace(case.reduction, top_k=9, width=18), "top_k 5, not 9"),
        (CASES["fill-columns"].reduction, r"columns none, not \[7, 90, 11\]; leave out"),
        (CASES["sparse"].reduction, "kind fill, not sparse; say --task fill-mask"),
    ):
        with pytest.raises((ModelError, UsageError), match=words):
            find_backend(backend).load(request(tmp_path / "made", asked))


# -- graphs that others exported: outputs are the model's own


class Plain(torch.nn.Module):
    """Outputs by the names of transformers."""

    def __init__(self, model: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return tuple(getattr(output, name) for name in self.names)


def foreign(folder: Path, auto: str, names: tuple[str, ...], backend: str, target: Path) -> Path:
    """config.json and a graph."""
    module = Plain(reference.load(folder, auto)[0], names)
    module.model.config.use_cache = False
    ids = torch.arange(5, 23).reshape(2, 9)
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids).tril(8)}
    for file in folder.glob("*.json"):
        shutil.copy(file, target / file.name)
    if backend == "onnx":
        shape = dict.fromkeys(range(2), torch.export.Dim.DYNAMIC)
        torch.onnx.export(
            module, (), str(target / "model.onnx"), kwargs=example, dynamo=True, output_names=list(names),
            dynamic_shapes=dict.fromkeys(example, shape), external_data=False, verbose=False,
        )  # fmt: skip
        return target
    from packhorse.backends.openvino.packages import import_openvino, silenced

    with silenced(), torch.inference_mode():
        graph = import_openvino().convert_model(module, example_input=example)
    for output, name in zip(graph.outputs, names, strict=True):
        output.get_tensor().set_names({name})
    import_openvino().save_model(graph, target / "openvino_model.xml", compress_to_fp16=False)
    return target


OUTPUTS = {"spans": ("start_logits", "end_logits"), "vectors": ("last_hidden_state",)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, "openvino") for name in CASES if name != "sparse-sum"]
    + [pytest.param(name, "onnx", marks=pytest.mark.slow) for name in ("tokens", "spans", "fill")],
)
def test_a_graph_that_others_exported(
    folders: dict[tuple[str, str], Path], tmp_path: Path, name: str, backend: str
) -> None:
    case, folder, tokens = CASES[name], folder_of(folders, name), tokens_of(LENGTHS)
    foreign(folder, case.auto, OUTPUTS.get(case.reduction.kind, ("logits",)), backend, tmp_path)
    model = find_backend(backend).load(request(tmp_path, case.reduction))
    assert model.pads_safely
    check(model, expected(folder, case.auto, case.reduction, tokens), tokens)
    model.close()


def test_a_graph_without_the_outputs_of_the_task_says_which(
    folders: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    case = CASES["tokens"]
    foreign(folder_of(folders, "tokens"), case.auto, ("logits",), "openvino", tmp_path)
    with pytest.raises(ModelError, match="start_logits and end_logits"):
        find_backend("openvino").load(request(tmp_path, CASES["spans"].reduction))
