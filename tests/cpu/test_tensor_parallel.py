"""--tensor-parallel on the processor: what a model writes and scores in two ranks is what it does in one process; ranks
that die, stop or run out of memory leave neither a hang nor a process behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import packhorse
from packhorse.backends.torch.parallel import process
from packhorse.backends.torch.parallel.models import ParallelGenerator
from packhorse.config import EngineConfig, validated
from packhorse.data import Tokens, offsets_of
from packhorse.errors import UsageError, WorkerDiedError
from packhorse.generation import Prompts
from packhorse.loading import Loader
from tests.cpu.workers import forked_workers
from tests.models import WORDS, save_tokenizer
from tests.writers_of_text import Reference, save_writer, texts

pytest.importorskip("accelerate")
pytestmark = pytest.mark.slow  # two processes for each model

NEW_TOKENS, PROMPTS = 16, 12


@pytest.fixture(scope="module", autouse=True)
def _forked_ranks() -> Iterator[None]:
    """Ranks from nothing: test_ranks_end_with_the_process_that_started_them."""
    with forked_workers(process):
        yield


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_writer(tmp_path_factory.mktemp("llama") / "model", "llama")


def loaded(folder: Path, **settings: Any) -> Loader:
    asked = {"model": str(folder), "precision": "fp32", "devices": "cpu:2", "tensor_parallel": True} | settings
    return Loader(validated(EngineConfig, asked))


@pytest.fixture(scope="module")
def writer(llama: Path) -> Iterator[ParallelGenerator]:
    """Two ranks, for several tests."""
    loader = loaded(llama, max_new_tokens=NEW_TOKENS)
    generator = loader.generator("fp32")
    assert isinstance(generator, ParallelGenerator)
    yield generator
    loader.close()
    assert not generator.pids


@pytest.fixture(scope="module")
def reference(llama: Path) -> Reference:
    return Reference(llama)


@pytest.fixture(scope="module")
def prompts(reference: Reference) -> Prompts:
    ids = [np.array(reference.tokenizer(text).input_ids, np.int32) for text in texts(PROMPTS)]
    lengths = np.array([len(i) for i in ids])
    return Prompts(Tokens(np.concatenate(ids), offsets_of(lengths)), np.arange(PROMPTS, dtype=np.uint64))


def written(generator: ParallelGenerator, prompts: Prompts, on_step: Any = lambda *_: None) -> list[list[int]]:
    out = generator.generate(prompts, 4, 64, on_step)
    return [out.ids[a:b].tolist() for a, b in zip(out.offsets, out.offsets[1:], strict=False)]


@pytest.fixture(scope="module")
def expected(reference: Reference) -> list[list[int]]:
    """By transformers' generate(), whole, one prompt at a time."""
    return [reference.generate(text, max_new_tokens=NEW_TOKENS)[0].ids for text in texts(PROMPTS)]


def test_two_ranks_write_what_one_process_writes(
    writer: ParallelGenerator, prompts: Prompts, expected: list[list[int]], reference: Reference
) -> None:
    finished: list[int] = []
    assert written(writer, prompts, lambda rows, _: finished.append(rows)) == expected
    assert sum(finished) == PROMPTS
    assert writer.engine == "continuous"
    assert writer.notes[0] == "every layer is cut over 2 ranks: cpu for each"
    layers = [m for m in reference.model.modules() if type(m).__name__ == "Linear"]
    assert writer.cost.per_token == sum(2 * m.in_features * m.out_features for m in layers)
    heads, size, layer_count = 4, 16, 2
    assert sum(kind.flops_per_pair for kind in writer.cost.attention) == 4 * heads * size * layer_count


def test_a_stop_between_two_steps_leaves_the_ranks_as_they_were(
    writer: ParallelGenerator, prompts: Prompts, expected: list[list[int]]
) -> None:
    class EnoughError(Exception):
        pass

    seen: list[int] = []

    def stop(_finished: int, tokens: int) -> None:
        seen.append(tokens)
        if len(seen) == 3:
            raise EnoughError

    before = writer.pids
    with pytest.raises(EnoughError):
        written(writer, prompts, stop)
    assert len(seen) == 3 and writer.pids == before
    assert written(writer, prompts) == expected


