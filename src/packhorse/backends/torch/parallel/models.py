"""A model whose forwards are those of several ranks."""

from __future__ import annotations

import dataclasses
from typing import Any

from packhorse.backends.torch.parallel.devices import named
from packhorse.backends.torch.parallel.fitting import Cut, check_model, check_request
from packhorse.backends.torch.parallel.messages import Facts
from packhorse.backends.torch.parallel.ranks import Ranks, Ticket
from packhorse.counters import Transfers
from packhorse.data import Batch, Float32s, Int64s, Reduction
from packhorse.errors import BatchRefusedError, DeviceOutOfMemoryError, ModelError
from packhorse.generation import Generated, Prompts
from packhorse.load_request import LoadRequest
from packhorse.model_cost import ModelCost
from packhorse.stages import OnStep


def load_parallel(request: LoadRequest) -> ParallelModel | ParallelGenerator:
    """Raises UsageError, ModelError or WorkerDiedError."""
    check_request(request)
    cut = check_model(request)
    made = ParallelModel if request.decoding is None else ParallelGenerator
    try:
        return made(request, Ranks(request), cut)
    except DeviceOutOfMemoryError as failure:
        raise ModelError(
            f"{request.description.folder}: --tensor-parallel over {named(request.placement.devices)}: does not fit in "
            f"{request.precision}: {failure}; give more devices"
        ) from failure


class _Parallel:
    """What both have. Facts that a Protocol of stages.py names are attributes of the same names."""

    reduction: Reduction
    max_length: int | None
    attention: str

    def __init__(self, request: LoadRequest, ranks: Ranks, cut: Cut) -> None:
        devices = request.placement.devices
        self._ranks, facts = ranks, ranks.facts
        vars(self).update(facts.told)
        self.device = request.device
        self.cost = _whole_cost(facts, len(devices) if cut.shares_attention else 1)
        self._num_embeddings = cut.num_embeddings
        self.weight_bytes = facts.weight_bytes
        self._note = f"every layer is cut over {named(devices)}"
        self.notes: tuple[str, ...] = (self._note, *facts.notes)

    @property
    def pids(self) -> list[int]:
        """Of the ranks' processes; none where they were ended and not started again."""
        return self._ranks.pids

    def peak_bytes(self) -> int | None:
        """Of the device that used most."""
        if not self.pids:
            return None
        return max((n for n in self._ranks.call("peak", None) if n is not None), default=None)

    def close(self) -> None:
        self._ranks.close()


class ParallelModel(_Parallel):
    """A LoadedModel."""

    pads_safely: bool
    is_packed: bool
    in_flight: int

    def forward(self, batch: Batch) -> Pending:
        unknown = batch.tokens.ids[batch.tokens.ids >= self._num_embeddings]
        if len(unknown):
            raise BatchRefusedError(f"token {unknown[0]}, and the model has embeddings of {self._num_embeddings:,}")
        return Pending(self._ranks.submit("forward", batch))

    def computed_tokens(self, lengths: Int64s) -> int:
        return int(lengths.sum()) if self.is_packed else int(lengths.max(initial=0)) * len(lengths)


class Pending:
    """Values that the ranks are computing."""

    transfers: Transfers  # where the device has memory of its own, once the values are here

    def __init__(self, ticket: Ticket) -> None:
        self._ticket = ticket

    def numpy(self) -> Float32s:
        values, transfers = self._ticket.collect()[0]
        if transfers is not None:
            self.transfers = transfers
        found: Float32s = values
        return found


class ParallelGenerator(_Parallel):
    """A Generator."""

    max_new_tokens: int
    is_sampled: bool
    engine: str

    def generate(self, prompts: Prompts, max_rows: int, max_prefill_tokens: int, on_step: OnStep) -> Generated:
        answers: list[Any] = self._ranks.call("generate", (prompts, max_rows, max_prefill_tokens), on_step)
        checksums = {checksum for checksum, _ in answers}
        if len(checksums) > 1:
            self._ranks.kill()
            raise ModelError("--tensor-parallel: the ranks wrote different tokens; are the devices of one kind?")
        generated: Generated
        generated, notes = answers[0][1]
        self.notes = (self._note, *notes)
        return generated


def _whole_cost(facts: Facts, shares: int) -> ModelCost:
    """Linear layers are counted by the sizes that they have together, attention as one rank computes it."""
    kinds = tuple(
        dataclasses.replace(kind, flops_per_pair=kind.flops_per_pair * shares) for kind in facts.cost.attention
    )
    return dataclasses.replace(facts.cost, attention=kinds)
