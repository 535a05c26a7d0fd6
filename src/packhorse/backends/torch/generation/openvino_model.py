"""A causal model compiled by OpenVINO for a CPU, and the blocks of keys and values that it reads and writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module

import numpy as np
import torch

from packhorse.backends.torch.generation.openvino_graph import Graph
from packhorse.backends.torch.generation.paged_batch import PagedStep

GROWTH = 2  # times the blocks that there are; those that were never written take no memory


class OpenVINOModel:
    """A PagedModel."""

    def __init__(self, graph: Graph, precision: str, threads: int) -> None:
        """precision: fp32 or bf16. Raises RuntimeError where OpenVINO cannot compile the graph."""
        from packhorse.backends.openvino.runner import Streams, compile_config

        openvino = import_module("openvino")
        self.windows: Mapping[int, int | None] = {index: layer.window for index, layer in graph.layers.items()}
        streams, core = Streams(1, threads), openvino.Core()
        config = compile_config(precision, streams) | {"KV_CACHE_PRECISION": "bf16" if precision == "bf16" else "f32"}
        compiled = core.compile_model(graph.model, "CPU", config)
        self._tensor, self._request = openvino.Tensor, compiled.create_infer_request()
        self._positions, self._num_positions = None, 0
        if graph.positions is not None:
            positions = core.compile_model(graph.positions, "CPU", compile_config("fp32", streams))
            self._positions, self._num_positions = positions.create_infer_request(), len(positions.outputs)
        # [k, tokens of a block, d] by input, and their type: the plugin's own choice
        self._blocks = {
            place.any_name: (place.element_type, [n.get_length() for n in list(place.partial_shape)[1:]])
            for place in compiled.inputs
            if place.any_name.startswith(("keys.", "values."))
        }
        (self.block_size,) = {shape[1] for _, shape in self._blocks.values()}
        self._stored: dict[str, np.ndarray] = {}
        self._num_blocks = 0

    @property
    def num_bytes(self) -> int:
        """Of keys and values."""
        return sum(x.nbytes for x in self._stored.values())

    def reserve(self, num_blocks: int) -> None:
        if num_blocks <= self._num_blocks:
            return
        grown = max(num_blocks, self._num_blocks * GROWTH)
        for name, (dtype, shape) in self._blocks.items():
            tensor = self._tensor(dtype, [grown, *shape])
            if self._num_blocks:
                tensor.data[: self._num_blocks] = self._stored[name]
            self._stored[name] = tensor.data
            self._request.set_tensor(name, tensor)
        self._num_blocks = grown

    def clear(self) -> None:
        """Gives the blocks back."""
        self._num_blocks = 0
        self.reserve(1)

    def copy_blocks(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        for stored in self._stored.values():
            stored[list(targets)] = stored[list(sources)]

    def forward(self, step: PagedStep) -> torch.Tensor:
        """Logits [n, V] float32, in memory that the next forward overwrites. Raises RuntimeError."""
        inputs = {name: self._tensor(array) for name, array in step.arrays().items()}
        positions = inputs.pop("position_ids")
        if self._positions is not None:
            self._positions.set_tensor("position_ids", positions)
            self._positions.infer()
            for i in range(self._num_positions):
                self._request.set_tensor(f"positions.{i}", self._positions.get_output_tensor(i))
        for name, tensor in inputs.items():
            self._request.set_tensor(name, tensor)
        self._request.infer()
        return torch.from_numpy(self._request.get_output_tensor(0).data)
