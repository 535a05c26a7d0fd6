"""Frozen settings and all their validation: what the flags of the command line and the keywords of the API mean."""

from packhorse.config.engine import POOLINGS, EngineConfig
from packhorse.config.generating import GenerationSettings
from packhorse.config.placing import PlacementSettings
from packhorse.config.run import NOT_IN_MANIFEST, OUTPUT_FORMATS, RunConfig
from packhorse.config.tasks import OF_TASKS, OWN_TASKS, WINDOWED, TaskSettings
from packhorse.config.validating import validated

__all__ = [
    "NOT_IN_MANIFEST",
    "OF_TASKS",
    "OUTPUT_FORMATS",
    "OWN_TASKS",
    "POOLINGS",
    "WINDOWED",
    "EngineConfig",
    "GenerationSettings",
    "PlacementSettings",
    "RunConfig",
    "TaskSettings",
    "validated",
]
