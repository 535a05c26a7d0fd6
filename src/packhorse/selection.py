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
from packhorse.readers.columns import check_text, guess_text_column
from packhorse.readers.lists import column_inputs, holds_lists
from packhorse.readers.sample import Sample, TextsOf, take_sample
from packhorse.shard import output_fields
from packhorse.stages import Reader, Task

# Tasks of two texts, and how their columns are usually named.
PAIRS = {
    "question-answering": (("question",), ("context",)),
    "text-ranking": (("query", "question"), ("text", "passage", "document", "answer")),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Columns:
    """Which input columns are read and which are written."""

    text: str
    pair: str | None
    keep: list[str]
    prompts: PromptSource | None = None  # of generation; None: the text column as it stands
    seed: str | None = None
    lists: tuple[str, ...] = ()  # of text and pair those that hold lists
    now: datetime | None = None  # that prompts are told; None: they ask for none

    @property
    def texts(self) -> list[str]:
        """Those that are read as text."""
        if self.prompts is not None:
            return list(self.prompts.text_columns)
        return [name for name in self._inputs if name not in self.lists]

    @property
    def _inputs(self) -> list[str]:
        return [self.text] if self.pair is None else [self.text, self.pair]

    @property
    def adds_special_tokens(self) -> bool:
        """Whether the tokenizer puts them around a text; a chat template has written them itself."""
        return self.prompts is None or self.prompts.adds_special_tokens

    @property
    def sample_texts(self) -> TextsOf | None:
        """Prompts of a sample's rows; None where they are columns."""
        prompts, inputs = self.prompts, self._inputs
        if prompts is not None:
            return lambda table, errors: [prompts.texts(table, errors)[0]]
        if self.lists:
            return lambda table, errors: [column_inputs(table, name, errors)[0] for name in inputs]
        return None

    @property
    def reads(self) -> list[str]:
        """All that are read, those written first."""
        of_prompts = self.prompts.columns if self.prompts is not None else ()
        return list(dict.fromkeys([*self.keep, *of_prompts, *self.lists, *([self.seed] if self.seed else [])]))


def choose_columns(config: RunConfig, task: Task, about: ModelDescription, reader: Reader, now: datetime) -> Columns:
    """now: for chat templates that ask for it. Raises UsageError for a column that is not there, and for an input
    column named like an output column."""
    if config.output_extension == ".npy" and task.name != "feature-extraction":
        raise UsageError(f"npy holds embeddings, and this model does {task.name}: write parquet, jsonl or csv")
    if config.output_extension == ".npy" and config.combine == "all":
        raise UsageError("--combine all: npy holds one embedding a row: write parquet, jsonl or csv")
    schema = reader.schema()
    names = dict.fromkeys(schema.names)  # schema.names is made anew for each look
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise UsageError(f"the input has {twice[0]!r} twice; rename one of the columns")
    prompts = prompts_of(config, about, schema, now)
    inputs = _inputs(config, about, schema, prompts)
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
    lists = tuple(name for name in inputs if name in schema.names and holds_lists(schema.field(name)))
    pair = inputs[1] if len(inputs) > 1 else None
    return Columns(inputs[0], pair, kept, prompts, config.seed_column, lists, told)


def _inputs(config: RunConfig, about: ModelDescription, schema: pa.Schema, prompts: PromptSource | None) -> list[str]:
    """The columns that are computed on: one, or two. Raises UsageError."""
    if prompts:
        return [", ".join(prompts.columns)]
    text, pair, task = config.text_column, config.pair_column, about.task
    if config.labels_column is not None:
        pair = _labels_column(config, task, schema)
    elif task in PAIRS:
        text, pair = (
            asked or next((name for name in usual if name in schema.names), None)
            for asked, usual in zip((text, pair), PAIRS[task], strict=True)
        )
        if text is None or pair is None:
            flag, usual = ("--pair-column", PAIRS[task][1]) if pair is None else ("--text-column", PAIRS[task][0])
            raise UsageError(
                f"{task} reads two columns, and none is named {' or '.join(usual)}: say {flag} NAME. The input has: "
                + ", ".join(schema.names)
            )
    elif task == "zero-shot-classification" and pair is not None:
        raise UsageError(f"--pair-column {pair}: {task} reads one text; labels of each row are --labels-column {pair}")
    elif task == "zero-shot-classification" and config.labels is None:
        raise UsageError(f"{task}: which labels? --labels a,b,c, or --labels-column NAME")
    if task == "token-classification" and text in schema.names and holds_lists(schema.field(text)):
        return [str(text)]
    is_of_lists = pair is not None and pair == config.labels_column and holds_lists(schema.field(pair))
    text = guess_text_column(schema, text, None if is_of_lists else pair)
    return [text] if pair is None else [text, pair]


def seen_text_column(config: RunConfig, schema: pa.Schema) -> str | None:
    """The text column as far as it can be told before the task is known; None where that decides. Raises UsageError
    where no task could read the input."""
    if config.text_column in schema.names and holds_lists(schema.field(config.text_column)):
        return config.text_column
    if config.labels_column is not None:
        return None  # one of the columns of text has labels
    is_usual = any(all(set(usual) & set(schema.names) for usual in columns) for columns in PAIRS.values())
    if is_usual and config.text_column is None and config.pair_column is None:
        return None
    return guess_text_column(schema, config.text_column, config.pair_column)


def _labels_column(config: RunConfig, task: str, schema: pa.Schema) -> str:
    name = str(config.labels_column)
    if task != "zero-shot-classification":
        raise UsageError(f"--labels-column {name}: belongs to zero-shot-classification, and this model does {task}")
    if config.labels is not None or config.pair_column is not None:
        other = "--labels" if config.labels is not None else "--pair-column"
        raise UsageError(f"--labels-column {name} and {other}: say it once")
    if name not in schema.names or not holds_lists(schema.field(name)):
        check_text(schema, "--labels-column", name)
    return name


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
    others = columns.prompts.columns if columns.prompts else columns.lists
    num_texts = 1 + (columns.pair is not None)
    return take_sample(reader, columns.texts, limit, columns=others, texts_of=columns.sample_texts, num_texts=num_texts)


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
