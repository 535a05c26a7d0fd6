"""A model that vLLM runs in a process of its own: what is asked of it, and what is done where it fails.

- A prompt that vLLM refuses is a row error.
- An exception while several rows run is narrowed down by halves until the row that raises it alone is found.
- Outputs that do not come, or come unfinished, are asked for once more.
- A process that dies is started once more, and what it had not finished is computed again. One whose engine an
  exception left dead is started again until the row is found.

How many rows run together never depends on time: vLLM gets up to max_rows at once and the next one with each that ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from packhorse.backends.vllm.outcomes import Outcomes
from packhorse.backends.vllm.process import Server, ServerDiedError
from packhorse.backends.vllm.server import to_bytes
from packhorse.backends.vllm.starting import Launch
from packhorse.backends.vllm.weights import weight_bytes
from packhorse.errors import DeviceOutOfMemoryError, ModelError
from packhorse.generation import Generated, Prompts
from packhorse.load_request import LoadRequest
from packhorse.model_cost import ModelCost
from packhorse.stages import OnStep

MEMORY_WORDS = ("out of memory", "outofmemory", "not enough memory")
MAX_DEATHS = 1  # a call of generate: after these the process is started again
MAX_CRASHES = 12  # likewise, after exceptions that left the engine dead: one bad row of 1,024 takes 11 to be found
TWICE = "vLLM gave no whole output for this row, and none when it was asked again"


class Answer(NamedTuple):
    """How a request ended. suspects: rows that ran when the engine raised."""

    failure: str | None = None
    suspects: Sequence[int] = ()
    is_alive: bool = True


class Ends:
    """Counts how processes ended while one call of generate lasted."""

    def __init__(self) -> None:
        self._deaths = self._crashes = 0

    def count(self, answer: Answer) -> None:
        """Raises ModelError where it is enough."""
        self._crashes += bool(answer.suspects)
        self._deaths += not answer.suspects
        if self._deaths > MAX_DEATHS:
            raise ModelError(f"vLLM's process died {self._deaths} times; the last one {answer.failure}")
        if self._crashes > MAX_CRASHES:
            raise ModelError(f"vLLM's engine died {self._crashes} times; the last time of {answer.failure}")


class VllmModel:
    engine = "vllm"
    attention = "vllm"

    def __init__(self, request: LoadRequest, launch: Launch, cost: ModelCost, notes: tuple[str, ...]) -> None:
        """Starts the process and loads. Raises ModelError."""
        self._launch, self._sampling = launch, launch.sampling
        self._server: Server | None = None
        self._peak_bytes: int | None = None
        self._longest = 0  # that vLLM takes, prompt and output together
        self.reduction, self.device, self.cost, self.notes = request.reduction, request.device, cost, notes
        self.max_new_tokens, self.is_sampled = launch.sampling.max_new_tokens, launch.sampling.is_sampled
        self.weight_bytes = weight_bytes(request.description.folder, request.precision)
        self._started()
        self.max_length: int | None = request.description.max_length or self._longest

    def generate(self, prompts: Prompts, max_rows: int, max_prefill_tokens: int, on_step: OnStep) -> Generated:
        """max_prefill_tokens is vLLM's own affair (its max_num_batched_tokens). Raises DeviceOutOfMemoryError where
        max_rows do not fit, ModelError where the process dies twice, and what on_step raises."""
        outcomes = Outcomes(prompts, self._sampling, on_step)
        numbers = range(prompts.num_rows * self._sampling.num_samples)
        try:
            self._compute(outcomes, [n for n in numbers if self._has_room(outcomes, n)], max_rows)
        except BaseException:
            self._kill()  # it may be busy with rows that nobody waits for
            raise
        return outcomes.generated("logprobs" in self._sampling.common)

    def peak_bytes(self) -> int | None:
        """Of the first GPU, with one of them; None where vLLM does not tell."""
        return self._peak_bytes

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    # -- recovery

    def _compute(self, outcomes: Outcomes, numbers: list[int], max_rows: int) -> None:
        """Closes every number. groups: what is still to be computed, each together; the last one is next."""
        groups, ends, asked_again = [numbers], Ends(), set[int]()
        while groups:
            group = [n for n in groups.pop() if outcomes.is_open(n)]
            if not group:
                continue
            try:
                answer = self._ask(outcomes, group, max_rows)
            except ServerDiedError as error:
                answer = Answer(str(error), is_alive=False)
            still = [n for n in group if outcomes.is_open(n)]
            if not answer.is_alive:
                self._kill()
                ends.count(answer)
            if answer.failure is not None and answer.suspects:
                groups += self._narrowed(outcomes, still, answer)
            elif answer.failure is not None:
                groups.append(still)
            else:
                _close_silent(outcomes, still, asked_again)
                groups.append(still)

    def _narrowed(self, outcomes: Outcomes, still: Sequence[int], answer: Answer) -> list[list[int]]:
        """Rows that had not begun, and the halves of those that ran. One that ran alone is in error."""
        if any(word in (answer.failure or "").lower() for word in MEMORY_WORDS):
            raise DeviceOutOfMemoryError(f"{len(answer.suspects)} rows at once: {answer.failure}")
        suspects = [n for n in answer.suspects if outcomes.is_open(n)]
        if len(suspects) == 1:
            outcomes.fail(suspects[0], answer.failure or "")
        waiting = [n for n in still if n not in set(suspects)]
        half = (len(suspects) + 1) // 2
        return [waiting, suspects[half:], suspects[:half]]

    # -- the process

    def _started(self) -> Server:
        if self._server is None:
            self._server, self._longest = self._launch.started()
        return self._server

    def _kill(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server = None

    def _has_room(self, outcomes: Outcomes, number: int) -> bool:
        length = len(outcomes.prompt(number))
        if self._sampling.max_tokens(length, self._longest) > 0:
            return True
        most = min(self._longest, self._sampling.max_length or self._longest)
        outcomes.fail(number, f"the prompt has {length} tokens, and prompt and output may have {most} together")
        return False

    def _ask(self, outcomes: Outcomes, numbers: Sequence[int], max_rows: int) -> Answer:
        """Raises ServerDiedError."""
        server = self._started()
        rows = [self._row(outcomes, number) for number in numbers]
        ids = b"".join(to_bytes("i", outcomes.prompt(number).tolist()) for number in numbers)
        request = {"do": "generate", "sampling": self._sampling.common, "max_rows": max(max_rows, 1), "rows": rows}
        server.send(request, ids)
        while True:
            message, payload = server.receive()
            kind = message["is"]
            if kind == "outputs":
                outcomes.take(message["rows"], payload)
            elif kind == "refused":
                outcomes.fail(message["number"], message["message"])
            elif kind == "failed":
                return Answer(message["message"], message["numbers"], message["is_alive"])
            else:
                self._peak_bytes = message["peak_bytes"] or self._peak_bytes
                return Answer()

    def _row(self, outcomes: Outcomes, number: int) -> dict[str, Any]:
        row, sample = divmod(number, self._sampling.num_samples)
        length = len(outcomes.prompt(number))
        most = self._sampling.max_tokens(length, self._longest)
        return {
            "number": number, "length": length, "seed": self._sampling.seed_of(int(outcomes.prompts.keys[row]), sample),
            "min_tokens": self._sampling.min_tokens(length, most), "max_tokens": most,
        }  # fmt: skip


def _close_silent(outcomes: Outcomes, numbers: Sequence[int], asked_again: set[int]) -> None:
    """Of rows that a request ended without: those asked for again already are in error, the others are marked."""
    for number in numbers:
        if number in asked_again:
            outcomes.fail(number, TWICE)
        asked_again.add(number)
