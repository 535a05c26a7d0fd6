"""A causal model's forward as an OpenVINO graph, its attention as PagedAttention over blocks of keys and values.

Traced as the continuous engine runs it: tokens of several sequences side by side, attention by transformers'
AttentionInterface (packing/attention.py), which puts one operator of ours into the trace; the converter makes
OpenVINO's of it. No pattern is searched for, so that what the interface is told (scale, window) is what is computed.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from packhorse.backends.torch.generation.kv_attention import layer_of
from packhorse.backends.torch.generation.packed_decoder import PackedDecoder
from packhorse.backends.torch.quiet import quiet
from packhorse.packing.attention import PackingError
from packhorse.packing.pack import Pack, make_pack
from packhorse.packing.prepack import unpacked

OPERATOR = "packhorse::paged_attention"
STEP_INPUTS = ("past_lens", "starts", "blocks", "block_starts", "longest")  # of every attention
INPUTS = ("input_ids", "position_ids", "last", *STEP_INPUTS)
TRACED_BLOCK = 32  # tokens; of example inputs, the graph takes any
EXAMPLE = (3, 4)  # tokens of the sequences that are traced


class Layer(NamedTuple):
    """Of keys and values."""

    heads: int
    key_size: int
    value_size: int
    window: int | None


class Graph(NamedTuple):
    """Two openvino.Models. positions: position_ids -> what follows from them alone: angles, embeddings; None where
    nothing does. It has to be computed in float32 whatever the precision of the other: bf16 tells 257 from 256 no more.
    model: the other INPUTS, keys.<layer> and values.<layer>, positions.<i> -> logits [n, V] behind each sequence."""

    model: Any
    positions: Any | None
    layers: Mapping[int, Layer]


def graph_of(model: Any) -> Graph:
    """model: a causal transformers model. Raises PackingError, or what tracing and the converter raise."""
    decoder = PackedDecoder(model, "cpu")
    if not (decoder.takes_positions and decoder.takes_places):
        raise PackingError(f"{type(model).__name__} takes no positions, or gives logits of all tokens alone")
    restore = unpacked(model)
    try:
        with decoder.installed():
            layers = _layers(decoder)
            traced = _traced(model, layers)
    finally:
        restore()
    return Graph(traced, _cut(traced), layers)


def _layers(decoder: PackedDecoder) -> dict[int, Layer]:
    """Seen on a short forward."""
    _, keys = decoder.prefill([np.zeros(2, np.int32)])
    return {
        index: Layer(key.shape[0], key.shape[2], value.shape[2], keys.windows[index])
        for index, (key, value) in sorted(keys.layers.items())
    }


# -- the trace


class _Traced(nn.Module):
    def __init__(self, model: Any, layers: Mapping[int, Layer]) -> None:
        super().__init__()
        self.model, self._layers = model, list(layers)

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, last: torch.Tensor, past_lens: torch.Tensor,
        starts: torch.Tensor, blocks: torch.Tensor, block_starts: torch.Tensor, longest: torch.Tensor,
        keys_values: list[torch.Tensor],
    ) -> torch.Tensor:  # fmt: skip
        stored = dict(zip(self._layers, zip(keys_values[::2], keys_values[1::2], strict=True), strict=True))
        cache = _TracedKeys(stored, (past_lens, starts, blocks, block_starts, longest))
        plain = make_pack(np.array(EXAMPLE, np.int64), "cpu")
        pack = Pack(plain.runs, plain.lengths, plain.cu_seqlens, plain.max_seqlen, cache=cache)
        inputs = {"input_ids": input_ids[None], "position_ids": position_ids[None], "pack": pack, "use_cache": False}
        logits: torch.Tensor = self.model(**inputs, logits_to_keep=last, return_dict=True).logits[0]
        return logits.float()


class _TracedKeys:
    """Attention of the trace: one operator, which computes nothing."""

    def __init__(self, stored: Mapping[int, tuple[torch.Tensor, torch.Tensor]], step: tuple[torch.Tensor, ...]) -> None:
        self._stored, self._step = stored, step

    def attend(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, scale: float,
        window: int | None,
    ) -> torch.Tensor:  # fmt: skip
        """query [1, h, T, d], key and value [1, k, T, d] -> [1, T, h, d]."""
        sizes = [int(n) for n in (query.shape[1], key.shape[1], key.shape[3], value.shape[3])]
        stored = self._stored[layer_of(module)]
        out: torch.Tensor = _operator()(query, key, value, *stored, *self._step, float(scale), window or 0, sizes)
        return out


@functools.cache
def _operator() -> Any:
    """A name in torch's own list of operators, once a process."""
    tensors = ("query", "key", "value", "keys", "values", *STEP_INPUTS)
    signature = ", ".join(f"Tensor {name}" for name in tensors)
    torch.library.define(OPERATOR, f"({signature}, float scale, int window, int[] sizes) -> Tensor")

    def shaped(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *others: Any) -> torch.Tensor:
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])

    torch.library.impl(OPERATOR, "default", shaped)
    return torch.ops.packhorse.paged_attention


