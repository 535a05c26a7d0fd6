"""What --tensor-parallel refuses before a process is started, and how ranks that fail are judged: by ranks that say
what a test tells them to."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from packhorse.backends.torch.parallel import ranks as module
from packhorse.backends.torch.parallel.devices import parallel_devices
from packhorse.backends.torch.parallel.fitting import check_model, check_request
from packhorse.backends.torch.parallel.messages import Facts, failure
from packhorse.backends.torch.parallel.process import GoneError
from packhorse.backends.torch.parallel.ranks import Ranks
from packhorse.config import EngineConfig, RunConfig, validated
from packhorse.errors import (
    BatchRefusedError,
    ChangedError,
    DeviceOutOfMemoryError,
    ModelError,
    UsageError,
    WorkerDiedError,
)
from packhorse.generation import Quantization
from packhorse.jobs.spreading import devices_of
from packhorse.load_request import LoadRequest
from packhorse.loading import Loader, foreseeing
from packhorse.model_cost import ModelCost
from packhorse.models.memory import MemoryNeed, fits_ranks, over_ranks
from tests.models import save_classifier
from tests.writers_of_text import save_writer

pytest.importorskip("accelerate")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_writer(tmp_path_factory.mktemp("llama") / "model", "llama")


def loader_of(model: Path, devices: str = "cpu:2", **settings: Any) -> Loader:
    asked = {"model": str(model), "precision": "fp32", "devices": devices, "tensor_parallel": True} | settings
    return Loader(validated(EngineConfig, asked))


def request_of(model: Path, **settings: Any) -> LoadRequest:
    return loader_of(model, **settings).request("fp32")


# -- what is refused


@pytest.mark.parametrize(
    ("devices", "here", "words"),
    [
        ("auto", 1, "--devices auto: torch .* sees 1 CUDA device here, and one alone has nothing to share"),
        ("all", 0, "--devices all: torch .* sees 0 CUDA devices here"),
        ("cpu", 0, "--devices cpu: that is 1 device, .*legal are all, a list as in cuda:0,cuda:1, or cpu:N"),
        ("cuda:1", 4, "--devices cuda:1: that is 1 device"),
        ("0,4", 4, "--devices cuda:0,cuda:4: there are 4 CUDA devices, numbered from 0"),
        ("0,0", 4, "--devices cuda:0,cuda:0: cuda:0 stands there twice, and NCCL takes a GPU once"),
        ("xpu:0,xpu:1", 0, "--devices xpu:0,xpu:1: xpu has no collectives here"),
    ],
)
def test_devices_that_share_nothing(monkeypatch: pytest.MonkeyPatch, devices: str, here: int, words: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: here)
    with pytest.raises(UsageError, match=f"--tensor-parallel {words}"):
        parallel_devices(EngineConfig(model="m", devices=devices, tensor_parallel=True))


def test_a_list_of_devices_is_one_model_over_all_of_them(monkeypatch: pytest.MonkeyPatch, llama: Path) -> None:
    settings = EngineConfig(model="m", devices="all", tensor_parallel=True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert parallel_devices(settings) == ("cuda:0", "cuda:1", "cuda:2")
    asked = {"model": str(llama), "input": "-", "output": "o/", "devices": "cpu:2", "tensor_parallel": True}
    config = validated(RunConfig, asked)
    loader = Loader(config.on_first_device())
    assert loader.placement.devices == ("cpu", "cpu") and loader.device == "cpu"
    assert devices_of(config, loader) == ["cpu"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"compiled": True}, "--tensor-parallel with --compile: compiled code"),
        ({"precision": "int8"}, "--tensor-parallel with --precision int8: quantized weights are not cut"),
        ({"precision": "fp8", "quantization": Quantization("torchao")}, "--precision fp8"),
        ({"engine": "paged"}, "--tensor-parallel with --engine paged"),
    ],
)
def test_what_does_not_go_with_it(llama: Path, changed: dict[str, Any], words: str) -> None:
    request = request_of(llama)
    check_request(request)
    with pytest.raises(UsageError, match=f"{words}.*leave one of the two out"):
        check_request(dataclasses.replace(request, **changed))


def test_models_that_cannot_be_cut(llama: Path, tmp_path: Path) -> None:
    cut = check_model(request_of(llama))
    assert cut.shares_attention and cut.num_embeddings == 320
    with pytest.raises(ModelError, match="num_attention_heads is 4, which 3 ranks cannot share evenly; give 2 devices"):
        check_model(request_of(llama, devices="cpu:3"))
    with pytest.raises(ModelError, match="num_key_value_heads is 2, which 4 ranks cannot share evenly; give 2 devices"):
        check_model(request_of(llama, devices="cpu:4"))
    bert = save_classifier(tmp_path / "bert")
    with pytest.raises(
        ModelError, match=r"transformers has no tp_plan for BertForSequenceClassification.*--device-map"
    ):
        check_model(request_of(bert))


def test_a_run_resumes_on_as_many_ranks(llama: Path) -> None:
    versions = [loader_of(llama, devices).versions() for devices in ("cpu:2", "cpu:4")]
    assert [v.pop("ranks of --tensor-parallel") for v in versions] == ["2", "4"]
    assert versions[0] == versions[1]


# -- memory


def test_each_rank_needs_a_share_of_weights_and_cache() -> None:
    gb = 10**9
    need = MemoryNeed("bf16", 8 * gb, 16 * gb, 4 * gb, gb, gb, 64, 100, gb // 16, gb // 1600, {"int8": 8 * gb}, gb)
    share = over_ranks(need, 4)
    assert (share.weights_bytes, share.kv_cache_bytes, share.working_bytes) == (4 * gb, gb, 3 * gb)
    assert fits_ranks(share, {"0": 8 * gb, "1": 7 * gb}) == []
    lines = fits_ranks(share, {"0": 8 * gb, "1": 6 * gb})
    assert lines[0].startswith("Each of 2 ranks needs 7.00 GB") and "1 has 6.00 GB free: 1.00 GB too little" in lines[0]
    assert not any("--precision" in line or "--device-map" in line for line in lines)


def test_ranks_on_one_processor_share_its_memory(llama: Path) -> None:
    """Together they hold the model once, and torch twice."""
    whole, cut = (
        Loader(validated(EngineConfig, {"model": str(llama), "precision": "fp32", **settings}))
        for settings in ({"devices": "cpu"}, {"devices": "cpu:2", "tensor_parallel": True})
    )
    one, two = (foreseeing._of_one_rank(loader, foreseeing._need(loader, "fp32", 64, 16)) for loader in (whole, cut))
    assert one is not None and two is not None
    assert two == dataclasses.replace(one, overhead_bytes=2 * one.overhead_bytes)


def test_only_the_ranks_devices_count(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = loader_of(llama)
    need = foreseeing._need(loader, "fp32", 64, 16)
    assert need is not None
    loader.device, devices = "cuda:1", ("cuda:1", "cuda:3")
    loader.placement = dataclasses.replace(loader.placement, devices=devices)
    free = {"cuda:1": 2**34, "cuda:3": 2**20}
    monkeypatch.setattr(loader.backend, "free_bytes", free.__getitem__)
    assert foreseeing.free_bytes(loader) == {"1": 2**34, "3": 2**20}
    share = foreseeing._of_one_rank(loader, need)
    assert share == over_ranks(need, 2) and share.weights_bytes < need.weights_bytes
    advice = foreseeing._advice(loader, share, foreseeing.free_bytes(loader))
    assert advice[0].startswith("Each of 2 ranks needs") and "3 has 1.0 MB free" in advice[0]


# -- ranks that fail

Say = Callable[..., None]  # kind, values
Play = Callable[[int, str, Any, Say], None]  # rank, what it is told, its values, how it answers


class Scripted:
    """In a RankProcess's place: a thread that answers as `play` says."""

    play: Play
    started = 0

    def __init__(self, rank: int, device: str) -> None:
        self.rank, self.device, self.pid = rank, device, 1_000 + type(self).started
        type(self).started += 1
        self.connection, theirs = Pipe()
        threading.Thread(target=self._work, args=(theirs,), daemon=True).start()

    def _work(self, connection: Connection) -> None:
        def say(kind: str, values: Any = None) -> None:
            connection.send((kind, values))

        while True:
            try:
                kind, values = connection.recv()
            except (EOFError, OSError):
                return
            if kind == "load" and self.rank == 0:
                say("meet", 1)
            if (kind == "load" and self.rank == 0) or kind == "meet":
                say("loaded")
            elif kind == "go":
                say("ready", Facts({"engine": "static"}, ModelCost(), 10, ()))
            elif kind == "load":
                continue
            elif kind in ("die", "close"):
                connection.close()
                return
            else:
                type(self).play(self.rank, kind, values, say)

    def send(self, kind: str, values: Any = None) -> None:
        try:
            self.connection.send((kind, values))
        except OSError:
            raise self._gone() from None

    def receive(self) -> tuple[str, Any]:
        try:
            kind, values = self.connection.recv()
        except (EOFError, OSError):
            raise self._gone() from None
        return kind, values

    def _gone(self) -> GoneError:
        return GoneError(f"the process of rank {self.rank} ended with exit code 1")

    def end(self, timeout_s: float = 0.0) -> None:
        self.connection.close()


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch, llama: Path) -> Iterator[Ranks]:
    monkeypatch.setattr(module, "RankProcess", Scripted)
    monkeypatch.setattr(module, "GRACE_S", 0.2)
    monkeypatch.setattr(Scripted, "started", 0)
    made = Ranks(request_of(llama))
    yield made
    made.close()


