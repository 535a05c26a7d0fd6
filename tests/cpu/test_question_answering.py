"""Question answering against transformers, row by row and window by window."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from packhorse.errors import UsageError
from tests.cpu import answering
from tests.cpu.answering import Found
from tests.cpu.command import forked
from tests.cpu.engine import load
from tests.models import WORDS

TOLERANCE = 1e-4
MAKERS = {"bert": answering.save_bert, "roberta": answering.save_roberta}
ODD = [
    "naïve cafe\u0301 漢字 🙂 a good film", "你好，世界！今天天气很好。", "مرحبا بالعالم كيف حالك",
    "שלום עולם, a movie", "tabs\tand\n\nlines  [SEP] the </s> end", "THE Film, the film; the FILM", "a", "👩‍👩‍👧 🇩🇪",
]  # fmt: skip


def rows_of_all_lengths() -> tuple[list[str], list[str]]:
    """Questions and contexts; some of each stand there twice."""
    rng = np.random.default_rng(3)
    made = [" ".join(rng.choice(WORDS, size=n)) for n in (1, 2, 5, 20, 60, 90, 200)]
    contexts = [*made, *ODD, "very long movie " * 60, made[3], " ".join(ODD) * 3]
    questions = [" ".join(rng.choice(WORDS, size=n)) for n in rng.integers(1, 8, len(contexts))]
    questions[2:5] = ["漢字 wo? 🙂", "كيف", questions[0]]
    return questions, contexts


QUESTIONS, CONTEXTS = rows_of_all_lengths()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("answering")
    return {name: make(root / name) for name, make in MAKERS.items()}


def answers_of(table: pa.Table) -> list[list[Found] | None]:
    """Of each row, whichever way they stand there."""
    if "answers" in table.column_names:
        return [row and [Found(**answer) for answer in row] for row in table["answers"].to_pylist()]
    rows = table.select(Found._fields).to_pylist()
    return [None if row["answer"] is None else [Found(**row)] for row in rows]


def assert_as_reference(table: pa.Table, expected: Sequence[list[Found]], top_k: int = 1) -> None:
    """expected: all answers of each row, so that two whose scores are equal but for rounding may change places."""
    assert table["error"].null_count == len(table)
    for i, (found, wanted) in enumerate(zip(answers_of(table), expected, strict=True)):
        assert found is not None and len(found) == min(top_k, len(wanted)), i
        scores = {(answer.answer, answer.start, answer.end): answer.score for answer in wanted}
        np.testing.assert_allclose([a.score for a in found], [a.score for a in wanted[: len(found)]], atol=TOLERANCE)
        for answer in found:
            assert abs(answer.score - scores[answer.answer, answer.start, answer.end]) < TOLERANCE, (i, answer)


@pytest.mark.parametrize(
    ("kind", "settings", "asked"),
    [
        ("bert", {}, {}),
        ("bert", {"top_k": 4, "handle_impossible_answer": True, "max_answer_len": 3},
         {"top_k": 4, "handle_impossible_answer": True, "most_tokens": 3}),
        ("bert", {"batching": "padded", "attention": "sdpa", "max_length": 40, "stride": 7},
         {"max_length": 40, "stride": 7}),
        ("roberta", {"top_k": 3, "max_answer_len": 40, "stride": 5}, {"top_k": 3, "most_tokens": 40, "stride": 5}),
        ("roberta", {"long": "truncate"}, {"truncates": True}),
    ],
    ids=["bert", "bert-lists", "bert-padded", "roberta-lists", "roberta-cut"],
)  # fmt: skip
def test_answers_equal_transformers_window_by_window(
    folders: dict[str, Path], kind: str, settings: dict[str, Any], asked: dict[str, Any]
) -> None:
    with load(folders[kind], **settings) as engine:
        table = engine.predict(QUESTIONS, CONTEXTS)
        assert engine.plan.batching == settings.get("batching", "packed")
    expected = [answering.answers(folders[kind], q, c, **asked) for q, c in zip(QUESTIONS, CONTEXTS, strict=True)]
    assert_as_reference(table, expected, settings.get("top_k", 1))
    for context, found in zip(CONTEXTS, answers_of(table), strict=True):
        assert all(context[answer.start : answer.end] == answer.answer for answer in found or ())


def test_an_answer_near_the_end_of_a_long_transcript_is_found(tmp_path: Path) -> None:
    folder = answering.save_finder(tmp_path / "finder", "zip")
    rng = np.random.default_rng(0)
    words = [word for word in WORDS if word != "zip"]
    before = " ".join(rng.choice(words, 11_000)) + " 漢字 🙂 résumé "
    assert len(before) > 45_000
    contexts = [before + "Zip, " + "the end " * 40, "no such word here", "the zip file"]
    with load(folder) as engine:
        found = answers_of(engine.predict(["what is it"] * 3, contexts))
    places = [(found_here[0].answer, found_here[0].start) for found_here in found if found_here]
    assert (places[0], places[2]) == (("Zip", len(before)), ("zip", 4))
    assert found[0] is not None and found[1] is not None and found[0][0].score > 0.9 > found[1][0].score


def test_rows_without_an_answer_say_why(folders: dict[str, Path]) -> None:
    long = "a very long question " * 20
    rows = [
        ("", "a film", "no_tokens", "of the question"), ("what", "", "no_tokens", "of the context"),
        ("what", " \t ", "no_tokens", "of the context"), (None, "a film", "null_text", ""),
        ("what", None, "null_text", ""), (long, "a film " * 9, "text_too_long", "shorten it, or give a larger"),
        ("what film", "a good film", None, ""),
    ]  # fmt: skip
    questions, contexts = [row[0] for row in rows], [row[1] for row in rows]
    for settings in ({}, {"long": "truncate"}, {"top_k": 2}):
        with load(folders["bert"], **settings) as engine:
            table = engine.predict(questions, contexts)
        for row, error, found in zip(rows, table["error"].to_pylist(), answers_of(table), strict=True):
            assert (error and error["kind"]) == row[2], (row, error)
            assert row[3] in (error["message"] if error else "")
            assert (found is None) == (row[2] is not None)


def test_a_long_question_is_no_error_where_its_context_fits(folders: dict[str, Path]) -> None:
    question, context = "a " * 50, "good film"
    with load(folders["bert"]) as engine:
        assert_as_reference(
            engine.predict([question], [context]), [answering.answers(folders["bert"], question, context)]
        )


def test_long_contexts_are_cut_and_counted_or_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    rows = pa.table({"question": ["what", "what"], "context": ["a film " * 50, "a film"]})
    with load(folders["bert"], long="truncate") as engine:
        report = engine.run(rows, str(tmp_path / "cut.jsonl"))
    assert (report.counters.truncated_rows, report.counters.truncated_tokens) == (1, 100 - (64 - 3 - 1))
    with load(folders["bert"], long="error") as engine:
        report = engine.run(rows, str(tmp_path / "refused.jsonl"))
    assert report.counters.errors == {"text_too_long": 1}


@pytest.mark.parametrize("long", ["truncate", "error"])
def test_a_stride_without_windows_is_refused(folders: dict[str, Path], long: str) -> None:
    with pytest.raises(UsageError, match="--stride 5: goes with --long windows"):
        load(folders["bert"], long=long, stride=5)


def test_windows_have_384_tokens_where_the_model_takes_more(tmp_path: Path) -> None:
    folder = answering.save_bert(tmp_path / "bert", 512)
    for settings, length in (({}, 384), ({"max_length": 512}, 512), ({"long": "truncate"}, 512)):
        with load(folder, **settings) as engine:
            assert engine.plan.max_length == length
    context = " ".join(WORDS * 14)
    with load(folder) as engine:
        table = engine.predict(["what is it"], [context])
    assert_as_reference(table, [answering.answers(folder, "what is it", context, max_length=384)])


def test_both_texts_are_asked_for(folders: dict[str, Path], tmp_path: Path) -> None:
    with load(folders["bert"]) as engine:
        with pytest.raises(UsageError, match="two texts"):
            engine.predict(["what"])
        rows = pa.table({"question": ["what"], "passage": ["a film"]})
        with pytest.raises(UsageError, match="--pair-column"):
            engine.run(rows, str(tmp_path / "out.jsonl"))


def test_files_and_the_command_have_the_answers_of_predict(folders: dict[str, Path], tmp_path: Path) -> None:
    rows = pa.table({"id": range(len(QUESTIONS)), "question": QUESTIONS, "context": CONTEXTS})
    pq.write_table(rows, tmp_path / "in.parquet")
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows.to_pylist())
    (tmp_path / "in.jsonl").write_text("".join(lines), encoding="utf-8")
    with load(folders["bert"], top_k=2) as engine:
        expected = engine.predict(QUESTIONS, CONTEXTS)["answers"].to_pylist()
        out = tmp_path / "out.jsonl"
        engine.run(tmp_path / "in.jsonl", str(out))
    assert [json.loads(line)["id"] for line in out.read_text("utf-8").splitlines()] == list(range(len(QUESTIONS)))
    of_lines = [json.loads(line)["answers"] for line in out.read_text("utf-8").splitlines()]
    flags = ("--top-k", "2", "--devices", "cpu", "--keep", "id", "--quiet")
    done = forked("run", folders["bert"], tmp_path / "in.parquet", "-o", tmp_path / "out.parquet", *flags)
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["id", "answers", "error"]
    for found in (of_lines, table["answers"].to_pylist()):
        for row, wanted in zip(found, expected, strict=True):
            assert [(a["answer"], a["start"], a["end"]) for a in row] == [
                (a["answer"], a["start"], a["end"]) for a in wanted
            ]
            np.testing.assert_allclose([a["score"] for a in row], [a["score"] for a in wanted], atol=1e-5)
