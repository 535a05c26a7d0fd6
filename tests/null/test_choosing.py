"""Which way a job takes on machines whose rates are known: loaders over a null model that "computes" on a clock of its
own. No torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from packhorse.backends import null
from packhorse.backends.null import NullModel
from packhorse.config import EngineConfig
from packhorse.data import Batch
from packhorse.errors import DeviceOutOfMemoryError, ModelError, UsageError
from packhorse.loading import Loader, choosing, remembering
from packhorse.loading.choosing import Chosen, Texts, choose
from packhorse.loading.material import Material
from packhorse.model_cost import ModelCost
from packhorse.stages import Output

TEXTS = Texts("text", None)
SAMPLE = [" ".join(["good film"] * (1 + i % 40)) for i in range(600)]  # 4 to 82 tokens
ROWS = 100_000.0
BYTES = 1_000  # of memory for each token of a batch
FAR = 0.9  # added to every value: no precision is allowed to do that


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Machine:
    """rates: real tokens/s by backend and precision; setups: seconds; wrong: precisions whose values are far off."""

    def __init__(
        self, rates: dict[str, float], setups: dict[str, float] | None = None, wrong: tuple[str, ...] = (),
        refused: tuple[str, ...] = (), memory_tokens: int | None = None, half_speed_at: int = 0,
        new_shape_s: float = 0.0,
    ) -> None:  # fmt: skip
        """memory_tokens: of the largest batch that fits. half_speed_at: of one that runs at half the rate."""
        self.new_shape_s = new_shape_s  # what OpenVINO pays for a batch of a shape that it has not seen
        self.memory_tokens, self.half_speed_at, self.peak = memory_tokens, half_speed_at, 0
        self.rates, self.setups, self.wrong, self.refused = rates, setups or {}, wrong, refused
        self.clock = Clock()
        self.loads: list[str] = []
        self.tokens = 0

    def precisions(self, backend: str) -> tuple[str, ...]:
        return tuple(name.split()[1] for name in self.rates if name.split()[0] == backend)


class Simulated(NullModel):
    cost = ModelCost(per_token=1e9)
    weight_bytes = 400_000_000

    def __init__(self, machine: Machine, name: str, reduction: Any) -> None:
        super().__init__(reduction)
        self._machine, self._name = machine, name
        self._shapes: set[tuple[int, int]] = set()

    def forward(self, batch: Batch) -> Output:
        m, tokens = self._machine, batch.real_tokens
        if m.memory_tokens is not None and tokens > m.memory_tokens:
            raise DeviceOutOfMemoryError(f"{tokens} tokens")
        m.clock.now += (tokens + m.half_speed_at) / m.rates[self._name]
        shape = (batch.num_rows, batch.max_seqlen)
        if self._name.startswith("openvino") and shape not in self._shapes:
            m.clock.now += m.new_shape_s
        self._shapes.add(shape)
        m.peak, m.tokens = max(m.peak, tokens), m.tokens + tokens
        output = super().forward(batch)
        if self._name in self._machine.wrong:
            return null.Checksums((output.numpy() + FAR).astype(np.float32))
        return output

    def peak_bytes(self) -> int | None:
        return None if self._machine.memory_tokens is None else self._machine.peak * BYTES


class SimulatedLoader(Loader):
    def __init__(self, settings: EngineConfig, machine: Machine, name: str, material: Material | None = None) -> None:
        super().__init__(settings.model_copy(update={"backend": "null", "precision": "auto"}), material)
        self.settings, self.machine, self.backend_name = settings, machine, name
        self.backend = SimpleNamespace(**{key: getattr(null, key) for key in dir(null) if not key.startswith("_")})
        if machine.memory_tokens is not None:
            self.backend.free_bytes = lambda device: machine.memory_tokens * BYTES  # type: ignore[operator]
        self.workers = self.threads = 1

    def supported_precisions(self) -> tuple[str, ...]:
        return self.machine.precisions(self.backend_name)

    def sibling(self, backend: str) -> Loader:
        if backend == self.backend_name:
            return self
        if backend in self.machine.refused:
            raise UsageError(f"{backend} is broken here")
        return SimulatedLoader(self.settings, self.machine, backend, self.material)

    def model(self, precision: str) -> NullModel:
        if precision not in self._models:
            name = f"{self.backend_name} {precision}"
            self.machine.clock.now += self.machine.setups.get(name, 1.0)
            self.machine.loads.append(name)
            self._models[precision] = Simulated(self.machine, name, self.task.reduction())
        return self._models[precision]  # type: ignore[return-value]


Decide = Callable[..., Chosen]


@pytest.fixture()
def decide(null_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Decide]:
    """The choice of a job on a machine, by a process with an empty cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    opened: list[Loader] = []

    def run(machine: Machine, rows: float = ROWS, texts: list[str] = SAMPLE, **settings: Any) -> Chosen:
        backends = {name.split()[0] for name in machine.rates} | set(machine.refused)
        monkeypatch.setattr(choosing, "is_installed", lambda package: package.replace("runtime", "") in backends)
        config = EngineConfig.model_validate({"model": str(null_model), "tokenizer": "hf", "devices": "cpu"} | settings)
        loader = SimulatedLoader(config, machine, "torch")
        opened.append(loader)
        loader.see(list(texts), None)
        return choose(loader, rows, TEXTS, clock=machine.clock)

    yield run
    for loader in opened:
        loader.close()


