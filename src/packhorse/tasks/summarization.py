"""summarization: the summary that an encoder-decoder model writes of each text."""

from __future__ import annotations

from packhorse.config import EngineConfig
from packhorse.data import ModelDescription
from packhorse.tasks.generated import GeneratedText


def make(description: ModelDescription, settings: EngineConfig) -> GeneratedText:
    return GeneratedText("summarization", "summary_text", settings)
