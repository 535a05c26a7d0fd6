"""Judgments of documents for queries, from the files that people have them in."""

from __future__ import annotations

from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from packhorse.data import Position
from packhorse.errors import InputError, UsageError
from packhorse.files import open_file
from packhorse.readers import open_input

TABLES = (".parquet", ".jsonl", ".csv")  # whose columns have names; all else is lines
QUERY = ("query-id", "query_id", "qid", "query")
DOCUMENT = ("corpus-id", "corpus_id", "doc_id", "docid", "document_id", "pid")
RELEVANCE = ("score", "relevance", "rel", "label")

Judgments = dict[str, dict[str, int]]  # by query, then by document


class _Judgment(NamedTuple):
    where: str
    query: str
    document: str
    relevance: Any


def read_qrels(address: str) -> Judgments:
    """Raises UsageError where columns are missing, InputError for a line that is no judgment, and for a document that
    is judged twice."""
    is_table = PurePosixPath(address).suffix in TABLES
    found: Judgments = {}
    for where, query, document, relevance in _of_table(address) if is_table else _of_lines(address):
        of_query = found.setdefault(query, {})
        if document in of_query:
            raise InputError(f"--qrels {where}: document {document!r} is judged twice for query {query!r}")
        of_query[document] = _whole(relevance, where)
    if not found:
        raise InputError(f"--qrels {address}: there is no judgment in it")
    return found


def _of_lines(address: str) -> Iterator[_Judgment]:
    """BEIR: query, document, relevance, perhaps below a header. TREC: query, iteration, document, relevance."""
    for i, line in enumerate(_lines(address)):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split("\t")] if "\t" in line else line.split()
        where = f"{address}, line {i + 1:,}"
        if len(fields) not in (3, 4):
            raise InputError(
                f"--qrels {where}: {len(fields)} fields; legal are three, query, document and relevance, or TREC's four"
            )
        if i == 0 and not _is_whole(fields[-1]):
            continue  # a header
        yield _Judgment(where, fields[0], fields[-2], fields[-1])


def _lines(address: str) -> Iterator[str]:
    with open_file(address) as file:
        try:
            yield from TextIOWrapper(file, "utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"--qrels {address}: is not UTF-8: {error}") from error


def _of_table(address: str) -> Iterator[_Judgment]:
    reader = open_input(address)
    names = [_column(reader.schema().names, usual, address) for usual in (QUERY, DOCUMENT, RELEVANCE)]
    row = 0
    for chunk in reader.read(Position(0, 0), names, ()):
        for query, document, relevance in zip(*(chunk.table[name].to_pylist() for name in names), strict=True):
            row += 1
            yield _Judgment(f"{address}, row {row:,}", str(query), str(document), relevance)


def _column(names: list[str], usual: tuple[str, ...], address: str) -> str:
    found = next((name for name in usual if name in names), None)
    if found is None:
        raise UsageError(f"--qrels {address}: no column named {' or '.join(usual)}; there are {', '.join(names)}")
    return found


def _whole(value: Any, where: str) -> int:
    if not _is_whole(value):
        raise InputError(f"--qrels {where}: the relevance is {value!r}; legal is a whole number")
    return int(float(value))


def _is_whole(value: Any) -> bool:
    try:
        return float(value).is_integer()
    except (TypeError, ValueError, OverflowError):
        return False
