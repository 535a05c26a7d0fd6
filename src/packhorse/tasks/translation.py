"""translation: what an encoder-decoder model makes of each text in its other language."""

from __future__ import annotations

from packhorse.config import EngineConfig
from packhorse.data import ModelDescription
from packhorse.tasks.generated import GeneratedText


def make(description: ModelDescription, settings: EngineConfig) -> GeneratedText:
    return GeneratedText("translation", "translation_text", settings)
