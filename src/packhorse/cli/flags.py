"""The flags that commands share, each with its words of help."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

Flag = typer.Option

Model = Annotated[str, typer.Argument(help="Folder of a model, or its id on the hub.")]
Input = Annotated[
    str,
    typer.Argument(
        help="File, folder or glob of Parquet, JSONL, CSV, TSV or text, here or at an address such as s3://; "
        "dataset:NAME[:CONFIG][:SPLIT]; - for standard input."
    ),
]
Output = Annotated[
    str, Flag("-o", "--output", help="Folder of parts (FOLDER/), or a .parquet, .jsonl, .csv or .npy file.")
]
OutputFormat = Annotated[
    Literal["auto", "parquet", "jsonl", "csv", "npy"],
    Flag(help="Of the parts in a folder; default parquet. npy: arrays, of embeddings only."),
]
InputFormat = Annotated[
    Literal["auto", "parquet", "jsonl", "csv", "tsv", "text"],
    Flag(help="auto: by the name of a file; jsonl for standard input."),
]
Delimiter = Annotated[str | None, Flag(help="Character between the fields of CSV; default a comma.")]
Header = Annotated[
    bool, Flag("--header/--no-header", help="The first line of CSV and TSV names the columns; else column_0, ...")
]
TextColumn = Annotated[str | None, Flag(help="Column with the text; guessed when only one can be meant.")]
PairColumn = Annotated[str | None, Flag(help="Column with the second text of a pair.")]
Keep = Annotated[str | None, Flag(help="Input columns to carry over, by comma; default all.")]
OutputPrefix = Annotated[str, Flag(help="Put before the names of the output columns.")]
Limit = Annotated[int | None, Flag(help="Only the first N rows.")]
Task = Annotated[
    Literal[
        "auto",
        "text-classification",
        "feature-extraction",
        "token-classification",
        "question-answering",
        "fill-mask",
        "zero-shot-classification",
        "text-ranking",
        "sparse-embedding",
        "multi-vector-embedding",
        "perplexity",
        "text-generation",
        "text2text-generation",
        "summarization",
        "translation",
    ],
    Flag(help="Read from the model by default."),
]
Scores = Annotated[Literal["top", "all"], Flag(help="all: a column with every label's score.")]
Pooling = Annotated[Literal["mean", "cls", "last", "max"] | None, Flag(help="Default: what the model says, else mean.")]
Normalize = Annotated[
    bool | None, Flag("--normalize/--no-normalize", help="Embeddings of length 1; default: what the model says.")
]
EmbeddingFormat = Annotated[
    Literal["float32", "float16", "int8", "binary", "ubinary"],
    Flag(help="int8: with a column embedding_scale; binary, ubinary: a bit a number, 8 in a byte."),
]
PromptName = Annotated[str | None, Flag(help="Prompt of the model; multi-vector-embedding: query or document.")]
Revision = Annotated[str | None, Flag(help="Branch, tag or commit on the hub.")]
Adapter = Annotated[
    str | None, Flag(help="PEFT adapter (LoRA) to merge into the model: a folder, or ORGANISATION/NAME[@REVISION].")
]
Backend = Annotated[
    Literal["auto", "torch", "onnx", "openvino", "vllm", "null"],
    Flag(help="auto: torch, or what the folder's files are for; vllm: generation; null: no model, a checksum."),
]
Provider = Annotated[
    Literal["auto", "cpu", "cuda", "tensorrt", "migraphx", "rocm", "openvino", "coreml", "directml"],
    Flag(help="ONNX Runtime's execution provider; auto: the fastest kind installed for the device."),
]
OnnxFile = Annotated[str | None, Flag(help="Which .onnx file of the model's folder to run.")]
Devices = Annotated[
    str,
    Flag(help="auto, cpu, cuda, cuda:N, mps, xpu; a process on each of several: all, 0,1, cuda:0,cuda:0 or cpu:N."),
]
Precision = Annotated[
    Literal["auto", "fp32", "bf16", "fp16", "int8", "int4", "fp8"],
    Flag(help="auto: bf16 (fp16) where the hardware has it and rows of this job agree with fp32."),
]
Exact = Annotated[bool, Flag("--exact", help="fp32, one thread, bitwise repeatable.")]
Tolerance = Annotated[
    float | None, Flag(help="Of a score or cosine: 99% of rows within it of fp32, none beyond 5 times it.")
]
Attention = Annotated[
    Literal[
        "auto", "packed", "sdpa", "sdpa:flash", "sdpa:efficient", "sdpa:cudnn", "sdpa:math", "flash_attention_2",
        "flash_attention_3", "flex_attention", "eager",
    ],
    Flag(help="auto: packed, without any padding, where that is proven right for the model; else sdpa."),
]  # fmt: skip
Compile = Annotated[
    bool | None,
    typer.Option("--compile/--no-compile", help="torch.compile, over padded batches. Default: where it was faster."),
]
Batching = Annotated[
    Literal["auto", "packed", "padded", "fixed"],
    Flag(help="Token budget over rows sorted by length, or fixed: --batch-size rows in input order."),
]
BatchSize = Annotated[int | None, Flag(help="Rows a batch: the size with fixed (32), a ceiling with padded.")]
MaxBatchTokens = Annotated[int | None, Flag(help="Token budget of a batch, padding included.")]
MaxLength = Annotated[
    int | None, Flag(help="Longest row in tokens; the rest is cut and counted. Default: the model's.")
]
Dedup = Annotated[bool, Flag("--dedup/--no-dedup", help="Compute rows with identical tokens once.")]
TokenizerThreads = Annotated[int | None, Flag(help="Threads that tokenize; default one a core.")]
Tokenizer = Annotated[
    Literal["auto", "hf", "tokie", "nanotoken"],
    Flag(help="auto: the fastest installed one that is proven to give the same tokens; hf: Hugging Face's own."),
]
PlanFile = Annotated[
    str | None,
    Flag(
        "--plan", help="Carry out the plan in FILE: `packhorse plan --json`, or an output's _packhorse/manifest.json."
    ),
]
Ray = Annotated[
    str | None, Flag(help="Compute on a Ray cluster, an actor a device: local (this machine), auto or HOST:PORT.")
]
RayWorkers = Annotated[
    int | None, Flag(help="Actors at most, the run begins with the first. Default: as --devices lists, else all there.")
]
TuneMode = Literal["off", "quick", "full"]
Tune = Annotated[
    TuneMode,
    Flag(help="quick: measure other ways where that repays itself, for about 3% of the run; full: all; off: none."),
]
ShardRows = Annotated[int | None, Flag(help="Rows between two commits; default 65,536, fewer at the start.")]
OnError = Annotated[
    Literal["quarantine", "fail"],
    Flag(help="quarantine: nulls and an `error` for a row that cannot be done; fail: stop at the first."),
]
MaxErrorRate = Annotated[float, Flag(help="Stop when more than this share of rows are in error (after 1,000 rows).")]
Mirror = Annotated[
    bool, Flag("--mirror", help="A file for each input file, by its name: IN/a.parquet to OUT/a.parquet.")
]
Append = Annotated[
    bool, Flag("--append", help="Compute the rows of files that came to the input folder or glob since; add them.")
]
RetryErrors = Annotated[
    bool, Flag("--retry-errors", help="Of a finished output compute only the rows in error, and put them in place.")
]
Overwrite = Annotated[bool, Flag("--overwrite", help="Delete what an earlier run left in the output.")]
Quiet = Annotated[bool, Flag("--quiet", help="Errors only.")]
Progress = Annotated[Literal["auto", "plain", "json", "none"], Flag(help="How progress is shown, on stderr.")]
PricePerHour = Annotated[float | None, Flag(help="Price of this machine; the report then says what the run cost.")]


def names(by_comma: str | None) -> tuple[str, ...] | None:
    """The names in a list by comma; None where it was not given."""
    return None if by_comma is None else tuple(name for name in by_comma.split(",") if name)
