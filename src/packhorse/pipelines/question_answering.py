"""question-answering, as transformers 4 had it: {score, start, end, answer}, a list of them where top_k is above 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from packhorse.errors import UsageError
from packhorse.pipelines.task import Given, Row

OWN = {"max_answer_len": "max_answer_len", "handle_impossible_answer": "handle_impossible_answer", "topk": "top_k",
       "top_k": "top_k", "doc_stride": "stride", "max_seq_len": "max_length"}  # fmt: skip


def parameters() -> frozenset[str]:
    return frozenset({*OWN, "max_question_len", "padding", "align_to_words"})


def settings(given: Given) -> dict[str, Any]:
    """Raises UsageError for answers that are not whole words, and for questions that are to be cut."""
    if given.get("max_question_len") is not None:
        raise UsageError("max_question_len: a question is never cut here, the context is read in windows; leave it out")
    if given.get("align_to_words") is False:
        raise UsageError("align_to_words=False: answers are whole words here; leave it out")
    return {name: given[theirs] for theirs, name in OWN.items() if given.get(theirs) is not None}


def inputs(args: Sequence[Any], given: dict[str, Any]) -> Any:
    """question= and context= (each a text or a list; one context may serve all questions), or {question, context}, or
    a list of them. A list of one is that one, as there."""
    if len(args) == 1 and isinstance(args[0], list | tuple):
        return args[0][0] if len(args[0]) == 1 else list(args[0])
    if len(args) == 1:
        return args[0]
    if len(args) == 2 and all(isinstance(text, str) for text in args):
        return {"question": args[0], "context": args[1]}
    if args:
        return [item for one in args for item in (one if isinstance(one, list) else [one])]
    found = next((given.pop(name) for name in ("data", "X") if name in given), None)
    if found is not None:
        return found[0] if isinstance(found, list) and len(found) == 1 else found
    return _paired(given.pop("question", None), given.pop("context", None))


def _paired(question: Any, context: Any) -> Any:
    """Raises ValueError where they do not fit each other."""
    if isinstance(question, str) and isinstance(context, str):
        return {"question": question, "context": context}
    if isinstance(question, list) and isinstance(context, str):
        context = [context] * len(question)
    if not (isinstance(question, list) and isinstance(context, list) and len(question) == len(context)):
        raise ValueError("question and context: two texts, or lists of as many")
    pairs = [{"question": q, "context": c} for q, c in zip(question, context, strict=True)]
    return pairs[0] if len(pairs) == 1 else pairs


def row(item: Any, given: Given) -> Row:
    """Raises ValueError for what is no question with a context, as version 4 does for an empty text."""
    values = (
        item if isinstance(item, Mapping) else {k: getattr(item, f"{k}_text", None) for k in ("question", "context")}
    )
    missing = [name for name in ("question", "context") if values.get(name) is None]
    if missing:
        raise ValueError(f"question-answering takes {{question, context}}; {missing[0]} is missing in {item!r:.80}")
    empty = [name for name in ("question", "context") if values[name] == ""]
    if empty:
        raise ValueError(f"question-answering: the {empty[0]} is empty")
    return Row(values["question"], values["context"])


def results(table: pa.Table, items: Sequence[Any], given: Given) -> list[Any]:
    if "answers" in table.column_names:
        found = [[_ordered(one) for one in answers] for answers in table["answers"].to_pylist()]
        return [answers[0] if len(answers) == 1 else answers for answers in found]
    return [_ordered(one) for one in table.select(["answer", "score", "start", "end"]).to_pylist()]


def _ordered(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {name: answer[name] for name in ("score", "start", "end", "answer")}


def single(result: Any, item: Any, called: Given) -> Any:
    return result


def together(results: list[Any], items: Sequence[Any]) -> Any:
    return results
