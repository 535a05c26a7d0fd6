"""torch.distributed in a rank: NCCL between GPUs, Gloo on the processor."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from packhorse.backends.torch.parallel.messages import Spec

MEET_S = 600.0  # until all ranks have imported torch
COLLECTIVE_S = 300.0  # that a rank waits for the others: they begin each call together
REST_S = 2.0  # for kernels that are under way once nothing new is started
LOOPBACK = "127.0.0.1"


def listen() -> tuple[Any, int]:
    """The store at which ranks meet, and its port; nobody outside this machine reaches it. For rank 0."""
    listener = socket.create_server((LOOPBACK, 0))
    port = listener.getsockname()[1]
    store = dist.TCPStore(
        LOOPBACK, port, None, True, timedelta(seconds=MEET_S), wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )  # fmt: skip
    return store, port


def reach(port: int) -> Any:
    return dist.TCPStore(LOOPBACK, port, None, False, timedelta(seconds=MEET_S))


class Group:
    """This rank's place among the others."""

    def __init__(self, spec: Spec, store: Any) -> None:
        """Returns once all ranks are there."""
        self.device = torch.device(spec.request.device)
        self._rank, self.num_agreed = spec.rank, 0
        is_gpu = self.device.type == "cuda"
        if is_gpu:
            torch.cuda.set_device(self.device)
            torch.cuda.init()
        elif sys.platform.startswith("linux"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        _tell_transformers(spec, self.device.index or 0)
        dist.init_process_group(
            "nccl" if is_gpu else "gloo", store=store, rank=spec.rank, world_size=spec.num_ranks,
            timeout=timedelta(seconds=COLLECTIVE_S), device_id=self.device if is_gpu else None,
        )  # fmt: skip

    def agree(self, model: Any, body_too: bool) -> None:
        """From now on the model's output, and with body_too that of its body, is rank 0's in all ranks."""
        for module in {model, model.base_model} if body_too else {model}:
            module.register_forward_hook(self._hook())

    def _hook(self) -> Callable[[Any, Any, Any], None]:
        def broadcast(_module: Any, _args: Any, output: Any) -> None:
            value = getattr(output, "logits", None)
            value = getattr(output, "last_hidden_state", None) if value is None else value
            if value is None:
                raise TypeError(f"{type(output).__name__} has neither logits nor a last hidden state")
            self._broadcast(value)

        return broadcast

    def _broadcast(self, value: torch.Tensor) -> None:
        """In place, and where it is no contiguous piece of memory through one."""
        whole = value.contiguous()
        dist.broadcast(whole, 0)
        if whole is not value:
            value.copy_(whole)
        self.num_agreed += 1

    def at_rest(self) -> int | None:
        """num_agreed once this rank's device has nothing left to do; None where it still has after REST_S."""
        if self.device.type != "cuda":
            return self.num_agreed
        event = torch.cuda.Event()
        event.record()
        deadline_s = time.monotonic() + REST_S
        while not event.query():
            if time.monotonic() > deadline_s:
                return None
            time.sleep(0.01)
        return self.num_agreed


def _tell_transformers(spec: Spec, index: int) -> None:
    """It reads torchrun's variables; LOCAL_RANK is for it the device's number."""
    os.environ |= {"RANK": str(spec.rank), "WORLD_SIZE": str(spec.num_ranks), "LOCAL_RANK": str(index)}
