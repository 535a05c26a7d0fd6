"""Whether the openvino engine is for a model, and what its conversion costs, before anything is converted."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from packhorse.devices.host import available_bytes

COPIES = 2  # of the weights: in plain order, which OpenVINO's model refers to as long as it is there, and in its own
# Of a conversion and its proof, on two cores of an EPYC: a Llama of 4 layers 2 s, one of 124M weights in float32 7 s.
LEAST_S, PER_BYTE_S = 1.5, 12e-9


def unfit(model: Any, device: str, weight_bytes: int) -> str | None:
    """Why OpenVINO does not write with this model; None where nothing speaks against it before it is converted.
    model: one that the continuous engine takes, neither split nor quantized."""
    if device != "cpu":
        return f"it computes on processors, and this is {device}"
    if model.dtype not in (torch.float32, torch.bfloat16):
        return f"in fp32 and bf16, and the weights are {str(model.dtype).removeprefix('torch.')}"
    if find_spec("openvino") is None:
        return "openvino is not installed: pip install 'packhorse[openvino]'"
    needed, free = COPIES * weight_bytes, available_bytes()
    if needed > free:
        return f"the conversion needs {needed / 2**30:.1f} GiB beside the weights, and {free / 2**30:.1f} GiB are free"
    return None


def setup_s(weight_bytes: int) -> float:
    """Seconds, about, of weights of so many bytes."""
    return LEAST_S + PER_BYTE_S * weight_bytes
