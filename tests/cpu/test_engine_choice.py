"""Engines around one model: forced lengths, the slower one loses, and whichever it is, rows have the same tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from packhorse.backends import torch as backend
from packhorse.backends.torch.generation.compat import missing_for_paging
from packhorse.backends.torch.generation.continuous import ContinuousEngine
from packhorse.backends.torch.generation.model import TorchGenerator
from packhorse.backends.torch.generation.static import StaticEngine
from packhorse.config import EngineConfig
from packhorse.errors import UsageError
from packhorse.generation import Prompts
from packhorse.load_request import LoadRequest
from packhorse.loading import Loader
from packhorse.loading.choosing import Texts, choose
from packhorse.loading.stepping import sampled_rows
from packhorse.plans import Plan
from tests.cpu.generating import nothing, outputs
from tests.writers_of_text import save_writer, texts

NEW, JOB_ROWS = 12, 100_000
ALL = ("continuous", "static", *(() if missing_for_paging() else ("paged",)))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_writer(tmp_path_factory.mktemp("llama"), "llama")


def loader_of(folder: Path, **settings: Any) -> Loader:
    asked = {"devices": "cpu", "max_new_tokens": NEW, "batch_size": 8, "tune": "quick"} | settings
    loader = Loader(EngineConfig(model=str(folder), **asked))
    loader.see(list(texts(60)), None)
    return loader


def generator_of(loader: Loader) -> TorchGenerator:
    model = loader.generator("fp32")
    assert isinstance(model, TorchGenerator)
    return model


def prompts_of(loader: Loader, count: int = 20) -> Prompts:
    return Prompts(sampled_rows(loader.material.rows, count), np.arange(count, dtype=np.uint64))


def engines_of(plan: Plan) -> dict[str, tuple[str, str]]:
    return {a.engine: (a.status, a.reason) for a in plan.alternatives if a.engine is not None}


class Clocked:
    """A clock that an engine's calls set forward by the seconds said here, whatever they really take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
        self.now = 0.0
        self.lengths: dict[str, list[list[int]]] = {name: [] for name in seconds}
        for engine in (ContinuousEngine, StaticEngine):
            self._slow_down(monkeypatch, engine, seconds[engine.engine])

    def _slow_down(self, monkeypatch: pytest.MonkeyPatch, engine: Any, seconds: float) -> None:
        real = engine.generate

        def generate(*arguments: Any) -> Any:
            made = real(*arguments)
            self.now += seconds
            self.lengths[engine.engine].append(made.lengths.tolist())
            return made

        monkeypatch.setattr(engine, "generate", generate)

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("slow", "fast"), [("continuous", "static"), ("static", "continuous")])
def test_a_slowed_engine_loses_and_weights_are_loaded_once(
    monkeypatch: pytest.MonkeyPatch, llama: Path, slow: str, fast: str
) -> None:
    loads: list[str] = []
    real_load = backend.load

    def load(request: LoadRequest) -> Any:
        loads.append(request.engine)
        return real_load(request)

    monkeypatch.setattr(backend, "load", load)
    clock = Clocked(monkeypatch, **{slow: 3.0, fast: 2.0})
    loader = loader_of(llama)
    plan = choose(loader, JOB_ROWS, Texts("text", None), clock=clock).plan
    assert plan.engine == fast and loads == ["auto"]
    assert plan.batching == ("packed" if fast == "continuous" else "padded")
    assert plan.attention == ("packed" if fast == "continuous" else "sdpa")
    statuses = {name: status for name, (status, _) in engines_of(plan).items()}
    assert statuses == {fast: "chosen", slow: "beaten"} | dict.fromkeys(("openvino", "paged", "generate"), "not_tried")
    trials = {name: [n for n in lengths if len(n) == 24] for name, lengths in clock.lengths.items()}
    assert trials[fast] and all(n == trials[slow][0] for name in trials for n in trials[name])
    assert set(trials[fast][0]) >= {2, NEW}
    assert any(note.startswith("static instead of") for note in plan.notes) == (fast == "static")
    loader.close()


