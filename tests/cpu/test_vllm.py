"""The vllm backend against the real process of its server: with a stand-in for the package (tests/vllm_fake), and with
vLLM itself where PACKHORSE_VLLM_PYTHON has it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from packhorse.backends import vllm as backend
from packhorse.backends.vllm.interpreter import VARIABLE
from packhorse.backends.vllm.starting import LOAD_TIMEOUT, OPTIONS
from packhorse.errors import DeviceOutOfMemoryError, ModelError
from packhorse.generation import LENGTH, STOP, Generated, Prompts
from packhorse.load_request import LoadRequest
from tests.vllm_fake.asking import BAD, END, FAKE, VOCAB, outputs_of, prompts_of, request_for, some_prompts


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The stand-in is the vllm of this interpreter, for processes that are started from now on."""
    monkeypatch.setenv("PYTHONPATH", str(FAKE))
    monkeypatch.setenv(VARIABLE, sys.executable)
    return monkeypatch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder without weights: the stand-in has none."""
    path = tmp_path / "model"
    path.mkdir()
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 1, "n_head": 2, "n_embd": 8}
    (path / "config.json").write_text(json.dumps({**config, "vocab_size": VOCAB, "n_positions": 64}))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": END, "pad_token_id": 0}))
    return path


def expected(prompt: Sequence[int], seed: int | None, most: int) -> list[int]:
    """What the stand-in writes, by its rule: each token a hash of prompt, seed and what was written."""
    written: list[int] = []
    while len(written) < most and END not in written:
        text = json.dumps([list(prompt), seed, written]).encode()
        written.append(int.from_bytes(hashlib.sha256(text).digest()[:4], "little") % VOCAB)
    return written


def run(
    request: LoadRequest, prompts: Prompts, max_rows: int = 8, on_step: Any = lambda rows, tokens: None
) -> Generated:
    model = backend.load(request)
    try:
        return model.generate(prompts, max_rows, 1_000, on_step)
    finally:
        model.close()


def logged(path: Path, name: str) -> list[Any]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line[name] for line in lines if name in line]


# -- what comes back


def test_greedy_outputs_their_ends_and_their_logprobs(fake: pytest.MonkeyPatch, folder: Path) -> None:
    fake.setenv("FAKE_VLLM_NOISE", "1")  # what vLLM prints does not get among the frames
    rows, steps = some_prompts(60), []
    generated = run(
        request_for(folder, {"max_new_tokens": 30}, with_logprobs=True),
        prompts_of(rows),
        on_step=lambda *step: steps.append(step),
    )
    wanted = [expected(row, None, 30) for row in rows]
    assert outputs_of(generated) == wanted
    assert generated.reasons.tolist() == [STOP if row[-1] == END else LENGTH for row in wanted]
    assert {STOP, LENGTH} == set(generated.reasons.tolist())
    assert generated.logprobs is not None
    np.testing.assert_array_equal(generated.logprobs, -generated.ids.astype(np.float32) / 8)
    assert not generated.near_ties.any() and not generated.errors
    assert sum(rows for rows, _ in steps) == 60 and len(steps) > 10
    assert sum(tokens for _, tokens in steps) == sum(map(len, rows)) + len(generated.ids)


def test_a_left_out_end_token_is_put_back(fake: pytest.MonkeyPatch, folder: Path) -> None:
    fake.setenv("FAKE_VLLM_NO_END", "1")
    rows = some_prompts(40)
    generated = run(request_for(folder, {"max_new_tokens": 60}, with_logprobs=True), prompts_of(rows))
    assert outputs_of(generated) == [expected(row, None, 60 if len(row) < 5 else 64 - len(row)) for row in rows]
    assert generated.logprobs is not None and len(generated.logprobs) == len(generated.ids)


def test_a_sample_depends_on_seed_key_and_number_alone(fake: pytest.MonkeyPatch, folder: Path) -> None:
    rows, settings = some_prompts(9), {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 12}
    model = backend.load(request_for(folder, settings, seed=5))
    both = outputs_of(model.generate(prompts_of(rows), 4, 100, lambda rows, tokens: None))
    for row in (8, 3):  # alone, and in another order
        alone = model.generate(prompts_of([rows[row]], keys=[row]), 1, 100, lambda rows, tokens: None)
        assert outputs_of(alone) == both[3 * row : 3 * row + 3]
    model.close()
    assert len({tuple(output) for output in both}) == 27
    other = run(request_for(folder, settings, seed=6), prompts_of(rows))
    assert not any(a == b for a, b in zip(outputs_of(other), both, strict=True))


def test_no_more_rows_at_once_than_asked_and_no_waiting(fake: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    fake.setenv("FAKE_VLLM_LOG", str(tmp_path / "log"))
    rows = some_prompts(50)
    run(request_for(folder, {"max_new_tokens": 20}), prompts_of(rows), max_rows=4)
    at_once = logged(tmp_path / "log", "rows")
    assert max(at_once) == 4 and all(count == 4 for count in at_once[:-20])
    assert sum(at_once) == sum(len(expected(row, None, 20)) for row in rows)


def test_options_that_vllm_gets(fake: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    fake.setenv("FAKE_VLLM_LOG", str(tmp_path / "log"))
    fake.setenv(OPTIONS, '{"gpu_memory_utilization": 0.5}')
    request = replace(request_for(folder, {"max_new_tokens": 20}), longest=9, precision="bf16", device="cuda")
    model = backend.load(request)
    model.close()
    (options,) = logged(tmp_path / "log", "options")
    assert options["model"] == str(folder) and options["dtype"] == "bfloat16" and options["max_model_len"] == 29
    assert options["enable_prefix_caching"] is True and options["gpu_memory_utilization"] == 0.5
    assert model.max_length == 64 and model.max_new_tokens == 20 and not model.is_sampled


@pytest.mark.parametrize("is_old", [False, True])
def test_constraints_have_the_name_that_this_vllm_knows(fake: pytest.MonkeyPatch, folder: Path, is_old: bool) -> None:
    fake.setenv("FAKE_VLLM_OLD", "1" if is_old else "")
    for decoding in ({"choices": ("yes", "no")}, {"json_schema": '{"type": "object"}'}):
        generated = run(request_for(folder, {"max_new_tokens": 3}, **decoding), prompts_of([[1, 2]]))
        assert outputs_of(generated) == [expected([1, 2], None, 3)]


# -- what goes wrong


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("REFUSE", "ValueError: this prompt is refused"),
        ("RAISE", "RuntimeError: a token that no kernel likes"),
        ("ABORT", "none when it was asked again"),
        ("FORGET", "none when it was asked again"),
    ],
)
def test_bad_prompts_cost_their_rows_alone(fake: pytest.MonkeyPatch, folder: Path, failure: str, message: str) -> None:
    fake.setenv(f"FAKE_VLLM_{failure}", str(BAD))
    bad, finished = [3, 4, 17], []
    rows = some_prompts(24, bad)
    generated = run(
        request_for(folder, {"max_new_tokens": 6, "num_return_sequences": 2, "do_sample": True}),
        prompts_of(rows),
        on_step=lambda rows, tokens: finished.append(rows),
    )
    assert sorted(generated.errors) == bad and sum(finished) == 24
    for error in generated.errors.values():
        assert error.kind == "engine_failed" and message in error.message and "\n" not in error.message
    lengths = generated.lengths.reshape(24, 2)
    assert [row for row in range(24) if not lengths[row].any()] == bad


def test_a_lost_row_is_asked_for_once_more(fake: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    fake.setenv("FAKE_VLLM_FORGET", f"{BAD} {tmp_path / 'mark'}")
    rows = some_prompts(10, [4])
    generated = run(request_for(folder, {"max_new_tokens": 6}), prompts_of(rows))
    assert outputs_of(generated) == [expected(row, None, 6) for row in rows] and not generated.errors


def test_a_killed_process_is_started_again(fake: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    fake.setenv("FAKE_VLLM_DIE", f"7 {tmp_path / 'mark'}")
    fake.setenv("FAKE_VLLM_LOG", str(tmp_path / "log"))
    rows, finished = some_prompts(40), []
    generated = run(
        request_for(folder, {"max_new_tokens": 9}),
        prompts_of(rows),
        on_step=lambda rows, tokens: finished.append(rows),
    )
    assert outputs_of(generated) == [expected(row, None, 9) for row in rows]
    assert len(logged(tmp_path / "log", "options")) == 2 and sum(finished) == 40


def test_a_process_that_dies_again_ends_in_words(fake: pytest.MonkeyPatch, folder: Path) -> None:
    fake.setenv("FAKE_VLLM_DIE_ALWAYS", "2")
    with pytest.raises(ModelError, match="died 2 times; the last one was ended by signal 9"):
        run(request_for(folder, {"max_new_tokens": 9}), prompts_of(some_prompts(40)))


def test_an_engine_left_dead_is_replaced_until_the_row_is_found(fake: pytest.MonkeyPatch, folder: Path) -> None:
    fake.setenv("FAKE_VLLM_DEAD", str(BAD))
    rows = some_prompts(12, [5])
    generated = run(request_for(folder, {"max_new_tokens": 4}), prompts_of(rows))
    assert list(generated.errors) == [5] and "EngineCore encountered an issue" in generated.errors[5].message
    assert outputs_of(generated) == [[] if i == 5 else expected(row, None, 4) for i, row in enumerate(rows)]
    with pytest.raises(ModelError, match="engine died 13 times; the last time of RuntimeError: EngineCore"):
        run(request_for(folder, {"max_new_tokens": 4}), prompts_of(some_prompts(20, range(20))))


def test_out_of_memory_asks_for_fewer_rows(fake: pytest.MonkeyPatch, folder: Path) -> None:
    fake.setenv("FAKE_VLLM_MEMORY", "4")
    model, rows = backend.load(request_for(folder, {"max_new_tokens": 5})), prompts_of(some_prompts(10))
    with pytest.raises(DeviceOutOfMemoryError, match="CUDA out of memory"):
        model.generate(rows, 8, 100, lambda rows, tokens: None)
    assert len(outputs_of(model.generate(rows, 4, 100, lambda rows, tokens: None))) == 10
    model.close()


def test_prompts_without_room_are_errors(fake: pytest.MonkeyPatch, folder: Path) -> None:
    generated = run(request_for(folder, {"max_length": 10}), prompts_of([[1] * 9, [1] * 10, [2]]))
    assert list(generated.errors) == [1] and "has 10 tokens" in generated.errors[1].message
    assert generated.lengths.tolist()[:2] == [1, 0] and generated.lengths[2] <= 9


def test_loading_that_fails_or_lasts_too_long(fake: pytest.MonkeyPatch, folder: Path) -> None:
    fake.setenv("FAKE_VLLM_LOAD_ERROR", "No available memory for the KV cache")
    with pytest.raises(ModelError, match=r"ValueError: No available memory[^$]*gpu_memory_utilization[^$]*last line"):
        backend.load(request_for(folder))
    fake.setenv("FAKE_VLLM_LOAD_EXIT", "3")
    with pytest.raises(ModelError, match="its process ended with status 3"):
        backend.load(request_for(folder))
    fake.setenv("FAKE_VLLM_LOAD_S", "60")
    fake.setenv(LOAD_TIMEOUT, "0.5")
    with pytest.raises(ModelError, match=LOAD_TIMEOUT):
        backend.load(request_for(folder))
    with pytest.raises(ModelError, match=r"temperature must be in \[0, 2\]"):
        backend.load(request_for(folder, {"do_sample": True, "temperature": 5.0}))


# -- processes


def test_no_process_outlives_close_an_error_or_the_job(fake: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    fake.setenv("FAKE_VLLM_CHILD", str(tmp_path / "child"))
    backend.load(request_for(folder)).close()
    assert _ends(int((tmp_path / "child").read_text()))

    def stop(rows: int, tokens: int) -> None:
        raise KeyboardInterrupt

    model = backend.load(request_for(folder))
    with pytest.raises(KeyboardInterrupt):
        model.generate(prompts_of(some_prompts(9)), 2, 100, stop)
    assert _ends(int((tmp_path / "child").read_text()))
    assert len(outputs_of(model.generate(prompts_of(some_prompts(9)), 2, 100, lambda rows, tokens: None))) == 9
    model.close()


JOB = """
import sys
from pathlib import Path
from packhorse.backends import vllm as backend
from tests.vllm_fake.asking import prompts_of, request_for, some_prompts
model = backend.load(request_for(Path(sys.argv[1]), {"max_new_tokens": 60}))
print("loaded", flush=True)
model.generate(prompts_of(some_prompts(400)), 1, 100, lambda rows, tokens: None)
"""


def test_killing_the_job_ends_vllm(fake: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    fake.setenv("FAKE_VLLM_CHILD", str(tmp_path / "child"))
    fake.setenv("FAKE_VLLM_STEP_S", "0.1")
    root = str(Path(__file__).parent.parent.parent)
    fake.setenv("PYTHONPATH", os.pathsep.join([str(FAKE), root]))
    job = subprocess.Popen([sys.executable, "-c", JOB, str(folder)], stdout=subprocess.PIPE)
    assert job.stdout is not None and job.stdout.readline() == b"loaded\n"
    started = [process.pid for process in psutil.Process(job.pid).children(recursive=True)]
    assert int((tmp_path / "child").read_text()) in started and len(started) == 2
    job.send_signal(signal.SIGKILL)
    job.wait()
    job.stdout.close()
    assert all(_ends(pid) for pid in started)


def _ends(pid: int, limit_s: float = 10) -> bool:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False
