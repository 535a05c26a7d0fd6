"""packhorse.pipeline: change one import, keep the rest of the code."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

from packhorse.config import EngineConfig
from packhorse.errors import UsageError, did_you_mean
from packhorse.pipelines.calling import Pipeline

TASKS = (
    "text-classification", "token-classification", "question-answering", "fill-mask", "zero-shot-classification",
    "feature-extraction", "text-generation", "text2text-generation", "summarization", "translation", "text-ranking",
)  # fmt: skip
ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
IGNORED = {
    "batch_size": "batches are formed by tokens",
    "num_workers": "texts are tokenized by threads",
    "framework": "the backend is packhorse's choice",
    "use_fast": "tokenizers are the fast ones",
}
NOT_DONE = ("pipeline_class", "feature_extractor", "image_processor", "processor", "config", "assistant_model")


def pipeline(
    task: str | None = None, model: Any = None, tokenizer: Any = None, revision: str | None = None,
    device: Any = None, device_map: Any = None, dtype: Any = "auto", torch_dtype: Any = None, **more: Any,
) -> Pipeline:  # fmt: skip
    """A callable like transformers.pipeline(task, model): the same inputs, call parameters and results.

    task: text-classification (sentiment-analysis), token-classification (ner), question-answering, fill-mask,
    zero-shot-classification, feature-extraction, text-generation, text2text-generation, summarization, translation
    (translation_XX_to_YY) or text-ranking; None: read from the model. model: a folder (of weights or of an ONNX graph),
    an id on the hub, or a loaded transformers model together with its tokenizer; those two are saved to a temporary
    folder first. device: -1, an index, "cuda:1", "cpu" or a torch.device; None: the best that is here. dtype: of torch,
    or its name; "auto" is fp32, and of a model that writes its checkpoint's. more: call parameters, which then hold for
    every call, and settings of packhorse.load().

    A call takes a text, a dict with text and text_pair, or a list of them, and gives results at once; a generator or a
    dataset (KeyDataset too), and gives an iterator. batch_size and num_workers are ignored, with a warning.

    Raises UsageError, RefusedError or ModelError; a call raises ValueError for an input that cannot be done.
    """
    for name in [name for name in IGNORED if name in more]:
        warnings.warn(f"pipeline({name}={more.pop(name)!r}) is ignored: {IGNORED[name]}", UserWarning, stacklevel=2)
    for name in [name for name in NOT_DONE if more.pop(name, None) is not None]:
        raise UsageError(f"pipeline({name}=...): packhorse's pipelines take text, a model and its tokenizer")
    if more.pop("trust_remote_code", None):
        raise UsageError("trust_remote_code=True: packhorse runs no code of a model; leave it out")
    more.pop("token", None)  # huggingface_hub finds the one that is logged in
    if model is None:
        raise UsageError("pipeline(model=...): packhorse has no default models; name one")
    place = _Place(model, tokenizer)
    settings: dict[str, Any] = {"model": place.name, "devices": _device(device), "revision": revision}
    if device_map is not None:
        settings["device_map"] = device_map
    settings |= {name: more.pop(name) for name in list(more) if name in EngineConfig.model_fields and name not in CALL}
    named, direction = _task(task)
    settings.setdefault("precision", _precision(torch_dtype if torch_dtype is not None else dtype))
    return Pipeline(named, direction, settings, more, place.close)


# Parameters of calls that are named like settings, and mean the same there.
CALL = frozenset({"top_k", "targets", "stride", "max_new_tokens", "do_sample", "temperature", "top_p", "min_p",
                  "repetition_penalty", "num_beams", "num_return_sequences", "multi_label", "hypothesis_template",
                  "ignore_labels", "max_answer_len", "max_length"})  # fmt: skip


def _task(task: str | None) -> tuple[str, str]:
    """Its name, and of translation_XX_to_YY that."""
    if task is None:
        return "auto", ""
    if task.startswith("translation_"):
        return "translation", task
    named = ALIASES.get(task, task)
    if named not in TASKS:
        raise UsageError(
            f"pipeline({task!r}): no such task here; there are {', '.join(TASKS)}{did_you_mean(named, TASKS)}"
        )
    return named, ""


class _Place:
    """The model's folder or id; a temporary folder for a model that is an object."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._folder: str | None = None
        if isinstance(model, str | Path):
            self.name = str(model)
            _check_same(self.name, tokenizer)
            return
        if not hasattr(model, "save_pretrained") or not hasattr(tokenizer, "save_pretrained"):
            raise UsageError(
                f"pipeline(model={type(model).__name__}, tokenizer={type(tokenizer).__name__}): a model that is an "
                "object comes with its tokenizer, both of transformers"
            )
        self._folder = self.name = tempfile.mkdtemp(prefix="packhorse-model-")
        model.save_pretrained(self._folder)
        tokenizer.save_pretrained(self._folder)

    def close(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _check_same(model: str, tokenizer: Any) -> None:
    named = getattr(tokenizer, "name_or_path", tokenizer)
    if named is not None and str(named) != model:
        raise UsageError(
            f"pipeline(model={model!r}, tokenizer={named!r}): the tokenizer is read from the model's folder: save both "
            "into one, or give model and tokenizer as objects"
        )


def _device(device: Any) -> str:
    if device is None:
        return "auto"
    if isinstance(device, int):
        return "cpu" if device < 0 else f"cuda:{device}"
    return str(device)


def _precision(dtype: Any) -> str:
    name = str(dtype).removeprefix("torch.")
    if dtype is None or name == "auto":
        return "auto"
    if name not in DTYPES:
        raise UsageError(f"dtype={dtype}: one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]
