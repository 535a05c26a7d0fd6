"""A job whose workers are actors of a Ray cluster: how many there are, and what each asks of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from packhorse.config import RunConfig
from packhorse.devices.host import num_cores
from packhorse.errors import UsageError
from packhorse.executors.processes import Processes
from packhorse.executors.ray import LOCAL, ROOM_S, RayActors, connected
from packhorse.jobs.beginning import Beginning
from packhorse.jobs.spreading import freed, needed_columns, shared, spec_of
from packhorse.jobs.worker import MODULE, WorkerSpec
from packhorse.loading import Loader
from packhorse.metrics import RunReport
from packhorse.plans import Plan
from packhorse.report.reporter import Reporter

Say = Callable[[str], None]
Decide = Callable[[Callable[[Plan], Plan]], Plan]
Compute = Callable[[Plan, Processes], RunReport]


def on_ray(
    config: RunConfig, begun: Beginning, decide: Decide, reporter: Reporter, check: Callable[[], None], compute: Compute
) -> RunReport:
    """The report of `compute`, which is given the actors. decide: makes the plan, given what actors change in it.

    Raises UsageError where there is no cluster, and for a model that is laid over several devices; what compute raises.
    """
    address, asked = str(config.ray), num_asked(config)
    check_whole(config, begun.loader)
    with connected(address, max(num_cores(), asked or 1)) as ray:
        count = asked or _num_there(ray, begun.loader)
        plan = decide(lambda plan: shared(plan, count) if address == LOCAL else plan)
        reporter.plan(plan, config.model)
        with _actors(ray, config, begun, plan, count, reporter.note, check) as actors:
            return compute(plan, actors)


def num_asked(config: RunConfig) -> int | None:
    """Actors that --ray-workers or a list of devices asks for; None: as many as the cluster has devices."""
    names = config.device_names()
    return config.ray_workers or (len(names) if len(names) > 1 else None)


def check_whole(config: RunConfig, loader: Loader) -> None:
    if loader.placement.is_split:
        raise UsageError(
            f"--ray {config.ray} has a model in each actor, --device-map and --tensor-parallel lay one over the "
            "devices of this machine: drop one of them"
        )


def _num_there(ray: Any, loader: Loader) -> int:
    """Devices of the cluster now, one at least: it may grow for an actor that finds no room."""
    there = ray.cluster_resources()
    if loader.device != "cpu":
        return max(int(there.get("GPU", 0)), 1)
    return max(int(there.get("CPU", 1)) // (loader.workers * loader.threads), 1)


def _actors(
    ray: Any, config: RunConfig, begun: Beginning, plan: Plan, count: int, say: Say, check: Callable[[], None]
) -> RayActors:
    one_first = freed(begun, plan)
    kind = begun.loader.device.split(":")[0]
    devices = [kind] * count
    specs = [spec_of(config, begun, plan, devices, number) for number in range(count)]
    if config.ray != LOCAL:
        specs = [_elsewhere(begun, plan, spec) for spec in specs]
    needs = actor_needs(kind, specs[0].plan)
    say(f"{count} actors of Ray, each of {needs['num_cpus']:g} cores" + (" and a GPU" if needs["num_gpus"] else ""))
    if not any(_has_room(node.get("Resources", {}), needs) for node in ray.nodes() if node["Alive"]):
        say(f"no node of the cluster has as much now; waiting up to {ROOM_S / 60:.0f} minutes for one")
    keep = begun.columns.keep
    return RayActors(ray, needs, MODULE, devices, specs, needed_columns(begun), keep, say, check, one_first)


def _elsewhere(begun: Beginning, plan: Plan, spec: WorkerSpec) -> WorkerSpec:
    """On a machine of its own: with all of the plan's forwards, on whichever cores Ray leaves it."""
    told = {"tokenizer_threads": begun.loader.settings.tokenizer_threads or plan.tokenizer_threads}
    settings = spec.settings.model_copy(update=told)
    return dataclasses.replace(spec, settings=settings, plan=plan, cores=None)


def _has_room(node: dict[str, float], needs: dict[str, float]) -> bool:
    """Whether a node is large enough, whatever runs on it now."""
    return node.get("CPU", 0) >= needs["num_cpus"] and node.get("GPU", 0) >= needs["num_gpus"]


def actor_needs(kind: str, plan: Plan) -> dict[str, float]:
    """What an actor reserves: the cores of its plan or, beside a GPU, one."""
    if kind == "cpu":
        return {"num_cpus": math.ceil(plan.workers * plan.threads), "num_gpus": 0}
    return {"num_cpus": 1, "num_gpus": 1}
