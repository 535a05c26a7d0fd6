"""The rows of a comparison: drawn from an input or made up, and written as the Parquet file that every child reads."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from packhorse.comparison.contract import SEED, Rows
from packhorse.data import Position
from packhorse.errors import UsageError
from packhorse.readers import open_input
from packhorse.readers.columns import guess_text_column
from packhorse.readers.table import TableReader

# Log-normal word counts: median 24, mean 36, one row in a hundred above 190.
MEDIAN_WORDS, SIGMA, MAX_WORDS = 24, 0.9, 450


class Workload(NamedTuple):
    """Texts and where they come from."""

    texts: list[str]
    source: str  # "sst2.parquet", or "synthetic"
    seen_rows: int  # of the input, those without a text included
    left_out_rows: int  # without a text: null, or bytes that are not UTF-8


def sample_rows(num_rows: int, max_rows: int | None) -> list[int]:
    """Ascending row numbers, at most `max_rows` of them, drawn with the fixed seed."""
    if max_rows is None or max_rows >= num_rows:
        return list(range(num_rows))
    return sorted(random.Random(SEED).sample(range(num_rows), max_rows))


def sample_input(input: Any, text_column: str | None, max_rows: int) -> Workload:
    """At most `max_rows` rows, drawn evenly from the whole input with the fixed seed, in its order.

    Every row gets a random key and the smallest keys stay, so that one pass with little memory is enough. input: as
    for a run. Raises UsageError where the input holds no text.
    """
    is_path = isinstance(input, str) or hasattr(input, "__fspath__")
    reader = open_input(str(input)) if is_path else TableReader(input)
    column = guess_text_column(reader.schema(), text_column, None)
    keys = np.random.default_rng(SEED)
    kept = pa.table({"row": pa.array([], pa.int64()), "key": pa.array([], pa.float64()), "text": _no_texts()})
    seen = left_out = 0
    for chunk in reader.read(Position(0, 0), [column], [column]):
        count = chunk.table.num_rows
        rows = pa.table(
            {"row": np.arange(seen, seen + count), "key": keys.random(count), "text": chunk.table[column]}
        ).filter(_has_text(chunk.table[column], chunk.errors))
        seen, left_out = seen + count, left_out + count - rows.num_rows
        kept = pa.concat_tables([kept, rows]).sort_by("key").slice(0, max_rows).combine_chunks()
    if not kept.num_rows:
        raise UsageError(f"input {input if is_path else '(in memory)'}: no text in {seen:,} rows of column {column}")
    name = Path(input).name if is_path else "rows in memory"
    return Workload(kept.sort_by("row")["text"].to_pylist(), name, seen, left_out)


def _no_texts() -> pa.Array:
    return pa.array([], pa.large_string())


def _has_text(column: pa.ChunkedArray, errors: Mapping[int, Any]) -> np.ndarray:
    good = pc.is_valid(column).to_numpy().copy()
    good[list(errors)] = False
    return good


def synthetic_texts(words: Sequence[str], num_rows: int) -> list[str]:
    """Rows of random words, their lengths skewed as those of comments and reviews are."""
    rng = np.random.default_rng(SEED)
    lengths = rng.lognormal(np.log(MEDIAN_WORDS), SIGMA, num_rows)
    counts = np.clip(lengths.round().astype(int), 1, MAX_WORDS)
    return [" ".join(rng.choice(words, count)) for count in counts]


def vocabulary_words(folder: Path) -> list[str]:
    """The plain words of a tokenizer.json, in the order of their ids. Raises UsageError where there are none."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UsageError(f"without INPUT rows are made of the tokenizer's words, and {file} is not there: give INPUT")
    from tokenizers import Tokenizer

    try:
        vocabulary = Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=False)
    except Exception as error:
        raise UsageError(f"{file}: cannot be read ({error}); give INPUT") from error
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    words = [token.lstrip("Ġ▁").removesuffix("</w>") for token in tokens]  # byte-level BPE, SentencePiece, CLIP
    plain = list(dict.fromkeys(word for word in words if word.isascii() and word.isalpha() and len(word) > 1))
    if not plain:
        raise UsageError(f"{file}: no words of a-z in its vocabulary to make rows of; give INPUT")
    return plain


def write_rows(file: Path, texts: list[str], ids: list[int]) -> Path:
    """Write the rows `ids` of `texts` as a Parquet file with the columns `id` and `text`."""
    columns = {"id": pa.array(ids, pa.int64()), "text": pa.array([texts[row] for row in ids], pa.string())}
    pq.write_table(pa.table(columns), file)
    return file


def read_rows(file: Path) -> Rows:
    """Read what `write_rows` wrote."""
    table = pq.read_table(file)
    return Rows(file, table["id"].to_numpy(), table["text"].to_pylist())


def save_json(file: Path, content: dict[str, Any]) -> None:
    """A result, as it stands in bench/results."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
