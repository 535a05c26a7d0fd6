"""text-generation: what a causal model writes after each prompt."""

from __future__ import annotations

from packhorse.config import EngineConfig
from packhorse.data import ModelDescription
from packhorse.tasks.generated import GeneratedText


def make(description: ModelDescription, settings: EngineConfig) -> GeneratedText:
    return GeneratedText("text-generation", "generated_text", settings)
