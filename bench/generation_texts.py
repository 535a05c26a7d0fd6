"""The prompts and sources of the generation benchmark, in random order, the same on every machine."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import NamedTuple

from bench import workloads
from packhorse.comparison.contract import SEED

PIECE_WORDS = (10, 220)  # of a review: up to about 300 tokens


class Workload(NamedTuple):
    """lengths: of outputs, in tokens. contenders: those that run unless others are named."""

    lengths: str
    contenders: str


SEQ2SEQ = Workload("5-100", "pipeline_style_8,static_8,static_24,static_48,packhorse")
WORKLOADS = {
    "llm": Workload("8-256", "pipeline_8,static_8,static_24,static_48,generate_batch_24,packhorse"),
    "t5": SEQ2SEQ,
    "bart": SEQ2SEQ,
}


def texts_of(workload: str, data: Path, count: int) -> list[str]:
    """At most `count` texts. Raises SystemExit where the data files are not there."""
    try:
        return questions(data, count) if workload == "llm" else sources(data, count)
    except FileNotFoundError as error:
        raise SystemExit(
            f"--data {data}: {error.filename} is not there; give the folder with the data files"
        ) from error


def questions(data: Path, count: int) -> list[str]:
    """Of GSM8K's test part: 20 to 240 tokens of GPT-2, half of them below 50."""
    lines = (data / "gsm8k_test.jsonl").read_text(encoding="utf-8").splitlines()
    texts: list[str] = [json.loads(line)["question"] for line in lines]
    return random.Random(SEED).sample(texts, min(count, len(texts)))


def sources(data: Path, count: int) -> list[str]:
    """Sentences of SST-2 and pieces of movie reviews of any length up to about 300 tokens, as many of the one as of the
    other."""
    draw = random.Random(SEED)
    long = count // 2
    pieces = [piece(text, draw) for text in draw.sample(workloads.reviews(data), long)]
    texts = pieces + draw.sample(workloads.labelled_sst2(data, "dev").texts, count - long)
    draw.shuffle(texts)
    return texts


def piece(text: str, draw: random.Random) -> str:
    """The first words of a text, so many as the draw says."""
    return " ".join(text.split()[: draw.randint(*PIECE_WORDS)])
