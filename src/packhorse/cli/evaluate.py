"""`packhorse eval`: a model against labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from packhorse.cli import flags
from packhorse.cli import generation_flags as more
from packhorse.cli import task_flags as special
from packhorse.cli.flags import Flag
from packhorse.cli.process import set_up


def evaluate(
    model: flags.Model,
    input: Annotated[
        str, typer.Argument(help="Rows with labels, as for run; with --queries the corpus: _id or id, text, title.")
    ],
    label_column: Annotated[
        str | None, Flag(help="Column with each row's label, list of labels or tags, answers, or score.")
    ] = None,
    queries: Annotated[
        str | None, Flag(metavar="FILE", help="Measure retrieval: queries, with _id or id, and text.")
    ] = None,
    qrels: Annotated[
        str | None, Flag(metavar="FILE", help="Query, document, relevance: lines with tabs, TREC's, or a table.")
    ] = None,
    query_prompt_name: Annotated[str | None, Flag(help="Prompt of the queries, where it is another.")] = None,
    input_format: flags.InputFormat = "auto",
    delimiter: flags.Delimiter = None,
    header: flags.Header = True,
    text_column: flags.TextColumn = None,
    pair_column: flags.PairColumn = None,
    limit: flags.Limit = None,
    task: flags.Task = "auto",
    pooling: flags.Pooling = None,
    normalize: flags.Normalize = None,
    prompt_name: flags.PromptName = None,
    revision: flags.Revision = None,
    adapter: flags.Adapter = None,
    long: more.Long = "auto",
    stride: special.Stride = None,
    combine: special.Combine = "mean",
    function_to_apply: special.FunctionToApply = "auto",
    max_answer_len: special.MaxAnswerLen = 15,
    handle_impossible_answer: special.HandleImpossibleAnswer = False,
    backend: flags.Backend = "auto",
    provider: flags.Provider = "auto",
    onnx_file: flags.OnnxFile = None,
    devices: Annotated[str, Flag(help="auto, cpu, cuda, cuda:N, mps or xpu.")] = "auto",
    device_map: more.DeviceMap = None,
    max_memory: more.MaxMemory = None,
    offload_folder: more.OffloadFolder = None,
    precision: flags.Precision = "auto",
    exact: flags.Exact = False,
    tolerance: flags.Tolerance = None,
    attention: flags.Attention = "auto",
    compile: flags.Compile = None,
    batching: flags.Batching = "auto",
    batch_size: flags.BatchSize = None,
    max_batch_tokens: flags.MaxBatchTokens = None,
    max_length: flags.MaxLength = None,
    tokenizer: flags.Tokenizer = "auto",
    tokenizer_threads: flags.TokenizerThreads = None,
    tune: flags.Tune = "quick",
    shard_rows: Annotated[int | None, Flag(help="Rows whose values lie on the device at one time; 16,384.")] = None,
    json: Annotated[Path | None, Flag(metavar="FILE", help="Write everything there, as JSON.")] = None,
    html: Annotated[Path | None, Flag(metavar="FILE", help="Write figures and pictures there, as one page.")] = None,
) -> None:
    """Runs MODEL on rows of INPUT that have labels, and measures how well it does: accuracy, F1, Matthews' correlation,
    calibration and confusion; F1 of entities; exact match and F1 of answers; correlations; perplexity; retrieval.

    Metrics are kept on the model's device and copied once at the end. Nothing is written but --json and --html.
    """
    settings = dict(locals())
    set_up()
    from rich.console import Console

    from packhorse.comparison.compare import check_target
    from packhorse.evaluating import evaluate as evaluating
    from packhorse.evaluating.text import print_evaluation, progress

    files = {kind: settings.pop(kind) for kind in ("json", "html")}
    for kind, file in files.items():
        if file is not None:
            check_target(f"--{kind}", file)
    with progress() as on_rows:
        found = evaluating.evaluate(settings.pop("model"), settings.pop("input"), on_rows=on_rows, **settings)
    print_evaluation(found, Console(highlight=False))
    if files["json"]:
        found.save_json(files["json"])
    if files["html"]:
        found.save_html(files["html"])
