"""packhorse.pipeline beside transformers.pipeline: the same calls, the same structures and values."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import packhorse
from packhorse.errors import ModelError, UsageError
from tests.models import save_head

TOLERANCE = 1e-4
ODD = ["你好 world 🙂 re\u0301sume\u0301", "العربية"]
TEXTS = ["John Smith lives in Paris .", "short", *ODD, " ".join(["a long row"] * 15)]
MASKED = ["a [MASK] text", "[MASK] and [MASK] .", "John lives in [MASK] 🙂"]
NLI = {"id2label": {0: "contradiction", 1: "neutral", 2: "entailment"}}
TAGS = {"id2label": dict(enumerate(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]))}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    heads: dict[str, tuple[str, dict[str, Any]]] = {
        "text-classification": ("BertForSequenceClassification", {"num_labels": 3}),
        "token-classification": ("BertForTokenClassification", TAGS),
        "fill-mask": ("BertForMaskedLM", {}),
        "zero-shot-classification": ("BertForSequenceClassification", NLI),
        "feature-extraction": ("BertModel", {}),
        "question-answering": ("BertForQuestionAnswering", {}),
    }
    return {task: save_head(root / task, name, **config) for task, (name, config) in heads.items()}


def assert_same(ours: Any, theirs: Any, place: str = "") -> None:
    """Types, names in their order, texts; numbers within the tolerance."""
    if isinstance(theirs, float) or (hasattr(theirs, "dtype") and theirs.ndim == 0):
        assert isinstance(ours, float) and abs(ours - float(theirs)) <= TOLERANCE, (place, ours, theirs)
    elif isinstance(theirs, dict):
        assert isinstance(ours, dict) and list(ours) == list(theirs), (place, ours, theirs)
        for name in theirs:
            assert_same(ours[name], theirs[name], f"{place}/{name}")
    elif isinstance(theirs, list):
        assert isinstance(ours, list) and len(ours) == len(theirs), (place, ours, theirs)
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(one, other, f"{place}/{i}")
    else:
        assert ours == theirs, (place, ours, theirs)


CALLS: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "text-classification": [
        ((TEXTS[0],), {}), ((TEXTS,), {}), ((TEXTS[0],), {"top_k": None}), ((TEXTS[:2],), {"top_k": 2}),
        (({"text": "a", "text_pair": "b c"},), {}), ((["x", {"text": "a", "text_pair": "b"}, "y"],), {}),
        ((TEXTS[0],), {"function_to_apply": "none", "top_k": None}), ((TEXTS,), {"function_to_apply": "SIGMOID"}),
        ((np.str_("a film"),), {}), (([" ".join(TEXTS) * 9, "b"],), {"truncation": True, "max_length": 16}),
        (([[["a", "b"]]],), {}),
    ],
    "token-classification": [
        ((TEXTS[0],), {}), ((TEXTS,), {}), ((TEXTS,), {"aggregation_strategy": "simple"}),
        ((TEXTS,), {"aggregation_strategy": "max", "ignore_labels": []}),
        ((["John", "lives", "here"],), {"is_split_into_words": True}),
        ((" ".join(["John lives here"] * 60),), {"aggregation_strategy": "simple", "stride": 8}),
    ],
    "fill-mask": [
        ((MASKED[0],), {}), ((MASKED,), {"top_k": 3}), (([MASKED[0]],), {}), ((MASKED[2],), {"targets": ["a", "text"]}),
        ((MASKED[0],), {"targets": "text", "top_k": 9}),
        ((MASKED[0] * 20,), {"tokenizer_kwargs": {"truncation": True, "max_length": 9}}),
    ],
    "zero-shot-classification": [
        ((TEXTS[0], ["films", "books", "x y"]), {}), ((TEXTS,), {"candidate_labels": "films, books"}),
        ((TEXTS[0], "one"), {}),
        ((TEXTS[:2],), {"candidate_labels": ["a", "b"], "multi_label": True, "hypothesis_template": "It is {}!"}),
    ],
    "feature-extraction": [
        ((TEXTS[0],), {}), ((TEXTS,), {}),
        ((TEXTS,), {"tokenize_kwargs": {"truncation": True, "max_length": 5}}),
    ],
}  # fmt: skip


@pytest.mark.parametrize("task", list(CALLS))
def test_calls_give_what_transformers_gives(folders: dict[str, Path], task: str) -> None:
    from transformers import pipeline

    theirs = pipeline(task, str(folders[task]), device="cpu")
    with packhorse.pipeline(task, str(folders[task]), device="cpu") as ours:
        for args, given in CALLS[task]:
            assert_same(ours(*args, **given), theirs(*args, **given), str((args, given))[:80])


def test_generators_datasets_and_key_datasets_give_iterators(folders: dict[str, Path]) -> None:
    from transformers import pipeline
    from transformers.pipelines.pt_utils import KeyDataset

    class Texts(torch.utils.data.Dataset[str]):
        def __len__(self) -> int:
            return len(TEXTS)

        def __getitem__(self, i: int) -> str:
            return TEXTS[i]

    folder = str(folders["text-classification"])
    theirs, ours = pipeline("text-classification", folder), packhorse.pipeline("text-classification", folder)
    rows = [{"body": text} for text in TEXTS]
    for make in (Texts, lambda: KeyDataset(rows, "body"), lambda: (text for text in TEXTS)):
        found = ours(make())
        assert isinstance(found, Iterator)
        assert_same(list(found), list(theirs(make())))


def test_a_model_object_and_its_tokenizer(folders: dict[str, Path]) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    folder = folders["text-classification"]
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    theirs = pipeline("text-classification", model=model, tokenizer=tokenizer)
    with packhorse.pipeline("sentiment-analysis", model=model, tokenizer=tokenizer, device=-1) as ours:
        assert_same(ours(TEXTS), theirs(TEXTS))
        place = ours.engine.folder
    assert not place.exists()


@pytest.mark.slow
def test_an_onnx_folder_stands_behind_a_pipeline(folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import pipeline

    folder = folders["text-classification"]
    packhorse.export(folder, tmp_path / "onnx", backend="onnx")
    with packhorse.pipeline("text-classification", str(tmp_path / "onnx")) as ours:
        assert_same(ours(TEXTS), pipeline("text-classification", str(folder))(TEXTS))
        assert ours.engine.plan.backend == "onnx"


def test_the_task_is_read_from_the_model(folders: dict[str, Path]) -> None:
    with packhorse.pipeline(model=str(folders["token-classification"])) as ours:
        assert ours.task == "token-classification"


def test_scores_that_were_asked_for_at_the_making(folders: dict[str, Path]) -> None:
    from transformers import pipeline

    folder = str(folders["text-classification"])
    theirs = pipeline("text-classification", folder, top_k=2)
    with packhorse.pipeline("text-classification", folder, top_k=2) as ours:
        for given in ({}, {"top_k": 1}):
            assert_same(ours(TEXTS[0], **given), theirs(TEXTS[0], **given))
        assert_same(ours(TEXTS), theirs(TEXTS))
    with packhorse.pipeline("text-classification", folder, return_all_scores=True) as ours:  # of version 4
        assert [one["label"] for one in ours("a")[0]] == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_questions(folders: dict[str, Path]) -> None:
    """transformers 5 has no such pipeline; the task's own test holds its values against a reference."""
    context = "John Smith lives in Paris , and the weather is fine ."
    with packhorse.pipeline("question-answering", str(folders["question-answering"])) as ours:
        one = ours(question="Who?", context=context)
        assert list(one) == ["score", "start", "end", "answer"] and context[one["start"] : one["end"]] == one["answer"]
        assert ours({"question": "Who?", "context": context}) == one == ours([{"question": "Who?", "context": context}])
        two = ours(question=["Who?", "Where?"], context=context, top_k=2)
        assert [len(answers) for answers in two] == [2, 2] and two[0][0]["answer"] == one["answer"]
        assert ours("Who?", context) == one and ours(question=["Who?"], context=[context]) == one
        assert ours({"question": "Who?", "context": "a"}, top_k=5)["answer"] == "a"  # fewer answers than asked for
        for given, match in {"context": "context is missing", "question": "question is missing"}.items():
            with pytest.raises(ValueError, match=match):
                ours({"question": "Who?", "context": context, given: None})
        with pytest.raises(ValueError, match="item 1: question-answering: the question is empty"):
            ours(question=["Who?", ""], context=context)


