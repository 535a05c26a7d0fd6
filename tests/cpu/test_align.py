"""What has to move is moved, by kinds of containers, types and devices; the rest is the very same object."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, defaultdict
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BatchEncoding

import packhorse
from packhorse.errors import UsageError

META = torch.device("meta")


class Pair(NamedTuple):
    ids: torch.Tensor
    label: str


@dataclasses.dataclass(frozen=True)
class Frozen:
    pixels: torch.Tensor
    name: str
    extra: Any = dataclasses.field(default=None, init=False)


def model(device: str = "meta", dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2)).to(device, dtype)


def ids(device: str = "cpu") -> torch.Tensor:
    return torch.ones(2, 3, dtype=torch.long, device=device)


def test_device_and_type_by_what_a_tensor_is() -> None:
    batch = {
        "input_ids": ids(), "mask": torch.ones(2, 3, dtype=torch.bool), "pixels": torch.rand(2, 3),
        "labels": torch.rand(2), "text": ["a", "b"],
    }  # fmt: skip
    found, metrics, moved = packhorse.align(batch, like=model())
    assert metrics is None
    assert {name: (t.device, t.dtype) for name, t in found.items() if name != "text"} == {
        "input_ids": (META, torch.long), "mask": (META, torch.bool), "pixels": (META, torch.bfloat16),
        "labels": (META, torch.float32),
    }  # fmt: skip
    assert [(m.name, m.from_dtype, m.to_dtype, m.num_bytes) for m in moved] == [
        ("input_ids", "int64", "int64", 48), ("mask", "bool", "bool", 6), ("pixels", "float32", "bfloat16", 24),
        ("labels", "float32", "float32", 8),
    ]  # fmt: skip
    assert str(moved[2]) == "pixels: cpu -> meta, float32 -> bfloat16"
    assert batch["pixels"].device.type == "cpu" and batch["pixels"].dtype == torch.float32
    assert found["text"] is batch["text"]


def test_numbers_stay_what_they_are() -> None:
    pixels = torch.tensor([[1.5, -2.25]])
    (found,), _, moved = packhorse.align((pixels,), like=model("cpu"))
    np.testing.assert_array_equal(found.float().numpy(), [[1.5, -2.25]])
    assert [str(m) for m in moved] == ["[0]: cpu, float32 -> bfloat16"]


def test_what_is_right_is_the_same_object() -> None:
    batch = {"input_ids": ids(), "more": [{"x": torch.rand(2).bfloat16()}], "pair": Pair(ids(), "a")}
    metrics = [Total()]
    found = packhorse.align(batch, metrics, like=model("cpu"))
    assert found.batch is batch and found.metrics is metrics and found.moved == []


@pytest.mark.parametrize(
    "kind", [dict, OrderedDict, BatchEncoding, lambda items: defaultdict(list, items)], ids=lambda k: k.__name__
)
def test_mappings_keep_their_kind(kind: Any) -> None:
    batch = kind({"input_ids": ids(), "name": "a"})
    found = packhorse.align(batch, like=model()).batch
    assert type(found) is type(batch) and list(found) == ["input_ids", "name"]
    assert found["input_ids"].device == META and batch["input_ids"].device.type == "cpu"


def test_a_batch_encoding_keeps_its_encodings() -> None:
    batch = BatchEncoding({"input_ids": ids()}, n_sequences=1)
    found = packhorse.align(batch, like=model()).batch
    assert found.n_sequences == 1 and found.input_ids.device == META


def test_nested_containers() -> None:
    batch = [Pair(ids(), "a"), (ids(), {"deep": [Frozen(torch.rand(2), "b")]}), None, 3]
    found, _, moved = packhorse.align(batch, like=model())
    assert [m.name for m in moved] == ["[0].ids", "[1][0]", "[1][1].deep[0].pixels"]
    pair, (plain, deep), nothing, number = found
    assert isinstance(pair, Pair) and pair.label == "a" and plain.device == META and (nothing, number) == (None, 3)
    assert isinstance(deep["deep"][0], Frozen) and deep["deep"][0].pixels.dtype == torch.bfloat16
    assert batch[1][1]["deep"][0].pixels.device.type == "cpu"


def test_a_tensor_in_two_places_is_moved_once_and_stays_one() -> None:
    tokens, pixels = ids(), torch.rand(2)
    batch = {"input_ids": tokens, "labels": tokens, "pixels": pixels, "more": [pixels, {"targets": pixels}]}
    found, _, moved = packhorse.align(batch, like=model())
    assert found["input_ids"] is found["labels"] and found["pixels"] is found["more"][0]
    assert found["more"][1]["targets"].dtype == torch.float32  # targets keep their type
    assert [m.name for m in moved] == ["input_ids", "pixels", "more[1].targets"]


def test_model_outputs_and_packed_sequences() -> None:
    from torch.nn.utils.rnn import pack_sequence
    from transformers.modeling_outputs import BaseModelOutput

    outputs = BaseModelOutput(last_hidden_state=torch.rand(1, 2))
    found = packhorse.align(outputs, like=model()).batch
    assert isinstance(found, BaseModelOutput)
    assert found.last_hidden_state.device == META and found["last_hidden_state"].device == META
    packed = pack_sequence([torch.rand(3, 2), torch.rand(1, 2)])
    found = packhorse.align(packed, like=model("cpu")).batch
    assert found.data.dtype == torch.bfloat16 and torch.equal(found.batch_sizes, packed.batch_sizes)


class Total:
    """A metric that is no module and has no to()."""

    def __init__(self) -> None:
        self.total, self.parts, self.name = torch.zeros(2), [torch.ones(1)], "total"


class Running(nn.Module):
    """A metric as torchmetrics makes them: states are attributes, and to() moves them."""

    def __init__(self) -> None:
        super().__init__()
        self.total, self._defaults = torch.zeros(2), {"total": torch.zeros(2)}

    def to(self, device: Any) -> Running:  # type: ignore[override]
        self.total = self.total.to(device)
        return self


def test_metrics_are_moved_and_keep_their_type_of_numbers() -> None:
    metrics = {"total": Total(), "running": Running(), "function": len}
    found, same, moved = packhorse.align({}, metrics, like=model())
    assert same is metrics and found == {}
    assert metrics["total"].total.device == META and metrics["total"].parts[0].device == META  # type: ignore[attr-defined]
    assert metrics["running"].total.device == META  # type: ignore[attr-defined]
    assert metrics["running"].total.dtype == torch.float32  # type: ignore[attr-defined]
    assert [m.name for m in moved] == ["total.total", "total.parts[0]", "running.total"]


def test_a_split_models_inputs_go_to_its_first_layer() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embeddings = nn.Embedding(5, 4, device="cpu")
            self.body = nn.Linear(400, 400, device="meta")
            self.hf_device_map = {"embeddings": "cpu", "body": "meta"}

        def get_input_embeddings(self) -> nn.Module:
            return self.embeddings

    assert packhorse.align(ids(), like=Split()).moved == []
    split = Split()
    del split.hf_device_map
    assert [m.to_device for m in packhorse.align(ids(), like=split).moved] == ["meta"]  # where most of it lies


def test_an_offloaded_first_layer_takes_inputs_where_its_hook_brings_them() -> None:
    class Hook:
        execution_device = "meta"

    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hf_device_map = {"embeddings": "disk", "body": "cpu"}
            self.embeddings, self.body = nn.Embedding(5, 4), nn.Linear(4, 4)
            self.embeddings._hf_hook = Hook()  # type: ignore[assignment]

        def get_input_embeddings(self) -> nn.Module:
            return self.embeddings

    assert packhorse.align(ids(), like=Split()).batch.device == META


def test_tensors_and_devices_as_likeness() -> None:
    assert packhorse.align(torch.rand(2), like="meta").batch.dtype == torch.float32
    assert packhorse.align(torch.rand(2), like=torch.rand(1).half()).batch.dtype == torch.float16
    assert packhorse.align(torch.rand(2), like=ids()).moved == []


def test_what_cannot_be_meant() -> None:
    with pytest.raises(UsageError, match="neither parameters nor buffers"):
        packhorse.align(ids(), like=nn.ReLU())
    with pytest.raises(UsageError, match="like=int"):
        packhorse.align(ids(), like=3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"input_ids is on the meta device"):
        packhorse.align({"input_ids": ids("meta")}, like=model("cpu"))
