"""Frozen settings and all their validation: what the flags of the command line and the keywords of the API mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from packhorse.errors import UsageError, did_you_mean

# Settings that change neither which rows are computed nor what is written for them.
# Input and model are compared by their content instead.
NOT_IN_MANIFEST = frozenset(
    {"model", "revision", "adapter", "input", "output", "devices", "tokenizer_threads", "tune", "plan"}
    | {"append", "retry_errors", "on_error", "max_error_rate", "overwrite", "quiet", "progress", "price_per_hour"}
)

OUTPUT_FORMATS = (".parquet", ".jsonl", ".csv", ".npy")
POOLINGS = ("mean", "cls", "last", "max")


class EngineConfig(BaseModel):
    """How a model is loaded and run. `auto` and None mean: decided by packhorse and written into the plan."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str
    """Folder of a model, or its id on the hub."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    adapter: str | None = None
    """PEFT adapter (LoRA) to merge into the weights: its folder, or its id on the hub, perhaps with @REVISION."""
    task: Literal["auto", "text-classification", "feature-extraction"] = "auto"
    """What to compute; auto reads it from the model."""
    backend: Literal["auto", "torch", "onnx", "openvino", "null"] = "auto"
    """auto: torch, or onnx or openvino where the folder has only their files; null: no model, each row "predicts" a
    checksum of its tokens."""
    provider: Literal["auto", "cpu", "cuda", "tensorrt", "migraphx", "rocm", "openvino", "coreml", "directml"] = "auto"
    """ONNX Runtime's execution provider; auto: the fastest kind that is installed for the device."""
    onnx_file: str | None = None
    """Which .onnx file of the model's folder to run, relative to it."""
    devices: str = "auto"
    """auto, cpu, cuda, cuda:N, mps or xpu."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8", "fp8"] = "auto"
    """auto: bf16 where the hardware has it and rows of this job agree with fp32; else fp32."""
    exact: bool = False
    """fp32, one thread, bitwise repeatable."""
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
    """Prompt of a sentence-transformers model to put before each text."""
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
    def _one_device(cls, value: str) -> str:
        kind, _, index = value.partition(":")
        if "," in value or value == "all":
            raise ValueError(
                f"--devices {value}: one device a run for now; legal are auto, cpu, cuda, cuda:N, mps, xpu"
            )
        if kind not in ("auto", "cpu", "cuda", "mps", "xpu") or (index and not index.isdigit()):
            raise ValueError(f"--devices {value}: legal are auto, cpu, cuda, cuda:N, mps, xpu")
        return value


class RunConfig(EngineConfig):
    """One job: an engine's settings, the rows, and where their outputs go."""

    input: str
    """File, folder or glob of Parquet, JSONL, CSV, TSV or text; dataset:NAME; - for standard input."""
    output: str
    """Folder of parts, or one file when the name ends in .parquet, .jsonl, .csv or .npy."""
    output_format: Literal["auto", "parquet", "jsonl", "csv", "npy"] = "auto"
    """auto: by the name of a file; Parquet for the parts in a folder. npy: arrays, of embeddings only."""
    input_format: Literal["auto", "parquet", "jsonl", "csv", "tsv", "text"] = "auto"
    """auto: by the name of a file; JSONL for standard input."""
    delimiter: str | None = None
    """Character between the fields of CSV; default a comma."""
    header: bool = True
    """The first line of CSV and TSV names the columns; else they are column_0, column_1 and so on."""
    text_column: str | None = None
    """Column with the text; guessed when only one can be meant."""
    pair_column: str | None = None
    """Column with the second text of a pair."""
    limit: int | None = Field(None, ge=0)
    """Only the first N rows."""
    keep: tuple[str, ...] | None = None
    """Input columns to carry over; default all."""
    output_prefix: str = ""
    """Put before the names of the output columns."""
    shard_rows: int | None = Field(None, ge=1)
    """Rows a shard; default 65,536 with a ramp at the start."""
    on_error: Literal["quarantine", "fail"] = "quarantine"
    """quarantine: a row that cannot be done gets nulls and an `error`; fail: stop at the first."""
    max_error_rate: float = Field(0.5, ge=0, le=1)
    """Stop when more than this share of rows ended in errors (after 1,000 rows)."""
    mirror: bool = False
    """Write a file for each input file, of the same name below the output folder."""
    append: bool = False
    """Compute the rows of files that came to a folder or glob after the output was begun; they are added as parts."""
    retry_errors: bool = False
    """Of a finished output compute only the rows that ended in an error, and put them in their places."""
    overwrite: bool = False
    """Delete what an earlier run left in the output and start anew."""
    quiet: bool = False
    """No progress, no summary; errors only."""
    progress: Literal["auto", "plain", "json", "none"] = "auto"
    """auto: a line that moves in a terminal, plain lines elsewhere; json: one object a line on stderr."""
    plan: str | None = None
    """File with a plan to carry out instead of deciding anew."""
    price_per_hour: float | None = Field(None, gt=0, allow_inf_nan=False)
    """What an hour of this machine costs, in any currency; the report then says what the run cost."""

    @model_validator(mode="after")
    def _plan_decides(self) -> Self:
        decided = (
            "backend",
            "precision",
            "exact",
            "tolerance",
            "attention",
            "compile",
            "batching",
            "batch_size",
            "max_batch_tokens",
        )
        given = [name for name in decided if getattr(self, name) != type(self).model_fields[name].default]
        if self.plan is not None and given:
            flag = "--" + given[0].replace("_", "-")
            raise ValueError(f"--plan {self.plan} decides that already: drop {flag}, or --plan")
        return self

    @model_validator(mode="after")
    def _changes_a_folder(self) -> Self:
        asked = [flag for flag in ("append", "retry_errors", "overwrite") if getattr(self, flag)]
        flags = ["--" + name.replace("_", "-") for name in asked]
        if len(flags) > 1:
            raise ValueError(f"{flags[0]} and {flags[1]} do different things to an output: one command after the other")
        if flags and not self.overwrite and self.output_is_file:
            raise ValueError(
                f"{flags[0]} changes an output part by part, and -o {self.output} is one file: keep such an output as "
                f"a folder of parts, -o {self.output.removesuffix(Path(self.output).suffix)}/"
            )
        if self.mirror and self.output_is_file:
            raise ValueError(f"--mirror writes a file for each input file, and -o {self.output} is one: name a folder")
        if self.mirror and (self.retry_errors or self.limit is not None):
            other = "--retry-errors" if self.retry_errors else f"--limit {self.limit}"
            raise ValueError(f"--mirror writes whole files once, so {other} does not go with it: drop one of them")
        if self.append and self.limit is not None:
            raise ValueError(f"--append takes all rows of new files, --limit {self.limit} leaves some out: drop one")
        return self

    @field_validator("output")
    @classmethod
    def _known_format(cls, value: str) -> str:
        suffix = Path(value).suffix
        if suffix and suffix not in OUTPUT_FORMATS and not value.endswith("/") and not Path(value).is_dir():
            raise ValueError(
                f"-o {value}: files are {', '.join(OUTPUT_FORMATS)}{did_you_mean(suffix, OUTPUT_FORMATS) or '.'}"
                f" For a folder of parts of that name, write {value}/"
            )
        return value

    @model_validator(mode="after")
    def _one_format(self) -> Self:
        if self.output_is_file and self.output_format not in ("auto", Path(self.output).suffix[1:]):
            raise ValueError(
                f"--output-format {self.output_format}: -o {self.output} is named like another format; drop the flag, "
                f"name the file .{self.output_format}, or write {self.output}/ for a folder of parts"
            )
        return self

    @property
    def output_is_file(self) -> bool:
        return Path(self.output).suffix in OUTPUT_FORMATS and not self.output.endswith("/")

    @property
    def output_extension(self) -> str:
        """Of the format that is written: .parquet, .jsonl, .csv or .npy."""
        if self.output_is_file:
            return Path(self.output).suffix
        return ".parquet" if self.output_format == "auto" else f".{self.output_format}"

    def settings(self) -> dict[str, Any]:
        """What the manifest compares on resume, as JSON values."""
        written = {"output_format": self.output_extension[1:]}
        return self.model_dump(mode="json", exclude=set(NOT_IN_MANIFEST)) | written


def validated(config_type: type[EngineConfig], values: dict[str, Any]) -> Any:
    """The config, or a UsageError that names the flag, what was seen and what is legal."""
    try:
        return config_type(**values)
    except ValidationError as error:
        raise UsageError("\n".join(_explain(config_type, item) for item in error.errors())) from None


def _explain(config_type: type[EngineConfig], item: Any) -> str:
    name = str(item["loc"][0]) if item["loc"] else ""
    flag = "--" + name.replace("_", "-")
    if item["type"] == "extra_forbidden":
        return f"unknown setting {name!r}{did_you_mean(name, config_type.model_fields)}"
    if item["type"] == "missing":
        return f"setting {name!r} is needed"
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    return f"{flag} {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"
