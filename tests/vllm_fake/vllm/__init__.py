"""A stand-in for vLLM with the part of its Python surface that packhorse uses. No model: each token is a hash of the
prompt, the seed (where it samples) and the tokens so far. One token a row and step; rows end on their own.

Environment variables make it fail; TOKEN means: where that token stands in a prompt.

    FAKE_VLLM_LOG         file that gets a JSON line for each LLM made, and one for each step with its number of rows
    FAKE_VLLM_DIE         "N FILE": kill this process after N finished rows, unless FILE exists, which is then made
    FAKE_VLLM_DIE_ALWAYS  N: after N finished rows, each time
    FAKE_VLLM_REFUSE      TOKEN: add_request raises
    FAKE_VLLM_RAISE       TOKEN: a step raises while such a row runs
    FAKE_VLLM_DEAD        TOKEN: so does everything after it
    FAKE_VLLM_MEMORY      N: a step with more rows is out of memory
    FAKE_VLLM_FORGET      "TOKEN" or "TOKEN FILE": the row is lost; with FILE only until it exists, which is then made
    FAKE_VLLM_ABORT       TOKEN: the row comes back unfinished, reason abort
    FAKE_VLLM_NO_END      end tokens are left out of token_ids
    FAKE_VLLM_LOAD_S      seconds that loading takes
    FAKE_VLLM_STEP_S      seconds that a step takes
    FAKE_VLLM_LOAD_ERROR  message of an exception while loading
    FAKE_VLLM_LOAD_EXIT   status with which the process ends while loading
    FAKE_VLLM_CHILD       file that gets the process id of a worker process of this one, which sleeps
    FAKE_VLLM_NOISE       print to standard output all the time
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vllm.sampling_params import RequestOutputKind, SamplingParams

__version__ = "9.9.9"
VOCAB = 100
KNOWN = {
    "model", "dtype", "seed", "enable_prefix_caching", "trust_remote_code", "generation_config", "tensor_parallel_size",
    "quantization", "max_model_len", "gpu_memory_utilization", "max_num_seqs",
}  # fmt: skip


def TokensPrompt(prompt_token_ids: list[int]) -> dict[str, Any]:
    return {"prompt_token_ids": prompt_token_ids}


def noise(text: str) -> None:
    if _env("NOISE"):
        print(text, flush=True)
        os.write(1, b"\x00\x01 garbage from below\n")


class LLM:
    def __init__(self, **options: Any) -> None:
        if unknown := options.keys() - KNOWN:
            raise TypeError(f"unexpected keyword {sorted(unknown)[0]}")
        log({"options": options})
        noise("loading")
        time.sleep(float(_env("LOAD_S") or 0))
        if status := _env("LOAD_EXIT"):
            os._exit(int(status))
        if message := _env("LOAD_ERROR"):
            print("the log's last line", file=sys.stderr)
            raise ValueError(message)
        if path := _env("CHILD"):
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            Path(path).write_text(str(child.pid))
        self.llm_engine = Engine(options.get("max_model_len") or 64)


class Engine:
    def __init__(self, max_model_len: int) -> None:
        self.model_config = SimpleNamespace(max_model_len=max_model_len)
        self._running: dict[str, Row] = {}
        self._finished = 0
        self._is_dead = False

    def add_request(self, request_id: str, prompt: dict[str, Any], params: SamplingParams) -> None:
        ids = prompt["prompt_token_ids"]
        if not ids or len(ids) >= self.model_config.max_model_len:
            raise ValueError(f"The decoder prompt (length {len(ids)}) is not legal.\nA second line.")
        if _has(ids, "REFUSE"):
            raise ValueError("this prompt is refused\nand this is why")
        if request_id in self._running or params.output_kind is not RequestOutputKind.FINAL_ONLY:
            raise ValueError("not as packhorse asks")
        if _has(ids, "FORGET") and _is_due(_env("FORGET").split()[1:]):
            return
        self._running[request_id] = Row(request_id, ids, params, self.model_config.max_model_len)

    def has_unfinished_requests(self) -> bool:
        return bool(self._running)

    def abort_request(self, request_ids: list[str]) -> None:
        if self._is_dead:
            raise RuntimeError("EngineCore encountered an issue")
        for request_id in request_ids:
            self._running.pop(request_id, None)

    def step(self) -> list[SimpleNamespace]:
        noise("step")
        time.sleep(float(_env("STEP_S") or 0))
        rows = list(self._running.values())
        log({"rows": len(rows)})
        if _env("MEMORY") and len(rows) > int(_env("MEMORY")):
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        if self._is_dead or any(_has(row.prompt, "DEAD") for row in rows):
            self._is_dead = True
            raise RuntimeError("EngineCore encountered an issue")
        if any(_has(row.prompt, "RAISE") for row in rows):
            raise RuntimeError("a token that no kernel likes")
        for row in rows:
            row.write()
        outputs = [row.output() for row in rows if row.finish_reason]
        for output in outputs:
            del self._running[output.request_id]
        self._finished += len(outputs)
        self._die()
        return outputs

    def _die(self) -> None:
        count, *path = (_env("DIE") or _env("DIE_ALWAYS") or "1000000").split()
        if self._finished >= int(count) and _is_due(path):
            os.kill(os.getpid(), signal.SIGKILL)


class Row:
    def __init__(self, request_id: str, prompt: list[int], params: SamplingParams, max_model_len: int) -> None:
        self.request_id, self.prompt, self.params = request_id, prompt, params
        self.ids: list[int] = []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self._most = min(params.max_tokens or max_model_len, max_model_len - len(prompt))

    def write(self) -> None:
        if _has(self.prompt, "ABORT"):
            self.finish_reason = "abort"
            return
        seed = self.params.seed if self.params.temperature > 0 else None
        token = hashed(self.prompt, seed, self.ids)
        self.ids.append(token)
        if token in self.params.stop_token_ids and len(self.ids) >= self.params.min_tokens:
            self.finish_reason, self.stop_reason = "stop", token
        elif len(self.ids) == self._most:
            self.finish_reason = "length"

    def output(self) -> SimpleNamespace:
        is_ended = self.finish_reason == "stop"
        ids = self.ids[:-1] if is_ended and _env("NO_END") else self.ids
        logprobs = None
        if self.params.logprobs is not None:
            logprobs = [{token: SimpleNamespace(logprob=-token / 8, rank=1)} for token in ids]
        completion = SimpleNamespace(
            index=0, text="", token_ids=ids, logprobs=logprobs, finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )  # fmt: skip
        return SimpleNamespace(
            request_id=self.request_id, prompt_token_ids=self.prompt, outputs=[completion], finished=True
        )


def hashed(prompt: list[int], seed: int | None, written: list[int]) -> int:
    text = json.dumps([prompt, seed, written]).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "little") % VOCAB


def log(line: dict[str, Any]) -> None:
    if path := _env("LOG"):
        with Path(path).open("a") as file:
            file.write(json.dumps(line) + "\n")


def _env(name: str) -> str:
    return os.environ.get(f"FAKE_VLLM_{name}", "")


def _has(ids: list[int], name: str) -> bool:
    value = _env(name)
    return bool(value) and int(value.split()[0]) in ids


def _is_due(path: list[str]) -> bool:
    """Always without a file; with one only as long as it does not exist."""
    if not path:
        return True
    if Path(path[0]).exists():
        return False
    Path(path[0]).touch()
    return True
