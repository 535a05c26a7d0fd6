"""An audit to read: what to change first, then copies and waits, then what lies where."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from packhorse.auditing.findings import Audit, Finding, PlacedTensor

NAMED = 3  # tensors of a group that are named


def audit_text(audit: Audit) -> str:
    """Plain text, no line of it cut."""
    time = "" if audit.step_s is None else f", {in_time(audit.step_s)} a batch while watched"
    head = f"audit: a model on {audit.device}{f' in {audit.dtype}' if audit.dtype else ''}; {audit.steps} batches{time}"
    parts = [
        [head, *(f"  note: {note}" for note in audit.notes)],
        _findings(audit.findings),
        _section("copies, of one batch", ("direction", "what", "count", "size", "time", "memory", "waits", "where"), (
            (c.direction, c.source, _count(c.count), in_bytes(c.num_bytes), in_time(c.elapsed_s),
             "pinned" if c.is_pinned else "pageable", "yes" if c.is_blocking else "no", c.where)
            for c in audit.copies
        )),
        _section("points where the host waits, of one batch", ("call", "count", "time", "where"), (
            (w.call, _count(w.count), in_time(w.elapsed_s), w.where) for w in audit.waits
        )),
        _section("as the device counted, of one batch", ("what", "count", "size", "time"), (
            (t.name, _count(t.count), in_bytes(t.num_bytes), in_time(t.elapsed_s)) for t in audit.device_traffic
        )),
        _placement(audit.placement),
    ]  # fmt: skip
    return "\n\n".join("\n".join(part) for part in parts if part)


def _findings(findings: Sequence[Finding]) -> list[str]:
    if not findings:
        return ["nothing to change"]
    lines = [f"to change: {sum(not f.is_hint for f in findings)}, hints: {sum(f.is_hint for f in findings)}"]
    for finding in findings:
        figures = _figures(finding)
        lines += [f"  {finding.kind}  {finding.where}", f"      {finding.what}{figures}", f"      -> {finding.fix}"]
    return lines


def _figures(finding: Finding) -> str:
    shown = [f"{_count(finding.count)} a batch"] if finding.elapsed_s else []
    shown += [in_bytes(finding.num_bytes)] if finding.num_bytes else []
    shown += [in_time(finding.elapsed_s)] if finding.elapsed_s else []
    return f" ({', '.join(shown)})" if shown else ""


def _placement(tensors: Sequence[PlacedTensor]) -> list[str]:
    groups: dict[tuple[str, str, str], list[PlacedTensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.kind, tensor.device, tensor.dtype), []).append(tensor)
    rows = (
        (kind, device, dtype, str(len(group)), in_bytes(sum(t.num_bytes for t in group)), _names(group))
        for (kind, device, dtype), group in groups.items()
    )
    return _section("what lies where", ("kind", "device", "dtype", "tensors", "size", "names"), rows)


def _names(group: Sequence[PlacedTensor]) -> str:
    names = ", ".join(t.name for t in group[:NAMED])
    return names + (f" and {len(group) - NAMED} more" if len(group) > NAMED else "")


def _section(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns as wide as they have to be; nothing where there are no rows."""
    lines = [head, *rows]
    if len(lines) == 1:
        return []
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return [
        title,
        *("  " + "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines),
    ]


def _count(count: float) -> str:
    return f"{count:,.0f}" if count == int(count) else f"{count:,.1f}"


def in_bytes(size: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size:,.0f} B"


def in_time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:,.1f} s"
    return f"{seconds * 1e3:,.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:,.0f} us"
