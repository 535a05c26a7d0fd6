"""Frozen settings and all their validation: what the flags of the command line and the keywords of the API mean."""

from packhorse.config.engine import POOLINGS, EngineConfig
from packhorse.config.generating import GenerationSettings
from packhorse.config.placing import PlacementSettings
from packhorse.config.run import NOT_IN_MANIFEST, OUTPUT_FORMATS, RunConfig
from packhorse.config.validating import validated

__all__ = [
    "NOT_IN_MANIFEST",
    "OUTPUT_FORMATS",
    "POOLINGS",
    "EngineConfig",
    "GenerationSettings",
    "PlacementSettings",
    "RunConfig",
    "validated",
]
