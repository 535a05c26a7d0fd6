"""unpad(): a model that skips padding inside, for people who keep their own loop; restore() gives it back as it was.

The body's forward is replaced on the instance: it takes a padded batch, runs its real tokens as one pack, and gives
the padded outputs that the model's head, a pipeline or a Trainer expects. Parameters, buffers and state_dict stay.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import DynamicCache

from packhorse.errors import ModelError
from packhorse.packing import attention
from packhorse.packing.fuse import FusedBody
from packhorse.packing.heads import pooled, position_table
from packhorse.packing.pack import Pack, pack_of_mask, row_positions
from packhorse.packing.probe import TOLERANCE, error

Model = TypeVar("Model", bound=nn.Module)

PROBE_LENGTHS = (40, 17, 3)
PRECISIONS = {torch.float32: "fp32", torch.float64: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
# Arguments of a body that a packed call takes apart; any other that is set means a plain call.
UNDERSTOOD = {"input_ids", "inputs_embeds", "attention_mask", "token_type_ids", "position_ids", "past_key_values"}
FOR_THE_LOSS = {"num_items_in_batch"}  # a Trainer's; heads hand it on, and no body reads it
FLAGS = {"use_cache", "output_hidden_states", "output_attentions", "return_dict", "cache_position"}


def unpad(model: Model, fused: bool = False) -> Model:
    """The same model; its calls with padded batches now compute real tokens only, and padded hidden states are 0.

    model: a transformers model in eval mode, with any head. Calls are as before, under a pipeline, a Trainer's
    evaluate() and generate() (whose prompt is packed) too; what cannot be packed (training, a 4D mask, decoding
    steps) runs as before. fused: besides, on a CPU oneDNN's linear layers with fused activations, on other devices
    torch.compile; for inference alone. One thread at a time may call it.

    Raises ModelError where the model's outputs would not be the same: its attention is not transformers'
    AttentionInterface (MPNet, DeBERTa), or looks at more than the tokens of a row.
    """
    body: Any = getattr(model, "base_model", None)
    if body is None:
        raise ModelError(f"unpad takes a transformers model, this is a {type(model).__name__}")
    restore(model)
    attention.register()
    forward = UnpaddedForward(body, FusedBody(body) if fused else None)
    body.forward = forward
    try:
        difference = _difference(body, forward)
    except (
        attention.PackingError,
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
    ) as failure:
        restore(model)
        raise ModelError(f"{type(model).__name__} cannot run without padding: {failure}") from failure
    if difference > TOLERANCE[PRECISIONS.get(body.dtype, "fp16")]:
        restore(model)
        raise ModelError(
            f"{type(model).__name__} cannot run without padding: its outputs would differ by {difference:.2g} of the "
            "rows' spread"
        )
    return model


def restore(model: Model) -> Model:
    """Takes unpad() back; a model that was not unpadded stays as it is."""
    body: Any = getattr(model, "base_model", model)
    forward = body.__dict__.get("forward")
    if isinstance(forward, UnpaddedForward):
        del body.forward
        if forward.replaced is not None:  # somebody's hook that stood there before
            body.forward = forward.replaced
    return model


class UnpaddedForward:
    """Stands for a body's forward."""

    def __init__(self, body: Any, fused: FusedBody | None) -> None:
        self._body, self._fused = body, fused
        self.replaced = body.__dict__.get("forward")
        self.__signature__ = inspect.signature(type(body).forward.__get__(body))
        self._configs = list({id(m.config): m.config for m in body.modules() if hasattr(m, "config")}.values())
        self._table = position_table(body)
        self._is_decoder = any(getattr(m, "is_causal", False) for m in body.modules())
        self._has_warned = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the body's own forward. Raises TypeError for head_mask, which transformers 5 would swallow."""
        inputs = _named(self.__signature__, args, kwargs)
        if inputs.pop("head_mask", None) is not None:
            raise TypeError("head_mask: transformers 5 has none any more, and would ignore it without a word")
        if inputs.get("output_attentions", self._body.config.output_attentions):
            return self._eager(inputs)
        pack = self._pack(inputs)
        return self.plain(inputs) if pack is None else self._packed(inputs, pack)

    def plain(self, inputs: dict[str, Any]) -> Any:
        """The body's own forward, padding included."""
        forward: Callable[..., Any] = self.replaced or type(self._body).forward.__get__(self._body)
        return forward(**inputs)

    # -- what can be packed

    def _pack(self, inputs: dict[str, Any]) -> Pack | None:
        """The rows of a padded batch; None where a plain call is right, or as fast."""
        tokens = inputs.get("input_ids") if inputs.get("input_ids") is not None else inputs.get("inputs_embeds")
        others = [k for k, v in inputs.items() if v is not None and k not in UNDERSTOOD | FLAGS | FOR_THE_LOSS]
        if self._body.training or others or not isinstance(tokens, torch.Tensor) or not _is_empty(inputs):
            return None
        mask = inputs.get("attention_mask")
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        if mask.ndim != 2 or mask.shape != tokens.shape[:2]:
            return None
        mask = mask.bool()
        if not bool(mask.any()) or (self._fused is None and bool(mask.all())):
            return None
        if inputs.get("position_ids") is None and self._table is not None and bool((mask[:, 1:] > mask[:, :-1]).any()):
            return None  # padding on the left or between: which positions the model would take is its own affair
        return pack_of_mask(mask)

    # -- a packed call

    def _packed(self, inputs: dict[str, Any], pack: Pack) -> Any:
        where, shape = pack.where, pack.mask_shape
        if where is None or shape is None:
            raise attention.PackingError("a pack without a padded batch behind it")
        packed = {k: v for k, v in inputs.items() if k in FLAGS and k != "cache_position"}
        for name in ("input_ids", "token_type_ids", "inputs_embeds"):
            if inputs.get(name) is not None:
                packed[name] = inputs[name].expand(*shape, *inputs[name].shape[2:]).flatten(0, 1)[where][None]
        packed["position_ids"] = self._positions(inputs, pack, where)
        cache = self._cache(inputs)
        if "use_cache" in self.__signature__.parameters:
            packed["use_cache"] = cache is not None
        if cache is not None:
            packed["past_key_values"] = DynamicCache()
        takes = set(self.__signature__.parameters)
        packed = {k: v for k, v in packed.items() if k in takes or k in FLAGS}
        output = self._run(packed, pack)
        if not pack.attended:
            raise attention.PackingError("its attention is not transformers' AttentionInterface")
        return self._padded(output, pack, cache, inputs.get("return_dict"))

    def _run(self, packed: dict[str, Any], pack: Pack) -> Any:
        with self._attention(attention.NAME):
            run = self.plain if self._fused is None else self._fused.run_or(self.plain)
            return run(packed | {"pack": pack, "return_dict": True})

    @contextmanager
    def _attention(self, name: str) -> Iterator[None]:
        """The body's attention implementation inside the block."""
        before = [c._attn_implementation for c in self._configs]
        try:
            for config in self._configs:
                config._attn_implementation = name
            yield
        finally:
            for config, own in zip(self._configs, before, strict=True):
                config._attn_implementation = own

    def _positions(self, inputs: dict[str, Any], pack: Pack, where: torch.Tensor) -> torch.Tensor:
        """[1, T]"""
        given = inputs.get("position_ids")
        if given is not None:
            return given.expand(pack.mask_shape).flatten()[where][None]
        padding_idx = None if self._table is None else self._table.padding_idx
        if padding_idx is None or inputs.get("input_ids") is None:
            first = 0 if padding_idx is None else padding_idx + 1
            places = torch.arange(len(where), device=where.device) - pack.starts.repeat_interleave(pack.lengths)
            return places[None] + first
        ids = inputs["input_ids"].flatten()[where]
        positions = row_positions(ids.cpu().numpy(), pack.lengths.cpu().numpy(), padding_idx)
        return torch.from_numpy(positions).to(where.device)[None]

    def _cache(self, inputs: dict[str, Any]) -> DynamicCache | None:
        """Where keys and values of the prompt go; None where nobody asks for them."""
        if inputs.get("past_key_values") is not None:
            return inputs["past_key_values"]
        asked = inputs.get("use_cache")
        wants = getattr(self._body.config, "use_cache", False) if asked is None else asked
        takes = "past_key_values" in self.__signature__.parameters
        return DynamicCache(config=self._body.config) if wants and self._is_decoder and takes else None

    def _padded(self, output: Any, pack: Pack, cache: DynamicCache | None, return_dict: bool | None) -> Any:
        """The output in the shape that a padded call has."""
        for name in list(output.keys()):
            if name == "last_hidden_state":
                output[name] = pack.padded(output[name][0])
            elif name == "hidden_states":
                output[name] = tuple(pack.padded(h[0]) for h in output[name])
            elif name == "pooler_output":
                output[name] = pooled(self._body, output["last_hidden_state"])
            elif name == "past_key_values":
                output[name] = _filled(cache, output[name], pack)
            elif output[name] is not None:
                raise attention.PackingError(f"its output {name} has no meaning without padding")
        wants_dict = self._body.config.return_dict if return_dict is None else return_dict
        return output if wants_dict else output.to_tuple()

    def _eager(self, inputs: dict[str, Any]) -> Any:
        """Attention weights exist under eager alone; sdpa gives none, without a word."""
        if not self._has_warned:
            warnings.warn(
                "output_attentions: this call and others like it run padded, with eager attention", stacklevel=4
            )
            self._has_warned = True
        with self._attention("eager"):
            return self.plain(inputs)


