"""`packhorse plan`: what a job would be."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from packhorse.cli import flags
from packhorse.cli import generation_flags as more
from packhorse.cli import task_flags as special
from packhorse.cli.flags import Flag
from packhorse.cli.process import set_up


def plan(
    model: flags.Model,
    input: flags.Input,
    input_format: flags.InputFormat = "auto",
    delimiter: flags.Delimiter = None,
    header: flags.Header = True,
    text_column: flags.TextColumn = None,
    pair_column: flags.PairColumn = None,
    labels_column: special.LabelsColumn = None,
    template: more.Template = None,
    messages_column: more.MessagesColumn = None,
    seed_column: more.SeedColumn = None,
    limit: flags.Limit = None,
    task: flags.Task = "auto",
    revision: flags.Revision = None,
    adapter: flags.Adapter = None,
    prompt_name: flags.PromptName = None,
    max_new_tokens: more.MaxNewTokens = None,
    do_sample: more.DoSample = None,
    temperature: more.Temperature = None,
    top_p: more.TopP = None,
    top_k: more.TopK = None,
    min_p: more.MinP = None,
    repetition_penalty: more.RepetitionPenalty = None,
    num_beams: more.NumBeams = None,
    num_return_sequences: more.NumReturnSequences = None,
    stop_strings: more.StopStrings = None,
    generation: more.Generation = None,
    seed: more.Seed = 0,
    logprobs: more.Logprobs = False,
    json_schema: more.JsonSchema = None,
    choices: more.Choices = None,
    chat: more.Chat = None,
    system_prompt: more.SystemPrompt = None,
    long: more.Long = "auto",
    stride: special.Stride = None,
    combine: special.Combine = "mean",
    function_to_apply: special.FunctionToApply = "auto",
    aggregation: special.Aggregation = "simple",
    ignore_labels: special.IgnoreLabels = None,
    targets: special.Targets = None,
    labels: special.Labels = None,
    hypothesis_template: special.HypothesisTemplate = "This example is {}.",
    multi_label: special.MultiLabel = False,
    max_answer_len: special.MaxAnswerLen = 15,
    handle_impossible_answer: special.HandleImpossibleAnswer = False,
    engine: more.Engine = "auto",
    backend: flags.Backend = "auto",
    provider: flags.Provider = "auto",
    devices: flags.Devices = "auto",
    precision: flags.Precision = "auto",
    quantization: more.Quantization = "auto",
    quantization_options: more.QuantizationOptions = None,
    device_map: more.DeviceMap = None,
    max_memory: more.MaxMemory = None,
    offload_folder: more.OffloadFolder = None,
    tensor_parallel: more.TensorParallel = False,
    exact: flags.Exact = False,
    tolerance: flags.Tolerance = None,
    attention: flags.Attention = "auto",
    compile: flags.Compile = None,
    batching: flags.Batching = "auto",
    batch_size: flags.BatchSize = None,
    max_batch_tokens: flags.MaxBatchTokens = None,
    max_length: flags.MaxLength = None,
    tokenizer: flags.Tokenizer = "auto",
    tune: Annotated[
        flags.TuneMode, Flag(help="off: predict; quick and full: measure on the sample, and keep what was found.")
    ] = "off",
    price_per_hour: flags.PricePerHour = None,
    as_json: Annotated[bool, Flag("--json", help="JSON on stdout; `packhorse run --plan FILE` replays it.")] = False,
) -> None:
    """Reads a sample of INPUT and says what running it through MODEL would be: lengths, ways to compute it and why the
    others lose, batches, time, memory, cost. Nothing is run; with --tune quick or full the ways are tried out.
    """
    settings = (
        {k: v for k, v in locals().items() if k not in ("model", "input", "as_json")}
        | more.parsed(locals())
        | special.parsed(locals())
    )
    set_up()
    from packhorse import api

    explanation = api.plan(model, input, **settings)
    if as_json:
        typer.echo(json.dumps(explanation.to_dict(), indent=1))
        return
    from rich.console import Console

    from packhorse.report.plan_text import print_explanation

    print_explanation(explanation, Console(highlight=False))
