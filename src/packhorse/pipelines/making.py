"""packhorse.pipeline: change one import, keep the rest of the code."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Mapping
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
DTYPES = {
    "float32": "fp32", "float": "fp32", "bfloat16": "bf16", "float16": "fp16", "half": "fp16",
    **{name: name for name in ("fp32", "bf16", "fp16")},
}  # fmt: skip
IGNORED = {
    "batch_size": "batches are formed by tokens",
    "num_workers": "texts are tokenized by threads",
    "use_fast": "tokenizers are the fast ones",
    "low_cpu_mem_usage": "weights are read as they are needed",
}
TEXT_ONLY = "packhorse's pipelines take text, a model and its tokenizer"
NOT_DONE = {
    **dict.fromkeys(("pipeline_class", "feature_extractor", "image_processor", "processor", "video_processor",
                     "config", "assistant_model", "assistant_tokenizer"), TEXT_ONLY),
    "trust_remote_code": "packhorse runs no code of a model; leave it out",
    "token": "log in (hf auth login), or set the variable HF_TOKEN",
    "use_auth_token": "log in (hf auth login), or set the variable HF_TOKEN",
    "local_files_only": "set the variable HF_HUB_OFFLINE to 1",
    "cache_dir": "set the variable HF_HUB_CACHE",
    "src_lang": "the language is the tokenizer's: save it with src_lang set into the model's folder",
    "quantization_config": "say precision='int8' or 'int4', and quantization='bitsandbytes' or 'torchao'",
    "load_in_8bit": "say precision='int8' and quantization='bitsandbytes'",
    "load_in_4bit": "say precision='int4' and quantization='bitsandbytes'",
}  # fmt: skip
OF_MODEL = {"attn_implementation": "attention", "torch_dtype": "dtype", "dtype": "dtype", "device_map": "device_map"}
LIKE_NOTHING = (None, False)  # what may be said of NOT_DONE


def pipeline(
    task: str | None = None, model: Any = None, tokenizer: Any = None, revision: str | None = None,
    device: Any = None, device_map: Any = None, dtype: Any = "auto", torch_dtype: Any = None,
    model_kwargs: Mapping[str, Any] | None = None, **more: Any,
) -> Pipeline:  # fmt: skip
    """A callable like transformers.pipeline(task, model): the same inputs, call parameters and results.

    task: text-classification (sentiment-analysis), token-classification (ner), question-answering, fill-mask,
    zero-shot-classification, feature-extraction, text-generation, text2text-generation, summarization, translation
    (translation_XX_to_YY) or text-ranking; None: read from the model. model: a folder (of weights or of an ONNX graph),
    an id on the hub, or a loaded transformers model together with its tokenizer; those two are saved to a temporary
    folder first. device: -1, an index, "cuda:1", "cpu" or a torch.device; None: the best that is here. dtype: of torch,
    or its name; "auto" is fp32, and bf16 only where it agrees with fp32 on a list of 2,000 items or more; of a model
    that writes it is its checkpoint's. model_kwargs: attn_implementation, dtype and device_map. more: call parameters,
    which then hold for every call, and settings of packhorse.load().

    A call takes a text, a dict with text and text_pair, or a list of them (or a column: numpy, pandas, Arrow,
    datasets), and gives results at once; a generator or a dataset (KeyDataset too), and gives an iterator, which reads
    64 items before its first result, and up to 1,024 at a time later. batch_size and num_workers are ignored, with a
    warning.

    What differs from transformers: a text longer than the model is cut without truncation=True (question-answering
    reads windows of it; where text is written it is refused). Models that write take the likeliest token unless their
    generation_config.json or the call says otherwise: transformers 5 samples (do_sample=True, temperature=0.7), version
    4 searched with num_beams=4 for summaries and translations. At most 256 tokens are written, as there; samples are
    repeatable, by seed=0. A call with another function_to_apply, max_length, top_k of fill-mask or parameter of
    generation than the one before loads the model again.

    Raises UsageError, RefusedError or ModelError; a call raises ValueError for an input that cannot be done.
    """
    more |= _of_model_kwargs(model_kwargs or {}, more)
    _refuse(more)
    if model is None:
        raise UsageError("pipeline(model=...): packhorse has no default models; name one")
    dtype = next((given for given in (torch_dtype, more.pop("dtype", None)) if given is not None), dtype)
    settings: dict[str, Any] = {"revision": revision, "precision": _precision(dtype)}
    settings |= _device(device, more.pop("device_map", device_map))
    settings |= {name: more.pop(name) for name in list(more) if name in EngineConfig.model_fields and name not in CALL}
    named, direction = _task(task)
    place = _Place(model, tokenizer)
    try:
        return Pipeline(named, direction, {"model": place.name, **settings}, more, place.close, TASKS)
    except BaseException:
        place.close()
        raise


# Parameters of calls that are named like settings, and mean the same there.
CALL = frozenset({"top_k", "targets", "stride", "max_new_tokens", "do_sample", "temperature", "top_p", "min_p",
                  "repetition_penalty", "num_beams", "num_return_sequences", "multi_label", "hypothesis_template",
                  "ignore_labels", "max_answer_len", "max_length", "function_to_apply", "handle_impossible_answer",
                  "stop_strings", "seed"})  # fmt: skip


def _of_model_kwargs(given: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Their names here. Raises UsageError for one that there is not."""
    known = {*OF_MODEL, *IGNORED, *NOT_DONE}
    for name in given:
        if name not in known:
            raise UsageError(
                f"model_kwargs[{name!r}]: not done here; there are {', '.join(OF_MODEL)}{did_you_mean(name, OF_MODEL)}"
            )
        if OF_MODEL.get(name, name) in more:
            raise UsageError(f"model_kwargs[{name!r}]: it was said outside of model_kwargs too; say it once")
    return {OF_MODEL.get(name, name): value for name, value in given.items()}


