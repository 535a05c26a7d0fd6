"""The openvino backend gives what transformers gives row by row, converts once, and refuses what it cannot do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from packhorse.backends import openvino as backend
from packhorse.config import EngineConfig
from packhorse.data import Batch, Tokens
from packhorse.errors import HostileModelError, ModelError, UsageError
from packhorse.load_request import LoadRequest
from packhorse.loading import Loader
from packhorse.loading.choosing import Texts, choose
from tests.cpu import architectures, embedders, reference
from tests.models import save_classifier

pytest.importorskip("openvino")

TEXTS = reference.texts_of_all_lengths()
TOLERANCE = 1e-4
LONG = 512


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cache of these tests' own, so that each model is converted once here and nothing stays behind."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "packhorse" / "openvino"


class Loaded:
    """A model behind its loader's tokenizer."""

    def __init__(self, folder: Path, texts: list[str] = TEXTS, pairs: list[str] | None = None, **settings: Any) -> None:
        config = EngineConfig(
            model=str(folder), **{"backend": "openvino", "devices": "cpu", "precision": "fp32"} | settings
        )
        self.loader = Loader(config)
        self.loader.see(list(texts), None if pairs is None else list(pairs))
        self.model = self.loader.model(config.precision)
        tokenizer = self.loader.material.tokenizer(self.loader.description.max_length, pairs is not None)
        self.tokens: Tokens = tokenizer.tokenize(texts, pairs).tokens
        tokenizer.close()

    def values(self, rows_a_batch: int = 5) -> np.ndarray:
        """Rows in padded batches, all of them begun before the first is waited for."""
        starts = range(0, self.tokens.num_rows, rows_a_batch)
        rows = [np.arange(i, min(i + rows_a_batch, self.tokens.num_rows)) for i in starts]
        pending = [self.model.forward(Batch(self.tokens.take(r))) for r in rows]
        return np.concatenate([p.numpy() for p in pending])

    def request(self, precision: str = "fp32") -> LoadRequest:
        return self.loader.request(precision)


def softmax(logits: Any) -> np.ndarray:
    return logits.softmax(-1).numpy()


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_classifiers_match_transformers(classifiers: dict[str, Path], kind: str) -> None:
    loaded = Loaded(classifiers[kind])
    assert loaded.model.pads_safely
    assert loaded.model.max_length == reference.MAX_LENGTH
    expected = softmax(reference.logits(classifiers[kind], TEXTS))
    np.testing.assert_allclose(loaded.values(), expected, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["modernbert", "mpnet", "deberta-v2"])
def test_other_architectures(tmp_path: Path, kind: str) -> None:
    folder = architectures.save(tmp_path, kind, "AutoModelForSequenceClassification")
    loaded = Loaded(folder)
    expected = softmax(reference.logits(folder, TEXTS))
    rows = 5 if loaded.model.pads_safely else 1
    np.testing.assert_allclose(loaded.values(rows), expected, atol=TOLERANCE)


def test_pairs_have_their_token_types(bert: Path) -> None:
    pairs = list(reversed(TEXTS))
    expected = softmax(reference.logits(bert, TEXTS, pairs))
    np.testing.assert_allclose(Loaded(bert, TEXTS, pairs).values(), expected, atol=TOLERANCE)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken", ("mean", "cls")], ids=str)
def test_embeddings_match_sentence_transformers(bodies: dict[str, Path], tmp_path: Path, pooling: Any) -> None:
    from sentence_transformers.base.modules import Normalize

    after = [] if isinstance(pooling, tuple) else [embedders.dense(embedders.HIDDEN, 16), Normalize()]
    folder = embedders.save_today(tmp_path, bodies["uncased"], pooling, after)
    np.testing.assert_allclose(Loaded(folder).values(), embedders.encoded(folder, TEXTS), atol=TOLERANCE)


