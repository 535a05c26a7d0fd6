"""Whether the host waits for the device while an evaluation runs.

The values of real models are moved to the meta device, which has shapes and no numbers: whatever needs one on the host,
or a result whose shape depends on one, is seen there, or fails.
"""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

import packhorse
from packhorse.auditing.events import Copy, Wait
from packhorse.auditing.watching import Watch
from packhorse.backends.torch import workers
from packhorse.backends.torch.model import TorchModel
from packhorse.evaluating import labelled, retrieval
from tests.cpu.answering import save_bert as save_answerer
from tests.cpu.evaluating import TEXTS, save_language_model, save_tagger
from tests.models import save_classifier

pytest.importorskip("torchmetrics")

AS_IT_IS: dict[str, Any] = {"precision": "fp32", "tune": "off"}
SHARD_ROWS = 4
NUM_SHARDS = -(-len(TEXTS) // SHARD_ROWS)


class _Done(Exception):
    """All rows are through; there is nothing to compute figures of."""


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Of the loop over shards, with the models' values on the meta device."""
    watch = Watch(torch.device("meta"), {}, frozenset())
    on_device, make_measure, run = TorchModel.on_device, labelled.make_measure, labelled._run

    def moved(self: Any, batch: Any) -> torch.Tensor:
        values = on_device(self, batch)
        return (values.result() if isinstance(values, Future) else values).to("meta", non_blocking=True)

    def made(task: str, job: Any) -> Any:
        job.stages.model.device = "meta"
        return make_measure(task, job)

    def watched(*args: Any) -> None:
        with watch.watching():
            run(*args)
        raise _Done

    monkeypatch.setattr(TorchModel, "on_device", moved)
    monkeypatch.setattr(labelled, "make_measure", made)
    monkeypatch.setattr(labelled, "_run", watched)
    return watch


def _waits(watch: Watch) -> list[str]:
    """Copies to the host among them."""
    return [event.call for event in watch.events if isinstance(event, Wait)]


def _evaluated(model: Path, columns: dict[str, Any], label: str | None = "label", **settings: Any) -> None:
    settings = AS_IT_IS | {"shard_rows": SHARD_ROWS} | settings
    with pytest.raises(_Done):
        packhorse.evaluate(model, pa.table(columns), label, **settings)


def _labels(kind: str) -> list[Any]:
    made: dict[str, Any] = {"single": 1, "multi": ["LABEL_0"], "number": 0.5}
    return [*[made[kind]] * (len(TEXTS) - 1), None]


@pytest.mark.parametrize("settings", [{}, {"long": "windows", "max_length": 8, "stride": 2}], ids=["plain", "windows"])
@pytest.mark.parametrize(
    ("kind", "problem"),
    [("single", None), ("multi", "multi_label_classification"), ("number", "regression")],
    ids=["one label", "several", "regression"],
)
def test_classification_waits_for_nothing(
    tmp_path: Path, watch: Watch, kind: str, problem: str | None, settings: dict[str, Any]
) -> None:
    num_labels = 1 if kind == "number" else 3
    folder = save_classifier(tmp_path / "m", num_labels=num_labels, problem_type=problem)
    _evaluated(folder, {"text": [*TEXTS[:-2], None, "a"], "label": _labels(kind)}, text_column="text", **settings)
    assert _waits(watch) == []
    assert sum(isinstance(event, Copy) for event in watch.events) >= NUM_SHARDS  # labels went there


def test_entities_wait_for_nothing(tmp_path: Path, watch: Watch) -> None:
    words = [text.split() for text in TEXTS]
    tags = [["O"] * len(row) for row in words]
    _evaluated(save_tagger(tmp_path / "m"), {"w": words, "label": tags}, text_column="w")
    assert _waits(watch) == []


def test_pairs_wait_for_nothing(encoder: Path, bert: Path, watch: Watch, tmp_path: Path) -> None:
    columns = {"text": TEXTS, "other": TEXTS[::-1], "label": _labels("number")}
    told = {"text_column": "text", "pair_column": "other"}
    _evaluated(encoder, columns, task="feature-extraction", **told)
    folder = save_classifier(tmp_path / "m", num_labels=1)
    _evaluated(folder, columns, task="text-ranking", **told)
    assert _waits(watch) == []


def test_answers_are_copied_once_a_shard(tmp_path: Path, watch: Watch) -> None:
    columns = {"question": TEXTS, "context": TEXTS[::-1], "label": TEXTS}
    _evaluated(save_answerer(tmp_path / "m"), columns)
    assert len(_waits(watch)) == NUM_SHARDS


def test_log_likelihoods_are_copied_once_a_shard(tmp_path: Path, watch: Watch) -> None:
    _evaluated(save_language_model(tmp_path, "causal"), {"text": TEXTS}, None, task="perplexity")
    assert len(_waits(watch)) == NUM_SHARDS


def test_retrieval_waits_for_nothing(
    tmp_path: Path, encoder: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_of, each_of = retrieval._Embedding.all_of, retrieval._Embedding.each_of

    def watched(self: Any, *args: Any) -> Any:
        with watch.watching():
            return all_of(self, *args)

    def watched_to_the_end(self: Any, *args: Any) -> Any:
        with watch.watching():
            each_of(self, *args)
        raise _Done

    monkeypatch.setattr(retrieval._Embedding, "all_of", watched)
    monkeypatch.setattr(retrieval._Embedding, "each_of", watched_to_the_end)
    monkeypatch.setattr(retrieval, "device_of", lambda model: "meta")
    rows = {"id": [str(i) for i in range(len(TEXTS))], "text": [*TEXTS[:-1], None]}
    (tmp_path / "qrels.tsv").write_text("0\t1\t1\n")
    told: dict[str, Any] = {"queries": pa.table(rows), "qrels": tmp_path / "qrels.tsv", "task": "feature-extraction"}
    _evaluated(encoder, rows, None, **told)
    assert _waits(watch) == []


def test_the_watch_sees_a_wait(bert: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other tests would see one."""
    from packhorse.evaluating.text_classification import SingleLabel

    update = SingleLabel.update

    def curious(self: Any, found: Any, rows: Any) -> None:
        update(self, found, rows)
        self._state.matrix.sum().item()

    monkeypatch.setattr(SingleLabel, "update", curious)
    _evaluated(bert, {"text": TEXTS, "label": _labels("single")})
    assert len(_waits(watch)) == NUM_SHARDS


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "feature-extraction"])
def test_packed_forwards_wait_for_nothing_either(
    task: str, tmp_path: Path, bert: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the processor as the device: counted are the points at which another one would be waited for."""
    watch, compute = Watch(torch.device("cpu"), {}, frozenset()), workers._guarded
    is_loop, run = [False], labelled._run

    def watched(*args: Any) -> torch.Tensor:
        if not is_loop[0]:
            return compute(*args)
        with watch.watching():
            return compute(*args)

    def loop(*args: Any) -> None:
        is_loop[0] = True
        run(*args)
        raise _Done

    monkeypatch.setattr(workers, "_guarded", watched)
    monkeypatch.setattr(labelled, "_run", loop)
    told: dict[str, Any] = {"attention": "packed", "task": task, "text_column": "text"}
    columns: dict[str, Any] = {"text": TEXTS, "label": _labels("single")}
    if task == "token-classification":
        columns = {"text": [text.split() for text in TEXTS], "label": [["O"] * len(text.split()) for text in TEXTS]}
    if task == "feature-extraction":
        columns, told = columns | {"other": TEXTS[::-1]}, told | {"pair_column": "other"}
    models = {"text-classification": bert, "feature-extraction": encoder}
    _evaluated(models.get(task) or save_tagger(tmp_path / "m"), columns, **told)
    assert _waits(watch) == []
