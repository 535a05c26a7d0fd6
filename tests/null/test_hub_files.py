"""Which files of a repository are downloaded for which backend."""

from __future__ import annotations

from typing import Any

import pytest

from packhorse.errors import ModelError, UsageError
from packhorse.models.hub_files import Wanted, select

FILES = ["config.json", "tokenizer.json", "README.md", "1_Pooling/config.json"]
ST = ["modules.json", "model.safetensors", "2_Dense/model.safetensors", "2_Dense/config.json"]


def chosen(names: list[str], **wanted: Any) -> set[str]:
    return set(select([*FILES, *names], Wanted(**wanted), "model x").files) - set(FILES)


def test_one_set_of_weights_is_chosen() -> None:
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert chosen(ST) == set(ST)
    assert chosen(["model.safetensors", "model.fp16.safetensors", "consolidated.safetensors"]) == {"model.safetensors"}
    assert chosen([*shards, "consolidated.safetensors", "model.safetensors.index.json"]) == {
        *shards, "model.safetensors.index.json",
    }  # fmt: skip
    assert chosen(["model.safetensors", "checkpoint-9/model.safetensors"]) == {"model.safetensors"}
    assert chosen(["model.safetensors"], backend="null") == set()


def test_graphs_are_chosen_by_their_backend_or_where_there_are_no_weights() -> None:
    onnx = ["onnx/model.onnx", "onnx/model.onnx_data", "onnx/model_q4.onnx"]
    openvino = ["openvino/openvino_model.xml", "openvino/openvino_model.bin"]
    every = ["model.safetensors", *onnx, *openvino]
    assert chosen(every) == chosen(every, backend="torch") == {"model.safetensors"}
    assert chosen(every, backend="onnx") == set(onnx[:2])
    assert chosen(every, backend="onnx", onnx_file="onnx/model_q4.onnx") == {"onnx/model_q4.onnx"}
    assert chosen(every, backend="openvino") == set(openvino)
    assert chosen(every, backend="onnx", weights=True) == {"model.safetensors"}
    assert chosen(["model.safetensors", openvino[0]], backend="openvino") == {"model.safetensors"}  # no .bin: not whole
    assert chosen([*onnx, *openvino]) == set(openvino)
    assert chosen(onnx) == set(onnx[:2])
    assert chosen(["onnx/a.onnx", "onnx/b.onnx", "model.safetensors"], backend="onnx") == {"model.safetensors"}
    with pytest.raises(UsageError, match=r"a\.onnx.*b\.onnx.*--onnx-file"):
        chosen(["onnx/a.onnx", "onnx/b.onnx"], backend="onnx")
    with pytest.raises(UsageError, match=r"--onnx-file onnx/c\.onnx.*a\.onnx"):
        chosen(["onnx/a.onnx"], backend="onnx", onnx_file="onnx/c.onnx")
    with pytest.raises(ModelError, match="neither safetensors weights nor a graph"):
        chosen([])
