"""Trying ways on this machine: what tuning.search asks, answered with real models on rows of the job."""

from __future__ import annotations

import numpy as np

from packhorse.batching import planner
from packhorse.data import BatchPlan, Int64s, Tokens
from packhorse.errors import DeviceOutOfMemoryError, ModelError, UsageError
from packhorse.generation import QUANTIZED
from packhorse.loading.budgets import fitting_budgets
from packhorse.loading.checking import batching
from packhorse.loading.loader import Loader
from packhorse.metrics import VALUE_BYTES
from packhorse.model_cost import ModelCost
from packhorse.readers.cut import MAX_ROWS
from packhorse.sequences import Values, first_values
from packhorse.stages import LoadedModel
from packhorse.tuning.candidates import Candidate, Prediction, Trial
from packhorse.tuning.gate import Verdict
from packhorse.tuning.measure import Clock, Timed, time_rows, values_of
from packhorse.tuning.precision import judge, tolerance_of
from packhorse.tuning.prior import efficiency_of, load_s, predicted_rate, setup_s

SMALL_SHARE = 0.005  # of a job's tokens: some ways are tried, each on the whole sample, and fp32 is slow
NEAR = 0.75  # of the rate to beat
PASSES = 2  # over the sample, of ways that come near
FEWEST_BATCHES = 2  # of a trial, for each worker
FEWEST_ROWS = 256  # no label changed in so many: with 95% confidence at most 1.2% of all
# Of a GEMM that nobody measured; int4 is multiplied in 16 bits.
ASSUMED_GAIN = {"fp32": 1.0, "bf16": 2.0, "fp16": 2.0, "int8": 3.5, "int4": 2.0, "fp8": 3.5}


def _efficiency(model: LoadedModel, lengths: Int64s, plan: BatchPlan) -> float:
    """Real / computed tokens of a plan."""
    computed = sum(model.computed_tokens(lengths[plan.rows(b)]) for b in range(plan.num_batches))
    return int(lengths.sum()) / max(computed, 1)


def thinned(rows: Tokens, job_tokens: float) -> Tokens:
    """Half of the rows where all of them are a good part of the job: 256 still bound what the gate has to bound."""
    is_small = int(rows.offsets[-1]) <= SMALL_SHARE * job_tokens
    return rows if is_small or rows.num_rows <= FEWEST_ROWS else rows.take(np.arange(0, rows.num_rows, 2))


