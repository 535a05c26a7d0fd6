"""What is done to a written graph: fusions, int8 weights, fp16, metadata."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from packhorse.backends.onnx.baked import KEY, Baked
from packhorse.backends.onnx.graph import LARGEST_FILE, silent
from packhorse.backends.onnx.needs import need
from packhorse.devices.host import cpu_flags
from packhorse.errors import ModelError

BLOCK = 32
INT8_PRODUCTS = 4  # accuracy level of MatMulNBits at which activations become int8 too
VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})


def fuse(path: Path, num_heads: int, hidden_size: int, precision: str) -> str:
    """onnxruntime's transformer fusions, in place; says what they did. The graph stays as it was where they fail."""
    optimizer = need("onnxruntime.transformers.optimizer")
    before = operators(path)
    try:
        with silent():
            fused = optimizer.optimize_model(
                str(path), model_type="bert", num_heads=num_heads, hidden_size=hidden_size, opt_level=0,
                use_gpu=precision != "fp32",
            )  # fmt: skip
            after = Counter(n.op_type for n in fused.model.graph.node if n.domain == "com.microsoft")
            gained = after - before
            if gained:
                save(fused.model, path)
    except Exception as error:  # noqa: BLE001  the fusions are pattern matchers that break on unusual graphs
        return f"onnxruntime's transformer fusions failed: {type(error).__name__}: {str(error)[:200]}"
    found = gained + (before & after)
    if not found:
        return "onnxruntime's transformer fusions found nothing to fuse in this graph"
    return "fused: " + ", ".join(f"{count} {name}" for name, count in sorted(found.items()))


def operators(path: Path) -> Counter[str]:
    """com.microsoft operators of a graph: those that fusions write."""
    model = need("onnx").load(str(path), load_external_data=False)
    return Counter(n.op_type for n in model.graph.node if n.domain == "com.microsoft")


def quantize(source: Path, path: Path, method: str) -> str:
    """Writes source with int8 weights and products; says how. method:

    blocks   A scale every 32 weights and activations of a row: each row's values are its own, whatever runs beside it.
    dynamic  A scale a column of weights and one for all activations of a batch: faster, coarser.

    Measured with MiniLM on 200 texts and a BERT-base layer on 2 cores with AVX-512 VNNI: blocks lowest cosine 0.9994 at
    1.1-1.6 x fp32, dynamic 0.990 at 2.2-2.5 x. Static scales: 0.866 at 1.3-2.1 x. Without VNNI two 8-bit products
    overflow 16 bits, so that dynamic weights have 7 bits there.
    """
    onnx = need("onnx")
    model = onnx.load(str(source))
    del model.graph.value_info[:]  # torch's shapes are stale after its own optimizations; the quantizer trips over them
    with silent():
        try:
            return _blocks(model, path) if method == "blocks" else _dynamic(model, path)
        except Exception as error:
            raise ModelError(f"{source}: onnxruntime cannot quantize it: {str(error)[:300]}") from error


def _blocks(model: Any, path: Path) -> str:
    tool = need("onnxruntime.quantization.matmul_nbits_quantizer")
    quantizer = tool.MatMulNBitsQuantizer(
        model, bits=8, block_size=BLOCK, is_symmetric=True, accuracy_level=INT8_PRODUCTS
    )
    quantizer.process()
    save(quantizer.model.model, path)
    return f"int8: a scale every {BLOCK} values, activations too"


def _dynamic(model: Any, path: Path) -> str:
    onnx, quantization = need("onnx"), need("onnxruntime.quantization")
    has_vnni = bool(cpu_flags() & VNNI)
    quantization.quantize_dynamic(
        model, str(path), op_types_to_quantize=["MatMul"], per_channel=True, reduce_range=not has_vnni,
        weight_type=quantization.QuantType.QInt8, use_external_data_format=_is_large(model),
        extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
    )  # fmt: skip
    return f"int8: dynamic, a scale a column{'' if has_vnni else ', 7 bits (no VNNI)'}"


def halve(source: Path, path: Path) -> str:
    """Writes source with fp16 weights; inputs and outputs stay as they are."""
    onnx, float16 = need("onnx"), need("onnxruntime.transformers.float16")
    with silent():
        save(float16.convert_float_to_float16(onnx.load(str(source)), keep_io_types=True), path)
    return "fp16: converted"


def label(path: Path, baked: Baked) -> None:
    """Writes the metadata into the file."""
    onnx = need("onnx")
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {KEY: baked.to_json()})
    save(model, path)


def save(model: Any, path: Path) -> None:
    """One file, or one and its weights beside it where it would be too large for protobuf."""
    onnx = need("onnx")
    weights = path.name + ".data"
    (path.parent / weights).unlink(missing_ok=True)
    external = {"save_as_external_data": True, "all_tensors_to_one_file": True, "location": weights}
    onnx.save_model(model, str(path), **(external if _is_large(model) else {}))


def _is_large(model: Any) -> bool:
    return sum(len(t.raw_data) for t in model.graph.initializer) > LARGEST_FILE
