"""Checkpoints that are quantized already: what made them, and what transformers needs to load them. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from packhorse.errors import ModelError

# Packages beside transformers that a method's checkpoints are loaded with: the name to import, the name for pip.
PACKAGES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "bitsandbytes": (("bitsandbytes", "bitsandbytes"), ("accelerate", "accelerate")),
    "torchao": (("torchao", "torchao"),),
    "gptq": (("gptqmodel", "gptqmodel"), ("optimum", "optimum")),
    "awq": (("gptqmodel", "gptqmodel"), ("accelerate", "accelerate")),
    "auto-round": (("auto_round", "auto-round"),),
    "compressed-tensors": (("compressed_tensors", "compressed-tensors"), ("accelerate", "accelerate")),
    "aqlm": (("aqlm", "aqlm[gpu,cpu]"), ("accelerate", "accelerate")),
    "quanto": (("optimum.quanto", "optimum-quanto"), ("accelerate", "accelerate")),
    "quark": (("quark", "amd-quark"),),
    "hqq": (("hqq", "hqq"),),
    "higgs": (("flute", "flute-kernel"), ("fast_hadamard_transform", "fast_hadamard_transform")),
    "vptq": (("vptq", "vptq"), ("accelerate", "accelerate")),
    "spqr": (("spqr_quant", "spqr_quant[gpu]"), ("accelerate", "accelerate")),
    "eetq": (("kernels", "kernels"), ("accelerate", "accelerate")),
    "bitnet": (("accelerate", "accelerate"),),
    "fp8": (("accelerate", "accelerate"),),
    "fbgemm_fp8": (("accelerate", "accelerate"),),
    "mxfp4": (("accelerate", "accelerate"),),
}
FLOAT8 = frozenset({"fp8", "fbgemm_fp8", "mxfp8"})
EIGHT_BITS = frozenset({"eetq"})


def own_quantization(config: Mapping[str, Any]) -> str | None:
    """What quantized a checkpoint, by transformers' name (bitsandbytes, gptq, awq, ...); None of a plain one.

    config: the contents of its config.json. Of a model of several parts the one for text decides.
    """
    found = quantization_config(config)
    if found is None:
        return None
    method = found.get("quant_method")
    if method is None and (found.get("load_in_8bit") or found.get("load_in_4bit")):  # written by old versions
        return "bitsandbytes"
    return str(method or "unknown").lower()


def own_precision(config: Mapping[str, Any]) -> str | None:
    """The name that a quantized checkpoint's weights have under --precision: int8, fp8, or int4 for 4 bits and fewer;
    None of a plain one."""
    method, found = own_quantization(config), quantization_config(config)
    if method is None or found is None:
        return None
    widths = dict(_widths(found))
    if method in FLOAT8 or (widths.get(8) == "float" and max(widths) == 8):
        return "fp8"
    is_eight = method in EIGHT_BITS or bool(found.get("load_in_8bit")) or max(widths, default=4) == 8
    return "int8" if is_eight else "int4"


def config_of(folder: Path) -> dict[str, Any]:
    """The contents of a model folder's config.json."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def check_own(folder: Path, method: str) -> None:
    """Raises ModelError where a package is missing that the checkpoint's method needs, or transformers lacks it."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    known = {name.removesuffix("_8bit").removesuffix("_4bit") for name in AUTO_QUANTIZATION_CONFIG_MAPPING}
    if method not in known:
        raise ModelError(
            f"{folder}: its weights are quantized by {method!r}, which this version of transformers cannot load; it "
            f"knows {', '.join(sorted(known))}"
        )
    missing = [pip for name, pip in PACKAGES.get(method, ()) if not is_installed(name)]
    if missing:
        raise ModelError(
            f"{folder}: its weights are quantized by {method}, which is loaded with {' and '.join(missing)}; pip "
            f"install {' '.join(_quoted(missing))}"
        )


def is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # the parent of a dotted name
        return False


def quantization_config(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a config.json says about how its weights are quantized; None of plain ones."""
    for part in (config, config.get("text_config")):
        if isinstance(part, Mapping) and isinstance(part.get("quantization_config"), Mapping):
            found: Mapping[str, Any] = part["quantization_config"]
            return found
    return None


def _widths(value: Any) -> Iterable[tuple[int, str]]:
    """Bits and kind (int or float) of weights, wherever a method writes them down."""
    if not isinstance(value, Mapping):
        return
    bits = value.get("bits", value.get("w_bit", value.get("num_bits")))
    if isinstance(bits, int):
        yield bits, str(value.get("type", "int"))
    name = str(value.get("_type", "")).lower()  # torchao's config class
    if "float8" in name:
        yield 8, "float"
    elif name:
        yield 4 if "int4" in name or "intx" in name else 8, "int"
    for key in ("config_groups", "weights", "quant_type", "default", *_groups(value)):
        yield from _widths(value.get(key))


def _groups(value: Mapping[str, Any]) -> list[str]:
    return [key for key in value if key.startswith("group_") and key != "group_size"]


def _quoted(packages: Iterable[str]) -> list[str]:
    return [f"'{name}'" if "[" in name else name for name in packages]
