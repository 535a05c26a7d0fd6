"""A model whose layers lie on several devices, or on the disk: loaded by transformers and accelerate, checked here.

Layers that are not where they run (on the disk; on the cpu where there is a GPU) hold no weights between forwards:
accelerate's hooks bring them in and let them go. Two threads in one layer would take them from each other, so a split
model has one worker. No weight is read for a check.
"""

from packhorse.backends.torch.placement.device_map import disjoint_map
from packhorse.backends.torch.placement.lying import (
    Placed,
    check_on_devices,
    device_map_of,
    execution_devices,
    first_device,
    offloaded,
    placed,
    placement_note,
)
from packhorse.backends.torch.placement.placer import Placer, devices_here

__all__ = [
    "Placed",
    "Placer",
    "check_on_devices",
    "device_map_of",
    "devices_here",
    "disjoint_map",
    "execution_devices",
    "first_device",
    "offloaded",
    "placed",
    "placement_note",
]