def _refuse(more: dict[str, Any]) -> None:
    """Takes out what means nothing here, with a warning. Raises UsageError for what cannot be done."""
    for name in [name for name in IGNORED if name in more]:
        warnings.warn(f"pipeline({name}={more.pop(name)!r}) is ignored: {IGNORED[name]}", UserWarning, stacklevel=3)
    if (framework := more.pop("framework", "pt")) not in ("pt", None):
        raise UsageError(f"pipeline(framework={framework!r}): weights are PyTorch's here; leave it out")
    for name in [name for name in NOT_DONE if name in more]:
        if (value := more.pop(name)) not in LIKE_NOTHING and not (name.endswith("token") and value is True):
            raise UsageError(f"pipeline({name}=...): {NOT_DONE[name]}")


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
        try:
            model.save_pretrained(self._folder)
            tokenizer.save_pretrained(self._folder)
        except BaseException:
            self.close()
            raise

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


def _device(device: Any, device_map: Any) -> dict[str, Any]:
    """Settings. A device_map that names one device is that device. Raises UsageError for one by modules."""
    if isinstance(device_map, Mapping) and set(device_map) == {""}:
        device_map = device_map[""]
    if isinstance(device_map, Mapping):
        raise UsageError("device_map={...}: give 'auto', 'balanced', 'sequential', or a JSON file that says the same")
    if device_map is None:
        return {"devices": _named(device)}
    is_device = not isinstance(device_map, str | Path) or str(device_map).split(":")[0] in ("cpu", "cuda", "mps", "xpu")
    if not is_device:
        return {"devices": _named(device), "device_map": str(device_map)}
    if device is not None and _named(device) != _named(device_map):
        raise UsageError(f"device={device!r} and device_map={device_map!r}: two devices; say one of them")
    return {"devices": _named(device_map)}


def _named(device: Any) -> str:
    """cpu:0 of torch is the processor; here it would be a number of processes."""
    if device is None:
        return "auto"
    if isinstance(device, int):
        return "cpu" if device < 0 else f"cuda:{device}"
    return "cpu" if str(device).startswith("cpu") else str(device)


def _precision(dtype: Any) -> str:
    name = str(dtype).removeprefix("torch.")
    if dtype is None or name == "auto":
        return "auto"
    if name not in DTYPES:
        raise UsageError(f"dtype={dtype}: one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]