def test_names_of_version_4_for_entities(folders: dict[str, Path]) -> None:
    with packhorse.pipeline("ner", str(folders["token-classification"])) as pipe:
        assert pipe(TEXTS[0], grouped_entities=True) == pipe(TEXTS[0], aggregation_strategy="simple")
        both = {"grouped_entities": True, "ignore_subwords": True}
        assert pipe(TEXTS[0], **both) == pipe(TEXTS[0], aggregation_strategy="first")
        with pytest.raises(ValueError, match="item 0: a list is no text"):
            pipe([["John", "Smith"]])
        with pytest.raises(UsageError, match="delimiter"):
            pipe(["John", "Smith"], is_split_into_words=True, delimiter="-")


def test_errors_name_the_item_and_the_parameter(folders: dict[str, Path]) -> None:
    folder = str(folders["text-classification"])
    with packhorse.pipeline("text-classification", folder) as pipe:
        with pytest.raises(ValueError, match="item 1: null_text"):
            pipe(["a", None, "b"])
        with pytest.raises(UsageError, match=r"no parameter 'topk'.*did you mean 'top_k'"):
            pipe("a", topk=2)
        with pytest.raises(TypeError, match="one positional argument"):
            pipe()
    wrong: dict[str, dict[str, Any]] = {
        "no default models": {"task": "text-classification"},
        r"no such task here.*did you mean 'text-classification'": {"task": "text-clasification", "model": folder},
        "runs no code of a model": {"model": folder, "trust_remote_code": True},
        "comes with its tokenizer": {"model": torch.nn.Linear(1, 1)},
        "the tokenizer is read from the model's folder": {"model": folder, "tokenizer": "bert-base-uncased"},
        "dtype=int7": {"model": folder, "dtype": "int7"},
        "HF_TOKEN": {"model": folder, "token": "a secret"},
        "two devices": {"model": folder, "device": -1, "device_map": "cuda"},
        r"model_kwargs\['colour'\]": {"model": folder, "model_kwargs": {"colour": 1}},
        "precision='int8'": {"model": folder, "model_kwargs": {"load_in_8bit": True}},
        "weights are PyTorch's": {"model": folder, "framework": "tf"},
    }
    for match, arguments in wrong.items():
        with pytest.raises(UsageError, match=match):
            packhorse.pipeline(**arguments)
    with pytest.raises((ModelError, UsageError)):
        packhorse.pipeline("text-classification", os.devnull)("a")
    with pytest.raises(UsageError, match="labels texts, not tokens"):
        packhorse.pipeline("token-classification", folder)("a")


