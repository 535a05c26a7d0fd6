"""What a command goes on with where its output was begun: the same files in the order of then and, with --append, those
that came since."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from packhorse.config import RunConfig
from packhorse.errors import ChangedError, UsageError
from packhorse.files import is_file, is_folder
from packhorse.outputs.records import differences
from packhorse.readers.appended import AppendedReader
from packhorse.selection import keeps_lines, seen_text_column
from packhorse.stages import Reader

SHOWN_FILES = 3

Groups = Sequence[Sequence[str]]
Reopen = Callable[[Groups], Reader]  # the files of each group in that order, the columns those of the first group
Files = Mapping[str, dict[str, object]]  # fingerprints by path


@dataclass(frozen=True, slots=True)
class Continued:
    """manifest: with the new files in it, and then not finished; num_new: how many there are."""

    manifest: dict[str, Any]
    reader: Reader
    num_new: int = 0


def check_can_grow(config: RunConfig) -> None:
    """Raises UsageError for --append with an input that more files cannot come to."""
    address = config.input
    if config.append and not is_folder(address) and (is_file(address) or not set("*?[") & set(address)):
        raise UsageError(f"--append: {address} is no folder or glob, which more files come to; drop the flag")


def check_can_retry(config: RunConfig, manifest: dict[str, Any] | None) -> None:
    """Raises UsageError for --retry-errors where no finished run is. manifest: None where no run is at all."""
    if config.retry_errors and not (manifest or {}).get("finished"):
        what = "was not run to its end" if manifest else "has no run whose errors could be retried"
        raise UsageError(f"--retry-errors: {config.output} {what}; the same command without the flag first")


def continued(manifest: dict[str, Any], reader: Reader, config: RunConfig, reopen: Reopen | None) -> Continued:
    """The input as this output has it: files in the order of the manifest, new ones after them.

    manifest: its "input" are the files' fingerprints in that order, "appended_at" the numbers of those with which files
    that came later begin. Raises ChangedError where files came and --append is not given, and with it where one of the
    earlier files changed or is gone.
    """
    now: Files = {str(file["path"]): file for file in reader.fingerprint()}
    then: Files = {str(file.get("path")): file for file in manifest["input"]}
    new, is_whole = [path for path in now if path not in then], set(then) <= set(now)
    if config.append:
        _check_same(then, now)
    elif new and is_whole:
        raise ChangedError(_grown(new))
    begins = [*manifest.get("appended_at", []), *([len(then)] if new else [])]
    if reopen is None or not is_whole or not begins:
        return Continued(manifest, reader)
    addresses = dict(zip(now, reader.files, strict=True))
    ordered = [addresses[path] for path in (*then, *new)]
    opened = reopen([ordered[a:b] for a, b in pairwise([0, *begins, len(ordered)])])
    if not new:
        return Continued(manifest, opened)
    _check_columns(opened, config)
    files = [*manifest["input"], *(now[path] for path in new)]
    grown = {"input": files, "appended_at": begins, "finished": False}
    return Continued(manifest | grown, opened, len(new))


def _check_same(then: Files, now: Files) -> None:
    for path, file in then.items():
        if path not in now:
            raise ChangedError(
                f"--append: the input file {path} is gone; bring it back, or --overwrite to start anew without it"
            )
        lines = differences("", file, now[path])
        if lines:
            raise ChangedError(
                f"--append: the input file {path} has changed ({', '.join(line.lstrip('.') for line in lines)}), and "
                "only new files can be added; change it back, or --overwrite to start anew"
            )


def _grown(new: Sequence[str]) -> str:
    shown = ", ".join(new[:SHOWN_FILES]) + (", ..." if len(new) > SHOWN_FILES else "")
    files = "1 file" if len(new) == 1 else f"{len(new):,} files"
    return (
        f"{files} came to the input since this output was begun: {shown}. --append computes the new files' rows and "
        "adds them; --overwrite starts anew"
    )


def _check_columns(reader: Reader, config: RunConfig) -> None:
    """Raises ChangedError for new files without a text, and for columns that the output has no place for."""
    if not isinstance(reader, AppendedReader):
        return
    text = seen_text_column(config, reader.schema())
    gone = [name for name in reader.missing_columns() if name in (text, config.pair_column)]
    if gone:
        raise ChangedError(f"--append: no new file has the text column {gone[0]!r}")
    added = reader.added_columns()
    if added and config.keep is None and not keeps_lines(config, reader):
        raise ChangedError(
            f"--append: the new files have a column {added[0]!r}, which the earlier ones had not and the output has no "
            "place for; write them to another output, or --overwrite to start anew"
        )
