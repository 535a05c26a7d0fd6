"""What was seen while batches were computed, added up by line of code, and what to change about it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

from packhorse.auditing.events import Copy, Event, Mixed, Wait
from packhorse.auditing.findings import Copies, Finding, Waits
from packhorse.auditing.watching import FROM_HOST_DATA

WAIT_FIXES = {
    "item": "Add up on the device, and ask for the number once, after the last batch",
    "__bool__": "Decide with torch.where, or on the host before the batch goes to the device",
    "tolist": "Keep results on the device, and bring them over once; or copy into pinned memory with non_blocking=True",
    "nonzero": "Multiply with the mask, or use torch.where with three arguments: its result has a known shape",
    "synchronize": "Leave it out: copies and kernels of one stream wait for each other anyway",
    "print": "Print every so many batches, or what was copied once at the end",
    "repeat_interleave": "Tell it output_size",
}
KINDS = {
    "__float__": "item", "__int__": "item", "__index__": "item", "_local_scalar_dense": "item",
    "cpu": "tolist", "numpy": "tolist", "__array__": "tolist", "to": "tolist", "copy_": "tolist",
    "where": "nonzero", "__getitem__": "nonzero", "masked_select": "nonzero", "unique": "nonzero",
    "argwhere": "nonzero", "bincount": "nonzero",
    "equal": "__bool__", "allclose": "__bool__", "is_nonzero": "__bool__", "__contains__": "__bool__",
}  # fmt: skip

IN_LIBRARY = (
    "It is in a library's code: fewer and larger batches wait less often. Of transformers' masks: "
    "packhorse.unpad(model), or no attention_mask where no row is padded"
)

Row = TypeVar("Row")


def add_up(events: Iterable[Event], steps: int) -> tuple[tuple[Copies, ...], tuple[Waits, ...]]:
    """Figures of one batch; what takes longest first."""
    seen = list(events)
    copies = _grouped(seen, Copy, lambda c: (c.direction, str(c.place), c.source, c.is_pinned, c.is_blocking))
    waits = _grouped(seen, Wait, lambda w: (w.call, str(w.place)))
    by_copies = [
        Copies(
            first.direction, str(first.place), first.source, first.is_pinned, first.is_blocking, len(group) / steps,
            sum(c.num_bytes for c in group) / steps, _time(group, steps),
        )
        for (first, *_), group in ((group, group) for _, group in copies)
    ]  # fmt: skip
    by_waits = [Waits(call, where, len(group) / steps, _time(group, steps)) for (call, where), group in waits]
    return tuple(sorted(by_copies, key=_longest)), tuple(sorted(by_waits, key=_longest))


def judge_traffic(events: Iterable[Event], steps: int) -> list[Finding]:
    """Of copies that could be saved or hidden, of operators over several devices, and of waits."""
    seen = list(events)
    copies = _grouped(seen, Copy, lambda c: (_kind_of(c), str(c.place), _made_at(c), c.direction))
    mixed = _grouped(seen, Mixed, lambda m: (m.operator, str(m.place), _strangers(m)))
    waits = _grouped(seen, Wait, lambda w: (w.call, str(w.place)))
    return [
        *(finding for _, group in copies if (finding := _of_copies(group, steps)) is not None),
        *(_of_mixed(group, steps) for _, group in mixed),
        *(_of_waits(group, steps) for _, group in waits),
    ]


def _of_copies(group: Sequence[Copy], steps: int) -> Finding | None:
    first = group[0]
    kind = _kind_of(first)
    if kind is None:
        return None
    figures = (len(group) / steps, sum(c.num_bytes for c in group) / steps, _time(group, steps))
    source = ", ".join(dict.fromkeys(c.source for c in group))
    if kind == "created_on_host":
        made = f"{first.origin.call if first.origin else ''} makes a tensor on the host, copied at {first.place}"
        fix = "Make it where it is needed: device=x.device, as in torch.arange(n, device=x.device)"
        return Finding(kind, _made_at(first), made, fix, *figures)
    if kind == "moved_every_batch":
        what = f"{source}: lies elsewhere, and is copied for every batch"
        fix = "Move it once, before the loop: model.to(device), metric.to(device)"
        return Finding(kind, str(first.place), what, fix, *figures)
    if kind == "unpinned_copy":
        what = f"{source}: copied to the device from pageable memory, which the host stages and waits for"
        fix = "DataLoader(pin_memory=True), or .pin_memory(), and then .to(device, non_blocking=True)"
        return Finding(kind, str(first.place), what, fix, *figures)
    what = f"{source}: copied {first.direction} from pinned memory, and the host waits until it is done"
    return Finding("blocking_copy", str(first.place), what, ".to(device, non_blocking=True)", *figures)


def _kind_of(copy: Copy) -> Any:
    """None of a copy that is as it should be; one to the host that blocks is told of as a wait."""
    if copy.is_stored:
        return "moved_every_batch"
    if copy.direction != "host to device":
        return None
    if copy.origin is not None and copy.origin.call.rpartition(".")[2] not in FROM_HOST_DATA:
        return "created_on_host"
    if not copy.is_pinned:
        return "unpinned_copy"
    return "blocking_copy" if copy.is_blocking else None


def _made_at(copy: Copy) -> str:
    return "" if copy.origin is None else str(copy.origin.place)


def _of_mixed(group: Sequence[Mixed], steps: int) -> Finding:
    first = group[0]
    made = next((o for _, o in first.strangers if o is not None), None)
    what = f"{first.operator} over tensors of several devices: on another one {_strangers(first)}"
    size = sum(m.num_bytes for m in group) / steps
    if made is None:
        fix = "Move it once, before the loop; a tensor that belongs to a module as a buffer"
        return Finding("mixed_devices", str(first.place), what, fix, len(group) / steps, size)
    fix = "Make it where it is needed: device=x.device"
    what = f"{made.call} makes a tensor on the host, for {first.operator} at {first.place}"
    return Finding("created_on_host", str(made.place), what, fix, len(group) / steps, size)


def _strangers(mixed: Mixed) -> str:
    return ", ".join(dict.fromkeys(name for name, _ in mixed.strangers))


def _of_waits(group: Sequence[Wait], steps: int) -> Finding:
    """In a library's own code it is a hint: it may be the price of what was asked of it."""
    first = group[0]
    is_foreign = bool(first.place.inside)
    what = f"{first.call}: the host waits for the device"
    fix = IN_LIBRARY if is_foreign else _wait_fix(first.call)
    figures = (len(group) / steps, 0.0, _time(group, steps))
    return Finding("synchronization", str(first.place), what, fix, *figures, is_hint=is_foreign)


def _wait_fix(call: str) -> str:
    short = call.rpartition(".")[2]
    kind = "print" if " " in call else KINDS.get(short, short)
    return WAIT_FIXES.get(kind, WAIT_FIXES["item"])


def _grouped(events: list[Event], kind: type[Row], key: Callable[[Row], Hashable]) -> list[tuple[Any, list[Row]]]:
    groups: dict[Any, list[Row]] = {}
    for event in events:
        if isinstance(event, kind):
            groups.setdefault(key(event), []).append(event)
    return list(groups.items())


def _time(group: Sequence[Copy] | Sequence[Wait], steps: int) -> float:
    return sum(event.elapsed_s for event in group) / steps


def _longest(row: Copies | Waits) -> float:
    return -row.elapsed_s
