"""Every task that transformers' pipeline has, by that pipeline with 32 rows a batch and by packhorse.pipeline.

    python bench/tasks.py --json bench/results/tasks-minilm.json             # about 15 minutes on 2 cores
    python bench/tasks.py --tasks fill-mask --rows 60 --repeat 1             # for trying

Rows are pieces of movie reviews and short sentences in random order, the same for both, fp32. Each contender runs in a
process of its own, in turn; timed is the call with all rows, from texts to results, after a call with a few. Results of
both are compared, all of them. transformers 5 has no question-answering: beside it stands a loop over windows, 32 a
batch, as version 4's pipeline made them (Windows32), without its decoding of answers.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import task_models, workloads
from packhorse.comparison.machine import busy_share, read_machine, read_versions
from packhorse.comparison.processes import last_line
from packhorse.comparison.rows import save_json

CONTENDERS = ("pipeline_32", "packhorse")
PIECES = (20, 60, 150, 400, 1_200, 2_400)  # characters of a review, as often each
CANDIDATES = ["films", "books", "politics", "sports", "science", "music", "travel", "food", "health", "money"]
QUESTION = "what is the film about?"
WARM_UP = 8  # rows
TOLERANCE = 1e-4
ROWS = {"zero-shot-classification": 0.2, "question-answering": 0.5}  # of the rows, since each is several sequences


def main() -> None:
    """Each task's contenders in turn, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--tasks", default=",".join(task_models.HEADS), help="by comma")
    add("--shape", choices=sorted(task_models.SHAPES), default="minilm")
    add("--rows", type=int, default=600)
    add("--repeat", type=int, default=3, help="rounds, A B A B; medians are given (default: %(default)s)")
    add("--data", type=Path, default=workloads.DEFAULT_DATA)
    add("--json", type=Path, metavar="FILE")
    add("--child", nargs=4, metavar=("CONTENDER", "TASK", "FOLDER", "ROWS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    machine = read_machine()
    print(f"{machine.cpu}, {machine.cores} cores, {busy_share():.0%} busy before", flush=True)
    lines = [measured(task, arguments) for task in arguments.tasks.split(",")]
    if arguments.json:
        settings = {k: v for k, v in vars(arguments).items() if k not in ("json", "data", "child")}
        versions = read_versions(workloads.ROOT)
        content = {"settings": settings, "machine": vars(machine), "versions": versions, "tasks": lines}
        save_json(arguments.json, content)


def texts_of(count: int, data: Path) -> list[str]:
    """Half pieces of reviews of six sizes, half sentences, shuffled."""
    draw = random.Random(0)
    reviews, sentences = workloads.reviews(data), workloads.labelled_sst2(data, "dev").texts
    pieces = [draw.choice(reviews)[: PIECES[i % len(PIECES)]] for i in range(count // 2)]
    texts = pieces + draw.sample(sentences, count - len(pieces))
    draw.shuffle(texts)
    return texts


def inputs_of(task: str, texts: list[str]) -> list[Any]:
    if task == "question-answering":
        return [{"question": QUESTION, "context": text} for text in texts]
    if task == "fill-mask":
        return [" ".join(["[MASK]", *text.split()[1:]]) for text in texts]
    return texts


def measured(task: str, arguments: argparse.Namespace) -> dict[str, Any]:
    folder = task_models.resolve(task, arguments.shape)
    texts = texts_of(int(arguments.rows * ROWS.get(task, 1)), arguments.data)
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch) / "rows.json"
        rows.write_text(json.dumps(inputs_of(task, texts)), encoding="utf-8")
        for _ in range(arguments.repeat):
            for name in CONTENDERS:
                seconds[name].append(in_child(name, task, folder, rows))
        same = agreement(task, *(Path(f"{rows}.{name}") for name in CONTENDERS))
    rates = {name: len(texts) / median(found) for name, found in seconds.items()}
    line = {"task": task, "rows": len(texts), "rows_per_s": rates, "ratio": rates["packhorse"] / rates["pipeline_32"],
            "seconds": seconds, "agreement": same}  # fmt: skip
    told = f"{rates['pipeline_32']:8.1f} {rates['packhorse']:8.1f} rows/s  {line['ratio']:5.2f}x  {same}"
    print(f"{task:26} {told}", flush=True)
    return line


def in_child(name: str, task: str, folder: Path, rows: Path) -> float:
    """Seconds of a contender in a process of its own."""
    log = rows.with_suffix(".log")
    command = [sys.executable, __file__, "--child", name, task, str(folder), str(rows)]
    with log.open("w", encoding="utf-8") as errors:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{task}, {name}: {last_line(log, done.returncode)}")
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def agreement(task: str, *files: Path) -> str:
    """Rows whose results are the same: names equal, numbers within the tolerance."""
    if task == "question-answering":
        return "not compared"
    theirs, ours = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    if task == "feature-extraction":  # of a batch the pipeline gives vectors of the padding too
        theirs = [[vectors[: len(mine[0])] for vectors in row] for row, mine in zip(theirs, ours, strict=True)]
    return f"{sum(map(same, ours, theirs))} of {len(theirs)} rows the same"


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    return abs(one - other) <= TOLERANCE * max(1.0, abs(one)) if isinstance(one, float) else bool(one == other)


# -- in a process of its own


def child(contender: str, task: str, folder: str, rows: str) -> None:
    """Prints {"seconds"}, writes the results beside the rows."""
    inputs = json.loads(Path(rows).read_text(encoding="utf-8"))
    call = theirs(task, folder) if contender == "pipeline_32" else ours(task, folder)
    call(inputs[:WARM_UP])
    begin = time.perf_counter()
    results = call(inputs)
    seconds = time.perf_counter() - begin
    Path(f"{rows}.{contender}").write_text(json.dumps(results, default=float), encoding="utf-8")
    print(json.dumps({"seconds": seconds}))


def parameters(task: str) -> dict[str, Any]:
    if task == "zero-shot-classification":
        return {"candidate_labels": CANDIDATES}
    return {"aggregation_strategy": "simple"} if task == "token-classification" else {}


def ours(task: str, folder: str) -> Any:
    import packhorse

    return packhorse.pipeline(task, folder, dtype="float32", **parameters(task))


def theirs(task: str, folder: str) -> Any:
    import transformers

    if task == "question-answering":
        return windows_32(folder)
    pipe = transformers.pipeline(task, folder, dtype="float32", batch_size=32)
    if task == "zero-shot-classification":
        return lambda rows: pipe(rows, **parameters(task))
    cut = {"truncation": True}
    named = {"fill-mask": {"tokenizer_kwargs": cut}, "feature-extraction": {"tokenize_kwargs": cut}}
    kwargs: dict[str, Any] = named.get(task, cut)
    if task == "token-classification":  # cuts by itself
        return lambda rows: pipe(rows, **parameters(task))
    return lambda rows: pipe(rows, **kwargs)


def windows_32(folder: str) -> Any:
    """Windows of 384 tokens, 128 of them shared, in the order of the rows, 32 a batch, padded to the longest."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder, dtype=torch.float32).eval()

    def answer(rows: list[dict[str, str]]) -> list[int]:
        windows = []
        for row in rows:
            made = tokenizer(row["question"], row["context"], max_length=384, stride=128, truncation="only_second",
                             return_overflowing_tokens=True)  # fmt: skip
            windows += [{k: made[k][i] for k in tokenizer.model_input_names} for i in range(len(made["input_ids"]))]
        found = []
        for begin in range(0, len(windows), 32):
            batch = tokenizer.pad(windows[begin : begin + 32], return_tensors="pt")
            with torch.inference_mode():
                output = model(**batch)
            found += (output.start_logits.argmax(1) + output.end_logits.argmax(1)).tolist()
        return found

    return answer


if __name__ == "__main__":
    main()
