"""packhorse from Python: load() an engine, run() a job, verify() an output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packhorse.config import EngineConfig, validated
from packhorse.engine import Engine, run_with
from packhorse.executors.local import Stop
from packhorse.explaining import explain
from packhorse.explanation import Explanation
from packhorse.metrics import RunReport
from packhorse.outputs.verification import Verification, verify_output

if TYPE_CHECKING:
    from packhorse.comparison.compare import Comparison

Say = Callable[[str], None]


def load(model: str | Path, **settings: Any) -> Engine:
    """Loads a model and gives an Engine with predict(), embed(), generate(), stream() and run().

    model: a folder, or an id on the hub. settings, all optional:

        revision           branch, tag or commit on the hub
        adapter            PEFT adapter (LoRA) to merge into the weights: a folder, or ORGANISATION/NAME[@REVISION]
        task               "text-classification", "token-classification", "question-answering", "fill-mask",
                           "zero-shot-classification", "text-ranking", "feature-extraction", "sparse-embedding",
                           "multi-vector-embedding", "perplexity", "text-generation", "text2text-generation",
                           "summarization" or "translation"; "auto" reads it from the model
        devices            "auto", "cpu", "cuda", "cuda:N", "mps" or "xpu"; for run() also several, a process on each:
                           "all", "0,1", "cuda:0,cuda:0" or "cpu:N"
        precision          "fp32", "bf16", "fp16", "int8", "int4", "fp8"; "auto": bf16 (fp16) where it agrees with fp32
                           on your rows; of a model that writes the checkpoint's
        quantization       who makes int8 and int4: "bitsandbytes" or "torchao"; quantization_options: a dict of its own
                           settings
        device_map         "auto", "balanced", "sequential" or a JSON file, with max_memory ("0=16GB,cpu=60GB") and
                           offload_folder: for a model larger than a device
        tensor_parallel    True: each layer of one model is cut over all devices ("all", "cuda:0,cuda:1"), by torch or
                           by vllm
        tolerance          how far a lower precision may be from fp32: of a score, or of a cosine
        attention          "auto", "packed", "sdpa", "sdpa:flash" and so on, "flash_attention_2", "eager", ...
        compile            True: torch.compile, over padded batches; False: never; None: where it was faster
        exact              fp32 on one thread, bitwise repeatable on a CPU
        batching           "auto": packed without padding where proven right, else "padded", both by a budget of
                           tokens over rows sorted by length; "fixed": batch_size rows in input order
        batch_size         rows a batch: the size with "fixed" (32), a ceiling with "padded"
        max_batch_tokens   token budget of a batch, padding included
        max_length         longest row in tokens; the rest is cut and counted. Default: the model's
        dedup              compute rows with identical tokens once (True)
        scores             "all": a column with every label's score
        pooling            "mean", "cls", "last" or "max"; default what the model says, else mean
        normalize          embeddings of length 1; default what the model says
        embedding_format   "float32", "float16", "int8" (with a scale a row), "binary" or "ubinary" (a bit a number)
        prompt_name        prompt of a sentence-transformers model; multi-vector-embedding: "query" or "document"
        max_new_tokens, do_sample, temperature, top_p, top_k, min_p, repetition_penalty, num_beams,
        num_return_sequences, stop_strings
                           of a model that writes: as transformers' generate() takes them; generation: a dict of others
        seed               of sampling (0)
        logprobs           True: columns with the tokens written and their log-probabilities
        json_schema        a file or JSON text that each output satisfies; choices: a list of which each output is one
        chat               True: prompts go through the model's chat template; system_prompt: a message before each
        long               a text longer than the model: "error" (default where text is generated), "truncate", or
                           "windows" (default of question-answering), with stride, tokens that windows share, and
                           combine: "mean", "max", "first" or "all"
        function_to_apply  of text-classification: "softmax", "sigmoid" or "none" instead of what the model says
        aggregation        of token-classification: "simple", "first", "average", "max" or "none"; ignore_labels
        labels             of zero-shot-classification, with hypothesis_template and multi_label
        targets            of fill-mask: words whose scores are wanted; top_k: so many tokens, or answers
        max_answer_len     of question-answering, in tokens; handle_impossible_answer: it may be empty
        engine             "continuous", "openvino", "static", "generate" or "paged"; "auto": the first that is right
                           for the model, another where a trial shows it to be faster
        backend            "torch", "onnx", "openvino", "vllm"; "auto" goes by the folder's files; "null": no model
        provider           ONNX Runtime's execution provider
        onnx_file          which .onnx file of the folder
        tokenizer          "hf", "tokie" or "nanotoken"; "auto" takes the fastest that is proven to give the same tokens
        tokenizer_threads  default one a core

    Raises UsageError, RefusedError or ModelError.
    """
    return Engine(validated(EngineConfig, {"model": str(model)} | settings))


def plan(model: str | Path, input: str | Path, **settings: Any) -> Explanation:
    """What a job would be: lengths, the ways to compute it, batches, predicted time, memory and cost, from a sample.

    Reads a sample and runs nothing, so that it takes seconds whatever the input's size. settings: those of run(), and
    price_per_hour. With tune="quick" or "full" the ways are measured on the sample, what is found is kept for the job,
    and the result's `plan` is what the job will do.

    Raises a PackhorseError.
    """
    return explain(model, input, **settings)


def run(model: str | Path, input: Any, output: str | Path, *, stop: Stop | None = None, **settings: Any) -> RunReport:
    """Every row of `input` to `output` on disk, each exactly once; the same call goes on after a stop.

    model: a folder or hub id. input: a path, glob or folder of Parquet, JSONL, CSV, TSV or text (those of lines also
    as .gz, .zst or .bz2), "dataset:ORG/NAME[@REVISION][:CONFIG][:SPLIT]" of the hub or "dataset:FOLDER[:SPLIT]", "-"
    for standard input, a pyarrow table, a pandas or polars frame or a datasets.Dataset. output: a folder of parts, or a
    file ending in .parquet, .jsonl, .csv or .npy. stop: ends the run after a batch when it is set from another thread.
    settings, all optional: those of load(), and

        input_format    "parquet", "jsonl", "csv", "tsv" or "text"; default by the file's name, JSONL for standard input
        delimiter       character between the fields of CSV; default a comma
        header          False: the first line of CSV and TSV is a row, and columns are column_0, column_1 and so on
        text_column     column with the text; guessed when only one can be meant
        pair_column     column with the second text of a pair
        labels_column   column with the labels of each row, of zero-shot-classification
        template        prompt made of columns, "Summarize {title}: {body}"; "@FILE" reads it from a file
        messages_column column with chat messages
        seed_column     column that takes the place of the row's number in sampling
        output_format   of the parts in a folder: "parquet" (default), "jsonl", "csv", or "npy" for embeddings
        keep            input columns to carry over, a list; default all
        output_prefix   put before the names of the output columns
        limit           only the first N rows
        shard_rows      rows between two commits; default 65,536, fewer at the start
        on_error        "quarantine": nulls and an `error` for a row that cannot be done; "fail": stop at the first
        max_error_rate  stop when more than this share of rows are in error, after 1,000 rows (0.5)
        mirror          write a file for each input file, of the same name below the output folder
        append          compute the rows of files that came to the input since, as further parts of a folder
        retry_errors    of a finished folder of parts compute only the rows in error, and put them in their places
        overwrite       delete what an earlier run left in the output
        progress        "none" (default here), "auto", "plain" or "json"
        ray             "local", "auto" or "HOST:PORT": an actor of that Ray cluster for each device; ray_workers: at
                        most so many
        price_per_hour  price of this machine in any currency; the report then says what the run cost

    Raises a PackhorseError; its class says what to do, its exit_code is that of the command line.
    """
    engine = {k: v for k, v in settings.items() if k in EngineConfig.model_fields}
    job = {k: v for k, v in settings.items() if k not in EngineConfig.model_fields}
    config = validated(EngineConfig, {"model": str(model)} | engine)
    return run_with(None, config, input, str(output), job, stop)


def bench(
    models: str | Path | Sequence[str | Path], input: Any = None, *, say: Say = lambda line: None, **settings: Any
) -> Comparison:
    """Ways to run a model side by side, each in a process of its own, on rows of `input`; several models besides.

    models: a folder or hub id, or a list of them: then packhorse runs on each, and agreement is with the first. input:
    as for run(); None: rows made up of the model's vocabulary. say: is told about each step. settings, all optional:

        rows            rows drawn evenly from the input, with a fixed seed (500)
        contenders      by comma: NAME, or NAME with a backend, batch size or precision: "packhorse:onnx:int8"
        levels          "quick"; "full": torch.compile, and sweeps of batch size and maximum length too
        baseline        the contender that ratios refer to; default pipeline_32, else the first
        repeat          rounds; medians are given (1)
        slow_rows       rows that a slow contender is timed on (64)
        reference_rows  rows held against plain transformers, row by row in fp32 (128)
        time_limit      seconds for a contender in a round, set-up included (120)
        text_column, task, max_length, revision: as for run()

    A contender that cannot run is a line with the reason. The result has to_dict(), save_json() and save_html().
    Raises UsageError, RefusedError or ModelError.
    """
    from packhorse.comparison import compare

    names = [models] if isinstance(models, str | Path) else list(models)
    return compare.bench(names, input, say, **settings)


def verify(output: str | Path) -> Verification:
    """Re-checks every byte of an output against its records. Raises DamagedError listing what differs."""
    return verify_output(str(output))