def test_the_engine_taken_changes_no_token_and_a_plan_brings_its_own(
    monkeypatch: pytest.MonkeyPatch, llama: Path
) -> None:
    plans, written = {}, {}
    for slow, fast in (("continuous", "static"), ("static", "continuous")):
        with monkeypatch.context() as patched:
            loader = loader_of(llama)
            clock = Clocked(patched, **{slow: 3.0, fast: 2.0})
            plans[fast] = choose(loader, JOB_ROWS, Texts("text", None), clock=clock).plan
        fresh = loader_of(llama)  # as a resumed run has it
        fresh.replay(plans[fast])
        model = fresh.stages(plans[fast], keep=[]).model
        assert isinstance(model, TorchGenerator) and model.engine == fast
        written[fast] = outputs(model.generate(prompts_of(fresh), 8, 512, nothing))
        fresh.close()
        loader.close()
    assert written["static"] == written["continuous"]


def test_lengths_are_forced_in_all_engines_and_only_meanwhile(llama: Path) -> None:
    loader = loader_of(llama)
    model, prompts = generator_of(loader), prompts_of(loader)
    lengths = np.arange(20) % NEW + 1
    free = outputs(model.generate(prompts, 8, 512, nothing))
    assert len({len(ids) for ids in free}) > 3, "no output ends by itself"
    for engine in (*ALL, ALL[0]):
        model.write_with(engine)
        assert model.engine == engine
        with model.forced(lengths):
            forced = model.generate(prompts, 8, 512, nothing)
        assert forced.lengths.tolist() == lengths.tolist() and not forced.errors
        assert outputs(model.generate(prompts, 8, 512, nothing)) == free
    loader.close()


def test_full_tries_the_paged_engine_and_what_is_unfit_says_why(llama: Path, tmp_path: Path) -> None:
    loader = loader_of(llama, tune="full")
    plan = choose(loader, 200, Texts("text", None)).plan
    tried = {name for name, (status, _) in engines_of(plan).items() if status in ("chosen", "beaten")}
    assert tried - {"openvino"} == set(ALL)  # whether its set-up is repaid depends on this machine
    loader.close()
    sampled = loader_of(llama, tune="full", do_sample=True)
    reasons = generator_of(sampled).engines()
    assert reasons["continuous"] is None and reasons["static"] is None and "do_sample" in (reasons["paged"] or "")
    sampled.close()
    beams = loader_of(llama, num_beams=2)
    plan = choose(beams, JOB_ROWS, Texts("text", None)).plan
    assert plan.engine == "generate"
    assert all("num_beams" in why for name, (_, why) in engines_of(plan).items() if name != "generate")
    beams.close()


def test_a_model_with_an_encoder_has_one_engine(tmp_path: Path) -> None:
    loader = loader_of(save_writer(tmp_path, "t5"))
    plan = choose(loader, JOB_ROWS, Texts("text", None)).plan
    found = engines_of(plan)
    assert plan.engine == "static" and found["static"] == ("chosen", "")
    assert found["continuous"] == ("not_tried", "it has an encoder")
    assert found["paged"][0] == found["generate"][0] == "not_tried"
    loader.close()


def test_attention_asked_for_leaves_the_engines_that_have_it(llama: Path) -> None:
    packed, padded = (generator_of(loader_of(llama, attention=name)) for name in ("packed", "sdpa"))
    assert packed.engines()["continuous"] is None
    assert all("--attention packed" in (packed.engines()[name] or "") for name in ("static", "paged"))
    assert padded.engine == "static" and "--attention sdpa" in (padded.engines()["continuous"] or "")
    with pytest.raises(UsageError, match="--attention packed: --engine static"):
        packed.write_with("static")