def _named(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The call's arguments by name."""
    names = list(signature.parameters)
    return dict(zip(names, args, strict=False)) | kwargs


def _is_empty(inputs: dict[str, Any]) -> bool:
    """Whether the call is a prompt's: no keys and values of earlier tokens."""
    cache = inputs.get("past_key_values")
    return cache is None or (type(cache) is DynamicCache and cache.get_seq_length() == 0)


def _filled(cache: DynamicCache | None, packed: DynamicCache, pack: Pack) -> DynamicCache | None:
    """The prompt's keys and values [1, h, T, d] of every layer as [B, h, S, d]."""
    if cache is None:
        return None
    for index, layer in enumerate(packed.layers):
        keys, values = (pack.padded(x[0].transpose(0, 1)).transpose(1, 2) for x in (layer.keys, layer.values))
        cache.update(keys, values, index)
    return cache


def _difference(body: Any, forward: UnpaddedForward) -> float:
    """How far a padded batch of made-up rows, run packed, is from its rows run plain and alone."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = body.get_input_embeddings().num_embeddings
    longest = max(PROBE_LENGTHS)
    ids = torch.randint(min(5, vocabulary - 1), vocabulary, (len(PROBE_LENGTHS), longest), generator=generator)
    mask = torch.arange(longest) < torch.tensor(PROBE_LENGTHS)[:, None]
    ids, mask = ids.to(body.device), mask.to(body.device)
    was_training = body.training
    body.eval()
    try:
        with torch.inference_mode():
            together = body(input_ids=ids, attention_mask=mask.long())[0]
            alone = [forward.plain({"input_ids": ids[i : i + 1, :n]})[0][0] for i, n in enumerate(PROBE_LENGTHS)]
    finally:
        body.train(was_training)
    return error(torch.cat(alone).float().cpu().numpy(), together[mask].float().cpu().numpy())