def chosen(found: Chosen) -> str:
    assert found.loader.backend_name == found.plan.backend
    return f"{found.plan.backend} {found.plan.precision}"


TWO = {"torch fp32": 1e4, "torch bf16": 2e4}


def test_half_precision_is_taken_where_it_is_faster_and_agrees(decide: Decide) -> None:
    machine = Machine(TWO)
    found = decide(machine)
    assert chosen(found) == "torch bf16"
    assert found.plan.accuracy and found.plan.accuracy["passed"]
    assert found.plan.notes[0].startswith("bf16: torch bf16 agrees; ")
    assert found.plan.forecast and found.plan.forecast.source == "measured"
    assert found.plan.forecast.tuned_s == pytest.approx(
        machine.clock.now - 1.0, rel=0.2
    )  # loading the default is no tuning


def test_half_precision_that_does_not_agree_is_not_taken_and_the_note_says_so(decide: Decide) -> None:
    found = decide(Machine(TWO, wrong=("torch bf16",)))
    assert chosen(found) == "torch fp32"
    assert found.plan.notes[0].startswith("fp32: bf16 does not agree; ")
    assert {a.name: a.status for a in found.plan.alternatives}["torch bf16"] == "inaccurate"


def test_half_precision_without_instructions_for_it_loses_by_measuring(decide: Decide) -> None:
    found = decide(Machine({"torch fp32": 1e4, "torch bf16": 1e3}))
    assert chosen(found) == "torch fp32"
    assert {a.name: a.status for a in found.plan.alternatives}["torch bf16"] == "beaten"


def test_another_backend_is_taken_for_a_long_job_and_not_for_a_short_one(decide: Decide) -> None:
    rates = {**TWO, "openvino fp32": 1e4, "openvino bf16": 6e4}
    setups = {"openvino bf16": 20.0}
    assert chosen(decide(Machine(rates, setups), rows=3e6)) == "openvino bf16"
    short = decide(Machine(rates, setups), rows=4_000)
    assert short.plan.backend == "torch"


def test_what_an_engine_pays_once_for_each_shape_does_not_count_as_its_rate(decide: Decide) -> None:
    """At first sight of its batches OpenVINO is slower than torch here, afterwards 1.5 times as fast."""
    rates = {**TWO, "openvino fp32": 1e4, "openvino bf16": 3e4}
    assert chosen(decide(Machine(rates, new_shape_s=0.4), rows=3e6)) == "openvino bf16"


def test_few_rows_measure_nothing(decide: Decide) -> None:
    machine = Machine({**TWO, "openvino bf16": 1e6})
    found = decide(machine, rows=200)
    assert chosen(found) == "torch fp32" and machine.loads == ["torch fp32"] and machine.tokens == 0
    assert "200 rows are too few" in found.plan.notes[0]


def test_off_measures_nothing_and_full_tries_what_quick_does_not(decide: Decide) -> None:
    rates = {**TWO, "openvino fp32": 1e4, "openvino bf16": 2.6e4}
    machine = Machine(rates)
    assert chosen(decide(machine, tune="off")) == "torch fp32" and machine.tokens == 0
    full = Machine(rates, {"openvino bf16": 20.0})
    assert chosen(decide(full, tune="full")) == "openvino bf16"
    assert "openvino bf16" in full.loads


def test_a_decision_is_reused_and_the_second_job_measures_nothing(decide: Decide) -> None:
    first, second = Machine(TWO), Machine(TWO)
    decide(first)
    found = decide(second)
    assert chosen(found) == "torch bf16" and second.loads == ["torch bf16"] and second.tokens == 0
    assert found.plan.forecast and found.plan.forecast.source == "cached" and found.plan.forecast.tuned_s == 0
    assert found.plan.accuracy and found.plan.accuracy["passed"]


def test_a_remembered_rate_is_applied_to_this_job(decide: Decide) -> None:
    decide(Machine(TWO), rows=1.5 * ROWS)
    plan = decide(Machine(TWO), rows=1.7 * ROWS).plan
    assert plan.forecast and plan.forecast.source == "cached" and plan.forecast.tokens_per_s
    expected = plan.forecast.tokens / plan.forecast.tokens_per_s
    assert plan.forecast.total_s == pytest.approx(expected) == pytest.approx(plan.alternatives[0].total_s)


def test_other_rows_of_the_same_lengths_are_judged_and_not_timed(decide: Decide) -> None:
    decide(Machine(TWO))
    other = [text.replace("good", "bad") for text in SAMPLE]
    good, bad = Machine(TWO), Machine(TWO, wrong=("torch bf16",))
    assert chosen(decide(good, texts=other)) == "torch bf16"
    assert good.tokens > 0
    third = [text.replace("good", "new") for text in SAMPLE]
    assert chosen(decide(bad, texts=third)) == "torch fp32"