def test_how_devices_and_types_may_be_said(folders: dict[str, Path]) -> None:
    folder = str(folders["text-classification"])
    said: list[dict[str, Any]] = [
        {"device": torch.device("cpu", 0)}, {"device_map": {"": "cpu"}}, {"device_map": "cpu"},
    ]  # fmt: skip
    for given in said:
        with packhorse.pipeline("text-classification", folder, **given) as pipe:
            assert pipe.engine.plan.device == "cpu" and pipe.tokenizer.mask_token == "[MASK]"
    settings = {"attn_implementation": "eager", "torch_dtype": torch.bfloat16}
    with packhorse.pipeline("text-classification", folder, model_kwargs=settings) as pipe:
        assert (pipe.engine.plan.attention, pipe.engine.plan.precision) == ("eager", "bf16")
        assert not hasattr(pipe, "model")
    with pytest.raises(UsageError, match="was closed"):
        pipe("a")


def test_what_is_ignored_is_told(folders: dict[str, Path]) -> None:
    with pytest.warns(UserWarning, match="batch_size=8"):
        pipe = packhorse.pipeline("text-classification", str(folders["text-classification"]), batch_size=8)
    with pipe, pytest.warns(UserWarning, match="batch_size=4"):
        pipe("a", batch_size=4)
