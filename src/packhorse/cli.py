"""The command line: flags to settings to the api. No logic."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from types import FrameType
from typing import Annotated, Any, Literal

import typer

from packhorse.errors import InterruptedRunError, PackhorseError

app = typer.Typer(
    name="packhorse",
    help="Offline batch inference for Hugging Face models: every row's output on disk, each row exactly once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Flag = typer.Option


@app.command()
def run(
    model: Annotated[str, typer.Argument(help="Folder of a model, or its id on the hub.")],
    input: Annotated[str, typer.Argument(help="File, folder or glob of Parquet or JSONL.")],
    output: Annotated[str, Flag("-o", "--output", help="Folder of parts (FOLDER/), or a .parquet or .jsonl file.")],
    text_column: Annotated[str | None, Flag(help="Column with the text; guessed when only one can be meant.")] = None,
    pair_column: Annotated[str | None, Flag(help="Column with the second text of a pair.")] = None,
    keep: Annotated[str | None, Flag(help="Input columns to carry over, by comma; default all.")] = None,
    output_prefix: Annotated[str, Flag(help="Put before the names of the output columns.")] = "",
    limit: Annotated[int | None, Flag(help="Only the first N rows.")] = None,
    task: Annotated[
        Literal["auto", "text-classification", "feature-extraction"],
        Flag(help="Read from the model by default."),
    ] = "auto",
    scores: Annotated[Literal["top", "all"], Flag(help="all: a column with every label's score.")] = "top",
    pooling: Annotated[
        Literal["mean", "cls", "last", "max"] | None, Flag(help="Default: what the model says, else mean.")
    ] = None,
    normalize: Annotated[
        bool | None,
        Flag("--normalize/--no-normalize", help="Embeddings of length 1; default: what the model says."),
    ] = None,
    embedding_format: Annotated[Literal["float32", "float16"], Flag(help="Type of the embedding column.")] = "float32",
    prompt_name: Annotated[str | None, Flag(help="Prompt of a sentence-transformers model.")] = None,
    revision: Annotated[str | None, Flag(help="Branch, tag or commit on the hub.")] = None,
    backend: Annotated[
        Literal["auto", "torch", "onnx", "openvino", "null"],
        Flag(help="auto: torch, or what the folder's files are for; null: no model, a checksum of the tokens."),
    ] = "auto",
    provider: Annotated[
        Literal["auto", "cpu", "cuda", "tensorrt", "migraphx", "rocm", "openvino", "coreml", "directml"],
        Flag(help="ONNX Runtime's execution provider; auto: the fastest kind installed for the device."),
    ] = "auto",
    onnx_file: Annotated[str | None, Flag(help="Which .onnx file of the model's folder to run.")] = None,
    devices: Annotated[str, Flag(help="auto, cpu, cuda, cuda:N, mps or xpu.")] = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16", "int8", "fp8"],
        Flag(help="auto: bf16 (fp16) where the hardware has it and rows of this job agree with fp32."),
    ] = "auto",
    exact: Annotated[bool, Flag("--exact", help="fp32, one thread, bitwise repeatable.")] = False,
    tolerance: Annotated[
        float | None, Flag(help="Of a score or cosine: 99% of rows within it of fp32, none beyond 5 times it.")
    ] = None,
    attention: Annotated[
        Literal[
            "auto",
            "packed",
            "sdpa",
            "sdpa:flash",
            "sdpa:efficient",
            "sdpa:cudnn",
            "sdpa:math",
            "flash_attention_2",
            "flash_attention_3",
            "flex_attention",
            "eager",
        ],
        Flag(help="auto: packed, without any padding, where that is proven right for the model; else sdpa."),
    ] = "auto",
    batching: Annotated[
        Literal["auto", "packed", "padded", "fixed"],
        Flag(help="Token budget over rows sorted by length, or fixed: --batch-size rows in input order."),
    ] = "auto",
    batch_size: Annotated[
        int | None, Flag(help="Rows a batch: the size with fixed (32), a ceiling with padded.")
    ] = None,
    max_batch_tokens: Annotated[int | None, Flag(help="Token budget of a batch, padding included.")] = None,
    max_length: Annotated[
        int | None, Flag(help="Longest row in tokens; the rest is cut and counted. Default: the model's.")
    ] = None,
    dedup: Annotated[bool, Flag("--dedup/--no-dedup", help="Compute rows with identical tokens once.")] = True,
    tokenizer_threads: Annotated[int | None, Flag(help="Threads that tokenize; default one a core.")] = None,
    tokenizer: Annotated[
        Literal["auto", "hf", "tokie", "nanotoken"],
        Flag(help="auto: the fastest installed one that is proven to give the same tokens; hf: Hugging Face's own."),
    ] = "auto",
    shard_rows: Annotated[
        int | None, Flag(help="Rows between two commits; default 65,536, fewer at the start.")
    ] = None,
    on_error: Annotated[
        Literal["quarantine", "fail"],
        Flag(help="quarantine: nulls and an `error` for a row that cannot be done; fail: stop at the first."),
    ] = "quarantine",
    max_error_rate: Annotated[
        float, Flag(help="Stop when more than this share of rows are in error (after 1,000 rows).")
    ] = 0.5,
    overwrite: Annotated[bool, Flag("--overwrite", help="Delete what an earlier run left in the output.")] = False,
    quiet: Annotated[bool, Flag("--quiet", help="Errors only.")] = False,
    progress: Annotated[
        Literal["auto", "plain", "json", "none"], Flag(help="How progress is shown, on stderr.")
    ] = "auto",
) -> None:
    """Every row of INPUT through MODEL, to OUTPUT. Stopped, the same command goes on where it was.

    Exit codes: 0 finished (rows in error allowed), 1 failed, 2 usage, 3 refused, 4 --max-error-rate exceeded,
    130/143 stopped.
    """
    settings = dict(locals())
    settings["keep"] = tuple(k for k in keep.split(",") if k) if keep is not None else None
    _set_up_process()
    from packhorse import api

    stop = _stop_on_signals(is_silent=quiet or progress in ("json", "none"))
    api.run(settings.pop("model"), settings.pop("input"), settings.pop("output"), stop=stop, **settings)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Folder of a model, or its id on the hub.")],
    folder: Annotated[str, typer.Argument(help="A new or empty folder.")],
    backend: Annotated[Literal["onnx", "openvino"], Flag(help="What the folder is for.")] = "onnx",
    precision: Annotated[Literal["fp32", "fp16", "bf16", "int8"], Flag(help="Of the written weights.")] = "fp32",
    calibration: Annotated[
        str | None, Flag(help="Parquet or JSONL whose first 1,024 rows set the scales of int8.")
    ] = None,
    text_column: Annotated[str | None, Flag(help="Column with the text of --calibration.")] = None,
    task: Annotated[
        Literal["auto", "text-classification", "feature-extraction"], Flag(help="Read from the model by default.")
    ] = "auto",
    provider: Annotated[str, Flag(help="ONNX Runtime's execution provider that the graph is meant for.")] = "auto",
    revision: Annotated[str | None, Flag(help="Branch, tag or commit on the hub.")] = None,
) -> None:
    """Writes MODEL as a folder that ONNX Runtime or OpenVINO runs as it stands: `packhorse run FOLDER ...`."""
    settings = dict(locals())
    _set_up_process()
    from packhorse import exporting

    done = exporting.export(settings.pop("model"), settings.pop("folder"), **settings)
    typer.echo(
        f"{done.folder}: {done.backend}, {done.precision}, {done.num_bytes / 2**20:,.0f} MiB, written in "
        f"{done.seconds:.0f} s"
    )


@app.command()
def verify(
    output: Annotated[str, typer.Argument(help="Output of an earlier run: its folder or file.")],
) -> None:
    """Re-checks every byte of an output against the checksums written when it was committed."""
    from packhorse import api

    found = api.verify(output)
    state = "finished" if found.is_finished else "not finished yet"
    typer.echo(
        f"{found.output}: good. {found.rows:,} rows in {found.shards} shards, {found.num_bytes:,} bytes; {state}"
    )


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, Flag("--version", help="Show the version.")] = False) -> None:
    if version:
        from packhorse import __version__

        typer.echo(f"packhorse {__version__}")
        raise typer.Exit


def _set_up_process() -> None:
    """Before anything heavy is imported; a variable that the user has set stays.

    Third-party logs, warnings and loading bars do not stand between our lines: what matters is raised as an error. And
    OpenMP's threads sleep while they wait: just as fast alone, and 2 to 3.5 times as fast on cores that others use too.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    warnings.simplefilter("ignore")


def _stop_on_signals(is_silent: bool) -> Any:
    """Ctrl-C or SIGTERM once: end after this batch and commit what is complete; twice: at once."""
    from packhorse.executors.local import Stop

    stop = Stop()

    def on_signal(signum: int, _frame: FrameType | None) -> None:
        if stop.event.is_set():
            os._exit(128 + signum)
        stop.set(signum)
        if not is_silent:
            os.write(2, b"\nstopping after this batch; once more to stop at once\n")

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, on_signal)
    return stop


def main() -> None:
    """Runs the command; an error that packhorse raises on purpose is a message and an exit code, no traceback."""
    try:
        app()
    except InterruptedRunError as error:
        _fail(str(error), error.exit_code)
    except PackhorseError as error:
        _fail(f"packhorse: {error}", error.exit_code)
    except OSError as error:  # disk full, no permission, a network share gone: the message says which file
        _fail(
            f"packhorse: {error}. What was committed stays; the same command, without --overwrite, goes on from there",
            1,
        )


def _fail(message: str, code: int) -> None:
    sys.stderr.write(message + "\n")
    sys.stderr.flush()
    sys.exit(code)