@pytest.mark.parametrize("change", ["model", "versions", "machine", "settings", "lengths", "size"])
def test_a_decision_is_dropped_when_what_it_depends_on_changes(
    decide: Decide, monkeypatch: pytest.MonkeyPatch, null_model: Path, tmp_path: Path, change: str
) -> None:
    decide(Machine(TWO))
    machine, rows, texts = Machine(TWO), ROWS, SAMPLE
    settings: dict[str, Any] = {}
    if change == "model":
        settings = {"model": str(shutil.copytree(null_model, tmp_path / "model"))}
        (tmp_path / "model/more.txt").write_text("another file")
    elif change == "versions":
        real = remembering.installed_version
        monkeypatch.setattr(remembering, "installed_version", lambda name: "99" if name == "torch" else real(name))
    elif change == "machine":
        monkeypatch.setattr(remembering, "cpu_name", lambda: "another processor")
    elif change == "settings":
        settings = {"max_length": 40}
    elif change == "lengths":
        texts = [" ".join([text] * 8) for text in SAMPLE]
    else:
        rows = 100 * ROWS
    decide(machine, rows=rows, texts=texts, **settings)
    assert "torch fp32" in machine.loads and machine.tokens > 0


def test_a_backend_that_cannot_do_it_is_an_alternative_with_its_reason(decide: Decide) -> None:
    found = decide(Machine({**TWO, "onnx fp32": 1e4}, refused=("openvino",)), rows=3e6)
    failed = [a for a in found.plan.alternatives if a.status == "failed"]
    assert [a.reason for a in failed] == ["openvino is broken here"]


def test_models_of_the_ways_not_taken_are_freed(decide: Decide) -> None:
    found = decide(Machine({**TWO, "openvino fp32": 1e4, "openvino bf16": 6e4}), rows=3e6)
    assert chosen(found) == "openvino bf16"
    assert found.loader.loaded == {"bf16"}


def test_a_precision_asked_for_is_compared_and_taken_all_the_same(decide: Decide) -> None:
    right = decide(Machine(TWO), precision="bf16")
    assert chosen(right) == "torch bf16" and right.plan.notes[0].startswith("bf16 agrees with fp32; ")
    wrong = Machine(TWO, wrong=("torch bf16",))
    assert "DOES NOT AGREE" in decide(wrong, precision="bf16").plan.notes[0]
    with pytest.raises(ModelError, match="--precision bf16 does not agree with fp32"):
        decide(wrong, precision="bf16", tolerance=0.01)


def test_fp32_asked_for_is_taken_from_another_engine_only_where_that_agrees(decide: Decide) -> None:
    rates = {"torch fp32": 1e4, "openvino fp32": 4e4}
    assert chosen(decide(Machine(rates), rows=3e6, precision="fp32")) == "openvino fp32"
    others = [text.replace("good", "bad") for text in SAMPLE]
    wrong = Machine(rates, wrong=("openvino fp32",))
    found = decide(wrong, rows=3e6, precision="fp32", texts=others)
    assert chosen(found) == "torch fp32"
    assert {a.name: a.status for a in found.plan.alternatives}["openvino fp32"] == "inaccurate"


def test_quantized_weights_come_into_question_with_a_tolerance_or_full_tuning(decide: Decide) -> None:
    rates = {**TWO, "torch int8": 8e4}
    assert chosen(decide(Machine(rates))) == "torch bf16"
    assert chosen(decide(Machine(rates), tolerance=0.05)) == "torch int8"
    assert chosen(decide(Machine(rates), tune="full")) == "torch int8"
    others = [text.replace("good", "bad") for text in SAMPLE]
    assert chosen(decide(Machine(rates, wrong=("torch int8",)), texts=others, tune="full")) == "torch bf16"


def test_large_batches_are_found_where_they_are_faster(decide: Decide) -> None:
    """null's own budget is 16,384 tokens. A batch of 131,072 tokens runs at 89% of the rate, one of 262,144 at 94%."""
    found = decide(Machine({"torch fp32": 1e6}, half_speed_at=16_384), rows=1e7)
    assert found.plan.max_batch_tokens == 262_144


def test_small_batches_are_found_where_large_ones_gain_nothing(decide: Decide) -> None:
    assert decide(Machine({"torch fp32": 1e6}), rows=1e7).plan.max_batch_tokens == null.MAX_BATCH_TOKENS


def test_no_budget_is_chosen_that_does_not_fit(decide: Decide) -> None:
    found = decide(Machine({"torch fp32": 1e6}, half_speed_at=16_384, memory_tokens=100_000), rows=1e7)
    assert found.plan.max_batch_tokens == 65_536


def test_the_default_budget_is_lowered_where_memory_is_tight(decide: Decide) -> None:
    found = decide(Machine({"torch fp32": 1e6}, half_speed_at=100, memory_tokens=9_000), rows=1e7)
    assert found.plan.max_batch_tokens <= 9_000
    assert not [a for a in found.plan.alternatives if a.status == "failed"]