def test_a_rank_that_is_killed_ends_the_call_and_the_next_one_begins_anew(
    writer: ParallelGenerator, prompts: Prompts, expected: list[list[int]]
) -> None:
    pids, killed_s = writer.pids, list[float]()

    def kill(*_: int) -> None:
        if not killed_s:
            killed_s.append(time.monotonic())
            os.kill(pids[1], signal.SIGKILL)

    with pytest.raises(WorkerDiedError, match=r"rank 1 on cpu was killed by signal 9.*the others were ended too"):
        written(writer, prompts, kill)
    assert time.monotonic() - killed_s[0] < 10
    assert not any(is_running(pid) for pid in pids)
    assert written(writer, prompts) == expected
    assert not set(writer.pids) & set(pids)


def is_running(pid: int) -> bool:
    """A process that ended and is not waited for yet is none."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked up in /proc")
def test_ranks_end_with_the_process_that_started_them(llama: Path) -> None:
    """Killed, it can tell them nothing."""
    script = (
        "import sys, time; from tests.cpu.test_tensor_parallel import loaded; from pathlib import Path\n"
        "if __name__ == '__main__':\n"
        "    model = loaded(Path(sys.argv[1])).generator('fp32'); print(*model.pids, flush=True); time.sleep(600)"
    )
    leader = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script, str(llama)], stdout=subprocess.PIPE, text=True
    )
    assert leader.stdout is not None
    pids = [int(pid) for pid in leader.stdout.readline().split()]
    assert len(pids) == 2 and all(map(is_running, pids))
    leader.kill()
    leader.wait()
    leader.stdout.close()
    deadline_s = time.monotonic() + 10
    while any(map(is_running, pids)) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not any(map(is_running, pids))


def test_a_static_job_samples_what_it_samples_whole_and_resumes_on_as_many_ranks(tmp_path: Path) -> None:
    model = save_writer(tmp_path / "qwen", "qwen3")
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts(PROMPTS)))
    asked: dict[str, Any] = {
        "precision": "fp32", "tune": "off", "engine": "static", "max_new_tokens": 6, "do_sample": True, "seed": 3,
    }  # fmt: skip
    packhorse.run(model, path, tmp_path / "whole", devices="cpu", **asked)
    packhorse.run(model, path, tmp_path / "cut", devices="cpu:2", tensor_parallel=True, **asked)
    assert pq.read_table(tmp_path / "cut").to_pylist() == pq.read_table(tmp_path / "whole").to_pylist()
    plan = json.loads((tmp_path / "cut" / "_packhorse" / "manifest.json").read_text())["plan"]
    assert plan["engine"] == "static" and plan["versions"]["ranks of --tensor-parallel"] == "2"
    assert any("cut over 2 ranks" in note for note in plan["notes"])


def test_a_classifier_in_two_ranks_has_the_scores_of_one_process(tmp_path: Path) -> None:
    folder = save_eurobert(tmp_path / "eurobert")
    draw = np.random.default_rng(0)
    rows = [" ".join(draw.choice(WORDS, n)) for n in draw.integers(1, 30, 40)]
    whole, cut = (
        packhorse.load(str(folder), precision="fp32", scores="all", **settings)
        for settings in ({"devices": "cpu"}, {"devices": "cpu:2", "tensor_parallel": True})
    )
    expected, seen = (scores(engine.predict(rows)) for engine in (whole, cut))
    np.testing.assert_allclose(seen, expected, atol=1e-5)
    assert expected.std(0).min() > 0.1
    assert cut.plan.batching == "packed" and any("cut over 2 ranks" in note for note in cut.plan.notes)


def scores(table: Any) -> np.ndarray:
    return np.array(table.column("scores").to_pylist(), np.float64)


def save_eurobert(folder: Path) -> Path:
    """An encoder whose layers transformers knows how to cut, with a head of three labels."""
    import torch
    from transformers import AutoModelForSequenceClassification, EuroBertConfig

    config = EuroBertConfig(
        vocab_size=200, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, head_dim=16,
        num_key_value_heads=2, initializer_range=0.3, max_position_embeddings=64, num_labels=3, pad_token_id=0,
        bos_token_id=2, eos_token_id=3, mask_token_id=4,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    save_tokenizer(folder, inputs=("input_ids", "attention_mask"))
    return folder


def test_what_a_rank_cannot_load_is_raised_here(tmp_path: Path, llama: Path) -> None:
    """A setting that only the loaded model shows to be wrong: both ranks raise, and both are ended."""
    with pytest.raises(UsageError, match="--temperature"):
        loaded(llama, temperature=0.5).generator("fp32")
