"""Settings of an engine: how a model is loaded and run."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from packhorse.config.devices import parse_devices
from packhorse.config.generating import GenerationSettings
from packhorse.config.placing import PlacementSettings
from packhorse.config.tasks import TaskSettings

POOLINGS = ("mean", "cls", "last", "max")


class EngineConfig(GenerationSettings, PlacementSettings, TaskSettings):
    """How a model is loaded and run. `auto` and None mean: decided by packhorse and written into the plan."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str
    """Folder of a model, or its id on the hub."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    adapter: str | None = None
    """PEFT adapter (LoRA) to merge into the weights: its folder, or its id on the hub, perhaps with @REVISION."""
    task: Literal[
        "auto", "text-classification", "feature-extraction", "token-classification", "question-answering", "fill-mask",
        "zero-shot-classification", "text-ranking", "sparse-embedding", "multi-vector-embedding", "perplexity",
        "text-generation", "text2text-generation", "summarization", "translation",
    ] = "auto"  # fmt: skip
    """What to compute; auto reads it from the model."""
    backend: Literal["auto", "torch", "onnx", "openvino", "vllm", "null"] = "auto"
    """auto: torch, or onnx or openvino where the folder has only their files; vllm: for generation, in an environment
    of its own; null: no model, each row "predicts" a checksum of its tokens."""
    provider: Literal["auto", "cpu", "cuda", "tensorrt", "migraphx", "rocm", "openvino", "coreml", "directml"] = "auto"
    """ONNX Runtime's execution provider; auto: the fastest kind that is installed for the device."""
    onnx_file: str | None = None
    """Which .onnx file of the model's folder to run, relative to it."""
    devices: str = "auto"
    """auto, cpu, cuda, cuda:N, mps or xpu; several, a process each: all, 0,1, cuda:0,cuda:0 or cpu:N."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8", "int4", "fp8"] = "auto"
    """auto: bf16 where the hardware has it and rows of this job agree with fp32; else fp32. For generation the type of
    the checkpoint, where the hardware has it."""
    exact: bool = False
    """fp32, one thread, bitwise repeatable; not for a checkpoint that is quantized already."""
    tolerance: float | None = Field(None, gt=0)
    """How far a precision below fp32 may be from it: of a score, or of a cosine."""
    attention: Literal[
        "auto", "packed", "sdpa", "sdpa:flash", "sdpa:efficient", "sdpa:cudnn", "sdpa:math", "flash_attention_2",
        "flash_attention_3", "flex_attention", "eager",
    ] = "auto"  # fmt: skip
    """auto: packed, without any padding, where that gives each row the output it has alone; else sdpa."""
    batching: Literal["auto", "packed", "padded", "fixed"] = "auto"
    """packed or padded: token budget over rows sorted by length; fixed: batch size in input order."""
    batch_size: int | None = Field(None, ge=1)
    """Rows a batch: the size with --batching fixed (32), a ceiling with padded."""
    max_batch_tokens: int | None = Field(None, ge=1)
    """Token budget of a batch, padding included."""
    max_length: int | None = Field(None, ge=1)
    """Longest row in tokens; the rest is cut and counted. Default: what the model was made for."""
    dedup: bool = True
    """Compute rows with identical tokens once."""
    prompt_name: str | None = None
    """Prompt of a sentence-transformers model to put before each text; multi-vector-embedding: query or document."""
    pooling: Literal["mean", "cls", "last", "max"] | None = None
    """How token vectors become one embedding; default: what the model says, else mean."""
    normalize: bool | None = None
    """Scale embeddings to length 1; default: what the model says, else no."""
    embedding_format: Literal["float32", "float16", "int8", "binary", "ubinary"] = "float32"
    """Type of the embedding column; int8 has a scale a row beside it, binary and ubinary a bit a number."""
    scores: Literal["top", "all"] = "top"
    """all: adds a `scores` column with every label's score."""
    compile: bool | None = None
    """torch.compile, over padded batches; None: where it was measured to be faster."""
    tune: Literal["off", "quick", "full"] = "quick"
    """quick: ways are measured where that repays itself, for about 3% of the run; full: all of them; off: none."""
    tokenizer_threads: int | None = Field(None, ge=1)
    """Threads that tokenize; default: one a core."""
    tokenizer: Literal["auto", "hf", "tokie", "nanotoken"] = "auto"
    """auto: the fastest installed one that is proven to give the same tokens; hf: Hugging Face tokenizers."""

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        quantizes = self.precision in ("int8", "int4", "fp8") or getattr(self, "plan", None) is not None
        if (self.quantization != "auto" or self.quantization_options) and not quantizes:
            flag = "-options" if self.quantization == "auto" else f" {self.quantization}"
            raise ValueError(f"--quantization{flag}: goes with --precision int8, int4 or fp8, not {self.precision}")
        if self.exact and self.precision not in ("auto", "fp32"):
            raise ValueError(f"--exact means fp32, --precision says {self.precision}: drop one of them")
        if self.batching == "fixed" and self.max_batch_tokens is not None:
            raise ValueError("--batching fixed takes --batch-size, not --max-batch-tokens")
        if self.batching == "padded" and self.attention == "packed":
            raise ValueError("--attention packed leaves nothing to pad: drop --batching padded")
        if self.attention.startswith("flash") and (self.exact or self.precision == "fp32"):
            raise ValueError(f"--attention {self.attention} has no fp32 kernels: --precision bf16 or fp16 goes with it")
        if self.batching == "packed" and self.attention not in ("auto", "packed"):
            raise ValueError(f"--batching packed needs --attention packed, not {self.attention}")
        if self.compile and (self.exact or "packed" in (self.attention, self.batching)):
            other = "--exact" if self.exact else "packing"
            raise ValueError(f"--compile runs padded batches as fast as they go, so {other} does not go with it")
        if self.exact and self.tokenizer not in ("auto", "hf"):
            raise ValueError(f"--exact tokenizes with hf, --tokenizer says {self.tokenizer}: drop one of them")
        return self

    @field_validator("devices")
    @classmethod
    def _known_devices(cls, value: str) -> str:
        parse_devices(value)
        return value

    def device_names(self) -> tuple[str, ...]:
        """Of --devices, one a process; ("auto",) or ("all",) as they stand."""
        return parse_devices(self.devices)

    def on_first_device(self) -> Self:
        """The same for one device: the first of those that are named. With tensor_parallel one model lies on all."""
        if self.tensor_parallel:
            return self
        first = self.device_names()[0]
        return self.model_copy(update={"devices": "auto" if first == "all" else first})
