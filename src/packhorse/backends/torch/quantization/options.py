"""The keyword arguments of from_pretrained that quantize a model while it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from packhorse.backends.torch.quantization import ao, bnb
from packhorse.backends.torch.quantization.choice import BITSANDBYTES, STATIC, base_of, method_of
from packhorse.backends.torch.quantization.layers import kept
from packhorse.devices.gemm import DTYPES
from packhorse.generation import Quantization


def quantization_options(
    precision: str,
    quantization: Quantization,
    device: str,
    generates: bool = True,
    skeleton: nn.Module | None = None,
) -> dict[str, Any]:
    """quantization_config, dtype (of all that is not quantized) and device_map, for from_pretrained; empty where
    packhorse's own int8 is meant.

    skeleton: the model without weights (layers.skeleton), by which heads and layers of other shapes are left out;
    without it only transformers' own choice is, which takes the heads of some classifiers along. A model loaded with a
    device_map is not moved with .to() afterwards. Raises UsageError.
    """
    method = method_of(precision, quantization, device, generates)
    if method == STATIC:
        return {}
    dtype = DTYPES[base_of(device)]
    skipped = None if skeleton is None else _kept(method, precision, quantization, device, skeleton)
    if method == BITSANDBYTES:
        made = bnb.config(precision, quantization.options, dtype, skipped)
        return {"quantization_config": made, "dtype": dtype, "device_map": {"": device}}
    made = ao.config(precision, quantization.options, device, skipped)
    placed = {} if device == "cpu" else {"device_map": {"": device}}
    return {"quantization_config": made, "dtype": dtype, **placed}


def own_options(method: str, device: str) -> dict[str, Any]:
    """dtype and device_map for a checkpoint that is quantized already. method: as own.own_quantization tells it.

    bitsandbytes computes in any type; kernels of others want the one that the checkpoint was made for.
    """
    dtype = DTYPES[base_of(device)] if method == BITSANDBYTES else "auto"
    placed = {} if device == "cpu" and method != BITSANDBYTES else {"device_map": {"": device}}
    return {"dtype": dtype, **placed}


def _kept(method: str, precision: str, quantization: Quantization, device: str, skeleton: nn.Module) -> Sequence[str]:
    def fits(out_features: int, in_features: int) -> bool:
        if method == BITSANDBYTES:
            return bnb.fits(precision, device, out_features, in_features)
        return ao.fits(precision, quantization.options, device, out_features, in_features)

    return kept(skeleton, fits)