class RealWorkbench:
    """A Workbench (tuning.search) over the loaders of some backends; `default` is the way that is loaded already."""

    def __init__(self, loaders: dict[str, Loader], default: Candidate, job_tokens: float, clock: Clock) -> None:
        """loaders: by the backend's name."""
        self.clock = clock
        self._loaders, self.default = loaders, default
        first = loaders[default.backend]
        self._settings, self.rows = first.settings, thinned(first.material.rows, job_tokens)
        model = first.model(default.precision)
        self.cost: ModelCost = model.cost
        self._is_packed = model.is_packed
        self._fp32_bytes = model.weight_bytes * (1 if default.precision == "fp32" else 2)
        self._reference: Values | None = None
        self._verdicts: dict[tuple[str, ...], Verdict] = {}
        self._observed: float | None = None  # real tokens/s of the default way, at a first look
        self._ceilings = first.backend.known_ceilings(first.device, first.workers * first.threads)

    @property
    def _is_reference(self) -> bool:
        return self._settings.precision == "auto" and self.default.precision == "fp32"

    def add(self, loaders: dict[str, Loader]) -> None:
        """Other backends."""
        self._loaders |= loaders

    def budgets(self) -> tuple[int, int]:
        """Token budgets that fit with the default's weights loaded."""
        loader, d = self._loaders[self.default.backend], self.default
        free_bytes = loader.backend.free_bytes(loader.device)
        about = loader.description
        return fitting_budgets(self._model(d), about, d.precision, self.rows, d.workers, free_bytes)

    # -- before anything runs

    def look(self) -> float:
        """Real tokens/s of the default way on a few rows, for predictions of it and of others."""
        if self._observed is None:
            model, few = self._model(self.default), self._few_rows()
            plan = self._plan(self.default, model, few.lengths)
            self._observed = time_rows(model, few, plan, None, self.clock).tokens_per_s
        return self._observed

    def _few_rows(self) -> Tokens:
        """Every so manieth of the sample's rows, about as many as fill two batches for each worker."""
        wanted = 2 * self.default.workers * self.default.max_batch_tokens
        count = max(int(self.rows.num_rows * min(wanted / max(int(self.rows.offsets[-1]), 1), 1.0)), 1)
        return self.rows.take(np.linspace(0, self.rows.num_rows - 1, count).astype(np.int64))

    def predict(self, candidate: Candidate) -> Prediction:
        rate = self._predicted(candidate) * self.look() / max(self._predicted(self.default), 1e-9)
        tokens, gate_s = self._timed_tokens(candidate), 0.0
        trial_s = (1 if candidate == self.default else PASSES) * tokens / rate
        if self._needs_verdict(candidate):
            is_reference_due = self._reference is None and self.default.precision != "fp32"
            trial_s = gate_s = trial_s + (tokens / self.look() if is_reference_due else 0.0)
        return Prediction(rate, self._setup_s(candidate), trial_s, gate_s)

    def _setup_s(self, candidate: Candidate) -> float:
        loader, parameters = self._loaders[candidate.backend], self._fp32_bytes // 4
        if candidate.precision in loader.loaded and self._is_set_up(candidate):
            return 0.0
        can_be_kept = candidate.precision not in QUANTIZED and not candidate.compiled
        if can_be_kept and loader.backend.is_prepared(loader.request(candidate.precision)):
            return load_s(parameters)
        return setup_s(candidate.backend, candidate.precision, parameters, candidate.compiled)

    def _predicted(self, candidate: Candidate) -> float:
        is_packed = candidate.backend == self.default.backend and self._is_packed
        share = efficiency_of(candidate, self._loaders[candidate.backend].device, "packed" if is_packed else "padded")
        gemm = self._gemm(candidate.precision)
        copy = self._ceilings.copy_bytes_per_s if self._ceilings else None
        weights = self._fp32_bytes // 4 * VALUE_BYTES[candidate.precision]
        lengths = self._loaders[self.default.backend].material.lengths
        return predicted_rate(self.cost, lengths, gemm, copy, weights, candidate.max_batch_tokens, share)

    def _gemm(self, precision: str) -> float:
        """FLOP/s as measured once on this machine; else what the first look lets one expect."""
        known = self._ceilings.gemm_flops_per_s if self._ceilings else {}
        if precision in known:
            return known[precision]
        assumed = self.look() * max(self.cost.per_token, 1.0)
        return assumed * ASSUMED_GAIN[precision] / ASSUMED_GAIN[self.default.precision]

    # -- trials

    def measure(self, candidate: Candidate, give_up_below: float | None) -> Trial:
        begin = self.clock()
        try:
            model = self._model(candidate)
            spent_s = self.clock() - begin
            timed = self._timed(candidate, model, give_up_below)
            if candidate == self.default and self._is_reference:
                spent_s = self.clock() - begin  # this pass is what lower precisions are held against
        except (ModelError, UsageError, DeviceOutOfMemoryError) as error:
            return Trial(None, self.clock() - begin, error=str(error))
        if not timed.is_whole:
            return Trial(timed.tokens_per_s, spent_s, is_beaten=True, peak_bytes=model.peak_bytes())
        verdict = self._verdict(candidate, model, timed.values)
        return Trial(timed.tokens_per_s, spent_s, accuracy=verdict, peak_bytes=model.peak_bytes())

    def _model(self, candidate: Candidate) -> LoadedModel:
        loader = self._loaders[candidate.backend]
        loader.use(candidate.workers, candidate.threads, candidate.compiled)
        return loader.model(candidate.precision)

    def _is_set_up(self, candidate: Candidate) -> bool:
        loader = self._loaders[candidate.backend]
        return loader.is_set_to(candidate.workers, candidate.threads, candidate.compiled)

    def _timed(self, candidate: Candidate, model: LoadedModel, give_up_below: float | None) -> Timed:
        """Of the sample's rows, again and again where they fill too few batches. What comes near the best runs a second
        time: engines prepare each new shape of a batch (OpenVINO 2 ms), which a long job pays once and a sample always.
        """
        times = -(-self._timed_tokens(candidate) // max(int(self.rows.offsets[-1]), 1))
        rows = self.rows.take(np.tile(np.arange(self.rows.num_rows), times))
        plan = self._plan(candidate, model, rows.lengths)
        timed = self._time(candidate, model, rows, plan, give_up_below)
        if timed.is_whole and give_up_below is not None and timed.tokens_per_s >= NEAR * give_up_below:
            again = self._time(candidate, model, rows, plan, None).tokens_per_s
            timed = timed._replace(tokens_per_s=max(again, timed.tokens_per_s))
        rate = timed.tokens_per_s * self._shard_efficiency(candidate, model) / _efficiency(model, rows.lengths, plan)
        return Timed(first_values(timed.values, self.rows.num_rows), rate, timed.is_whole)

    def _time(
        self, candidate: Candidate, model: LoadedModel, rows: Tokens, plan: BatchPlan, give_up_below: float | None
    ) -> Timed:
        """While as many tokens are made of the job's texts, as in the job itself; the slower of the two counts."""
        num_tokens = int(rows.offsets[-1])
        threads, material = candidate.tokenizer_threads, self._loaders[self.default.backend].material
        with material.tokenizing(num_tokens, model.max_length, threads):
            timed = time_rows(model, rows, plan, give_up_below, self.clock)
            begin = self.clock()
        waited_s = self.clock() - begin
        if not timed.is_whole or not num_tokens:
            return timed
        return timed._replace(tokens_per_s=num_tokens / (num_tokens / timed.tokens_per_s + waited_s))

    def _shard_efficiency(self, candidate: Candidate, model: LoadedModel) -> float:
        """Padding efficiency of a shard of the job: among more rows each finds neighbours nearer to its own length."""
        seen = self._loaders[self.default.backend].material.lengths
        lengths = np.random.default_rng(0).choice(seen[seen > 0], MAX_ROWS)
        return _efficiency(model, lengths, self._plan(candidate, model, lengths))

    def _plan(self, candidate: Candidate, model: LoadedModel, lengths: Int64s) -> BatchPlan:
        """The batches of rows of these lengths as the job would have them."""
        s = self._settings
        return planner(batching(s.batching, model))(lengths, candidate.max_batch_tokens, s.batch_size)

    def _timed_tokens(self, candidate: Candidate) -> int:
        fewest = FEWEST_BATCHES * candidate.workers * candidate.max_batch_tokens
        return max(int(self.rows.offsets[-1]), fewest)

    # -- accuracy

    def _needs_verdict(self, candidate: Candidate) -> bool:
        return candidate.family not in self._verdicts and candidate.family != (self.default.backend, "fp32")

    def _verdict(self, candidate: Candidate, model: LoadedModel, values: Values) -> Verdict | None:
        """Against fp32 of the default backend, once for all ways of one backend and precision; None for that itself."""
        if not self._needs_verdict(candidate):
            if candidate.family == (self.default.backend, "fp32"):
                self._reference = values if self._reference is None else self._reference
            return self._verdicts.get(candidate.family)
        verdict = self._verdicts[candidate.family] = self._compared(candidate, model, values)
        return verdict

    def judge(self, candidate: Candidate) -> Verdict:
        """Its values of the sample's rows against fp32's, without timing. Raises ModelError where it cannot load."""
        model = self._model(candidate)
        return self._compared(candidate, model, values_of(model, self.rows, candidate.max_batch_tokens))

    def _compared(self, candidate: Candidate, model: LoadedModel, values: Values) -> Verdict:
        tolerance = tolerance_of(self._settings, candidate.precision, model.reduction)
        return judge(self.reference(), values, model.reduction, tolerance)

    def reference(self) -> Values:
        """fp32's values of the sample's rows, by the default backend. Raises ModelError."""
        if self._reference is None:
            loader, d = self._loaders[self.default.backend], self.default
            split = (loader.workers * loader.threads, 1) if d.compiled else (d.workers, d.threads)
            loader.use(*split, compiled=False)
            self._reference = values_of(loader.model("fp32"), self.rows, loader.candidate("fp32").max_batch_tokens)
        return self._reference