def playing(monkeypatch: pytest.MonkeyPatch, play: Play) -> None:
    monkeypatch.setattr(Scripted, "play", staticmethod(play), raising=False)


def test_answers_come_in_the_order_of_calls_whoever_asks_first(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    playing(monkeypatch, lambda rank, _, values, say: say("done", (rank, values)))
    assert ranks.facts.weight_bytes == 20
    first, second = ranks.submit("forward", "a"), ranks.submit("forward", "b")
    assert ranks.collect(second) == [(0, "b"), (1, "b")]
    assert ranks.collect(first) == [(0, "a"), (1, "a")]


@pytest.mark.parametrize("error", [DeviceOutOfMemoryError("full"), BatchRefusedError("no")])
def test_ranks_that_failed_alike_go_on(ranks: Ranks, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    playing(monkeypatch, lambda rank, _kind, _values, say: say("failed", failure(error, 7)))
    before = ranks.pids
    with pytest.raises(type(error), match=str(error)):
        ranks.call("forward", None)
    assert ranks.pids == before


@pytest.mark.parametrize(
    "answers",
    [
        (("failed", 7), None),  # the other waits for what never comes
        (("failed", 7), ("done", 0)),
        (("failed", 7), ("failed", 8)),  # it sent an output that the first did not take
        (("failed", None), ("failed", None)),  # kernels of both wait
    ],
)
def test_ranks_that_ran_out_of_memory_at_different_places_begin_anew(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch, answers: Any
) -> None:
    def play(rank: int, _kind: str, _values: Any, say: Say) -> None:
        if answers[rank] is not None:
            kind, agreed = answers[rank]
            say(kind, failure(DeviceOutOfMemoryError("full"), agreed) if kind == "failed" else None)

    playing(monkeypatch, play)
    with pytest.raises(DeviceOutOfMemoryError, match="full"):
        ranks.call("forward", None)
    assert ranks.pids == []
    playing(monkeypatch, lambda rank, _kind, values, say: say("done", values))
    assert ranks.call("forward", 5) == [5, 5]
    assert ranks.pids == [1_002, 1_003]


def test_forwards_that_were_under_way_when_ranks_were_ended_are_to_be_made_again(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def play(rank: int, _kind: str, values: Any, say: Say) -> None:
        if rank == 0 and values == "large":
            say("failed", failure(DeviceOutOfMemoryError("full"), 1))

    playing(monkeypatch, play)
    first, second = ranks.submit("forward", "large"), ranks.submit("forward", "small")
    for ticket in (first, second):
        with pytest.raises(DeviceOutOfMemoryError):
            ticket.collect()


def test_a_rank_that_ends_is_named(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    def play(rank: int, _kind: str, _values: Any, say: Say) -> None:
        if rank == 0:  # it hears no more of the other, and says so first
            say("failed", failure(RuntimeError("Connection closed by peer"), 1))
            ranks._processes[1].send("die")

    playing(monkeypatch, play)
    with pytest.raises(WorkerDiedError, match=r"rank 1 ended with exit code 1; the others were ended too.*goes on"):
        ranks.call("generate", None)
    assert ranks.pids == []


def test_one_that_says_nothing_is_not_waited_for(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    playing(monkeypatch, lambda rank, _kind, _values, say: say("done", None) if rank == 0 else None)
    with pytest.raises(WorkerDiedError, match="did not answer within"):
        ranks.call("generate", None)


def test_ranks_that_differ_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = [Facts({"engine": name}, ModelCost(), 1, ()) for name in ("static", "continuous")]
    with pytest.raises(ModelError, match="the ranks differ in engine: static, continuous"):
        module._common(facts)


def test_what_a_step_raises_is_raised_once_all_have_stopped(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, str]] = []

    def play(rank: int, kind: str, _values: Any, say: Say) -> None:
        told.append((rank, kind))
        if kind == "stop":
            say("stopped")
        elif rank == 0:
            say("step", (1, 2))

    def on_step(finished: int, tokens: int) -> None:
        raise ChangedError(f"{finished} {tokens}")

    playing(monkeypatch, play)
    with pytest.raises(ChangedError, match="1 2"):
        ranks.call("generate", None, on_step)
    assert sorted(told) == [(0, "generate"), (0, "stop"), (1, "generate"), (1, "stop")]
    assert ranks.pids == [1_000, 1_001]
