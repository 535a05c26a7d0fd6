"""The process in which one way to generate runs: `python -m bench.generation_contenders JOB.json`.

It writes result.json and ids.npz beside the job file. All contenders get the texts in the same random order and the
same lengths of outputs; the clock runs from texts to texts (packhorse: from file to files), tokenizing included, the
loading of the model and a short generate() before it not.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.generation_forcing import Lengths, force_lengths
from packhorse.comparison.rows import save_json
from packhorse.devices.host import rss_peak_bytes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TASKS = {"llm": "text-generation", "t5": "text2text-generation", "bart": "text2text-generation"}
WARMUP_TOKENS = 4
PAGE_TOKENS, MAX_BATCH_TOKENS = 64, 1_024  # of generate_batch()


class Job(NamedTuple):
    """What a contender is told."""

    contender: str  # NAME, or NAME_N with N rows a batch
    workload: str  # llm | t5 | bart
    folder: str
    texts: list[str]
    precision: str
    shortest: int
    longest: int
    settings: dict[str, Any]  # further ones of packhorse.load()


class Written(NamedTuple):
    """prompts and ids: those of row i of the texts, without padding; ids end with the end token."""

    prompts: list[np.ndarray]
    ids: list[np.ndarray]
    wall_s: float
    details: dict[str, Any]
    gaps: np.ndarray | None = None  # [tokens of all ids] from the best to the second best choice, of the reference


class Subject:
    """The model of a job in plain transformers, with a tokenizer."""

    def __init__(self, job: Job) -> None:
        from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

        self.job = job
        self.is_seq2seq = TASKS[job.workload] != "text-generation"
        auto = AutoModelForSeq2SeqLM if self.is_seq2seq else AutoModelForCausalLM
        self.tokenizer = AutoTokenizer.from_pretrained(job.folder)
        self.model = auto.from_pretrained(job.folder, dtype=DTYPES[job.precision]).eval()
        self.eos, self.pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        batch = self.tokenizer(["a few words"], return_tensors="pt")
        self.model.generate(**batch, max_new_tokens=WARMUP_TOKENS)

    def prompt_ids(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(list(texts))["input_ids"]
        return ids

    def written(self, batch_ids: torch.Tensor, sequences: torch.Tensor) -> list[np.ndarray]:
        """The outputs of generate() over a batch [B, n], each up to its first end token."""
        begin = 1 if self.is_seq2seq else batch_ids.shape[1]
        return [self.cut(row) for row in sequences[:, begin:].numpy()]

    def cut(self, row: np.ndarray) -> np.ndarray:
        ends = np.flatnonzero(row == self.eos)
        return row[: ends[0] + 1] if len(ends) else row

    def texts(self, ids: Sequence[np.ndarray]) -> list[str]:
        decoded: list[str] = self.tokenizer.batch_decode([row.tolist() for row in ids], skip_special_tokens=True)
        return decoded


# -- contenders


def reference(job: Job) -> Written:
    """generate() of one prompt at a time, and how sure each choice was."""
    subject = Subject(job)
    begin = time.perf_counter()
    prompts, ids, gaps = subject.prompt_ids(job.texts), [], []
    for prompt in prompts:
        one = torch.tensor([prompt])
        out = subject.model.generate(
            one, attention_mask=torch.ones_like(one), max_new_tokens=job.longest, output_scores=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        ids += subject.written(one, out.sequences)
        best = torch.stack([scores[0].float().topk(2).values for scores in out.scores])
        gaps.append((best[:, 0] - best[:, 1]).numpy())
    return Written(_arrays(prompts), ids, time.perf_counter() - begin, {}, np.concatenate(gaps))


def pipeline(job: Job, rows: int) -> Written:
    """transformers' pipeline in the order given, as its documentation calls it."""
    from transformers import pipeline as make_pipeline

    subject = Subject(job)
    pipe = make_pipeline(TASKS[job.workload], model=subject.model, tokenizer=subject.tokenizer, batch_size=rows)
    generate, calls = subject.model.generate, []

    def recorded(*arguments: Any, **settings: Any) -> Any:
        calls.append((settings["input_ids"], generate(*arguments, **settings)))
        return calls[-1][1]

    subject.model.generate = recorded
    begin = time.perf_counter()
    pipe(job.texts, return_full_text=False, max_new_tokens=job.longest, do_sample=False)
    wall_s = time.perf_counter() - begin
    ids = [row for batch, sequences in calls for row in subject.written(batch, sequences)]
    return Written(_arrays(subject.prompt_ids(job.texts)), ids, wall_s, {})


def style(job: Job, rows: int) -> Written:
    """The loop of transformers 4's summarization pipeline: the order given, each batch padded to its longest row."""
    return _batched(job, rows, is_sorted=False)


def static(job: Job, rows: int) -> Written:
    """generate() over batches sorted by the prompts' lengths, the longest first."""
    return _batched(job, rows, is_sorted=True)


def _batched(job: Job, rows: int, is_sorted: bool) -> Written:
    subject = Subject(job)
    begin = time.perf_counter()
    prompts = subject.prompt_ids(job.texts)
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row])) if is_sorted else list(range(len(prompts)))
    ids: dict[int, np.ndarray] = {}
    texts: dict[int, str] = {}
    for start in range(0, len(order), rows):
        places = order[start : start + rows]
        batch = subject.tokenizer.pad({"input_ids": [prompts[row] for row in places]}, return_tensors="pt")
        sequences = subject.model.generate(**batch, max_new_tokens=job.longest)
        outputs = subject.written(batch["input_ids"], sequences)
        ids.update(zip(places, outputs, strict=True))
        texts.update(zip(places, subject.texts(outputs), strict=True))
    wall_s = time.perf_counter() - begin
    return Written(_arrays(prompts), [ids[row] for row in range(len(prompts))], wall_s, {})