def test_rows_of_one_and_of_512_tokens(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path, max_position_embeddings=LONG, initializer_range=0.6)
    loaded = Loaded(folder)
    rng = np.random.default_rng(3)
    lengths = np.array([1, LONG, 300, 1, LONG])
    ids = rng.integers(5, 90, int(lengths.sum())).astype(np.int32)
    tokens = Tokens(ids, np.concatenate([[0], np.cumsum(lengths)]))
    found = loaded.model.forward(Batch(tokens)).numpy()
    np.testing.assert_allclose(found, _by_transformers(folder, tokens), atol=TOLERANCE)


def _by_transformers(folder: Path, tokens: Tokens) -> np.ndarray:
    model, _ = reference.load(folder)
    rows = [tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]] for i in range(tokens.num_rows)]
    with torch.inference_mode():
        return np.concatenate([softmax(model(torch.from_numpy(r.astype(np.int64))[None]).logits) for r in rows])


@pytest.mark.parametrize(("precision", "least"), [("bf16", 0.999), ("int8", 0.98)])
def test_lower_precisions_are_near(encoder: Path, precision: str, least: float) -> None:
    if precision not in backend.supported_precisions("cpu") and precision != "int8":
        pytest.skip(f"no {precision} on this processor")
    expected = Loaded(encoder).values()
    found = Loaded(encoder, precision=precision).values()
    assert np.abs(found - expected).max() > 0, "computed in fp32"
    assert cosines(found, expected).min() > least


def test_streams_and_threads_do_not_change_a_bit(encoder: Path) -> None:
    from packhorse.backends.openvino.model import find_graph
    from packhorse.backends.openvino.runner import Runner, Streams

    loaded = Loaded(encoder)
    request = loaded.request()
    batch = Batch(loaded.tokens)
    results = [
        Runner(find_graph(request), request.reduction, precision, streams).forward(batch).numpy()
        for precision in ("fp32", "bf16")
        for streams in (Streams(1, 1), Streams(1, 2), Streams(2, 2))
    ]
    for same in (results[:3], results[3:]):
        assert np.array_equal(same[0], same[1])
        assert np.array_equal(same[0], same[2])


