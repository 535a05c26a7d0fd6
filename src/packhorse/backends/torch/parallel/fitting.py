"""Whether a model can be cut over so many ranks: by its config and its plan, before any process is started."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, NamedTuple

from packhorse.backends.torch.placement.device_map import skeleton
from packhorse.backends.torch.weights import auto_class
from packhorse.errors import ModelError, UsageError
from packhorse.generation import QUANTIZED
from packhorse.load_request import LoadRequest

# Last names of projections whose outputs hold the keys of attention, alone or with queries and values.
KEYS = ("k_proj", "qkv_proj", "query_key_value")
INSTEAD = "--device-map auto puts whole layers on different devices"


def check_request(request: LoadRequest) -> None:
    """Raises UsageError for what does not go with tensor parallelism, and where a package is missing."""
    refused = {
        "--adapter": (request.description.adapter is not None, "an adapter is merged into whole weights"),
        "--compile": (request.compiled, "compiled code is for a model on one device"),
        f"--precision {request.precision}": (
            request.precision in QUANTIZED, "quantized weights are not cut here; bf16, fp16 and fp32 are",
        ),
        "--engine paged": (request.engine == "paged", "transformers' paged engine plans by each process's own memory"),
    }  # fmt: skip
    if importlib.util.find_spec("accelerate") is None:
        raise UsageError("--tensor-parallel: needs the package accelerate; pip install accelerate")
    for flag, (is_asked, why) in refused.items():
        if is_asked:
            raise UsageError(f"--tensor-parallel with {flag}: {why}; leave one of the two out")


class Cut(NamedTuple):
    """shares_attention: whether each rank has some of the attention heads. num_embeddings: ids that the model knows; a
    table that is cut gives zeros for others, where a whole one raises."""

    shares_attention: bool
    num_embeddings: int


def check_model(request: LoadRequest) -> Cut:
    """Raises ModelError for a model without a plan, or whose heads cannot be shared evenly."""
    folder, count = request.description.folder, len(request.placement.devices)
    model = skeleton(auto_class(request.reduction, request.description.is_encoder_decoder), folder)
    plan: Mapping[str, str] = getattr(model, "_tp_plan", None) or {}
    if not plan:
        raise ModelError(
            f"{folder}: --tensor-parallel: transformers has no tp_plan for {type(model).__name__}, which says how its "
            f"layers are cut; {INSTEAD}, and --devices without --tensor-parallel has a whole model on each"
        )
    cut = [name for name, style in plan.items() if style == "colwise" and "att" in name]
    config = model.config.get_text_config()
    heads = _heads(config, "num_attention_heads") if cut else {}
    if any(name.rsplit(".", 1)[-1] in KEYS for name in cut):
        heads |= _heads(config, "num_key_value_heads")
    uneven = next((number for number in heads if number % count), None)
    if uneven is not None:
        fitting = ", ".join(str(n) for n in range(2, min(heads) + 1) if not any(h % n for h in heads))
        raise ModelError(
            f"{folder}: --tensor-parallel over {count} devices: its config's {heads[uneven]} is {uneven}, which "
            f"{count} ranks cannot share evenly; {f'give {fitting} devices' if fitting else INSTEAD}"
        )
    return Cut(bool(cut), int(model.get_input_embeddings().weight.shape[0]))


def _heads(config: Any, name: str) -> dict[int, str]:
    """By their number, which may be another in some layers."""
    found = getattr(config, name, None)
    numbers = [found] if isinstance(found, int) else found or ()
    return {number: name for number in numbers if isinstance(number, int) and number}
