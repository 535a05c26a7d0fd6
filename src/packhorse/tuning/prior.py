"""What a way to run is expected to do before it was tried: a roofline over the job's own lengths.

The tables are first guesses, from one model (BERT-base, 110 million parameters, 0.172 GFLOP a token) on one machine
(2 cores of an AMD Zen 5 server). They decide only what is tried first; what was measured replaces them.
"""

from __future__ import annotations

from packhorse.batching import packed
from packhorse.data import Int64s
from packhorse.generation import QUANTIZED
from packhorse.model_cost import ModelCost
from packhorse.tuning.candidates import Candidate

GFLOP_PER_TOKEN = 0.172
GEMM_GFLOP_PER_S = {"fp32": 481.0, "bf16": 974.0, "int8": 1_830.0}  # the best matrix product of that machine
# Backend, layout of a batch, precision: real tokens/s of the whole model.
MEASURED_TOKENS_PER_S = {
    ("torch", "packed", "fp32"): 2_077,
    ("torch", "packed", "bf16"): 3_951,
    ("torch", "packed", "int8"): 5_323,
    ("torch", "padded", "fp32"): 931,  # torch's own linear layers, not oneDNN's
    ("torch", "padded", "bf16"): 2_684,
    ("torch", "compiled", "fp32"): 1_160,  # 0.56 of packed in the same run
    ("torch", "compiled", "bf16"): 2_770,
    ("onnx", "padded", "fp32"): 1_885,
    ("onnx", "padded", "int8"): 4_463,
    ("openvino", "padded", "fp32"): 2_194,
    ("openvino", "padded", "bf16"): 3_957,
    ("openvino", "padded", "int8"): 5_825,
}
CPU_EFFICIENCY = {key: rate * GFLOP_PER_TOKEN / GEMM_GFLOP_PER_S[key[2]] for key, rate in MEASURED_TOKENS_PER_S.items()}
# Assumptions, not measured: the faster the product, the more of the time goes to what is none. Low on purpose, so that
# a measured way is not dropped for one that was only imagined.
GPU_EFFICIENCY = {"fp32": 0.5, "fp16": 0.35, "bf16": 0.35, "int8": 0.2, "fp8": 0.2}
GPU_PADDED = 0.8  # of the packed rate, assumed: neighbours by length are nearly as long
UNKNOWN_EFFICIENCY = 0.3  # assumed: a little less than the slowest way that was measured
# Assumed: about 200 operators of a 12-layer model at 5 microseconds each.
BATCH_OVERHEAD_S = 0.001

SETUP_PARAMETERS = 110e6  # of the model whose set-up these seconds are
LOAD_S = 2.4  # weights into torch, each precision
EXPORT_S = {"torch": 0.0, "openvino": 5.2, "onnx": 14.6}
# torch: calibration; openvino: NNCF; onnx: assumed, its quantizer only rewrites weights.
QUANTIZE_S = {"torch": 12.0, "openvino": 55.0, "onnx": 10.0}
COMPILE_S = 40.0
# Whatever the size: packages imported, a graph of operators traced and fused.
FIXED_EXPORT_S = {"torch": 0.0, "openvino": 2.0, "onnx": 8.0}
FIXED_QUANTIZE_S = {"torch": 0.0, "openvino": 10.0, "onnx": 2.0}


def efficiency(device: str, backend: str, layout: str, precision: str) -> float:
    """Share of the device's best matrix product at that precision that a whole model is expected to reach.

    device: cpu, or any other for a GPU's assumptions. layout: packed, compiled (padded batches through torch.compile),
    or any other for padded batches.
    """
    shape = layout if layout in ("packed", "compiled") else "padded"
    if device != "cpu":
        return GPU_EFFICIENCY.get(precision, UNKNOWN_EFFICIENCY) * (GPU_PADDED if shape == "padded" else 1.0)
    return CPU_EFFICIENCY.get((backend, shape, precision), UNKNOWN_EFFICIENCY)


def efficiency_of(candidate: Candidate, device: str, layout: str) -> float:
    """That of a candidate on a device such as cuda:0. layout: what it has where it is not compiled."""
    kind = "compiled" if candidate.compiled else layout
    return efficiency(device.split(":")[0], candidate.backend, kind, candidate.precision)


def setup_s(backend: str, precision: str, num_parameters: float, compiled: bool = False) -> float:
    """Seconds from a folder of weights to a model that is ready, with nothing kept by earlier runs: some of them fixed,
    the others taken as proportional to the number of parameters. 0 for the null backend."""
    if backend not in EXPORT_S:
        return 0.0
    fixed, of_base = FIXED_EXPORT_S[backend] + (COMPILE_S if compiled else 0.0), LOAD_S + EXPORT_S[backend]
    if precision in QUANTIZED:
        fixed, of_base = fixed + FIXED_QUANTIZE_S[backend], of_base + QUANTIZE_S[backend]
    return fixed + of_base * num_parameters / SETUP_PARAMETERS


def load_s(num_parameters: float) -> float:
    """Seconds to load what is ready: of any backend about those of torch's weights."""
    return LOAD_S * num_parameters / SETUP_PARAMETERS


def predicted_rate(
    cost: ModelCost,
    lengths: Int64s,
    gemm_flops_per_s: float,
    copy_bytes_per_s: float | None,
    weight_bytes: int,
    max_batch_tokens: int,
    efficiency: float,
) -> float:
    """Real tokens/s; 0 where there are no tokens.

    Roofline (Williams, Waterman and Patterson, 2009) for each batch: it takes as long as its FLOPs at the reachable
    part of the best product, or as reading all weights once, whichever is longer, and an overhead. Activations are
    not counted as bytes: on a CPU the token budget keeps them in the caches.

    lengths: [n] tokens of a sample of rows. copy_bytes_per_s: None where it is not known.
    """
    lengths = lengths[lengths > 0]
    num_tokens = int(lengths.sum())
    plan = packed.plan(lengths, max_batch_tokens, None)
    weights_s = weight_bytes / copy_bytes_per_s if copy_bytes_per_s else 0.0
    total_s = 0.0
    for batch in range(plan.num_batches):
        product_s = cost.flops(lengths[plan.rows(batch)]) / (efficiency * gemm_flops_per_s)
        total_s += max(product_s, weights_s) + BATCH_OVERHEAD_S
    return num_tokens / total_s if num_tokens else 0.0
