"""One stream with all threads, or a stream a thread: timed on rows of the job."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from packhorse.backends.openvino.runner import Runner, Streams
from packhorse.data import Batch, Int64s, Tokens
from packhorse.load_request import LoadRequest

Compile = Callable[[Streams], Runner]

BATCH_TOKENS = 512
ROUNDS = 2
# FLOPs a token below which nothing is timed: such a model runs 1M tokens in seconds, either way. MiniLM has 21M.
WORTH_TIMING = 1e7
MIN_GAIN = 1.1  # a stream a thread unless one stream is that much faster: timings of a second are no more exact


def choose_streams(compile_at: Compile, request: LoadRequest) -> tuple[Runner, tuple[str, ...]]:
    """The faster one, compiled, and a note of both rates. Their results are bitwise equal, so that a resumed run may
    choose otherwise than the one before it."""
    threads = request.workers * request.threads
    many, one = Streams(threads, threads), Streams(1, threads)
    runner = compile_at(many)
    if threads == 1 or runner.record.cost.per_token < WORTH_TIMING:
        return runner, ()
    other = compile_at(one)
    batches = _batches(request, threads)
    rates = _rates({many: runner, one: other}, batches)
    chosen = one if rates[one] > MIN_GAIN * rates[many] else many
    (runner if chosen == one else other).close()
    note = (
        f"{chosen.count} OpenVINO streams of {threads // chosen.count} threads: {threads} streams ran "
        f"{rates[many]:,.0f} tokens/s, one stream {rates[one]:,.0f}"
    )
    return (other if chosen == one else runner), (note,)


def _batches(request: LoadRequest, count: int) -> list[Batch]:
    """`count` batches of about BATCH_TOKENS tokens: neighbours in length, taken at even steps."""
    tokens = request.rows if request.rows.num_rows else request.trial
    by_length = np.argsort(tokens.lengths, kind="stable")
    places = np.linspace(0.25, 0.75, count) * (len(by_length) - 1)
    return [_batch(tokens, by_length, int(place)) for place in places]


def _batch(tokens: Tokens, by_length: Int64s, place: int) -> Batch:
    """The row at that place, and as many of those around it, again and again, as fill a batch."""
    rows = max(BATCH_TOKENS // max(int(tokens.lengths[by_length[place]]), 1), 1)
    around = by_length[max(place - rows // 2, 0) : place + rows // 2 + 1]
    return Batch(tokens.take(np.resize(around, rows)))


def _rates(runners: dict[Streams, Runner], batches: list[Batch]) -> dict[Streams, float]:
    """Real tokens/s of each one's best round. In turns, since what else runs on the machine comes and goes."""
    for runner in runners.values():  # the weights are put in order by a first forward
        _time(runner, batches[:1])
    times: dict[Streams, list[float]] = {streams: [] for streams in runners}
    for _ in range(ROUNDS):
        for streams, runner in runners.items():
            times[streams].append(_time(runner, batches))
    return {streams: sum(batch.real_tokens for batch in batches) / min(times[streams]) for streams in runners}


def _time(runner: Runner, batches: list[Batch]) -> float:
    begin = time.perf_counter()
    for values in [runner.forward(batch) for batch in batches]:
        values.numpy()
    return time.perf_counter() - begin
