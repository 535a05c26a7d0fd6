"""Settings of a job: the rows, and where their outputs go."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from packhorse.config.engine import EngineConfig
from packhorse.errors import did_you_mean

# Settings that change neither which rows are computed nor what is written for them.
# Input and model are compared by their content instead.
NOT_IN_MANIFEST = frozenset(
    {"model", "revision", "adapter", "input", "output", "devices", "tokenizer_threads", "tune", "plan"}
    | {"append", "retry_errors", "on_error", "max_error_rate", "overwrite", "quiet", "progress", "price_per_hour"}
    | {"ray", "ray_workers"}
    | {"device_map", "max_memory", "offload_folder"}
)

OUTPUT_FORMATS = (".parquet", ".jsonl", ".csv", ".npy")


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
    labels_column: str | None = None
    """zero-shot-classification: column with the labels of each row, a list, or a text with commas between them."""
    template: str | None = None
    """Prompt made of columns, as in "Summarize {title}: {body}"; @FILE reads it from a file."""
    messages_column: str | None = None
    """Column with chat messages: lists of {"role", "content"}; they go through the model's chat template."""
    seed_column: str | None = None
    """Column whose value takes the place of the row's number in sampling."""
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
    ray: str | None = None
    """Ray cluster whose actors compute: local (one of this machine alone), auto (that of this node) or HOST:PORT."""
    ray_workers: int | None = Field(None, ge=1)
    """Actors at most; the run begins with the first. Default: a list of --devices, else the cluster's devices."""
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
    def _on_ray(self) -> Self:
        if self.ray_workers is not None and self.ray is None:
            raise ValueError(f"--ray-workers {self.ray_workers} counts actors of Ray: give --ray local or ADDRESS too")
        return self

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        sources = {"--template": self.template, "--messages-column": self.messages_column}
        given = [flag for flag, value in ({"--text-column": self.text_column} | sources).items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{given[0]} and {given[1]} both say what the prompt is: drop one of them")
        if self.messages_column is not None and self.chat is False:
            raise ValueError("--messages-column goes through the chat template: drop it, or --no-chat")
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
        if self.template is not None and self.template.startswith("@"):  # what it says counts, not where it stands
            written["template"] = Path(self.template[1:]).read_text(encoding="utf-8")
        return self.model_dump(mode="json", exclude=set(NOT_IN_MANIFEST)) | written
