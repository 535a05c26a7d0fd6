"""Evaluations of entities against conlleval's rules, written out here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import packhorse
from packhorse.errors import InputError
from tests.cpu.evaluating import MAX_LENGTH, TAGS, save_tagger, write_lines

pytest.importorskip("torchmetrics")

AS_IT_IS = {"precision": "fp32", "tune": "off"}

Entity = tuple[int, str, int, int]  # row, type, first and last word


# -- entities


def entities_of(tags: Sequence[Sequence[str]]) -> set[Entity]:
    """By conlleval's rules, word by word: an entity ends before a B-, S-, O or another type, and after an E- or S-."""
    found: set[Entity] = set()
    for row, of_row in enumerate(tags):
        current: tuple[str, int] | None = None
        for at, tag in enumerate([*of_row, "O"]):
            prefix, _, kind = tag.partition("-")
            goes_on = current is not None and kind == current[0] and prefix in ("I", "E")
            if current is not None and not goes_on:
                found.add((row, current[0], current[1], at - 1))
                current = None
            if tag != "O" and current is None:
                current = (kind, at)
            if current is not None and prefix in ("E", "S"):
                found.add((row, current[0], current[1], at))
                current = None
    return found


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tagger(tmp_path_factory.mktemp("tagger"))


WORDS = [
    ["a", "good", "film"], ["unaffable", "dog's", "plot"], ["zip"], ["the", "", "cat"], ["boring"] * 40, [],
    [*"abcdefgh"], ["very", "old", "movie", "row", "read", "me"], ["made", "well", "in", "time", "it", "was", "not"],
]  # fmt: skip


def predicted_tags(folder: Path, rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Of each word's first token, by transformers, a row at a time; O of a word without one."""
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    made = []
    for words in rows:
        tags = ["O"] * len(words)
        if words:
            batch = tokenizer([list(words)], is_split_into_words=True, truncation=True, max_length=MAX_LENGTH)
            with torch.inference_mode():
                best = model(**batch.convert_to_tensors("pt")).logits[0].argmax(-1).tolist()
            for at, word in reversed(list(enumerate(batch.word_ids(0)))):
                if word is not None:
                    tags[word] = model.config.id2label[best[at]]
        made.append(tags)
    return made


def _true_tags(predicted: list[list[str]], seed: int = 0) -> list[list[str]]:
    random = np.random.default_rng(seed)
    return [[tag if random.random() < 0.7 else TAGS[random.integers(len(TAGS))] for tag in row] for row in predicted]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


@pytest.mark.parametrize("settings", [{}, {"shard_rows": 2}, {"backend": "openvino"}, {"attention": "eager"}], ids=str)
def test_entities_are_conllevals(tagger: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    if "backend" in settings:
        pytest.importorskip(settings["backend"])
    words = [row for row in WORDS if row]
    predicted = predicted_tags(tagger, words)
    true = _true_tags(predicted)
    ours, theirs = entities_of(predicted), entities_of(true)
    both = ours & theirs
    assert len(both) > 2
    lines = [{"words": w, "tags": t} for w, t in zip(words, true, strict=True)]
    path = write_lines(tmp_path / "rows.jsonl", lines)
    found = packhorse.evaluate(tagger, path, "tags", text_column="words", **AS_IT_IS, **settings).metrics
    assert found["precision"] == pytest.approx(_ratio(len(both), len(ours)))
    assert found["recall"] == pytest.approx(_ratio(len(both), len(theirs)))
    assert found["f1"] == pytest.approx(_ratio(2 * len(both), len(ours) + len(theirs)))
    for row in found["labels"]:
        sizes = [sum(e[1] == row["label"] for e in entities) for entities in (ours, theirs, both)]
        assert row["support"] == sizes[1]
        assert row["f1"] == pytest.approx(_ratio(2 * sizes[2], sizes[0] + sizes[1]))
    pairs = [p == t for a, b in zip(predicted, true, strict=True) for p, t in zip(a, b, strict=True)]
    assert found["accuracy"] == pytest.approx(np.mean(pairs))
    assert found["words"] == len(pairs)
    assert found["words_without_token"] == 40 - (MAX_LENGTH - 2) + 1  # those cut, and the empty one


def test_entities_of_rows_that_do_not_count(tagger: Path) -> None:
    words = pa.array([["a", "cat"], None, ["dog"], []], pa.list_(pa.string()))
    numbers = pa.array([[0, 1], [0], None, []], pa.list_(pa.int64()))
    found = packhorse.evaluate(tagger, pa.table({"w": words, "t": numbers}), "t", text_column="w", **AS_IT_IS)
    assert found.rows == found.measured_rows + found.unlabelled_rows + found.error_rows
    assert (found.unlabelled_rows, found.errors["null_text"]) == (1, 1)
    assert found.metrics["words"] == 2


@pytest.mark.parametrize(
    ("words", "tags", "message"),
    [
        ([["a", "b"]], [["O"]], "row 0: 1 tags, and 2 words: there must be as many"),
        ([["a"]], [["X"]], "row 0: column 't' holds 'X'; legal is O, B-PER"),
        ([["a"]], [[None]], "row 0: column 't' holds None; legal is O, B-PER"),
        (["a cat"], [["O", "O"]], "row 0: 2 tags, and a text that is not a list of words"),
        ([["a"]], ["O"], "legal is a list with a tag for each word"),
    ],
)
def test_tags_that_fit_no_words(tagger: Path, words: Any, tags: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        packhorse.evaluate(tagger, pa.table({"w": words, "t": tags}), "t", text_column="w", **AS_IT_IS)


def test_tags_without_an_outside_are_measured_by_accuracy(tmp_path: Path) -> None:
    names = ["NOUN", "VERB", "ADJ"]
    tagger = save_tagger(tmp_path / "m", names)
    words = [["a", "good", "film"], ["read"] * 40]
    predicted = predicted_tags(tagger, words)
    table = pa.table({"w": words, "t": [["NOUN"] * 3, ["VERB"] * 40]})
    found = packhorse.evaluate(tagger, table, "t", text_column="w", **AS_IT_IS)
    right = predicted[0].count("NOUN") + predicted[1].count("VERB")
    assert found.headline[0] == "accuracy"
    assert found.metrics["accuracy"] == pytest.approx(right / 43)
