"""Where a loaded model's weights lie, and where its inputs go."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from packhorse.backends.torch.placement.device_map import device_of
from packhorse.backends.torch.placement.words import in_units, some
from packhorse.errors import ModelError

META = torch.device("meta")
OFFLOADED = ("cpu", "disk")  # layers there are brought to another device, where there is one


class Placed(NamedTuple):
    """What lies on one device between forwards."""

    device: str  # cuda:0, cpu, disk, ...
    num_bytes: int
    modules: tuple[str, ...]  # by the device map's names


def offloaded(model: Any) -> tuple[str, ...]:
    """Modules, by the device map's names, whose weights are brought to another device for each forward."""
    devices, main = _expected(model)
    return tuple(name for name, device in devices.items() if _is_offloaded(device, main))


def execution_devices(model: Any) -> tuple[torch.device, ...]:
    """On which its layers run. Rows are packed where it is a single one: where rows end is told on one device."""
    hooks = (hook for module in model.modules() for hook in _hooks(module) if hook.execution_device is not None)
    devices = {torch.device(hook.execution_device) for hook in hooks}
    return tuple(sorted(devices, key=str)) or (first_device(model),)


def first_device(model: Any) -> torch.device:
    """Where the input embeddings run: token ids go there. Raises ModelError where nothing brings them anywhere."""
    embeddings = model.get_input_embeddings()
    for hook in _hooks(embeddings):
        if hook.execution_device is not None:
            return torch.device(hook.execution_device)
    device = next(embeddings.parameters()).device
    if device == META:
        raise ModelError("the input embeddings have no weights, and nothing that brings them")
    return device


def check_on_devices(model: Any) -> None:
    """Raises ModelError where a weight is not on the device of its map, or lies nowhere and nothing brings it."""
    devices, main = _expected(model)
    wrong = []
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in (*parameters.items(), *model.named_buffers()):
        device = device_of(name, devices)
        if not _is_offloaded(device, main):
            is_right = tensor.device == torch.device(device)
        elif name in parameters or tensor.device == META:
            is_right = tensor.device == META and _is_brought(model, name)
        else:  # a buffer stays where its layer runs
            is_right = tensor.device == torch.device(main)
        if not is_right:
            wrong.append(f"{name} ({tensor.device}, should be {device})")
    if wrong:
        raise ModelError(f"the device map was not followed: {some(wrong)}")


def placed(model: Any) -> list[Placed]:
    """What lies where, tied weights once; one entry a device, in the map's order."""
    devices, _ = _expected(model)
    sizes: dict[str, int] = {}
    seen: set[int] = set()
    tied = set(getattr(model, "all_tied_weights_keys", {}))  # on the meta device every name has a tensor of its own
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if id(tensor) in seen or (tensor.device == META and name in tied):
            continue
        seen.add(id(tensor))
        device = _name(device_of(name, devices))
        sizes[device] = sizes.get(device, 0) + tensor.numel() * tensor.element_size()
    modules: dict[str, list[str]] = {}
    for module, device in devices.items():
        modules.setdefault(_name(device), []).append(module or type(model).__name__)
    return [Placed(device, sizes.get(device, 0), tuple(names)) for device, names in modules.items()]


def device_map_of(model: Any) -> dict[str, str]:
    """Device of every module, by the names that a map of a file has for them."""
    return {name: _written(device) for name, device in _expected(model)[0].items()}


def placement_note(model: Any) -> str:
    """For the plan and the report."""
    lying = (f"{p.device} {in_units(p.num_bytes)} ({some(p.modules)})" for p in placed(model))
    return f"split over {'; '.join(lying)}; inputs go to {first_device(model)}"


def _expected(model: Any) -> tuple[dict[str, Any], Any]:
    """Device by module name, and the one to which offloaded layers are brought."""
    devices = dict(getattr(model, "hf_device_map", None) or {"": first_device(model)})
    main = next((d for d in devices.values() if d not in OFFLOADED), "cpu")
    return devices, main


def _is_offloaded(device: Any, main: Any) -> bool:
    return device == "disk" or (device == "cpu" and main != "cpu")


def _hooks(module: Any) -> list[Any]:
    """accelerate's on this module that align devices."""
    hook = getattr(module, "_hf_hook", None)
    return [h for h in getattr(hook, "hooks", [hook]) if hasattr(h, "execution_device")]


def _is_brought(model: Any, name: str) -> bool:
    """Whether a hook of the tensor's own module, or of one around it, knows where to take it from."""
    parts = name.split(".")
    for n in range(len(parts) - 1, -1, -1):
        for hook in _hooks(model.get_submodule(".".join(parts[:n]))):
            if hook.offload:
                return ".".join(parts[n:]) in _names(hook.weights_map)
    return False


def _names(weights: Any) -> Any:
    """Of what lies there; to ask accelerate's own maps for one would read it."""
    loader = getattr(weights, "dataset", weights)
    prefix = getattr(weights, "prefix", "")
    names = getattr(loader, "all_keys", loader)
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}


def keep_to_first_device(model: Any, body_alone: bool) -> None:
    """In place of accelerate's hook on the whole model, which a copy of the model would call on the original: torch's
    own hooks, which a copy keeps. A cache of keys and values stays where its layers are."""
    from accelerate.hooks import remove_hook_from_module  # type: ignore[import-untyped]

    device = first_device(model)
    remove_hook_from_module(model)
    if getattr(model.forward, "__func__", None) is type(model).forward:
        vars(model).pop("forward", None)  # left behind, bound to this very object

    def bring(_module: Any, args: Any, kwargs: Any) -> Any:
        return tuple(_moved(a, device) for a in args), {name: _moved(a, device) for name, a in kwargs.items()}

    def give_back(_module: Any, _args: Any, output: Any) -> Any:
        if isinstance(output, dict):  # a ModelOutput
            for name, value in output.items():
                output[name] = _moved(value, device)
            return output
        return tuple(_moved(value, device) for value in output) if isinstance(output, tuple) else _moved(output, device)

    for module in {model, model.base_model} if body_alone else {model}:
        module.register_forward_pre_hook(bring, with_kwargs=True)
        module.register_forward_hook(give_back)


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) and value.device != device else value


def _written(device: Any) -> str:
    """cpu, disk, mps, or the number of a GPU."""
    kind, _, index = _name(device).partition(":")
    return index if kind not in ("cpu", "mps") and index else "0" if kind in ("cuda", "xpu") else kind


def _name(device: Any) -> str:
    return "disk" if device == "disk" else str(torch.device(device))
