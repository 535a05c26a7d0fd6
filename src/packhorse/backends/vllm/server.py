"""The side of the vllm backend that runs inside vLLM's own environment: a script of the standard library and vllm.

It answers requests on what were its standard input and output. Both carry frames: the length of a JSON object and of
raw bytes (little-endian uint32 and uint64), then both. Token ids are raw little-endian int32, log-probabilities
float32.

    load      options (keywords of vllm.LLM), sampling     ->  loaded | error
    generate  sampling, max_rows, rows; ids of all prompts ->  outputs*, refused*, then done | failed
    close                                                  ->  nothing; the process ends

sampling holds keywords of vllm.SamplingParams that all rows share, a row its number, length, seed, min_tokens and
max_tokens. The end of the input, which comes too when whoever started this process dies, ends the whole process group.
"""

from __future__ import annotations

import array
import json
import os
import queue
import signal
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

HEADER = struct.Struct("<IQ")


# -- frames, for both sides


def pack(message: Mapping[str, Any], payload: bytes = b"") -> bytes:
    """A frame as bytes."""
    text = json.dumps(message).encode()
    return HEADER.pack(len(text), len(payload)) + text + payload


def read_frame(read: Callable[[int], bytes]) -> tuple[dict[str, Any], bytes] | None:
    """(message, payload) by read(n), which gives n bytes, or fewer at the end; None at the end."""
    header = read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    text_bytes, payload_bytes = HEADER.unpack(header)
    text, payload = read(text_bytes), read(payload_bytes)
    if len(text) < text_bytes or len(payload) < payload_bytes:
        return None
    return json.loads(text), payload


def to_bytes(code: str, values: Iterable[float]) -> bytes:
    """Little-endian bytes; code: i for int32, f for float32."""
    numbers: array.array = array.array(code, values)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def to_ids(payload: bytes) -> Sequence[int]:
    ids: array.array = array.array("i", payload)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids


# -- pipes


def take_pipes() -> tuple[int, Any]:
    """The descriptor of the requests and the file of the answers, neither with a buffer. What vLLM, or a library of it,
    prints goes to standard error from now on."""
    requests, answers = os.dup(0), os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return requests, answers


