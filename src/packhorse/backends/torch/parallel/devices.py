"""Which devices --tensor-parallel is over."""

from __future__ import annotations

from packhorse.config import EngineConfig
from packhorse.errors import UsageError

ALL = ("auto", "all", "cuda")
LEGAL = "legal are all, a list as in cuda:0,cuda:1, or cpu:N for N processes on the processor"


def parallel_devices(settings: EngineConfig) -> tuple[str, ...]:
    """One name a rank. Raises UsageError where they are not here, or less than two."""
    import torch

    devices, here = settings.devices, torch.cuda.device_count()
    if devices in ALL:
        names = tuple(f"cuda:{number}" for number in range(here))
        seen = f"torch {torch.__version__} sees {here} CUDA device{'' if here == 1 else 's'} here"
    else:
        names, seen = settings.device_names(), f"that is {len(settings.device_names())} device"
    if len(names) < 2:
        raise UsageError(
            f"--tensor-parallel --devices {devices}: {seen}, and one alone has nothing to share: {LEGAL}; or drop "
            "--tensor-parallel"
        )
    for name in dict.fromkeys(names):
        _check(name, names, here)
    return names


def named(devices: tuple[str, ...]) -> str:
    """As in `2 ranks: cuda:0, cuda:1`."""
    where = ", ".join(devices) if len(set(devices)) == len(devices) else f"{devices[0]} for each"
    return f"{len(devices)} ranks: {where}"


def _check(name: str, names: tuple[str, ...], here: int) -> None:
    kind, _, index = name.partition(":")
    listed = ",".join(names)
    if kind not in ("cpu", "cuda"):
        raise UsageError(f"--tensor-parallel --devices {listed}: {kind} has no collectives here; {LEGAL}")
    if kind == "cpu":
        return
    if not index or int(index) >= here:
        raise UsageError(
            f"--tensor-parallel --devices {listed}: there are {here} CUDA devices, numbered from 0; name each by its "
            "number"
        )
    if names.count(name) > 1:
        raise UsageError(f"--tensor-parallel --devices {listed}: {name} stands there twice, and NCCL takes a GPU once")
