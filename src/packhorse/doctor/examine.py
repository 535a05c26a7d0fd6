"""The whole examination, in order."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from packhorse.backends import torch as torch_backend
from packhorse.config import EngineConfig
from packhorse.devices import ceilings as measured
from packhorse.devices.host import num_cores
from packhorse.doctor.diagnosis import Diagnosis, Variable
from packhorse.doctor.found import find_devices, library_versions, read_environment
from packhorse.doctor.limits import limit_notes, read_limits
from packhorse.doctor.placing import place_model
from packhorse.doctor.trials import check_all
from packhorse.errors import PackhorseError
from packhorse.machine import accelerators, read_machine

PRECISIONS = ("fp32", "bf16", "fp16")  # of which torch has matrix products that are timed
SPINNING = ("ACTIVE", "active")


def examine(
    settings: EngineConfig | None = None, measure: bool = False, environment: Mapping[str, str | None] | None = None
) -> Diagnosis:
    """settings: of a model, to look at too. measure: times the device's ceilings, and imports packages that take long.
    environment: variables as they were before the doctor set them.

    Raises UsageError, ModelError or HostileModelError where the model cannot be read, PackhorseError where torch cannot
    be imported.
    """
    start = time.perf_counter()
    _import_torch()
    limits = read_limits()
    model = None if settings is None else place_model(settings, limits["cgroup_memory_bytes"])
    device = torch_backend.choose_device(EngineConfig(model=""))
    devices, variables = find_devices(), read_environment(environment)
    notes = (*limit_notes(limits), *_device_notes(device), *_variable_notes(variables))
    return Diagnosis(
        machine=read_machine(), limits=limits, devices=devices, libraries=library_versions(),
        ceilings=tuple(_ceilings([d.name for d in devices], measure)), checks=tuple(check_all(device, measure)),
        environment=variables, notes=notes, elapsed_s=time.perf_counter() - start, model=model,
    )  # fmt: skip


def _import_torch() -> None:
    """Devices are seen through it: where it is broken, that is the finding."""
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as error:
        raise PackhorseError(
            f"torch cannot be imported, and nothing runs without it: {error}. `pip install --force-reinstall torch` "
            "brings it anew; builds for other versions of CUDA are at https://pytorch.org/get-started/locally"
        ) from error


def _ceilings(devices: list[str], measure: bool) -> Iterator[dict[str, Any]]:
    """Of those that can be timed."""
    for device in devices:
        threads = num_cores() if device == "cpu" else 1
        if measure and device.partition(":")[0] in ("cpu", "cuda"):
            supported = [p for p in PRECISIONS if p in torch_backend.supported_precisions(device)]
            yield measured.measure_ceilings(device, threads, supported).to_dict()
        elif (known := measured.known_ceilings(device, threads)) is not None:
            yield known.to_dict()


def _device_notes(device: str) -> Iterator[str]:
    """Where there is a GPU that torch does not see."""
    if device == "cpu" and (here := accelerators()):
        import torch

        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for processors alone"
        yield (
            f"{', '.join(here)}: here, but torch {torch.__version__}, built {built}, does not see it. Take a build for "
            "the driver's CUDA from https://pytorch.org/get-started/locally, and look at CUDA_VISIBLE_DEVICES"
        )


def _variable_notes(variables: tuple[Variable, ...]) -> Iterator[str]:
    values = {v.name: v.value for v in variables}
    if values["OMP_WAIT_POLICY"] in SPINNING:
        yield "OMP_WAIT_POLICY=ACTIVE: OpenMP's threads spin, on cores that tokenizing needs; unset it, or say PASSIVE"
    if values["CUDA_VISIBLE_DEVICES"] in ("", "-1"):
        yield f"CUDA_VISIBLE_DEVICES={values['CUDA_VISIBLE_DEVICES']}: hides every GPU; unset it"
