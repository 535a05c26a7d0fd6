"""What packhorse.unpad gains in a loop that stays as it was: padded batches of 32 rows in random order, forward only.

    python bench/unpad.py [--rounds 3] [--json bench/results/unpad-bert-base.json]

Three copies of one model take turns in one process, on the same tensors: plain, unpad(model), unpad(model, fused=True).
Ratios are taken round by round. Without padding only real tokens are computed, so the speed-up that can be expected is
1 / padding efficiency of the batches; `of expected` is speed-up x padding efficiency, and is above 1 where unpad gains
more than it leaves out. The model has BERT-base's shape and random weights, fp32.
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from bench import models, workloads
from packhorse.comparison.contenders._torch import device, load_model
from packhorse.comparison.contract import SEED, ModelSpec
from packhorse.comparison.machine import read_machine, read_versions
from packhorse.comparison.rows import save_json

BATCH_SIZE = 32
WARMUP_ROWS = 4
# Name of the mixture, and the workload it is drawn from.
MIXTURES = {"reviews + SST-2, 1:1": "half_reviews", "2000:6735": "mixed", "SST-2 alone": "sst2", "reviews": "reviews"}
PLAIN, UNPAD, FUSED = "plain", "unpad", "unpad fused"
MAX_DIFFERENCE = 1e-3  # of a logit; attention across rows gives a hundred times that

Inputs = dict[str, torch.Tensor]


class Ratio(NamedTuple):
    """Speed of one variant to another's, round by round, and its part of what the padding efficiency promises."""

    variant: str
    to: str
    speed_up: float
    speed_ups: list[float]
    of_expected: float | None
    max_difference: float  # of a logit, to plain


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bert-base", help="a classifier that bench/compare.py knows, or a folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--padded-tokens",
        type=int,
        default=24_576,
        help="as many batches of a mixture as have so many tokens, at least one (default: %(default)s)",
    )
    parser.add_argument("--data", type=Path, default=workloads.DEFAULT_DATA, help="folder with the data files")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    return parser.parse_args()


def main() -> None:
    """Every mixture in turn."""
    arguments = parse_arguments()
    spec = models.resolve(arguments.model)
    tokenizer, network = load_model(spec, "fp32")
    variants = {PLAIN: network} | unpadded(network)
    print(f"{spec.name}, fp32, {device()}, {torch.get_num_threads()} threads, batches of {BATCH_SIZE}")
    results = {}
    for name, workload in MIXTURES.items():
        texts = workloads.load(workload, arguments.data, None)
        results[name] = measure(variants, batches_of(spec, tokenizer, texts, arguments.padded_tokens), arguments.rounds)
        print_result(name, results[name])
    if arguments.json:
        settings = {"model": spec.name, "rounds": arguments.rounds, "padded_tokens": arguments.padded_tokens}
        machine, versions = read_machine().model_dump(), read_versions(workloads.ROOT)
        save_json(arguments.json, {"machine": machine, "versions": versions, "settings": settings, "mixtures": results})


def unpadded(network: Any) -> dict[str, Any]:
    """Copies of the model without padding inside, so that none depends on what is done to another."""
    import packhorse

    unpad: Callable[..., Any] | None = getattr(packhorse, "unpad", None)
    if unpad is None:
        raise SystemExit("this packhorse has no unpad()")
    return {UNPAD: unpad(copy.deepcopy(network)), FUSED: unpad(copy.deepcopy(network), fused=True)}


def batches_of(spec: ModelSpec, tokenizer: Any, texts: list[str], padded_tokens: int) -> list[Inputs]:
    """Random rows, 32 at a time, each batch padded to its longest row: a loop that nobody tuned."""
    order = list(range(len(texts)))
    random.Random(SEED).shuffle(order)
    batches: list[Inputs] = []
    seen = 0
    for start in range(0, len(order), BATCH_SIZE):
        rows = [texts[row] for row in order[start : start + BATCH_SIZE]]
        batch = tokenizer(rows, padding=True, truncation=True, max_length=spec.max_length, return_tensors="pt")
        seen += batch["input_ids"].numel()
        if batches and seen > padded_tokens:
            break
        batches.append(dict(batch.to(device())))
    return batches


def measure(variants: dict[str, Any], batches: list[Inputs], rounds: int) -> dict[str, Any]:
    """Seconds of every variant in every round, A B C A B C, and what follows from them."""
    few = {name: values[:WARMUP_ROWS] for name, values in batches[0].items()}
    outputs = {name: run(network, [few])[1] for name, network in variants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, network in variants.items():
            elapsed_s, outputs[name] = run(network, batches)
            seconds[name].append(elapsed_s)
    efficiency = sum(int(b["attention_mask"].sum()) for b in batches) / sum(b["input_ids"].numel() for b in batches)
    pairs = ((UNPAD, PLAIN, efficiency), (FUSED, PLAIN, efficiency), (FUSED, UNPAD, None))
    return {
        "rows": sum(len(b["input_ids"]) for b in batches),
        "batches": len(batches),
        "padding_efficiency": efficiency,
        "seconds": seconds,
        "ratios": [compare(seconds, outputs, *pair)._asdict() for pair in pairs],
    }


def run(network: Any, batches: list[Inputs]) -> tuple[float, np.ndarray]:
    """Seconds of the loop and its logits [N, C]; copying them to the host waits for the device."""
    start = time.perf_counter()
    with torch.inference_mode():
        logits = np.concatenate([network(**batch).logits.float().cpu().numpy() for batch in batches])
    return time.perf_counter() - start, logits


def compare(
    seconds: dict[str, list[float]], outputs: dict[str, np.ndarray], variant: str, to: str, efficiency: float | None
) -> Ratio:
    """Speed-up of a variant over another, pair by pair."""
    speed_ups = [other / own for own, other in zip(seconds[variant], seconds[to], strict=True)]
    middle = median(speed_ups)
    difference = float(np.abs(outputs[variant] - outputs[PLAIN]).max())
    return Ratio(variant, to, middle, speed_ups, efficiency and middle * efficiency, difference)


def print_result(name: str, result: dict[str, Any]) -> None:
    """A mixture in four lines."""
    size = f"{result['rows']} rows in {result['batches']} batches"
    print(f"{name}: {size}, padding efficiency {result['padding_efficiency']:.1%}")
    for ratio in (Ratio(**values) for values in result["ratios"]):
        spread = f"{min(ratio.speed_ups):.2f}-{max(ratio.speed_ups):.2f}"
        expected = "" if ratio.of_expected is None else f", {ratio.of_expected:.2f} of expected"
        wrong = f", BUT logits differ by {ratio.max_difference:.2g}" if ratio.max_difference > MAX_DIFFERENCE else ""
        print(f"  {ratio.variant:12} to {ratio.to:6} {ratio.speed_up:.2f}x ({spread}){expected}{wrong}")


if __name__ == "__main__":
    main()
