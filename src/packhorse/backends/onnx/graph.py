"""A transformers model and its reduction as one ONNX graph, by torch.onnx."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from packhorse.backends.onnx.needs import need
from packhorse.backends.torch.graph_module import GraphModule, example_places
from packhorse.backends.torch.graph_values import output_names
from packhorse.backends.torch.quiet import quiet
from packhorse.errors import ModelError
from packhorse.load_request import LoadRequest

FUSED = "packhorse_onnx_fused"
LARGEST_FILE = 1_500_000_000  # bytes of weights; protobuf ends at 2 GiB
# Arguments that change what attention means, and that the fused operator is not told of.
UNKNOWN = ("softcap", "s_aux", "position_bias", "cache", "alibi")
NUM_ROWS, LENGTH = 2, 9  # of the example that is traced: neither may be 1, which would be taken for a constant


class Reduced(GraphModule):
    """What is exported."""

    def __init__(self, model: Any, request: LoadRequest) -> None:
        has_types = any(t.type_ids is not None for t in (request.trial, request.rows))
        super().__init__(model, request, has_types or (getattr(model.config, "type_vocab_size", 0) or 0) > 1)


def write_graph(module: Reduced, path: Path, fused: bool) -> None:
    """Exports with dynamic batch and length. Raises ModelError where the model cannot be exported so."""
    need("onnxscript")
    attention = _register() if fused else "eager"
    try:
        with silent():
            if hasattr(module.model, "set_attn_implementation"):
                module.model.set_attn_implementation(attention)
            program = torch.onnx.export(
                module, (), kwargs=_example(module), dynamo=True, dynamic_shapes=_dynamic(module), verbose=False,
                output_names=list(output_names(module.reducer.reduction)),
            )  # fmt: skip
            size = sum(p.numel() * p.element_size() for p in module.parameters())
            program.save(str(path), external_data=size > LARGEST_FILE)  # type: ignore[union-attr]
    except Exception as error:
        cause = error.__cause__ or error  # the exporter's own error is a page of advice
        reason = f"{type(cause).__name__}: {cause}".strip().splitlines()[0][:200]
        raise ModelError(f"torch.onnx cannot export it: {reason}") from error


def _example(module: Reduced) -> dict[str, torch.Tensor]:
    ids = torch.arange(NUM_ROWS * LENGTH).reshape(NUM_ROWS, LENGTH) % 7 + 3
    mask = torch.ones_like(ids)
    mask[1, LENGTH - 3 :], ids[1, LENGTH - 3 :] = 0, module.pad_id
    example = {"input_ids": ids, "attention_mask": mask}
    example |= {"token_type_ids": torch.zeros_like(ids)} if module.takes_type_ids else {}
    return example | example_places(module.reducer.reduction)


def _dynamic(module: Reduced) -> dict[str, Any]:
    """DYNAMIC, not AUTO: where a dimension would be taken for a constant, the export has to fail."""
    dim = torch.export.Dim.DYNAMIC
    return {name: dict.fromkeys(range(tensor.ndim), dim) for name, tensor in _example(module).items()}


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Logs, warnings and prints of the exporter and of onnxruntime's Python tools stay out of our output."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with quiet(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _register() -> str:
    """Makes the fused operator an attention implementation of transformers, with eager attention's masks."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(FUSED, fused_attention)
    AttentionMaskInterface.register(FUSED, eager_mask)
    return FUSED


def fused_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """com.microsoft.MultiHeadAttention. query [B, h, S, d], key and value [B, k, S, d], mask [B or 1, 1, S, S] of
    numbers to be added to the scores -> [B, S, h, d]. Raises ModelError where the model asks for more."""
    asked = [name for name in UNKNOWN if others.get(name) is not None]
    if asked or query.shape[-1] != value.shape[-1]:
        raise ModelError(f"its attention has {', '.join(asked) or 'heads of two sizes'}")
    batch, heads, length, size = query.shape
    if key.shape[1] != heads:
        key, value = (x.repeat_interleave(heads // key.shape[1], dim=1) for x in (key, value))
    flat = [x.transpose(1, 2).reshape(batch, x.shape[2], heads * size) for x in (query, key, value)]
    attributes = {"num_heads": int(heads), "scale": float(size**-0.5 if scaling is None else scaling)}
    output = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention", [*flat, None, None, attention_mask], attributes,
        dtype=query.dtype, shape=[batch, length, heads * size], version=1,
    )  # fmt: skip
    return output.view(batch, length, heads, size), None