def read_exactly(descriptor: int, size: int) -> bytes:
    """size bytes, or fewer at the end. No file object: its lock, held by a thread that waits, would stop the exit."""
    parts = []
    while size and (part := os.read(descriptor, min(size, 2**20))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def watch(requests: int) -> queue.Queue[Any]:
    """A queue of the frames that come. At the end of the input the process group is killed: a step of the engine may
    last long, and its worker processes are not to outlive whoever asked."""
    frames: queue.Queue[Any] = queue.Queue()

    def follow() -> None:
        while True:
            frame = read_frame(lambda size: read_exactly(requests, size))
            if frame is None:
                end_group()
            frames.put(frame)

    threading.Thread(target=follow, daemon=True).start()
    return frames


def end_group() -> None:
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def write_all(answers: Any, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[answers.write(view) :]


# -- vLLM


def keywords(common: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Those of vllm.SamplingParams for one row. Only the finished output of a request is asked for."""
    fields = dict(common)
    constraint = fields.pop("constraint", None)
    if constraint is not None:
        fields.update(constrained(constraint))
    fields.update((name, row[name]) for name in ("seed", "min_tokens", "max_tokens") if row.get(name) is not None)
    fields["output_kind"] = import_module("vllm.sampling_params").RequestOutputKind.FINAL_ONLY
    return fields


def constrained(constraint: Mapping[str, Any]) -> dict[str, Any]:
    """constraint: {"json": schema} or {"choice": [texts]}. The class was renamed in vLLM 0.11."""
    module = import_module("vllm.sampling_params")
    if hasattr(module, "StructuredOutputsParams"):
        return {"structured_outputs": module.StructuredOutputsParams(**constraint)}
    return {"guided_decoding": module.GuidedDecodingParams(**constraint)}


class Engine:
    """vllm.LLM, stepped here so that an output is told when it is finished and a bad prompt costs its row alone."""

    def __init__(self, options: Mapping[str, Any], sampling: Mapping[str, Any]) -> None:
        vllm = import_module("vllm")

        self._sampling_params = vllm.SamplingParams
        self._check(sampling)
        self._engine = vllm.LLM(**options).llm_engine
        self._asked = 0

    @property
    def max_model_len(self) -> int:
        return int(self._engine.model_config.max_model_len)

    def _check(self, sampling: Mapping[str, Any]) -> None:
        """What vLLM refuses in the settings of all rows is refused before the model is loaded."""
        self._sampling_params(**keywords(sampling, {"max_tokens": 1}))

    def generate(self, request: Mapping[str, Any], ids: Sequence[int], answer: Callable[..., None]) -> None:
        sampling, waiting = request["sampling"], deque(with_prompts(request["rows"], ids))
        running: dict[str, int] = {}
        try:
            while waiting or running:
                self._fill(sampling, waiting, running, request["max_rows"], answer)
                if running and not self._engine.has_unfinished_requests():
                    break  # vLLM has forgotten some: the other side sees which
                self._step(sampling, running, answer)
        except Exception as error:  # noqa: BLE001 -- told to the other side, whatever it is
            answer(failure(error, list(running.values()), self._clear(list(running))))
            return
        answer({"is": "done", "peak_bytes": peak_bytes()})

    def _fill(self, sampling: Any, waiting: deque, running: dict[str, int], max_rows: int, answer: Any) -> None:
        while waiting and len(running) < max_rows:
            row, prompt = waiting.popleft()
            name = str(self._asked)
            self._asked += 1
            try:
                params = self._sampling_params(**keywords(sampling, row))
                self._engine.add_request(name, {"type": "token", "prompt_token_ids": prompt}, params)
            except Exception as error:  # noqa: BLE001 -- becomes the row's error
                answer({"is": "refused", "number": row["number"], "message": first_line(error)})
                continue
            running[name] = row["number"]

    def _step(self, sampling: Any, running: dict[str, int], answer: Any) -> None:
        done = [o for o in self._engine.step() if o.finished and o.request_id in running] if running else []
        rows: list[dict[str, Any]] = []
        ids: list[int] = []
        logprobs: list[float] = []
        for output in done:
            number = running.pop(output.request_id)
            for completion in output.outputs[:1]:
                tokens = list(completion.token_ids)
                rows.append(told(number, completion, len(tokens)))
                ids += tokens
                if sampling.get("logprobs") is not None:
                    logprobs += chosen(completion.logprobs or (), tokens)
        if rows:
            answer({"is": "outputs", "rows": rows}, to_bytes("i", ids) + to_bytes("f", logprobs))

    def _clear(self, names: list[str]) -> bool:
        """Takes the requests back after a failure. Whether the engine can go on."""
        try:
            self._engine.abort_request(names)
            while self._engine.has_unfinished_requests():
                self._engine.step()
        except Exception:  # noqa: BLE001 -- a dead engine answers everything with an error
            return False
        return True


def with_prompts(rows: Iterable[Any], ids: Sequence[int]) -> Iterator[tuple[Any, list[int]]]:
    start = 0
    for row in rows:
        yield row, list(ids[start : start + row["length"]])
        start += row["length"]


def told(number: int, completion: Any, length: int) -> dict[str, Any]:
    return {
        "number": number, "length": length, "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
    }  # fmt: skip


def chosen(logprobs: Iterable[Any], tokens: Sequence[int]) -> list[float]:
    """Of each token written; NaN where vLLM has none."""
    found = [at[token].logprob if token in at else float("nan") for at, token in zip(logprobs, tokens)]  # noqa: B905
    return found + [float("nan")] * (len(tokens) - len(found))


def failure(error: Exception, numbers: list[int], is_alive: bool) -> dict[str, Any]:
    return {"is": "failed", "message": first_line(error), "numbers": numbers, "is_alive": is_alive}


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def peak_bytes() -> int | None:
    """Of the first GPU, where the engine runs in this process; else None."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    if cuda is None or not cuda.is_available() or not cuda.is_initialized():
        return None
    return int(cuda.max_memory_reserved()) or None


# -- the process


def probe() -> dict[str, Any]:
    """What the vLLM of this interpreter was built for."""
    platform = import_module("vllm.platforms").current_platform
    kind = str(platform.device_type)
    return {"device": kind, "devices": 1 if kind == "cpu" else int(platform.device_count())}


def loaded(message: Mapping[str, Any]) -> tuple[Engine | None, dict[str, Any]]:
    try:
        engine = Engine(message["options"], message["sampling"])
        return engine, {"is": "loaded", "max_model_len": engine.max_model_len}
    except Exception as error:  # noqa: BLE001 -- told to the other side, whatever it is
        return None, {"is": "error", "message": first_line(error)}


def serve(frames: queue.Queue[Any], answer: Callable[..., None]) -> None:
    engine: Engine | None = None
    while True:
        message, payload = frames.get()
        if message["do"] == "close":
            return
        if message["do"] == "load":
            engine, reply = loaded(message)
            answer(reply)
        elif engine is not None:
            engine.generate(message, to_ids(payload), answer)


def main() -> None:
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 -- no file here may hide a package
    sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder or ".") != here]  # noqa: PTH100
    requests, answers = take_pipes()

    def answer(message: Mapping[str, Any], payload: bytes = b"") -> None:
        write_all(answers, pack(message, payload))

    if sys.argv[1:] == ["probe"]:
        answer(probe())
        return
    serve(watch(requests), answer)


if __name__ == "__main__":
    main()
