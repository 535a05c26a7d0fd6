"""What packhorse's process and a rank say to each other: (kind, values) as pickles over a pipe.

To a rank: load, meet, go, stop, forward, generate, peak, close. From it: meet, loaded, ready, step, done, stopped,
failed. A rank answers each forward, generate and peak once, in their order, with one of the last three.
"""

from __future__ import annotations

import pickle
import traceback
from typing import Any, NamedTuple

from packhorse.load_request import LoadRequest
from packhorse.model_cost import ModelCost

ORPHANED = 75  # exit code, EX_TEMPFAIL of sysexits.h: packhorse's process is gone


class Spec(NamedTuple):
    """What a rank is told to load. request: its device and threads are the rank's own."""

    request: LoadRequest
    rank: int
    num_ranks: int


class Facts(NamedTuple):
    """Of the model that a rank loaded. told: attributes of it by their names, equal in all ranks."""

    told: dict[str, Any]
    cost: ModelCost  # attention's as one rank computes it
    weight_bytes: int  # of this rank
    notes: tuple[str, ...]


class Failure(NamedTuple):
    """What a rank raised, and where. num_agreed: outputs that it had in common with the others until then; None where
    its device does not come to rest, since another rank does not take part in what it waits for."""

    error: Exception
    where: str
    num_agreed: int | None


def sendable(error: BaseException) -> Exception:
    """The error itself where it can be sent."""
    try:
        is_whole = type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:  # noqa: BLE001 - an exception's arguments may be anything
        is_whole = False
    return error if is_whole and isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")


def failure(error: BaseException, num_agreed: int | None) -> Failure:
    return Failure(sendable(error), "".join(traceback.format_exception(error)), num_agreed)
