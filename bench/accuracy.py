"""What lower precision costs in accuracy, on a real model and real labels, and whether the gate sees it.

    python bench/accuracy.py [--train-rows 20000] [--reviews 500] [--json bench/results/minilm-accuracy.json]

The real all-MiniLM-L6-v2 embeds; a logistic head in numpy, trained on embeddings in fp32 of SST-2's train part,
classifies. The head is the same for every backend and precision, so what differs is the embeddings alone. Tested on
SST-2's dev part without the sentences that the train part has too (its phrases may still be parts of those), and on
movie reviews, which the head has never seen: long rows, cut at 256 tokens. Both go through each backend as one shuffled
job.

Differences are to torch, sdpa, fp32. The gate judges the same 512 rows that it would take of this job, embeddings and
scores each as a task of its own; beside it stands what all rows say. +-: 95%, from the labels that changed.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from bench import models, workloads
from packhorse.comparison.bare_engine import BareEngine
from packhorse.comparison.contract import SEED, ModelSpec
from packhorse.comparison.machine import read_machine, read_versions
from packhorse.comparison.rows import sample_rows, save_json
from packhorse.data import Reduction
from packhorse.errors import PackhorseError
from packhorse.tuning.gate import Verdict, compare, default_tolerance, stratified

EMBEDDING, SCORES = Reduction("pool"), Reduction("classify", 2, "softmax")
L2 = 1e-4  # of the head's weights, beside a mean loss
NEWTON_STEPS = 30


class Way(NamedTuple):
    """One way to compute the same embeddings."""

    backend: str
    attention: str
    precision: str

    @property
    def label(self) -> str:
        return " ".join(word for word in self if word != "auto")


REFERENCE = Way("torch", "sdpa", "fp32")
WAYS = (
    REFERENCE,
    Way("torch", "sdpa", "bf16"),
    Way("torch", "packed", "fp32"),
    Way("torch", "packed", "bf16"),
    Way("torch", "packed", "int8"),
    Way("onnx", "auto", "fp32"),
    Way("onnx", "auto", "int8"),
    Way("openvino", "auto", "fp32"),
    Way("openvino", "auto", "bf16"),
    Way("openvino", "auto", "int8"),
)


class Job(NamedTuple):
    """The test rows, shuffled. `parts`: rows of each data set."""

    texts: list[str]
    labels: np.ndarray  # [N] 0 or 1
    parts: dict[str, np.ndarray]


class Embedded(NamedTuple):
    """What a way gave. `sample`: rows that the gate compares."""

    embeddings: np.ndarray  # [N, D] float32
    sample: np.ndarray
    attention: str
    notes: Sequence[str]


class Head(NamedTuple):
    """Logistic regression."""

    weights: np.ndarray  # [D]
    bias: float

    def scores(self, embeddings: np.ndarray) -> np.ndarray:
        """Probabilities of negative and positive, [N, 2]."""
        positive = 1 / (1 + np.exp(-(embeddings @ self.weights + self.bias)))
        return np.stack([1 - positive, positive], axis=1)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--train-rows", type=int, default=20_000, help="sentences the head is trained on (default: %(default)s)")
    add("--sentences", type=int, default=0, help="sentences it is tested on; 0: all, about 6,700")
    add("--reviews", type=int, default=500, help="reviews it is tested on (default: %(default)s)")
    add("--ways", help=f"by comma, of: {', '.join(way.label for way in WAYS)} (default: all)")
    add("--data", type=Path, default=workloads.DEFAULT_DATA, help="folder with the data files")
    add("--json", type=Path, metavar="FILE", help="write everything there")
    return parser.parse_args()


def main() -> None:
    """Train the head, then judge one way after the other."""
    arguments = parse_arguments()
    model = models.resolve("minilm")
    train, job = read_data(arguments)
    print(f"head: {len(train.texts):,} sentences; test: {', '.join(f'{len(r):,} {n}' for n, r in job.parts.items())}")
    head = train_head(embed(model, REFERENCE, train.texts).embeddings, train.labels)
    reference = embed(model, REFERENCE, job.texts)
    results = []
    for way in choose_ways(arguments.ways):
        results.append(judge(model, way, job, head, reference))
        print(line(way, results[-1]), flush=True)
    if arguments.json:
        settings = {"model": "minilm", "train_rows": len(train.texts)} | {n: len(r) for n, r in job.parts.items()}
        machine, versions = read_machine().model_dump(), read_versions(workloads.ROOT)
        save_json(arguments.json, {"machine": machine, "versions": versions, "settings": settings, "ways": results})


def choose_ways(asked: str | None) -> list[Way]:
    """Those named, the reference among them or not."""
    by_label = {way.label: way for way in WAYS}
    labels = [label.strip() for label in asked.split(",")] if asked else list(by_label)
    if unknown := [label for label in labels if label not in by_label]:
        raise SystemExit(f"--ways {unknown[0]}: not one of {', '.join(by_label)}")
    return [by_label[label] for label in labels]


def read_data(arguments: argparse.Namespace) -> tuple[workloads.Labelled, Job]:
    """Rows to train on, rows to test on; no test sentence is in the train part."""
    train = workloads.labelled_sst2(arguments.data, "train")
    dev = workloads.labelled_sst2(arguments.data, "dev")
    seen = {text.strip() for text in train.texts}
    sentences = take(dev, [row for row, text in enumerate(dev.texts) if text.strip() not in seen])
    sentences = sample(sentences, arguments.sentences or None)
    reviews = sample(workloads.labelled_reviews(arguments.data), arguments.reviews)
    order = list(range(len(sentences.texts) + len(reviews.texts)))
    random.Random(SEED).shuffle(order)
    both = workloads.Labelled(sentences.texts + reviews.texts, np.concatenate([sentences.labels, reviews.labels]))
    is_sentence = np.array(order) < len(sentences.texts)
    parts = {"SST-2": np.flatnonzero(is_sentence), "reviews": np.flatnonzero(~is_sentence)}
    shuffled = take(both, order)
    return sample(train, arguments.train_rows), Job(shuffled.texts, shuffled.labels, parts)


def take(rows: workloads.Labelled, chosen: Sequence[int]) -> workloads.Labelled:
    """The given rows in the given order."""
    return workloads.Labelled([rows.texts[row] for row in chosen], rows.labels[np.array(chosen, np.int64)])


def sample(rows: workloads.Labelled, count: int | None) -> workloads.Labelled:
    """A seeded random sample."""
    return take(rows, sample_rows(len(rows.texts), count))


def embed(model: ModelSpec, way: Way, texts: list[str]) -> Embedded:
    """Embeddings of the texts. Raises a PackhorseError or ImportError where this machine has no such way."""
    engine = BareEngine(model, way.backend, way.precision, way.attention, texts)
    try:
        tokens = engine.tokenize(texts)
        embeddings = engine.forward(tokens, engine.batches(tokens.lengths))
        return Embedded(embeddings, stratified(tokens.lengths), engine.plan.attention, engine.plan.notes)
    finally:
        engine.close()


def train_head(embeddings: np.ndarray, labels: np.ndarray) -> Head:
    """Newton's method on the mean logistic loss with an L2 penalty (not on the bias): converges in a few steps."""
    inputs = np.concatenate([embeddings.astype(np.float64), np.ones((len(embeddings), 1))], axis=1)
    penalty = np.full(inputs.shape[1], L2)
    penalty[-1] = 0
    weights = np.zeros(inputs.shape[1])
    for _ in range(NEWTON_STEPS):
        positive = 1 / (1 + np.exp(-inputs @ weights))
        gradient = inputs.T @ (positive - labels) / len(inputs) + penalty * weights
        curvature = (inputs * (positive * (1 - positive))[:, None]).T @ inputs / len(inputs)
        step = np.linalg.solve(curvature + np.diag(penalty + 1e-12), gradient)
        weights -= step
        if np.abs(step).max() < 1e-8 * np.abs(weights).max():
            break
    return Head(weights[:-1], float(weights[-1]))


