"""How vLLM's process is started and told to load: its interpreter, its environment, the keywords of vllm.LLM.

Environment variables, besides vLLM's own, which reach it as they are:

    PACKHORSE_VLLM_OPTIONS         JSON object of keywords of vllm.LLM, before those chosen here
    PACKHORSE_VLLM_LOAD_TIMEOUT_S  seconds that loading may take, default 1,800
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packhorse.backends.vllm.interpreter import SERVER
from packhorse.backends.vllm.process import Server, ServerDiedError
from packhorse.backends.vllm.sampling import Sampling
from packhorse.errors import ModelError, UsageError
from packhorse.load_request import LoadRequest

OPTIONS, LOAD_TIMEOUT = "PACKHORSE_VLLM_OPTIONS", "PACKHORSE_VLLM_LOAD_TIMEOUT_S"
LOAD_TIMEOUT_S = 1_800.0
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp8": "bfloat16", "int4": "bfloat16"}
QUANTIZED = {"fp8": "fp8", "int4": "bitsandbytes"}

# Set unless the user did. One process has a schedule that does not depend on time (vLLM's page on reproducibility), as
# far as its engine needs no more than one; nothing is fetched and nobody told; 4 GiB of keys and values on a processor.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "4",
}


@dataclass(frozen=True, slots=True)
class Launch:
    """All that it takes to start the process, again too."""

    python: str
    environment: Mapping[str, str]
    options: Mapping[str, Any]  # keywords of vllm.LLM
    sampling: Sampling
    limit_s: float

    def started(self) -> tuple[Server, int]:
        """The process with its model loaded, and the most tokens that prompt and output may have. Raises ModelError."""
        server: Server | None = None
        try:
            server = Server([self.python, str(SERVER)], self.environment)
            server.send({"do": "load", "options": self.options, "sampling": self.sampling.common})
            answer, _ = server.receive(self.limit_s)
        except ServerDiedError as error:
            raise ModelError(f"vLLM did not load {self.options['model']}: its process {error}") from error
        except TimeoutError:
            said = server.last_lines() if server else ""
            _kill(server)
            raise ModelError(
                f"vLLM did not load {self.options['model']} within {self.limit_s:,.0f} s ({LOAD_TIMEOUT} sets another "
                f"limit); it wrote last:\n{said}"
            ) from None
        except BaseException:
            _kill(server)
            raise
        if answer["is"] == "error":
            server.close()
            raise ModelError(_explained(answer["message"], str(self.options["model"]), server.last_lines()))
        return server, int(answer["max_model_len"])


def _kill(server: Server | None) -> None:
    if server is not None:
        server.kill()


def _explained(message: str, model: str, said: str) -> str:
    advice = ""
    if any(word in message.lower() for word in ("memory", "kv cache")):
        advice = f"\nTo give it less or more of the device: {OPTIONS}='{{\"gpu_memory_utilization\": 0.8}}'"
    return f"vLLM did not load {model}: {message}{advice}" + (f"\nIt wrote last:\n{said}" if said else "")


def prepared(request: LoadRequest, python: str, sampling: Sampling, num_gpus: int) -> Launch:
    """num_gpus: that every layer is split over. Raises UsageError where an environment variable says nothing legal."""
    options = llm_options(request, sampling) | {"tensor_parallel_size": num_gpus} | _own_options()
    return Launch(python, _environment(request.device), options, sampling, _load_limit_s())


def llm_options(request: LoadRequest, sampling: Sampling) -> dict[str, Any]:
    """Keywords of vllm.LLM. generation_config: the model's own settings are read on this side."""
    options: dict[str, Any] = {
        "model": str(request.description.folder.absolute()), "dtype": DTYPES[request.precision], "seed": 0,
        "enable_prefix_caching": True, "trust_remote_code": False, "generation_config": "vllm",
    }  # fmt: skip
    if request.precision in QUANTIZED:
        options["quantization"] = QUANTIZED[request.precision]
    if (most := max_model_len(request, sampling)) is not None:
        options["max_model_len"] = most
    return options


def max_model_len(request: LoadRequest, sampling: Sampling) -> int | None:
    """What the job's longest prompt and its output need, so that vLLM plans for no more; None: as the model has."""
    most = request.description.max_length
    if most is None or request.longest is None:
        return None
    needed = max(request.longest + sampling.max_new_tokens, sampling.max_length or 0)
    return min(most, needed)


def _own_options() -> dict[str, Any]:
    text = os.environ.get(OPTIONS)
    if not text:
        return {}
    try:
        options = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{OPTIONS}={text}: not JSON ({error}); write an object of keywords of vllm.LLM") from None
    if not isinstance(options, dict):
        raise UsageError(f'{OPTIONS}={text}: not a JSON object; for example {{"gpu_memory_utilization": 0.8}}')
    return options


def _load_limit_s() -> float:
    text = os.environ.get(LOAD_TIMEOUT)
    if not text:
        return LOAD_TIMEOUT_S
    try:
        limit_s = float(text)
    except ValueError:
        limit_s = math.nan
    if not limit_s > 0:
        raise UsageError(f"{LOAD_TIMEOUT}={text}: a number of seconds above 0 is needed")
    return limit_s


def _environment(device: str) -> dict[str, str]:
    """device: cuda:N is the only GPU that vLLM sees."""
    chosen = {**ENVIRONMENT, **os.environ}
    kind, _, index = device.partition(":")
    if kind == "cuda" and index:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        chosen["CUDA_VISIBLE_DEVICES"] = seen.split(",")[int(index)] if seen else index
    return chosen
