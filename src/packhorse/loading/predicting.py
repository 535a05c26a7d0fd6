"""What the ways to run a job are expected to do, before a weight is read: from the model's config, the machine's
ceilings and the lengths of a sample."""

from __future__ import annotations

from dataclasses import dataclass

from packhorse.errors import ModelError
from packhorse.loading.choosing import families
from packhorse.loading.loader import Loader
from packhorse.metrics import VALUE_BYTES, activation_bytes
from packhorse.model_cost import ModelCost
from packhorse.plans import Alternative, Forecast
from packhorse.tuning.candidates import Candidate, Prediction, Trial
from packhorse.tuning.gate import MIN_JOB_ROWS
from packhorse.tuning.precision import first_choice
from packhorse.tuning.prior import efficiency_of, predicted_rate, setup_s
from packhorse.tuning.search import search

NO_KNOBS = (0, 0)  # what a token budget more or less gains is too little to predict


@dataclass(frozen=True)
class Guess:
    """alternatives: the one that tuning would take if all goes as predicted, first. Sizes in bytes, None where the
    model cannot be built from its config."""

    alternatives: tuple[Alternative, ...]
    forecast: Forecast
    batching: str
    weight_bytes: int | None
    layer_bytes_per_token: int  # of activations

    def batch_bytes(self, max_batch_tokens: int) -> int:
        """Of the activations of a batch: those of one layer, all counted as if none were freed within it."""
        return self.layer_bytes_per_token * max_batch_tokens


def predicted(loader: Loader, total_rows: float) -> Guess:
    """Of a job whose sample the loader has seen. Measures the machine's ceilings where no earlier run did."""
    job = loader.material.job_size(total_rows)
    default = loader.candidate(first_choice(loader.settings, loader.supported_precisions(), loader.own_precision))
    cost, parameters = _cost(loader)
    policy = loader.settings.batching if loader.settings.batching != "auto" else "packed"
    layout = policy if loader.backend_name == "torch" else "padded"
    about = loader.description
    weights = parameters * VALUE_BYTES[default.precision] if parameters else None
    per_token = activation_bytes(1, about.attention_width, default.precision)
    loaders, candidates, unfit = families(loader)
    bench = _Imagined(loaders, default, cost, parameters, layout)
    if not cost.per_token or not bench.predict(default).tokens_per_s:
        unknown = Forecast(rows=job.rows, tokens=job.tokens, sample_rows=loader.material.num_seen)
        return Guess((_unknown(default),), unknown, layout, weights, per_token)
    are_enough = job.rows >= MIN_JOB_ROWS
    decision = search(candidates, default, job, bench, "quick" if are_enough else "off", cores=1, budgets=NO_KNOBS)
    forecast = Forecast(
        rows=job.rows, tokens=job.tokens, sample_rows=loader.material.num_seen,
        tokens_per_s=decision.chosen_rate, total_s=decision.chosen_total_s, source="predicted",
    )  # fmt: skip
    listed = decision.alternatives if are_enough else map(_too_few, decision.alternatives)
    alternatives = (*map(_as_predicted, listed), *unfit)
    return Guess(alternatives, forecast, layout, weights, per_token)


class _Imagined:
    """A Workbench on which everything does what is predicted of it, and no time passes but on its own clock."""

    def __init__(
        self, loaders: dict[str, Loader], default: Candidate, cost: ModelCost, parameters: int, layout: str
    ) -> None:
        self._loaders, self._default = loaders, default
        self._cost, self._parameters, self._layout = cost, parameters, layout
        first = loaders[default.backend]
        self._lengths, self._rows = first.material.lengths, first.material.rows
        precisions = first.supported_precisions()
        self._ceilings = first.backend.ceilings(first.device, precisions, first.workers * first.threads)
        self._now = 0.0

    def clock(self) -> float:
        return self._now

    def predict(self, candidate: Candidate) -> Prediction:
        rate = self._rate(candidate)
        trial_s = int(self._rows.offsets[-1]) / rate if rate else 0.0
        gate_s = trial_s if candidate != self._default else 0.0
        return Prediction(
            rate, setup_s(candidate.backend, candidate.precision, self._parameters, candidate.compiled), trial_s, gate_s
        )

    def _rate(self, candidate: Candidate) -> float:
        gemm = self._ceilings.gemm_flops_per_s.get(candidate.precision) if self._ceilings else None
        if gemm is None:
            return 0.0
        layout = self._layout if candidate.backend == self._default.backend else "padded"
        share = efficiency_of(candidate, self._loaders[candidate.backend].device, layout)
        weights = self._parameters * VALUE_BYTES[candidate.precision]
        copy = self._ceilings.copy_bytes_per_s
        return predicted_rate(self._cost, self._lengths, gemm, copy, weights, candidate.max_batch_tokens, share)

    def measure(self, candidate: Candidate, give_up_below: float | None) -> Trial:
        prediction = self.predict(candidate)
        self._now += prediction.cost_s
        return Trial(prediction.tokens_per_s or None, prediction.setup_s)


def _cost(loader: Loader) -> tuple[ModelCost, int]:
    """(cost, number of parameters) from the config; of nothing where the backend has no model, or transformers cannot
    build it."""
    if loader.backend_name == "null":
        return ModelCost(), 0
    from packhorse.backends.torch.meta import estimate

    try:
        found = estimate(loader.description)
    except ModelError:
        return ModelCost(), 0
    return found.cost, found.num_parameters


def _as_predicted(alternative: Alternative) -> Alternative:
    """What was only imagined is no measurement."""
    rate = alternative.measured_tokens_per_s or alternative.predicted_tokens_per_s
    return alternative.model_copy(update={"measured_tokens_per_s": None, "predicted_tokens_per_s": rate})


def _too_few(alternative: Alternative) -> Alternative:
    reason = f"with fewer than {MIN_JOB_ROWS:,} rows no other way is tried"
    return alternative.model_copy(update={"reason": reason if alternative.status == "not_tried" else ""})


def _unknown(default: Candidate) -> Alternative:
    return Alternative(
        backend=default.backend, precision=default.precision, max_batch_tokens=default.max_batch_tokens,
        workers=default.workers, threads=default.threads, status="chosen",
        reason="what this model costs, or what the device can do at this precision, is not known",
    )  # fmt: skip
