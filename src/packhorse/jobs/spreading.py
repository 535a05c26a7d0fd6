"""A job over several devices: which they are, what each is told, and what the plan says of their threads."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from packhorse.config import RunConfig
from packhorse.devices.cores import core_groups
from packhorse.devices.here import give_back_memory, num_devices
from packhorse.devices.host import num_cores
from packhorse.errors import UsageError
from packhorse.executors.processes import Processes
from packhorse.jobs.beginning import Beginning
from packhorse.jobs.worker import MODULE, WorkerSpec
from packhorse.loading import Loader
from packhorse.plans import Plan


def devices_of(config: RunConfig, loader: Loader) -> list[str]:
    """One name a process; a single one: the job stays in this process. Raises UsageError for a device that is not
    here, and for a model that is laid over several itself."""
    names = list(config.device_names())
    if loader.placement.devices:
        return [loader.device]  # one model over all of them
    if names == ["all"]:
        kind = loader.device.split(":")[0]
        count = num_devices(kind)
        names = [f"{kind}:{number}" for number in range(count)] if count > 1 else [loader.device]
    if len(names) == 1:
        return [loader.device]
    if loader.placement.is_split:
        flag = "--tensor-parallel" if loader.placement.tensor_parallel else "--device-map"
        raise UsageError(f"--devices {config.devices} has a model on each device, {flag} lays one over all: drop one")
    for name in dict.fromkeys(names):
        loader.backend.choose_device(loader.settings.model_copy(update={"devices": name}))
    return names


def shared(plan: Plan, num_processes: int) -> Plan:
    """Threads inside an operator are part of the plan: where processes on a CPU get less than one forward each, they
    share those threads."""
    if plan.device != "cpu" or plan.workers >= num_processes:
        return plan
    return plan.model_copy(update={"threads": max(plan.workers * plan.threads // num_processes, 1)})


def spread(
    config: RunConfig, begun: Beginning, plan: Plan, devices: list[str], say: Callable[[str], None],
    check: Callable[[], None],
) -> Processes:  # fmt: skip
    """A worker process on each device, once the first of them is ready; the model in this process is freed.

    check: called while it waits, may raise. Raises what loading raises, and WorkerDiedError.
    """
    return started(config, begun, plan, devices, say, check, freed(begun, plan))


def started(
    config: RunConfig, begun: Beginning, plan: Plan, devices: list[str], say: Callable[[str], None],
    check: Callable[[], None], one_first: bool = False,
) -> Processes:  # fmt: skip
    """The same beside the model in this process."""
    specs = [spec_of(config, begun, plan, devices, number) for number in range(len(devices))]
    return Processes(MODULE, devices, specs, needed_columns(begun), begun.columns.keep, say, check, one_first)


def freed(begun: Beginning, plan: Plan) -> bool:
    """Frees the model in this process. Whether a worker has to load it, and keep what it converts, before others do."""
    loader = begun.loader
    loader.replay(plan)
    one_first = not loader.backend.is_prepared(loader.request(plan.precision))
    loader.drop(loader.loaded)
    give_back_memory()
    return one_first


def needed_columns(begun: Beginning) -> list[str]:
    """Those that a worker makes its inputs of."""
    columns = begun.columns
    of_texts = columns.prompts.columns if columns.prompts else [*columns.texts, *columns.lists]
    return list(dict.fromkeys([*of_texts, *([columns.seed] if columns.seed else [])]))


def spec_of(config: RunConfig, begun: Beginning, plan: Plan, devices: list[str], number: int) -> WorkerSpec:
    loader, columns, count = begun.loader, begun.columns, len(devices)
    threads = loader.settings.tokenizer_threads or plan.tokenizer_threads or num_cores()
    told = {
        "devices": devices[number],
        "revision": loader.description.commit or loader.settings.revision,
        "tokenizer_threads": max(threads // count, 1),
    }
    groups = core_groups(count) if plan.device == "cpu" else None
    return WorkerSpec(
        settings=loader.settings.model_copy(update=told), config=config, plan=_share(plan, number, count),
        planned_workers=plan.workers, sample=begun.sample, adds_special_tokens=columns.adds_special_tokens,
        schema=begun.reader.schema(), now=columns.now or datetime.now(),
        cores=groups[number] if groups is not None else None,
    )  # fmt: skip


def _share(plan: Plan, number: int, count: int) -> Plan:
    """Forwards at the same time of one of so many processes: on a CPU all of them together have the plan's."""
    if plan.device != "cpu":
        return plan
    workers = plan.workers // count + (number < plan.workers % count)
    return plan.model_copy(update={"workers": max(workers, 1)})
