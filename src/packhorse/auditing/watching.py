"""Looks on while a batch is computed: copies between devices, points where the host waits, tensors that are made.

Two modes of torch are entered. The function mode sees what Python code calls (Tensor.item, torch.tensor), the dispatch
mode the operators that come of it (aten::_to_copy). Neither sees other threads, nor inside a compiled graph.

The meta device has shapes and no numbers: where one is asked for there (item, a copy to the host), the answer is zero.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from packhorse.auditing.events import Copy, Event, Mixed, Origin, Wait
from packhorse.auditing.findings import Direction
from packhorse.auditing.places import Place, this_place

# Operators whose result's size, or value, the host has to know: it waits for the device. Of repeat_interleave only the
# form that was not told output_size.
WAITING = frozenset({
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::allclose",
    "aten::_unique", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::bincount",
})  # fmt: skip
COPYING = ("aten::_to_copy", "aten::copy_")
# Functions that wait without an operator of those; torch prints, and hands lists on, where no mode sees it.
WAITING_CALLS = frozenset({"tolist", "numpy", "__repr__", "__format__", "__array__"})
PRINTING = {"__repr__": "printing a tensor", "__format__": "formatting a tensor"}
# What they are made of is known on the host alone: such a copy cannot be saved by making the tensor elsewhere.
FROM_HOST_DATA = frozenset({"tensor", "as_tensor", "from_numpy", "frombuffer", "asarray", "new_tensor"})
SYNCHRONIZING = ("cuda", "xpu", "mps", "accelerator")


class Watch:
    """Events of the batches that run inside `watching()`.

    accelerator: of a CPU the points are counted at which another device would make the host wait. names: of the tensors
    that are known, by id. stored: ids of those of the model.
    """

    def __init__(self, accelerator: torch.device, names: Mapping[int, str], stored: frozenset[int]) -> None:
        self.accelerator = accelerator
        self.events: list[Event] = []
        self.keeps_gradients: Place | None = None
        self._names, self._stored = names, stored
        self._calling = ""
        self._origins = WeakIdKeyDictionary()
        self._pinned = WeakIdKeyDictionary()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        with _synchronize_seen(self), _Operators(self), _Functions(self):
            yield

    # -- functions that Python code calls

    def function(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = (resolve_name(func) or getattr(func, "__name__", str(func))).removeprefix("torch.")
        short = name.rpartition(".")[2]
        if short == "pin_memory" and not torch.accelerator.is_available():
            return self._pretend_pinned(args[0])
        outer, before, start = self._calling, len(self.events), time.perf_counter()
        self._calling = outer or name
        self._see_gradients(args)
        try:
            result = func(*args, **kwargs)
        finally:
            self._calling = outer
        elapsed = time.perf_counter() - start
        self._see_wait(name, short, args, before, elapsed)
        self._see_made(name, short, args, result, before)
        return result

    def _see_wait(self, name: str, short: str, args: Any, before: int, elapsed_s: float) -> None:
        """Printing asks for many numbers: it is one wait."""
        waits = [event for event in self.events[before:] if isinstance(event, Wait)]
        if waits:
            self.events[before:] = [e for e in self.events[before:] if not isinstance(e, Wait) or e is waits[0]]
            waits[0].elapsed_s = max(elapsed_s, waits[0].elapsed_s)
        elif (short in WAITING_CALLS and self._is_here(args[0])) or _is_masked_look_up(short, args, self.accelerator):
            self.events.append(Wait(PRINTING.get(short, name), this_place(), elapsed_s))

    def _see_made(self, name: str, short: str, args: Any, result: Any, before: int) -> None:
        """A tensor made of nothing but numbers: on the host it is remembered, elsewhere its numbers were copied."""
        if not isinstance(result, torch.Tensor) or (_tensors(args) and short != "new_tensor"):
            return
        if result.device.type == "cpu" and self.accelerator.type != "cpu":
            if result not in self._origins:
                self._origins[result] = Origin(name, this_place())
        elif short in FROM_HOST_DATA and self._is_here(result) and len(self.events) == before:
            self._add_copy("host to device", result, "a list or array of the host", None, False, True)

    def _see_gradients(self, args: Any) -> None:
        if self.keeps_gradients is None and torch.is_grad_enabled() and any(t.requires_grad for t in _tensors(args)):
            self.keeps_gradients = this_place()

    def _pretend_pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        """Without an accelerator no memory can be pinned; what would be is remembered."""
        pinned = tensor.clone()
        self._pinned[pinned] = True
        return pinned

    # -- operators

    def operator(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = func._schema.name
        seen = len(self.events)
        if name in COPYING:
            self._see_copy(name, args, kwargs)
        elif name in WAITING or (name == "aten::repeat_interleave" and not kwargs.get("output_size")):
            if any(self._is_here(t) for t in _tensors(args)):
                self.events.append(Wait(self._call(name), this_place()))
        else:
            self._see_mixed(name, args, kwargs)
        start = time.perf_counter()
        result = self._answer(func, name, args, kwargs)
        elapsed = time.perf_counter() - start
        for event in self.events[seen:]:
            if not isinstance(event, Mixed):
                event.elapsed_s = elapsed
        self._remember(name, args, kwargs, result)
        return result

    def _see_copy(self, name: str, args: Any, kwargs: Any) -> None:
        is_new = name == "aten::_to_copy"
        source = args[0] if is_new else args[1]
        target = torch.device(kwargs.get("device") or source.device) if is_new else args[0].device
        if target.type == source.device.type and target.index in (None, source.device.index):
            return
        is_async = bool(kwargs.get("non_blocking") or (not is_new and len(args) > 2 and args[2]))
        label, origin = self._name(source), self._origin(source)
        if source.device.type == "cpu":
            self._add_copy("host to device", source, label, origin, self._is_pinned(source), not is_async)
        elif target.type == "cpu":
            is_pinned = is_async if is_new else self._is_pinned(args[0])  # torch pins what it makes for such a copy
            self._add_copy("device to host", source, label, None, is_pinned, not is_async)
            if not is_async:
                self.events.append(Wait(self._call(name), this_place()))
        else:
            self._add_copy("device to device", source, label, None, True, not is_async)

    def _add_copy(
        self, direction: Direction, tensor: torch.Tensor, source: str, origin: Origin | None, is_pinned: bool,
        is_blocking: bool,
    ) -> None:  # fmt: skip
        size = tensor.numel() * tensor.element_size()
        is_stored = id(tensor) in self._stored
        self.events.append(Copy(direction, this_place(), source, origin, is_stored, is_pinned, is_blocking, size))

    def _see_mixed(self, name: str, args: Any, kwargs: Any) -> None:
        """Numbers of the host, tensors without dimensions, go with any device."""
        tensors = _tensors((args, kwargs))
        if not any(self._is_here(t) for t in tensors):
            return
        strangers = [t for t in tensors if t.device.type != self.accelerator.type and t.ndim > 0]
        if strangers:
            told = tuple((self._name(t), self._origin(t)) for t in strangers)
            size = sum(t.numel() * t.element_size() for t in strangers)
            self.events.append(Mixed(name.removeprefix("aten::"), this_place(), told, size))

    def _answer(self, func: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
        source = args[1] if name == "aten::copy_" else args[0] if args else None
        if not (isinstance(source, torch.Tensor) and source.device.type == "meta"):
            return func(*args, **kwargs)
        if name == "aten::_local_scalar_dense":
            return torch.zeros((), dtype=source.dtype).item()
        if name == "aten::_to_copy" and torch.device(kwargs.get("device") or "meta").type != "meta":
            return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype, device=kwargs["device"])
        if name == "aten::copy_" and args[0].device.type != "meta":
            return args[0].zero_()
        return func(*args, **kwargs)

    def _remember(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        """What was made on the host, and what was computed there of nothing else."""
        if not isinstance(result, torch.Tensor) or result.device.type != "cpu" or self.accelerator.type == "cpu":
            return
        tensors = _tensors((args, kwargs))
        if not tensors:
            self._origins[result] = Origin(self._call(name), this_place())
        elif all(t.device.type == "cpu" for t in tensors):
            origin = next((o for t in tensors if (o := self._origin(t))), None)
            if origin is not None and name != "aten::lift_fresh":
                self._origins[result] = origin

    # -- what is known of a tensor

    def _call(self, operator: str) -> str:
        short = self._calling.rpartition(".")[2]
        return PRINTING.get(short, self._calling) or operator.replace("::", ".")

    def _is_here(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.device.type == self.accelerator.type

    def _name(self, tensor: torch.Tensor) -> str:
        shape = ", ".join(map(str, tensor.shape))
        return self._names.get(id(tensor)) or f"a tensor [{shape}] of {str(tensor.dtype).removeprefix('torch.')}"

    def _origin(self, tensor: torch.Tensor) -> Origin | None:
        return self._origins.get(tensor)

    def _is_pinned(self, tensor: torch.Tensor) -> bool:
        return tensor in self._pinned or (tensor.device.type == "cpu" and tensor.is_pinned())


class _Functions(TorchFunctionMode):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._watch.function(func, args, kwargs or {})


class _Operators(TorchDispatchMode):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # operators that are made of others come whole: aten::to for _to_copy
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        return self._watch.operator(func, args, kwargs)


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _is_masked_look_up(short: str, args: Any, accelerator: torch.device) -> bool:
    """tensor[mask]: how many are true decides the result's shape."""
    return short == "__getitem__" and any(
        t.dtype == torch.bool and t.device.type == accelerator.type for t in _tensors(args[1:])
    )


@contextlib.contextmanager
def _synchronize_seen(watch: Watch) -> Iterator[None]:
    """torch.cuda.synchronize and its like are no functions that a mode sees: they are replaced meanwhile."""
    places = [(getattr(torch, name), f"torch.{name}") for name in SYNCHRONIZING if hasattr(torch, name)]
    places += [(getattr(torch.cuda, kind), f"torch.cuda.{kind}") for kind in ("Stream", "Event")]
    places = [(owner, name) for owner, name in places if "synchronize" in vars(owner)]
    before = [vars(owner)["synchronize"] for owner, _ in places]
    for (owner, name), original in zip(places, before, strict=True):
        owner.synchronize = _seen(watch, f"{name}.synchronize", original)
    try:
        yield
    finally:
        for (owner, _), original in zip(places, before, strict=True):
            owner.synchronize = original


def _seen(watch: Watch, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def synchronize(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = original(*args, **kwargs) if watch.accelerator.type not in ("cpu", "meta") else None
        watch.events.append(Wait(name, this_place(), time.perf_counter() - start))
        return result

    return synchronize
