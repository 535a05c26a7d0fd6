"""`packhorse run`: every row of a file through a model."""

from __future__ import annotations

from packhorse.cli import flags
from packhorse.cli import generation_flags as more
from packhorse.cli import task_flags as special
from packhorse.cli.process import set_up, stop_on_signals


def run(
    model: flags.Model,
    input: flags.Input,
    output: flags.Output,
    output_format: flags.OutputFormat = "auto",
    input_format: flags.InputFormat = "auto",
    delimiter: flags.Delimiter = None,
    header: flags.Header = True,
    text_column: flags.TextColumn = None,
    pair_column: flags.PairColumn = None,
    labels_column: special.LabelsColumn = None,
    template: more.Template = None,
    messages_column: more.MessagesColumn = None,
    seed_column: more.SeedColumn = None,
    keep: flags.Keep = None,
    output_prefix: flags.OutputPrefix = "",
    limit: flags.Limit = None,
    task: flags.Task = "auto",
    scores: flags.Scores = "top",
    pooling: flags.Pooling = None,
    normalize: flags.Normalize = None,
    embedding_format: flags.EmbeddingFormat = "float32",
    prompt_name: flags.PromptName = None,
    revision: flags.Revision = None,
    adapter: flags.Adapter = None,
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
    onnx_file: flags.OnnxFile = None,
    devices: flags.Devices = "auto",
    ray: flags.Ray = None,
    ray_workers: flags.RayWorkers = None,
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
    dedup: flags.Dedup = True,
    tokenizer_threads: flags.TokenizerThreads = None,
    tokenizer: flags.Tokenizer = "auto",
    tune: flags.Tune = "quick",
    plan: flags.PlanFile = None,
    shard_rows: flags.ShardRows = None,
    on_error: flags.OnError = "quarantine",
    max_error_rate: flags.MaxErrorRate = 0.5,
    mirror: flags.Mirror = False,
    append: flags.Append = False,
    retry_errors: flags.RetryErrors = False,
    overwrite: flags.Overwrite = False,
    quiet: flags.Quiet = False,
    progress: flags.Progress = "auto",
    price_per_hour: flags.PricePerHour = None,
) -> None:
    """Every row of INPUT through MODEL, to OUTPUT. Stopped, the same command goes on where it was.

    Exit codes: 0 finished (rows in error allowed), 1 failed, 2 usage, 3 refused, 4 --max-error-rate exceeded,
    130/143 stopped.
    """
    settings = {**locals(), "keep": flags.names(keep)} | more.parsed(locals()) | special.parsed(locals())
    set_up()
    from packhorse import api

    stop = stop_on_signals(is_silent=quiet or progress in ("json", "none"))
    api.run(settings.pop("model"), settings.pop("input"), settings.pop("output"), stop=stop, **settings)
