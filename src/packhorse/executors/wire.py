"""Messages between the coordinator and a worker process: a kind, plain data, and perhaps a table as Arrow IPC."""

from __future__ import annotations

import pickle
import threading
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import pyarrow as pa


class WireClosedError(Exception):
    """Whoever is at the other end is gone."""


class Message(NamedTuple):
    kind: str
    values: Any = None  # plain data of this package's types
    table: pa.Table | None = None


class Wire:
    """One end. Many threads may send, one receives. Raises WireClosedError where the other end is closed."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, kind: str, values: Any = None, table: pa.Table | None = None) -> None:
        head = pickle.dumps((kind, values, table is not None))
        body = None if table is None else _packed(table)
        try:
            with self._sending:
                self._connection.send_bytes(head)
                if body is not None:
                    self._connection.send_bytes(body)
        except OSError as error:
            raise WireClosedError from error

    def receive(self, timeout_s: float | None = None) -> Message | None:
        """The next message; None where none begins to come in that time."""
        try:
            if not self._connection.poll(timeout_s):
                return None
            kind, values, has_table = pickle.loads(self._connection.recv_bytes())
            return Message(kind, values, _unpacked(self._connection.recv_bytes()) if has_table else None)
        except (EOFError, OSError) as error:
            raise WireClosedError from error

    @property
    def has_more(self) -> bool:
        """Whether what was sent is not all received yet, or the other end is closed."""
        try:
            return self._connection.poll(0)
        except OSError:
            return True

    def close(self) -> None:
        self._connection.close()


def _packed(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _unpacked(body: bytes) -> pa.Table:
    with pa.ipc.open_stream(body) as reader:
        return reader.read_all()
