"""What a model's weights weigh once loaded, from the headers of its safetensors files."""

from __future__ import annotations

import json
import math
from pathlib import Path

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 2, "int4": 2}
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
OTHERS = {"I64": 8, "I32": 4, "I16": 2}  # any other is a byte a number: what was quantized already stays as it is


def weight_bytes(folder: Path, precision: str) -> int:
    """Floating-point tensors at the precision's type, the others as they are; what vLLM quantizes as it loads counts as
    it was before."""
    headers = [_header(path) for path in sorted(folder.glob("*.safetensors"))]
    tensors = (tensor for header in headers for name, tensor in header.items() if name != "__metadata__")
    return sum(
        math.prod(t["shape"]) * (BYTES[precision] if t["dtype"] in FLOATS else OTHERS.get(t["dtype"], 1))
        for t in tensors
    )


def _header(path: Path) -> dict[str, dict]:
    """A file begins with the length of a JSON header (little-endian uint64), then the header."""
    with path.open("rb") as file:
        header: dict[str, dict] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return header
