"""A PEFT adapter merged into a model's weights."""

from __future__ import annotations

import re
import warnings
from typing import Any, NamedTuple

from packhorse.backends.torch.quiet import quiet
from packhorse.data import ModelDescription
from packhorse.errors import ModelError, UsageError

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of peft, before the base model's own names
# What a tuner's own tensors are called, behind the name of the layer that they change.
TUNED = re.compile(r"\.(lora|hada|lokr|ia3|oft|boft|vera|hra|randlora|shira|bone|miss|ln_tuning|fourierft)_.*")


class Merged(NamedTuple):
    """replaced: parameters whose values are the adapter's own, by the base model's names: a classifier, trained."""

    model: Any
    replaced: frozenset[str]


def merge_adapter(model: Any, description: ModelDescription) -> Merged:
    """The transformers model with the adapter in its weights and nothing of peft left in it. model: fp32, is changed.

    Raises UsageError where peft is missing, ModelError where the adapter's layers or shapes are not the model's, or
    where it is of a kind that cannot be merged.
    """
    adapter = description.adapter
    assert adapter is not None
    what = f"--adapter {adapter.folder}: does not fit {description.folder}"
    try:
        from peft import PeftModel
    except ImportError as error:
        raise UsageError(f"--adapter needs the package peft: {error}; pip install 'packhorse[peft]'") from error
    with quiet(), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            tuned = PeftModel.from_pretrained(model, adapter.folder, torch_device="cpu", autocast_adapter_dtype=False)
            keys = _keys(adapter.folder)
            unused = sorted(keys - _names(tuned))
            merged = tuned.merge_and_unload(safe_merge=True)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, NotImplementedError) as error:
            raise ModelError(f"{what}: {_brief(error)}") from error
    missing = [str(w.message) for w in seen if "missing adapter keys" in str(w.message)]
    if missing or unused:
        why = missing[0][:200] if missing else f"the model has no place for its {', '.join(unused[:3])}"
        raise ModelError(f"{what}: {why}")
    return Merged(merged, frozenset(k.removeprefix(PREFIX) for k in keys if not TUNED.search(k)))


def _keys(folder: Any) -> frozenset[str]:
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, framework="pt") as file:
        return frozenset(file.keys())


def _names(tuned: Any) -> frozenset[str]:
    """Names in the tuned model as an adapter's file has them; a file may hold embedding tables of the base too."""
    from peft import get_peft_model_state_dict

    return frozenset(get_peft_model_state_dict(tuned, save_embedding_layers=False)) | frozenset(tuned.state_dict())


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
