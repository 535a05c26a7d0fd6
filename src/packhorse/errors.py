"""Every exception packhorse raises on purpose. The exit code of the command line hangs on the class.

    PackhorseError                 1  the run failed; the message says what, where, and what to do
    ├── UsageError                 2  a flag, a column or a name that cannot be meant
    ├── RefusedError               3  going on would be wrong
    │   ├── ChangedError           3  input, model, settings or versions differ from the run folder's
    │   ├── HostileModelError      3  the model folder asks for code, or points outside itself
    │   └── LockedError            3  another process holds the run folder
    ├── InputError                 1  a file that cannot be read
    ├── OutputError                1  no room for an output; what was computed stays
    ├── ModelError                 1  a model that cannot be loaded or does not fit the task
    ├── RowFailedError             1  a row ended in an error under --on-error fail
    ├── DamagedError               1  verify found bytes that are not the ones committed
    ├── DeviceOutOfMemoryError     1  a batch did not fit; the run lowers its budget and goes on
    ├── BatchRefusedError          1  the model refused a batch; its rows are tried one by one
    ├── WorkerDiedError            1  a worker process ended again and again, or none is left
    ├── TooManyErrorsError         4  more rows ended in errors than --max-error-rate allows
    └── InterruptedRunError  130/143  stopped by a signal; the same command goes on where it was

A row that cannot be done is not an exception but a `data.RowError` in the `error` column.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from packhorse.redaction import redacted


class PackhorseError(Exception):
    """Base of all errors raised on purpose. Secrets in the addresses that a message names do not get into it."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(redacted(message))


class UsageError(PackhorseError):
    exit_code = 2


class RefusedError(PackhorseError):
    exit_code = 3


class ChangedError(RefusedError):
    pass


class HostileModelError(RefusedError):
    pass


class LockedError(RefusedError):
    pass


class InputError(PackhorseError):
    pass


class OutputError(PackhorseError):
    pass


class ModelError(PackhorseError):
    pass


class RowFailedError(PackhorseError):
    pass


class DamagedError(PackhorseError):
    pass


class DeviceOutOfMemoryError(PackhorseError):
    pass


class BatchRefusedError(PackhorseError):
    pass


class WorkerDiedError(PackhorseError):
    pass


class TooManyErrorsError(PackhorseError):
    exit_code = 4


class InterruptedRunError(PackhorseError):
    """Stopped by a signal after committing what was complete."""

    def __init__(self, signum: int, rows_done: int | None) -> None:
        """rows_done: all that are committed; None where the stop came before that was looked up."""
        self.exit_code = 128 + signum
        done = "what was committed before stays" if rows_done is None else f"{rows_done:,} rows are committed"
        super().__init__(
            f"stopped by signal {signum}; {done}. The same command, without --overwrite, goes on from there."
        )


def first_line(error: BaseException) -> str:
    """Of its message, or its class's name where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def did_you_mean(seen: str, legal: Iterable[str]) -> str:
    """'; did you mean X?' where a legal name is near, else an empty string."""
    near = difflib.get_close_matches(seen, list(legal), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
