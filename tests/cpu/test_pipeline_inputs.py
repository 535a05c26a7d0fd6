"""packhorse.pipeline: lists, columns and streams, threads, and what is left behind."""

from __future__ import annotations

import gc
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import packhorse
from packhorse.errors import UsageError
from packhorse.load_request import LoadRequest
from packhorse.loading.loader import Loader
from packhorse.pipelines import calling
from tests.models import save_head

TEXTS = ["a film", "the plot is thin", "你好 world", "short", "a long row " * 9]
NLI: dict[str, Any] = {"id2label": {0: "contradiction", 1: "neutral", 2: "entailment"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_head(tmp_path_factory.mktemp("nli"), "BertForSequenceClassification", **NLI))


def test_a_generator_is_read_as_it_is_asked_for(folder: str) -> None:
    taken: list[int] = []

    def endless() -> Iterator[str]:
        while True:
            taken.append(1)
            yield f"text {len(taken)}"

    with packhorse.pipeline("text-classification", folder) as pipe:
        assert next(pipe(endless()))["label"] in NLI["id2label"].values()
        assert len(taken) <= 1_024


def test_columns_give_lists(folder: str) -> None:
    import datasets
    import pyarrow as pa

    with packhorse.pipeline("text-classification", folder) as pipe:
        expected = pipe(TEXTS)
        for column in (np.array(TEXTS), pa.chunked_array([TEXTS]), datasets.Dataset.from_dict({"t": TEXTS})["t"]):
            assert pipe(column) == expected
        assert pipe([]) == [] == list(pipe(iter([])))


def test_lists_are_done_in_parts(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with packhorse.pipeline("text-classification", folder) as pipe:
        items = [*TEXTS, {"text": "a", "text_pair": "b"}, "c"]
        expected = pipe(items)
        monkeypatch.setattr(calling, "TOGETHER", 2)
        for found, wanted in zip(pipe(items), expected, strict=True):
            assert found["label"] == wanted["label"] and abs(found["score"] - wanted["score"]) <= 1e-4
        with pytest.raises(ValueError, match="item 6: not_text"):
            pipe([*items[:6], 7, None])


def test_results_before_a_failure_are_given(folder: str) -> None:
    def texts(last: Any) -> Iterator[Any]:
        yield from ["a", {"text": "a", "text_pair": "b"}] * 40
        if isinstance(last, Exception):
            raise last
        yield last

    with packhorse.pipeline("text-classification", folder) as pipe:
        for last, match in ((OSError("gone"), "gone"), (None, "item 80: null_text"), ({"x": 1}, "item 80: a pair")):
            given = []
            with pytest.raises((OSError, ValueError), match=match):
                for result in pipe(texts(last)):
                    given.append(result)
            assert len(given) == 80


def test_settings_of_the_task_alone_load_no_model(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    request = Loader.request

    def counted(self: Loader, precision: str) -> LoadRequest:
        loads.append(precision)
        return request(self, precision)

    monkeypatch.setattr(Loader, "request", counted)
    with packhorse.pipeline("zero-shot-classification", folder) as pipe:
        one = pipe("a film", ["a", "b"])
        many = pipe("a film", ["a", "b", "c"], multi_label=True)
        assert pipe("a film", ["a", "b"]) == one and sum(one["scores"]) == pytest.approx(1)
        assert many == pipe("a film", "a, b, c", multi_label=True)
    assert len(loads) == 1


def test_threads_take_turns(folder: str) -> None:
    with packhorse.pipeline("text-classification", folder) as pipe:
        expected = {top_k: pipe(TEXTS, top_k=top_k) for top_k in (1, None)}
        found: list[bool] = []

        def call(top_k: int | None, function: str) -> None:
            pipe(TEXTS, function_to_apply=function)
            found.append(pipe(TEXTS, top_k=top_k) == expected[top_k])

        threads = [threading.Thread(target=call, args=given) for given in ((1, "none"), (None, "sigmoid")) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert found == [True] * 4


def test_temporary_folders_go(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    given = {"model": AutoModelForSequenceClassification.from_pretrained(folder),
             "tokenizer": AutoTokenizer.from_pretrained(folder)}  # fmt: skip
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(UsageError, match="no parameter 'colour'"):
        packhorse.pipeline("text-classification", **given, colour=1)
    pipe = packhorse.pipeline("text-classification", **given)
    assert len(list(tmp_path.glob("packhorse-model-*"))) == 1 and pipe("a")
    del pipe
    gc.collect()
    assert not list(tmp_path.glob("packhorse-model-*"))