def generate_batch(job: Job, rows: int) -> Written:
    """transformers' continuous batching with paged SDPA: at most so many requests at a time, and a cache that holds the
    longest of them. (Left to itself it takes a share of the memory, and each step's mask goes over all of that.)"""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    subject = Subject(job)
    subject.model.set_attn_implementation("paged|sdpa")
    asked = GenerationConfig(
        max_new_tokens=job.longest, do_sample=False, eos_token_id=subject.eos, pad_token_id=subject.pad
    )
    begin = time.perf_counter()
    prompts = subject.prompt_ids(job.texts)
    pages = -(-(max(map(len, prompts)) + job.longest) // PAGE_TOKENS)
    settings = ContinuousBatchingConfig(
        page_size=PAGE_TOKENS, num_blocks=rows * (pages + 1), max_requests_per_batch=rows,
        max_batch_tokens=MAX_BATCH_TOKENS, per_request_processors=True,
    )  # fmt: skip
    outputs = subject.model.generate_batch(
        prompts, generation_config=asked, continuous_batching_config=settings, warmup=False
    )
    if len(outputs) != len(prompts) or any(output.error for output in outputs.values()):
        raise RuntimeError(f"generate_batch answered {len(outputs)} of {len(prompts)} requests, or some with errors")
    ids = [np.array(output.generated_tokens, np.int32) for output in outputs.values()]
    subject.texts(ids)
    return Written(_arrays(prompts), ids, time.perf_counter() - begin, {})


def packhorse(job: Job) -> Written:
    """A job from a file to files, its fingerprints, choices and commits included."""
    import packhorse
    from packhorse.backends.torch.generation.model import TorchGenerator

    captured: dict[bytes, np.ndarray] = {}
    _capture(TorchGenerator, captured)
    engine = packhorse.load(
        job.folder, task=TASKS[job.workload], precision=job.precision, max_new_tokens=job.longest,
        **job.settings,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="packhorse-generation-") as scratch:
        rows = Path(scratch) / "prompts.jsonl"
        rows.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in job.texts), encoding="utf-8")
        begin = time.perf_counter()
        report = engine.run(str(rows), f"{scratch}/out", text_column="prompt")
        wall_s = time.perf_counter() - begin
    prompts = _arrays(_tokenizer(job)(job.texts)["input_ids"])
    details = {
        "plan": report.plan, "setup_s": report.setup_s, "rows_s": report.wall_s, "error_rows": report.error_rows,
        "near_ties": report.counters.near_ties, "computed_tokens": report.counters.computed_tokens,
    }  # fmt: skip
    return Written(prompts, [captured[prompt.tobytes()] for prompt in prompts], wall_s, details)


def _capture(kind: Any, captured: dict[bytes, np.ndarray]) -> None:
    """Keep what generate() gives, by prompt: an output file has the text, from which ids do not follow."""
    generate: Callable[..., Any] = kind.generate

    def recorded(self: Any, prompts: Any, *arguments: Any) -> Any:
        out = generate(self, prompts, *arguments)
        tokens = prompts.tokens
        for i in range(tokens.num_rows):
            prompt = tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]].astype(np.int32)
            captured[prompt.tobytes()] = out.ids[out.offsets[i] : out.offsets[i + 1]]
        return out

    kind.generate = recorded


# -- around them


def contender(name: str) -> Callable[[Job], Written]:
    """By name: NAME, or NAME_N. Raises KeyError or ValueError."""
    whole: dict[str, Callable[[Job], Written]] = {"reference": reference, "packhorse": packhorse}
    if name in whole:
        return whole[name]
    kind, _, rows = name.rpartition("_")
    sized = {"pipeline": pipeline, "pipeline_style": style, "static": static, "generate_batch": generate_batch}
    return lambda job: sized[kind](job, int(rows))


def main(job_file: Path) -> None:
    content = json.loads(job_file.read_text(encoding="utf-8"))
    job = Job(**content)
    tokenizer = _tokenizer(job)
    lengths = Lengths(job.shortest, job.longest, tokenizer.eos_token_id, tokenizer.pad_token_id)
    force_lengths(lengths)
    written = contender(job.contender)(job)
    all_s = time.time() - psutil.Process().create_time()
    _check(written, lengths)
    save_json(job_file.parent / "result.json", _result(written, all_s))
    _save_ids(job_file.parent / "ids.npz", written)


def _result(written: Written, all_s: float) -> dict[str, Any]:
    return {
        "wall_s": written.wall_s, "setup_s": all_s - written.wall_s, "peak_bytes": rss_peak_bytes(),
        "prompt_tokens": sum(map(len, written.prompts)), "generated_tokens": sum(map(len, written.ids)),
        "threads": torch.get_num_threads(), "details": written.details,
    }  # fmt: skip


def _save_ids(file: Path, written: Written) -> None:
    sizes = np.array([len(row) for row in written.ids])
    gaps = np.empty(0, np.float32) if written.gaps is None else written.gaps
    np.savez(file, ids=np.concatenate(written.ids), sizes=sizes, gaps=gaps)


def _check(written: Written, lengths: Lengths) -> None:
    """Raises RuntimeError where an output has another length than the one that everybody has to give it."""
    for row, (prompt, ids) in enumerate(zip(written.prompts, written.ids, strict=True)):
        if len(ids) != lengths.of(prompt):
            raise RuntimeError(f"row {row}: {len(ids)} tokens, and everybody has to write {lengths.of(prompt)}")


def _tokenizer(job: Job) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(job.folder)


def _arrays(rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
    return [np.array(row, np.int32) for row in rows]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
