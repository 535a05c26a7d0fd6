"""What of packhorse works here: each thing is imported and run on something tiny, where that is quick."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from packhorse.backends import find_backend
from packhorse.backends import torch as torch_backend
from packhorse.doctor.diagnosis import Check
from packhorse.doctor.packages import imported, installed, is_installed, tried, version_of
from packhorse.errors import UsageError
from packhorse.remote import IN_PYARROW, PACKAGES

ONNX, OPENVINO, BNB, TORCHAO = (f"pip install 'packhorse[{x}]'" for x in ("onnx", "openvino", "bnb", "torchao"))
FAST = "pip install 'packhorse[fast-tokenizers]'"
ATTENTIONS = (
    "packed", "sdpa", "sdpa:flash", "sdpa:efficient", "sdpa:cudnn", "sdpa:math", "flash_attention_2",
    "flash_attention_3", "flex_attention", "eager",
)  # fmt: skip
FLASH_COMMAND = "pip install flash-attn --no-build-isolation"
COMPILER = {"cpu": "apt-get install g++", "cuda": "pip install triton"}
TOKENIZER_JSON = (
    '{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],'
    '"normalizer":{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,'
    '"lowercase":true},"pre_tokenizer":{"type":"BertPreTokenizer"},"post_processor":null,"decoder":null,'
    '"model":{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##",'
    '"max_input_chars_per_word":100,"vocab":{"[UNK]":0,"a":1,"film":2}}}'
)


def check_all(device: str, measure: bool) -> Iterator[Check]:
    """device: that a run would take. measure: packages that take seconds to import are imported too."""
    yield from backends(device, measure)
    yield from attentions(device)
    yield from precisions(device)
    yield from engines(device, measure)
    yield from quantizers(measure)
    yield from tokenizers()
    yield from readers(measure)


def backends(device: str, measure: bool) -> Iterator[Check]:
    yield tried("backend", "torch", lambda: _product(device), "pip install torch transformers")
    yield tried("backend", "onnx", _onnx, ONNX, ("onnxruntime",))
    yield installed(
        "backend", "onnx, from weights", ("onnx", "onnxscript"), ONNX, lambda: _imports("onnx", "onnxscript"), measure
    )
    yield tried("backend", "openvino", _openvino, OPENVINO, ("openvino",))
    yield installed("backend", "openvino int8", ("nncf",), OPENVINO, lambda: _imports("nncf"), measure)
    yield _vllm(measure)
    yield tried("backend", "null", _null, None)


def _null() -> str:
    find_backend("null")
    return "no model: a checksum of the tokens"


def _product(device: str) -> str:
    import torch

    a = torch.arange(64.0, device=device).view(8, 8)
    same = torch.equal((a @ a.t()).cpu(), a.cpu() @ a.cpu().t())
    if not same:
        raise RuntimeError(f"a product of matrices on {device} is wrong")
    return f"torch {torch.__version__} on {device}"


def _onnx() -> str:
    """A graph of one product where onnx can write one, else what providers there are."""
    runtime = imported("onnxruntime")
    names = ", ".join(p.removesuffix("ExecutionProvider") for p in runtime.get_available_providers())
    if is_installed("onnx"):
        import numpy as np

        session = runtime.InferenceSession(_doubling(), providers=["CPUExecutionProvider"])
        (seen,) = session.run(None, {"x": np.ones((2, 2), np.float32)})
        if not (seen == 2).all():
            raise RuntimeError(f"1 + 1 is {seen[0, 0]}")
    return f"onnxruntime {runtime.__version__}: {names}"


def _doubling() -> bytes:
    onnx = imported("onnx")
    helper, kind = imported("onnx.helper"), onnx.TensorProto.FLOAT
    nodes = [helper.make_node("Add", ["x", "x"], ["y"])]
    ends = [[helper.make_tensor_value_info(name, kind, [2, 2])] for name in ("x", "y")]
    opsets = [helper.make_opsetid("", 17)]
    model: bytes = helper.make_model(
        helper.make_graph(nodes, "g", *ends), opset_imports=opsets, ir_version=8
    ).SerializeToString()
    return model


def _openvino() -> str:
    from packhorse.backends.openvino.packages import import_openvino

    openvino = import_openvino()
    return f"openvino {version_of('openvino')}: {', '.join(openvino.Core().available_devices)}"


def _vllm(measure: bool) -> Check:
    """Asking another Python takes a second, importing its vLLM 10 and more."""
    from packhorse.backends.vllm import interpreter

    if not os.environ.get(interpreter.VARIABLE) and not is_installed("vllm"):
        command = f"python -m venv vllm-env && vllm-env/bin/pip install vllm && export {interpreter.VARIABLE}=" + (
            "vllm-env/bin/python"
        )
        return Check("backend", "vllm", "missing", "vllm: not installed, nor in an environment of its own", command)
    try:
        python = interpreter.find_python()
        found = interpreter.versions(python)
        if measure:
            found |= {name: str(value) for name, value in interpreter.probe(python).items()}
    except UsageError as error:
        return Check("backend", "vllm", "broken", str(error).splitlines()[0], f"{interpreter.VARIABLE}=...")
    detail = ", ".join(f"{name} {value}" for name, value in found.items())
    return Check("backend", "vllm", "works" if measure else "installed", detail)


def attentions(device: str) -> Iterator[Check]:
    for name in ATTENTIONS:
        yield _attention(name, device)


def _attention(name: str, device: str) -> Check:
    from packhorse.backends.torch.attention import check_attention

    try:
        check_attention(name, device)
    except UsageError as error:
        is_package = "not installed" in str(error)
        detail = str(error).removeprefix(f"--attention {name}: ").split(";")[0].split("(")[0].strip()
        return Check(
            "attention", name, "missing" if is_package else "no hardware", detail, FLASH_COMMAND if is_package else None
        )
    if name == "flex_attention" and not torch_backend.can_compile(device):
        command = COMPILER.get(device.split(":")[0])
        return Check("attention", name, "missing", "needs a compiler", command)
    if name == "flex_attention":
        return Check("attention", name, "installed", "compiled when it is first used")
    return tried("attention", name, lambda: _attend(name, device), "pip install -U torch")


def _attend(name: str, device: str) -> str:
    """[1, 2, 16, 32] through it, against plain products in float32. Raises RuntimeError where they differ."""
    import torch

    kind = torch.float32 if device == "cpu" else torch.bfloat16
    torch.manual_seed(0)
    q = torch.randn(1, 2, 16, 32).to(device, kind)
    expected = torch.softmax(q.float() @ q.float().transpose(2, 3) * 32**-0.5, -1) @ q.float()
    if name == "eager":
        seen = torch.softmax(q @ q.transpose(2, 3) * 32**-0.5, -1) @ q
    else:
        seen = _packed(q) if name == "packed" else _sdpa(q, name.partition(":")[2])
    difference = float((seen.float() - expected).abs().max())
    if difference > 0.05:
        raise RuntimeError(f"is {difference:.2g} off")
    return ""


def _packed(q: Any) -> Any:
    """One row through the function that packed models attend with."""
    import torch

    from packhorse.packing.attention import attend_rows
    from packhorse.packing.pack import Pack, Run

    length = q.shape[2]
    ends = torch.tensor([0, length], dtype=torch.int32, device=q.device)
    runs = () if q.is_cuda else (Run(0, 1, length),)
    pack = Pack(runs, torch.tensor([length], device=q.device), ends, length)
    return attend_rows(q, q, q, pack, q.shape[-1] ** -0.5, False, None).transpose(1, 2)


def _sdpa(q: Any, backend: str) -> Any:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    from packhorse.backends.torch.attention import SDPA_BACKENDS

    names = [SDPA_BACKENDS[backend][0]] if backend else ["FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH"]
    with sdpa_kernel([getattr(SDPBackend, name) for name in names]):
        return scaled_dot_product_attention(q, q, q)


def precisions(device: str) -> Iterator[Check]:
    supported = torch_backend.supported_precisions(device)
    for name in ("fp32", "bf16", "fp16", "int8"):
        if name in supported:
            yield Check("precision", name, "works", f"{device} has instructions for it")
        elif name == "int8":
            yield Check("precision", name, "installed", f"on {device} by bitsandbytes or torchao")
        else:
            yield Check("precision", name, "no hardware", f"{device} has no instructions for it; it would be emulated")


def engines(device: str, measure: bool) -> Iterator[Check]:
    """Of generation."""
    for name in ("continuous", "static", "generate"):
        yield Check("engine", name, "installed", "of the torch backend; tried on each model when it is loaded")
    yield installed(
        "engine", "openvino", ("openvino",), "pip install 'packhorse[openvino]'", lambda: _imports("openvino"), measure
    )
    is_cuda = device.startswith("cuda")
    yield Check("engine", "paged", "installed" if is_cuda else "no hardware", "transformers' continuous batching")
    command = "pip install 'packhorse[constrained]'"
    trial = lambda: _imports("xgrammar")  # noqa: E731
    yield installed("engine", "JSON schemas and choices", ("xgrammar",), command, trial, measure)
    can_compile = torch_backend.can_compile(device)
    yield Check(
        "engine", "torch.compile", "installed" if can_compile else "missing", "" if can_compile else "needs a compiler",
        None if can_compile else COMPILER.get(device.split(":")[0]),
    )  # fmt: skip


def quantizers(measure: bool) -> Iterator[Check]:
    from packhorse.backends.torch.quantization.choice import EXTRAS, NEEDS

    for name, modules in NEEDS.items():
        command = f"pip install '{EXTRAS[name]}'"
        check = installed("quantization", name, modules, command, lambda m=modules: _imports(*m), measure)  # type: ignore[misc]
        yield check
    yield Check("quantization", "packhorse's int8", "works", "of encoders on a CPU")
    command = "pip install 'packhorse[peft]'"
    yield installed("adapter", "LoRA and its kin", ("peft",), command, lambda: _imports("peft"), measure)
    command = "pip install 'packhorse[accelerate]'"
    modules = ("accelerate",)
    yield installed("placement", "--device-map", modules, command, lambda: _imports("accelerate"), measure)


def tokenizers() -> Iterator[Check]:
    yield tried("tokenizer", "hf", _hf, "pip install tokenizers", ("tokenizers",))
    yield tried("tokenizer", "tokie", lambda: _quick("tokie"), FAST, ("tokie",))
    yield tried("tokenizer", "nanotoken", lambda: _quick("nanotoken"), FAST, ("nanotoken",))


def _hf() -> str:
    tokenizer = imported("tokenizers").Tokenizer.from_str(TOKENIZER_JSON)
    if tokenizer.encode("a film").ids != [1, 2]:
        raise RuntimeError("gives other tokens than it has to")
    return f"tokenizers {version_of('tokenizers')}"


def _quick(module: str) -> str:
    from packhorse.tokenize.nanotoken import NanotokenTokenizer
    from packhorse.tokenize.tokie import TokieTokenizer

    made: Any = {"tokie": TokieTokenizer, "nanotoken": NanotokenTokenizer}[module](TOKENIZER_JSON, 1)
    if made.encode(["a film"]).ids.tolist() != [1, 2]:
        raise RuntimeError("gives other tokens than it has to")
    return f"{module} {version_of(module)}; proven on each job's rows before use"


def readers(measure: bool) -> Iterator[Check]:
    import pyarrow as pa

    for name, codec in (("gz", "gzip"), ("zst", "zstd"), ("bz2", "bz2")):
        state = "works" if pa.Codec.is_available(codec) else "missing"
        yield Check("reader", f".{name}", state, "", None if state == "works" else "pip install -U pyarrow")  # type: ignore[arg-type]
    yield tried("reader", "parquet", _parquet, "pip install -U pyarrow")
    yield Check("reader", "jsonl, csv, tsv, text", "works", "packhorse's own")
    command = "pip install 'packhorse[datasets]'"
    yield installed("reader", "dataset:", ("datasets",), command, lambda: _imports("datasets"), measure)
    for protocol in ("s3", "gs", "hf", "https", "abfs"):
        yield _store(protocol, measure)


def _store(protocol: str, measure: bool) -> Check:
    """What pyarrow speaks by itself needs no package."""
    module = PACKAGES[protocol]
    if protocol in IN_PYARROW and not is_installed(module):
        return Check("reader", f"{protocol}://", "installed", f"pyarrow's; {module} is not here")
    command = "pip install 'packhorse[s3]'" if protocol == "s3" else f"pip install {module}"
    return installed("reader", f"{protocol}://", (module,), command, lambda: _imports(module), measure)


def _parquet() -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink, table = pa.BufferOutputStream(), pa.table({"text": ["a film", None]})
    pq.write_table(table, sink)
    if pq.read_table(pa.BufferReader(sink.getvalue())) != table:
        raise RuntimeError("reads something else than was written")
    return f"pyarrow {pa.__version__}"


def _imports(*modules: str) -> str:
    for module in modules:
        imported(module)
    return ", ".join(f"{module} {version_of(module)}" for module in modules)
