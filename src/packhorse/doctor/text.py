"""A diagnosis for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from packhorse.doctor.diagnosis import Check, Diagnosis, ModelPlaced

STYLES = {"works": "green", "installed": "", "missing": "yellow", "broken": "red", "no hardware": "dim"}


def print_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    console.print(Group(*_parts(diagnosis)))


def _parts(d: Diagnosis) -> Iterator[RenderableType]:
    if d.model is not None:
        yield from _model(d.model)
    yield Text("machine", style="bold")
    yield _pairs(_machine(d))
    yield Text("\ndevices", style="bold")
    yield _devices(d)
    yield from _ceilings(d)
    yield Text("\nwhat works", style="bold")
    yield from _checks(d.checks)
    yield Text("\nversions", style="bold")
    yield Text("  " + ", ".join(f"{name} {version}" for name, version in d.libraries.items() if version))
    yield Text("\nenvironment", style="bold")
    yield _pairs((v.name, v.value if v.value is not None else "not set", v.meaning) for v in d.environment)
    if d.notes:
        yield Text("\nto change", style="bold")
        yield from (Text(f"  - {note}") for note in d.notes)
    yield Text(f"\nlooked at in {d.elapsed_s:.1f} s")


def _machine(d: Diagnosis) -> Iterator[tuple[str, str]]:
    m, limits = d.machine, d.limits
    yield "processor", f"{m['cpu']}; {m['cores']} of {limits['cores_seen']} cores may be used"
    yield "instructions", ", ".join(m["instructions"]) or "none known"
    yield "memory", size(m["memory_bytes"])
    cpus, memory = limits["cgroup_cpus"], limits["cgroup_memory_bytes"]
    if cpus is not None or memory is not None:
        shares = [f"{cpus:g} cores"] if cpus is not None else []
        yield "control group", ", ".join([*shares, *([size(memory)] if memory is not None else [])])
    yield "memory nodes", "; ".join(limits["numa_nodes"]) or "not told"
    yield "system", f"{m['system']}, Python {m['python']}"
    for disk in limits["disks"]:
        writable = "" if disk["is_writable"] else ", NOT WRITABLE"
        yield disk["name"], f"{disk['folder']}: {size(disk['free_bytes'])} free{writable}"


def _devices(d: Diagnosis) -> Table:
    table = _table("device", "model", "free", "of", "precisions", "")
    for device in d.devices:
        free, total = (size(x) if x is not None else "?" for x in (device.free_bytes, device.total_bytes))
        _add(table, device.name, device.model, free, total, ", ".join(device.precisions), device.detail)
    return table


def _ceilings(d: Diagnosis) -> Iterator[RenderableType]:
    yield Text("\nceilings", style="bold")
    if not d.ceilings:
        yield Text("  not measured yet: packhorse doctor --measure")
    for found in d.ceilings:
        rates = [f"{p} {rate / 1e9:,.0f} GFLOP/s" for p, rate in found["gemm_flops_per_s"].items()]
        names = {"copy_bytes_per_s": "copy", "host_to_device_bytes_per_s": "from host"}
        rates += [f"{label} {found[key] / 1e9:,.1f} GB/s" for key, label in names.items() if found[key]]
        rates += [f"{p} {rate / 1e12:,.0f} TFLOP/s by its maker" for p, rate in found["peak_flops_per_s"].items()]
        yield Text(f"  {found['device']}: {', '.join(rates)}")


def _checks(checks: tuple[Check, ...]) -> Iterator[RenderableType]:
    table = _table("", "", "", "")
    area = ""
    for check in checks:
        state = Text(check.state, style=STYLES[check.state])
        _add(table, check.area if check.area != area else "", check.name, state, check.detail)
        area = check.area
    yield table
    yield Text("  installed: was not run, since importing it takes seconds; --measure does it", style="dim")
    mended = [check for check in checks if check.command]
    if mended:
        yield Text("\nwould mend it", style="bold")
    yield from (Text(f"  {check.area} {check.name}: {check.command}") for check in mended)


def _model(m: ModelPlaced) -> Iterator[RenderableType]:
    yield Text(f"{m.name}: {m.task}, {m.precision} on {m.device}", style="bold")
    table = _table("what", "device", "type", "tensors", "size", "")
    for row in m.lying:
        count = "" if row.count is None else f"{row.count:,}"
        _add(table, row.kind, row.device, row.dtype, count, size(row.num_bytes), row.detail)
    yield table
    yield from (Text(line) for line in _fit(m))
    yield Text("")


def _fit(m: ModelPlaced) -> list[str]:
    if m.need is None:
        return ["  Whether it fits is not known: the folder has no safetensors whose headers tell."]
    names = {"weights_bytes": "weights", "kv_cache_bytes": "keys and values", "activation_bytes": "activations",
             "overhead_bytes": "torch itself"}  # fmt: skip
    parts = ", ".join(f"{label} {size(m.need[key])}" for key, label in names.items() if m.need[key])
    free = ", ".join(f"{device} {size(each)}" for device, each in m.free_bytes.items()) or "not told"
    head = f"  needs {size(m.need['total_bytes'])} ({parts}); free: {free}"
    return [head, *(["  It fits."] if m.fits else [f"  {line}" for line in m.advice])]


def _pairs(rows: Any) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for row in rows:
        _add(table, *row)
    return table


def _table(*head: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=any(head), header_style="dim")
    table.add_column("")
    for name in head:
        table.add_column(name, overflow="fold")
    return table


def _add(table: Table, *cells: str | Text) -> None:
    """Text, so that brackets in it are no markup."""
    table.add_row("", *(cell if isinstance(cell, Text) else Text(cell) for cell in cells))


def size(num_bytes: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:,.1f} {unit}"
    return f"{num_bytes:,.0f} B"