def _traced(model: Any, layers: Mapping[int, Layer]) -> Any:
    """An openvino.Model of any number of tokens, sequences and blocks."""
    openvino, frontend = import_module("openvino"), import_module("openvino.frontend.pytorch")
    extension = frontend.ConversionExtension(OPERATOR, _converted)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracers warn of every Python number; the proof tells what matters
        graph = openvino.convert_model(_Traced(model, layers), example_input=_example(layers), extension=[extension])
    names = [*INPUTS, *(f"{what}.{layer}" for layer in layers for what in ("keys", "values"))]
    for place, name in zip(graph.inputs, names, strict=True):
        place.get_tensor().set_names({name})
        parameter = place.get_node()
        parameter.set_friendly_name(name)
        _free(openvino, parameter, name)
    graph.validate_nodes_and_infer_types()
    return graph


def _free(openvino: Any, parameter: Any, name: str) -> None:
    """Of the example's shape; of keys and values the plugin chooses block size and type too."""
    if "." in name:
        parameter.set_element_type(openvino.Type.dynamic)
        parameter.set_partial_shape(openvino.PartialShape([-1] * 4))
    elif name != "longest":
        parameter.set_partial_shape(openvino.PartialShape([-1]))


def _example(layers: Mapping[int, Layer]) -> dict[str, Any]:
    first, second = EXAMPLE
    int32s = {
        "past_lens": [0, 0], "starts": [0, first, first + second], "blocks": [0, 1], "block_starts": [0, 1, 2],
        "longest": second,
    }  # fmt: skip
    sizes = [(layer.heads, size) for layer in layers.values() for size in (layer.key_size, layer.value_size)]
    return {
        "input_ids": torch.zeros(first + second, dtype=torch.int64),
        "position_ids": torch.tensor([*range(first), *range(second)]),
        "last": torch.tensor([first - 1, first + second - 1]),
        **{name: torch.tensor(values, dtype=torch.int32) for name, values in int32s.items()},
        "keys_values": [torch.zeros(2, heads, TRACED_BLOCK, size) for heads, size in sizes],
    }


def _cut(graph: Any) -> Any | None:
    """Takes what follows from position_ids alone out of the graph: a model of its own, whose results are inputs of the
    graph now."""
    openvino, ops = import_module("openvino"), import_module("openvino.opset13")
    source = graph.input("position_ids").get_node()
    alone = _following(graph, source.get_friendly_name())
    results: list[Any] = []
    inputs: list[Any] = []
    for output in [output for node in alone.values() for output in node.outputs()]:
        takers = [taker for taker in output.get_target_inputs() if taker.get_node().get_friendly_name() not in alone]
        if takers:
            name = f"positions.{len(inputs)}"
            results.append(ops.result(output))
            inputs.append(ops.parameter(output.get_partial_shape(), output.get_element_type(), name=name))
            inputs[-1].output(0).get_tensor().set_names({name})
            for taker in takers:
                taker.replace_source_output(inputs[-1].output(0))
    graph.remove_parameter(source)
    graph.add_parameters(inputs)
    graph.validate_nodes_and_infer_types()
    return openvino.Model(results, [source], "positions") if results else None


def _following(graph: Any, source: str) -> dict[str, Any]:
    """Nodes by name that are computed from this input and constants."""
    found: dict[str, Any] = {source: graph.input(source).get_node()}
    for node in graph.get_ordered_ops():
        before = [node.input_value(i).get_node() for i in range(node.get_input_size())]
        names = [b.get_friendly_name() for b in before if b.get_type_name() != "Constant"]
        if names and node.get_type_name() != "Result" and all(name in found for name in names):
            found[node.get_friendly_name()] = node
    return found


# -- OpenVINO's operator


def _converted(context: Any) -> Sequence[Any]:
    """PagedAttention in place of ours. Its inputs as OpenVINO 2026.4 has them (core/src/op/paged_attention.cpp); those
    for ALiBi, rotation, sparse attention, eviction and sinks are empty."""
    ops, extension = import_module("openvino.opset13"), import_module("openvino.op")
    query, key, value, keys, values, *step = (context.get_input(i) for i in range(len(STEP_INPUTS) + 5))
    scale, window, sizes = (context.get_values_from_const_input(i) for i in range(10, 13))
    heads, key_heads, key_size, value_size = (int(n) for n in sizes)
    *lengths, longest = step

    def constant(dtype: type, *shape: int, value: float = 0) -> Any:
        return ops.constant(np.full(shape, value, dtype)).output(0)

    def flat(x: Any) -> Any:
        """[1, h, T, d] -> [T, h * d]."""
        by_token = ops.squeeze(ops.transpose(x, np.array([0, 2, 1, 3])), np.array([0]))
        return ops.reshape(by_token, np.array([0, -1]), special_zero=True).output(0)

    none, nothing = constant(np.int32, 0), constant(np.float32, 0)
    zero = constant(np.int32)
    node = extension._PagedAttentionExtension([
        flat(query), flat(key), flat(value), keys, values, *lengths,
        constant(np.float32, value=float(scale)), constant(np.int32, value=int(window)), nothing, longest,
        none, none, none, nothing,  # scores, rotation
        nothing, zero, zero,  # sparse attention
        constant(np.float32, 0, 0, 0, 0), zero, none, none, none,  # sinks, eviction
        none, constant(np.uint8, 0), none,  # token types, bias between queries
    ])  # fmt: skip
    shape = {"num_k_heads": key_heads, "k_head_size": key_size, "num_v_heads": key_heads, "v_head_size": value_size}
    for name, number in shape.items():
        node.get_rt_info()[name] = number
    split = ops.reshape(node.output(0), np.array([0, heads, value_size]), special_zero=True)
    return [ops.unsqueeze(split, np.array([0])).output(0)]