def judge(model: ModelSpec, way: Way, job: Job, head: Head, reference: Embedded) -> dict[str, Any]:
    """Accuracy of a way, how it differs from the reference, and what the gate says; or why there is no such way."""
    result: dict[str, Any] = {"way": way.label, **way._asdict()}
    try:
        found = reference if way == REFERENCE else embed(model, way, job.texts)
    except (PackhorseError, ImportError, RuntimeError) as error:
        return result | {"error": f"{type(error).__name__}: {error}".replace(str(model.folder), "minilm")}
    before, after = head.scores(reference.embeddings), head.scores(found.embeddings)
    right = {name: (scores.argmax(1) == job.labels) for name, scores in (("before", before), ("after", after))}
    return result | {
        "attention": found.attention,
        "notes": list(found.notes),
        "parts": {name: accuracy(right["before"][rows], right["after"][rows]) for name, rows in job.parts.items()},
        "changed_labels": int((before.argmax(1) != after.argmax(1)).sum()),
        "embedding": verdicts(reference.embeddings, found.embeddings, EMBEDDING, way.precision, found.sample),
        "scores": verdicts(before, after, SCORES, way.precision, found.sample),
    }


def accuracy(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Share of rows classified rightly, its change to the reference, and half of the change's 95% interval.

    The interval is of paired rows: only those count that only one of both gets right.
    """
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    variance = max((lost + won) - (won - lost) ** 2 / len(before), 0.0)
    return {
        "accuracy": float(after.mean()),
        "change": (won - lost) / len(before),
        "change_plus_minus": 1.96 * variance**0.5 / len(before),
    }


def verdicts(
    reference: np.ndarray, candidate: np.ndarray, reduction: Reduction, precision: str, rows: np.ndarray
) -> dict[str, Any]:
    """The gate's verdict on its rows, and the same rules on all rows."""
    tolerance = default_tolerance(precision, reduction)
    gate: Verdict = compare(reference[rows], candidate[rows], reduction, tolerance)
    every: Verdict = compare(reference, candidate, reduction, tolerance)
    return {"tolerance": tolerance, "gate": gate._asdict(), "all_rows": every._asdict()}


def line(way: Way, result: dict[str, Any]) -> str:
    """A way in a few lines of text."""
    if "error" in result:
        return f"{way.label}: not here ({result['error']})"
    parts = [
        f"{name} {part['accuracy']:.2%} ({part['change']:+.2%} +-{part['change_plus_minus']:.2%})"
        for name, part in result["parts"].items()
    ]
    lines = [f"{way.label}: accuracy {', '.join(parts)}; {result['changed_labels']} labels changed"]
    for name in ("embedding", "scores"):
        gate, every = result[name]["gate"], result[name]["all_rows"]
        word = "passes" if gate["passed"] else "FAILS "
        agree = "" if gate["passed"] == every["passed"] else f"; all {every['rows']:,} rows say otherwise"
        lines.append(f"    {name:9} {word}: {gate['finding']}{agree}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
