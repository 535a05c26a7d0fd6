"""What the vllm backend makes of settings, and what it refuses before any process is started."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from packhorse.backends import vllm as backend
from packhorse.backends.vllm.interpreter import VARIABLE
from packhorse.backends.vllm.outcomes import whole
from packhorse.backends.vllm.sampling import Sampling, read_sampling
from packhorse.backends.vllm.starting import LOAD_TIMEOUT, OPTIONS, prepared
from packhorse.backends.vllm.weights import weight_bytes
from packhorse.config import EngineConfig
from packhorse.data import Adapter
from packhorse.errors import UsageError
from packhorse.generation import LENGTH, STOP, Decoding, Placement, Quantization
from tests.vllm_fake.asking import FAKE, request_for


def model_that_says(tmp_path: Path, generation: dict[str, Any] | None, **config: Any) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    return tmp_path


def sampling(
    tmp_path: Path, own: dict[str, Any] | None, asked: dict[str, Any] | None = None, **config: Any
) -> Sampling:
    return read_sampling(model_that_says(tmp_path, own, **config), Decoding(asked or {}))


# -- settings


def test_greedy_by_default_and_end_tokens_as_the_model_has_them(tmp_path: Path) -> None:
    found = sampling(tmp_path, {"eos_token_id": [3, 5], "temperature": 0.7, "top_p": 0.9})
    assert not found.is_sampled and found.common["temperature"] == 0 and found.seed_of(1, 0) is None
    assert found.common["stop_token_ids"] == [3, 5] and found.common["ignore_eos"] is True
    assert "top_p" not in found.common and "logprobs" not in found.common
    assert found.max_tokens(10, 4_096) == 256 and found.max_tokens(4_000, 4_096) == 96


def test_sampling_has_the_defaults_of_transformers(tmp_path: Path) -> None:
    from transformers import GenerationConfig

    defaults = GenerationConfig._get_default_generation_params()
    found = sampling(tmp_path, {"do_sample": True, "temperature": 0.6, "eos_token_id": 3})
    assert found.is_sampled and found.common["temperature"] == 0.6 and found.common["stop_token_ids"] == [3]
    for name in ("top_k", "top_p", "repetition_penalty"):
        assert found.common[name] == defaults[name]


def test_what_is_asked_for_goes_before_what_the_model_says(tmp_path: Path) -> None:
    own = {"do_sample": True, "top_k": 20, "max_length": 99, "min_new_tokens": 1}
    found = sampling(tmp_path, own, {"top_k": 5, "max_new_tokens": 7, "min_length": 12, "stop_strings": "END"})
    assert found.common["top_k"] == 5 and found.max_tokens(50, 4_096) == 7
    assert found.min_tokens(8, 7) == 4 and found.min_tokens(30, 7) == 1 and found.min_tokens(1, 7) == 7
    assert found.common["stop"] == ["END"] and found.common["detokenize"] is True
    longest = sampling(tmp_path, own)
    assert longest.max_tokens(90, 4_096) == 9 and longest.max_length == 99


def test_a_model_without_generation_config_is_read_from_its_config(tmp_path: Path) -> None:
    assert sampling(tmp_path, None, eos_token_id=8, no_such_setting=1).end_ids == (8,)
    assert sampling(tmp_path, None, text_config={"eos_token_id": 9}, eos_token_id=None).end_ids == ()
    assert sampling(tmp_path, None, text_config={"eos_token_id": 9}).end_ids == (9,)


def test_constraints_may_end_at_vllms_own_end_token(tmp_path: Path) -> None:
    decoding = Decoding({}, json_schema='{"type": "object"}', with_logprobs=True)
    common = read_sampling(model_that_says(tmp_path, {}), decoding).common
    assert common["constraint"] == {"json": '{"type": "object"}'} and common["ignore_eos"] is False
    assert common["logprobs"] == 0


def test_seeds_differ_by_job_key_and_sample(tmp_path: Path) -> None:
    model = model_that_says(tmp_path, {"do_sample": True})
    jobs = [read_sampling(model, Decoding({}, seed=seed)) for seed in (0, 1)]
    seeds = {job.seed_of(key, sample) for job in jobs for key in (0, 1, 2**64 - 1) for sample in range(3)}
    assert len(seeds) == 18 and all(seed is not None and 0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("own", "asked", "words"),
    [
        ({}, {"num_beams": 4}, "--generation num_beams=4: vLLM has no num_beams; --backend torch has it"),
        ({}, {"no_repeat_ngram_size": 3}, "--generation no_repeat_ngram_size=3"),
        ({"num_beams": 4}, {}, "generation_config.json of the model says num_beams 4.*say --generation num_beams=1"),
        ({"do_sample": True}, {"typical_p": 0.9}, "vLLM has no typical_p"),
        ({}, {"top_q": 0.9}, "--generation top_q: vLLM knows no such setting; did you mean 'top_"),
    ],
)
def test_what_vllm_has_not_is_refused(tmp_path: Path, own: dict[str, Any], asked: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        sampling(tmp_path, own, asked)


def test_neutral_values_and_what_changes_no_token_are_taken(tmp_path: Path) -> None:
    sampling(tmp_path, {"num_beams": 4, "suppress_tokens": [], "bad_words_ids": None}, {"num_beams": 1})
    sampling(tmp_path, {"typical_p": 0.9}, {"use_cache": True, "pad_token_id": 0})  # greedy: typical_p is not used


# -- outputs


@pytest.mark.parametrize(
    ("reason", "stop_reason", "ids", "wanted"),
    [
        ("stop", 3, [1, 3], ([1, 3], STOP)),
        ("stop", 3, [1], ([1, 3], STOP)),
        ("stop", None, [1], ([1, 9], STOP)),
        ("stop", None, [], ([9], STOP)),
        ("stop", "END", [1], ([1], STOP)),
        ("length", None, [1], ([1], LENGTH)),
        ("length", None, [], None),
        ("abort", None, [1], None),
        (None, None, [1], None),
    ],
)
def test_outputs_are_whole_or_none(reason: str, stop_reason: Any, ids: list[int], wanted: Any) -> None:
    row = {"finish_reason": reason, "stop_reason": stop_reason}
    output = whole(row, np.array(ids, np.int32), np.zeros(len(ids), np.float32), (9,))
    assert (output and (output.ids.tolist(), output.reason)) == wanted
    if output:
        assert output.logprobs is not None and len(output.logprobs) == len(output.ids)


# -- the environment


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("PYTHONPATH", str(FAKE))
    monkeypatch.setenv(VARIABLE, sys.executable)
    return monkeypatch


def test_the_device_is_that_of_the_other_interpreter(fake: pytest.MonkeyPatch) -> None:
    assert backend.choose_device(EngineConfig(model="x")) == "cpu"
    with pytest.raises(UsageError, match="--devices cuda: the vLLM of PACKHORSE_VLLM_PYTHON runs on cpu"):
        backend.choose_device(EngineConfig(model="x", devices="cuda"))
    fake.setenv("FAKE_VLLM_DEVICE", "cuda")
    fake.setenv("FAKE_VLLM_DEVICES", "2")
    assert backend.choose_device(EngineConfig(model="x", devices="cuda:1")) == "cuda:1"
    with pytest.raises(UsageError, match="vLLM sees 2, numbered from 0"):
        backend.choose_device(EngineConfig(model="x", devices="cuda:2"))
    assert backend.versions()["vllm"] == "9.9.9"


@pytest.mark.skipif(find_spec("vllm") is not None, reason="there is a vllm here")
def test_without_vllm_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(UsageError, match=r"there is no vllm here.*\n.*python -m venv vllm-env"):
        backend.choose_device(EngineConfig(model="x"))
    monkeypatch.setenv(VARIABLE, sys.executable)
    with pytest.raises(UsageError, match="has no vllm"):
        backend.choose_device(EngineConfig(model="x"))
    monkeypatch.setenv(VARIABLE, "/no/such/python")
    with pytest.raises(UsageError, match=f"{VARIABLE}=/no/such/python: cannot be run"):
        backend.versions()


def test_one_gpu_of_several_and_all_of_them(fake: pytest.MonkeyPatch, tmp_path: Path) -> None:
    request = replace(request_for(model_that_says(tmp_path, {})), device="cuda:1")
    found = read_sampling(tmp_path, Decoding())
    fake.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    launch = prepared(request, "python", found, 2)
    assert launch.environment["CUDA_VISIBLE_DEVICES"] == "6" and launch.options["tensor_parallel_size"] == 2
    fake.delenv("CUDA_VISIBLE_DEVICES")
    assert prepared(request, "python", found, 1).environment["CUDA_VISIBLE_DEVICES"] == "1"
    fake.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")  # what the user says stays
    assert prepared(request, "python", found, 1).environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "1"
    assert os.environ.keys() <= prepared(request, "python", found, 1).environment.keys()


@pytest.mark.parametrize(
    ("name", "value"), [(OPTIONS, "{"), (OPTIONS, "[1]"), (LOAD_TIMEOUT, "soon"), (LOAD_TIMEOUT, "0")]
)
def test_variables_that_say_nothing_legal(fake: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str) -> None:
    fake.setenv(name, value)
    request = request_for(model_that_says(tmp_path, {}))
    with pytest.raises(UsageError, match=name):
        prepared(request, "python", read_sampling(tmp_path, Decoding()), 1)


def test_requests_that_are_none_of_vllms(tmp_path: Path) -> None:
    request = request_for(tmp_path)
    adapter = replace(request.description, adapter=Adapter(tmp_path, None, None, None))
    for changed, words in (
        ({"decoding": None}, "runs on torch, onnx or openvino"),
        ({"attention": "sdpa"}, "--attention sdpa: vLLM chooses"),
        ({"precision": "fp8"}, "--precision fp8: vLLM has that on a GPU"),
        ({"quantization": Quantization("torchao")}, "--quantization torchao"),
        ({"quantization": Quantization(options={"x": 1})}, "options of the quantization"),
        ({"placement": Placement("auto")}, "--device-map auto"),
        ({"placement": Placement(max_memory={"0": 1})}, "--max-memory"),
        (
            {"placement": Placement(tensor_parallel=True), "device": "cuda:1"},
            "--tensor-parallel --devices cuda:1: one GPU",
        ),
        ({"description": adapter}, "--adapter .*merge it"),
    ):
        with pytest.raises(UsageError, match=words):
            backend.check(replace(request, **changed))
    backend.check(replace(request, device="cuda", precision="int4", quantization=Quantization("bitsandbytes")))


def test_weights_are_counted_at_their_precision(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    tensors = {"a": np.zeros((3, 5), np.float32), "b": np.zeros(7, np.float16), "ids": np.zeros(2, np.int64)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert weight_bytes(tmp_path, "fp32") == 4 * 22 + 16 and weight_bytes(tmp_path, "bf16") == 2 * 22 + 16