def test_a_second_load_converts_nothing(bert: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Loaded(bert).values()
    monkeypatch.setitem(sys.modules, "packhorse.backends.openvino.convert", None)  # importing it fails
    assert np.array_equal(Loaded(bert).values(), first)
    assert np.array_equal(Loaded(bert, precision="bf16").values().shape, first.shape)  # of the same graph
    assert not list(cache.glob("tmp-*"))


def test_a_cut_short_cache_is_converted_again(tmp_path: Path, cache: Path) -> None:
    folder = save_classifier(tmp_path, initializer_range=0.5)
    before = set(cache.iterdir())
    first = Loaded(folder).values()
    (made,) = set(cache.iterdir()) - before
    os.truncate(made / "openvino_model.bin", 1_000)
    assert np.array_equal(Loaded(folder).values(), first)
    assert (made / "openvino_model.bin").stat().st_size > 1_000


def test_a_cache_that_cannot_be_written_is_done_without(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Loaded(bert).values()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert np.array_equal(Loaded(bert).values(), expected)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_export_loads_without_torch_weights(encoder: Path, tmp_path: Path, precision: str) -> None:
    from sentence_transformers.base.modules import Normalize

    after = [embedders.dense(embedders.HIDDEN, 16), Normalize()]
    source = Loaded(embedders.save_today(tmp_path / "source", encoder, after=after), precision=precision)
    backend.export(source.request(precision), tmp_path / "exported")
    assert not list((tmp_path / "exported").rglob("*.safetensors"))
    exported = Loaded(tmp_path / "exported", backend="auto", precision=precision)
    assert np.array_equal(exported.values(), source.values())
    assert (exported.model.cost, exported.model.max_length) == (source.model.cost, source.model.max_length)


def test_an_int8_export_runs_in_int8_alone(encoder: Path, tmp_path: Path) -> None:
    backend.export(Loaded(encoder, precision="int8").request("int8"), tmp_path)
    loader = Loader(EngineConfig(model=str(tmp_path), devices="cpu"))
    assert choose(loader, 10, Texts("text", None)).plan.precision == "int8"
    loader.close()
    with pytest.raises(UsageError, match="int8"):
        Loaded(tmp_path, precision="fp32")


def test_an_export_with_another_reduction_is_refused(encoder: Path, tmp_path: Path) -> None:
    backend.export(Loaded(encoder).request(), tmp_path)
    with pytest.raises(UsageError, match="pooling"):
        Loaded(tmp_path, pooling="cls")


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_graph_without_our_record(classifiers: dict[str, Path], strange: Path, tmp_path: Path, kind: str) -> None:
    """As Optimum Intel exports it: the model's own outputs."""
    folder = strange if kind == "bert" else _strange_export(classifiers[kind], tmp_path)
    found, ours = Loaded(folder), Loaded(classifiers[kind])
    np.testing.assert_allclose(found.values(), ours.values(), atol=TOLERANCE)
    assert (found.model.cost, found.model.max_length) == (ours.model.cost, ours.model.max_length)


@pytest.fixture(scope="module")
def strange(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _strange_export(bert, tmp_path_factory.mktemp("strange"))


def _strange_export(source: Path, folder: Path) -> Path:
    from packhorse.backends.openvino.packages import import_openvino, silenced

    openvino = import_openvino()
    shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    model, _ = reference.load(source)
    model.config.return_dict = False
    ids = torch.randint(5, 90, (2, 7))
    with silenced(), torch.inference_mode():
        graph = openvino.convert_model(model, example_input={"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    graph.outputs[0].get_tensor().set_names({"logits"})
    openvino.save_model(graph, folder / "openvino_model.xml", compress_to_fp16=False)
    return folder


def test_links_out_of_the_folder_are_refused(encoder: Path, tmp_path: Path) -> None:
    backend.export(Loaded(encoder).request(), tmp_path / "a")
    (tmp_path / "a" / "openvino_model.bin").rename(tmp_path / "elsewhere.bin")
    (tmp_path / "a" / "openvino_model.bin").symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(HostileModelError, match="leaves"):
        Loaded(tmp_path / "a")


def test_no_model_and_a_broken_one(encoder: Path, tmp_path: Path) -> None:
    backend.export(Loaded(encoder).request(), tmp_path)
    (tmp_path / "openvino_model.xml").write_text("<net")
    with pytest.raises(ModelError, match=r"openvino_model\.xml"):
        Loaded(tmp_path)
    (tmp_path / "openvino_model.xml").unlink()
    with pytest.raises(ModelError, match="neither"):
        Loaded(tmp_path)


def test_a_graph_of_another_task_is_refused(strange: Path) -> None:
    with pytest.raises(ModelError, match="last_hidden_state"):
        Loaded(strange, task="feature-extraction")


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"devices": "cuda"}, "CPU"), ({"attention": "sdpa"}, "attention"), ({"precision": "fp16"}, "fp32")],
)
def test_settings_without_a_meaning_here(bert: Path, settings: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Loaded(bert, **settings)


def test_without_openvino_the_error_says_what_to_install(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UsageError, match=r"packhorse\[openvino\]"):
        Loaded(bert)


def test_nothing_is_reported_or_printed(encoder: Path, tmp_path: Path) -> None:
    """In a home of its own, since the telemetry would leave its files there."""
    code = (
        "import sys, packhorse\n"
        f"engine = packhorse.load({str(encoder)!r}, backend='openvino', precision='int8', devices='cpu')\n"
        "assert engine.embed(['good film']).shape == (1, 32)\n"
        "assert 'openvino_telemetry' not in sys.modules\n"
        "import logging; assert logging.getLoggerClass() is logging.Logger\n"
    )
    environment = os.environ | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("CI", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [p.name for p in tmp_path.iterdir() if p.name != ".cache"] == ["cache"]


def test_a_record_of_another_version_is_refused(encoder: Path, tmp_path: Path) -> None:
    backend.export(Loaded(encoder).request(), tmp_path)
    record = json.loads((tmp_path / "packhorse.json").read_text())
    (tmp_path / "packhorse.json").write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(ModelError, match="export the model again"):
        Loaded(tmp_path)
