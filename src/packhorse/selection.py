"""Which columns are read and which are written, and that input and output stay apart."""

from __future__ import annotations

import dataclasses
from collections import Counter
from datetime import datetime

import pyarrow as pa

from packhorse.config import RunConfig
from packhorse.data import RESCUED, ModelDescription
from packhorse.errors import UsageError
from packhorse.files import is_folder, lies_in
from packhorse.outputs.manifest import RunFolder
from packhorse.prompts import PromptSource, make_prompts
from packhorse.readers.columns import guess_text_column
from packhorse.readers.sample import Sample, TextsOf, take_sample
from packhorse.shard import output_fields
from packhorse.stages import Reader, Task


@dataclasses.dataclass(frozen=True, slots=True)
class Columns:
    """Which input columns are read and which are written."""

    text: str
    pair: str | None
    keep: list[str]
    prompts: PromptSource | None = None  # of generation; None: the text column as it stands
    seed: str | None = None
    now: datetime | None = None  # that prompts are told; None: they ask for none

    @property
    def texts(self) -> list[str]:
        """Those that are read as text."""
        if self.prompts is not None:
            return list(self.prompts.text_columns)
        return [self.text] if self.pair is None else [self.text, self.pair]

    @property
    def adds_special_tokens(self) -> bool:
        """Whether the tokenizer puts them around a text; a chat template has written them itself."""
        return self.prompts is None or self.prompts.adds_special_tokens

    @property
    def sample_texts(self) -> TextsOf | None:
        """Prompts of a sample's rows; None where they are columns."""
        prompts = self.prompts
        return None if prompts is None else (lambda table, errors: [prompts.texts(table, errors)[0]])

    @property
    def reads(self) -> list[str]:
        """All that are read, those written first."""
        of_prompts = self.prompts.columns if self.prompts is not None else ()
        return list(dict.fromkeys([*self.keep, *of_prompts, *([self.seed] if self.seed else [])]))


def choose_columns(config: RunConfig, task: Task, about: ModelDescription, reader: Reader, now: datetime) -> Columns:
    """now: for chat templates that ask for it. Raises UsageError for a column that is not there, and for an input
    column named like an output column."""
    if config.output_extension == ".npy" and task.name != "feature-extraction":
        raise UsageError(f"npy holds embeddings, and this model does {task.name}: write parquet, jsonl or csv")
    schema = reader.schema()
    names = dict.fromkeys(schema.names)  # schema.names is made anew for each look
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise UsageError(f"the input has {twice[0]!r} twice; rename one of the columns")
    prompts = prompts_of(config, about, schema, now)
    text = ", ".join(prompts.columns) if prompts else guess_text_column(schema, config.text_column, config.pair_column)
    if config.seed_column is not None and not about.writes:
        raise UsageError(f"--seed-column {config.seed_column}: belongs to generation, and this model does {about.task}")
    if config.pair_column is not None and about.writes:
        raise UsageError(
            f"--pair-column {config.pair_column}: a prompt is one text; --template puts columns together, as in "
            f"'{{{config.text_column or 'a'}}} {{{config.pair_column}}}'"
        )
    if config.seed_column is not None and config.seed_column not in names:
        raise UsageError(f"--seed-column {config.seed_column}: no such column; the input has {', '.join(names)}")
    unknown = [name for name in config.keep or () if name not in names]
    if unknown:
        raise UsageError(f"--keep {unknown[0]}: no such column; the input has {', '.join(names)}")
    if config.keep is not None and len(set(config.keep)) < len(config.keep):
        raise UsageError(f"--keep {','.join(config.keep)}: a column stands there twice")
    keep = list(config.keep) if config.keep is not None else list(names)
    if reader.rescues and RESCUED in names and RESCUED not in keep:
        keep.append(RESCUED)  # values of the kept columns that do not fit them stand there
    added = [f.name for f in output_fields(task, 1, config.output_prefix)]
    taken = [name for name in added if name in keep]
    if taken:
        others = ",".join(n for n in keep if n not in taken) or '""'
        raise UsageError(
            f"the input has a column {taken[0]!r}, and so will the output: "
            f"--output-prefix pred_ names the outputs differently, --keep {others} leaves the column out"
        )
    kept = [str(reader.raw_column)] if keeps_lines(config, reader) else keep
    told = now if prompts is not None and prompts.tells_time else None
    return Columns(text, config.pair_column, kept, prompts, config.seed_column, told)


def prompts_of(config: RunConfig, about: ModelDescription, schema: pa.Schema, now: datetime) -> PromptSource | None:
    """What a row's prompt is; None where a column of text is it as it stands. Raises UsageError, ModelError or
    HostileModelError."""
    chat = config.chat or config.messages_column is not None or config.system_prompt is not None
    if config.template is None and not chat:
        return None
    if not about.writes:
        raise UsageError(f"--template, --messages-column and --chat make prompts, and this model does {about.task}")
    text = config.text_column
    if config.template is None and config.messages_column is None:
        text = guess_text_column(schema, config.text_column, None)
    return make_prompts(
        schema, text, config.template, config.messages_column, chat, config.system_prompt, about.folder, now
    )


def sample_of(reader: Reader, columns: Columns, limit: int | None) -> Sample:
    """Texts, or prompts, of rows taken here and there."""
    others = columns.prompts.columns if columns.prompts else ()
    return take_sample(reader, columns.texts, limit, columns=others, texts_of=columns.sample_texts)


def keeps_lines(config: RunConfig, reader: Reader) -> bool:
    """Whether lines go out as they came in, the predictions added: of whole files, never in parts."""
    is_whole = config.output_is_file or config.mirror
    return reader.raw_column is not None and config.keep is None and is_whole and config.output_extension == ".jsonl"


def check_apart(folder: RunFolder, reader: Reader, address: str) -> None:
    """Raises UsageError where an input file lies in the output, or the output in the input folder: the next run would
    read its own output, or --overwrite delete its own input."""
    shown = folder.file or folder.root
    for file in reader.files:
        if any(lies_in(file, place) for place in folder.places):
            raise UsageError(f"-o {shown}: the input file {file} lies there; choose another output")
    if is_folder(address) and lies_in(folder.root, address):
        raise UsageError(f"-o {shown}: lies in the input folder {address}; choose a place outside it")


def read_schema(reader: Reader, columns: Columns) -> pa.Schema:
    """The columns as a reader gives them."""
    names = list(dict.fromkeys([*columns.reads, *columns.texts]))
    schema = reader.schema()
    fields = [schema.field(n) if n in schema.names else pa.field(n, pa.large_binary()) for n in names]
    return pa.schema([f.with_type(pa.large_string()) if f.name in columns.texts else f for f in fields])
