"""TSV as IANA's text/tab-separated-values has it: fields between tabs, and no quoting, so that a quote is a quote.

Every column is a string, exactly as in the file; an empty field is the empty string. A line without any character is
no row.
"""

from __future__ import annotations

from collections.abc import Sequence

from packhorse.data import Int64s
from packhorse.readers.delimited import DelimitedReader, Records
from packhorse.readers.sources import OnWait, no_look
from packhorse.stages import Reader

EXTENSIONS = (".tsv", ".tab")
READS_LINES = True
SETTINGS = ("header",)


def open_files(files: Sequence[str], header: bool = True, on_wait: OnWait = no_look) -> Reader:
    return DelimitedReader(files, parse, header, rows_are_lines=True, on_wait=on_wait)


def parse(lines: Sequence[str], marks: Int64s, is_last: bool) -> Records:
    """A record for every line that is not empty."""
    plain = [line[:-2] if line.endswith("\r\n") else line.removesuffix("\n") for line in lines]
    if all(plain):
        return Records.one_a_line(*_split(plain))
    full = [i for i, line in enumerate(plain) if line]
    return Records(*_split([plain[i] for i in full]), full, [i + 1 for i in full], {}, len(lines))


def _split(lines: list[str]) -> tuple[list[str], list[int]]:
    """The fields of all lines, and how many each has."""
    return "\t".join(lines).split("\t") if lines else [], [line.count("\t") + 1 for line in lines]
