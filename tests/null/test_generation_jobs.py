"""Jobs that generate, with a model that writes a checksum: order, resume, samples, prompts, errors, memory."""

from __future__ import annotations

import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

import packhorse
from packhorse import generating
from packhorse.backends.null.generator import NullGenerator
from packhorse.config import EngineConfig
from packhorse.data import Position, RowError, Shard, Tokens
from packhorse.errors import DeviceOutOfMemoryError, UsageError
from packhorse.generation import Decoding, Generated, Prompts
from packhorse.loading import Loader
from packhorse.loading.writing import choose_writing
from packhorse.metrics import Counters
from packhorse.readers.cut import ShardRows
from packhorse.sequences import Tokenized
from packhorse.shard import Budget, predict
from packhorse.stages import OnStep
from packhorse.tokenize.dedup import Unique
from tests.models import save_null_model
from tests.null.runs import parts, rows_of, run, run_until_stopped

WORDS = ["a", "good", "film", "the", "plot", "is", "dull", "very", "long", "movie"]
CHAT = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}it {% endif %}"


@pytest.fixture
def writer(tmp_path: Path) -> Path:
    return save_null_model(tmp_path / "writer", architecture="LlamaForCausalLM", max_length=40)


def texts(count: int) -> list[str]:
    return [" ".join(WORDS[(i * k) % 10] for k in range(1, i % 7 + 2)) for i in range(count)]


def save(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("settings", [{}, {"do_sample": True}, {"do_sample": True, "num_return_sequences": 3}])
def test_stopped_anywhere_and_resumed_the_output_is_that_of_an_uninterrupted_run(
    writer: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    rows = save(tmp_path / "rows.jsonl", [{"text": t} for t in texts(60)])
    job = {"max_new_tokens": 9, "shard_rows": 8, "logprobs": True, "batch_size": 3, **settings}
    run(writer, rows, tmp_path / "whole/", **job)
    stops = 0
    for looks in range(1, 40, 3):
        if not run_until_stopped(writer, rows, tmp_path / "stopped/", looks, **job):
            break
        stops += 1
    run(writer, rows, tmp_path / "stopped/", **job)
    assert stops > 3
    assert parts(tmp_path / "stopped") == parts(tmp_path / "whole")


def test_a_sample_depends_on_seed_and_row_number_alone(writer: Path, tmp_path: Path) -> None:
    rows = save(tmp_path / "rows.jsonl", [{"text": "a good film"} for _ in range(30)])
    job = {"max_new_tokens": 12, "do_sample": True}

    def written(name: str, **settings: Any) -> list[str]:
        run(writer, rows, tmp_path / name, **job, **settings)
        return [row["generated_text"] for row in rows_of(tmp_path / name)]

    first = written("a/")
    assert len(set(first)) == 30
    assert written("b/", shard_rows=4, batch_size=2) == first
    assert written("c/", limit=11) == first[:11]
    assert set(written("d/", seed=1)).isdisjoint(first)


def test_a_greedy_job_computes_equal_prompts_once(writer: Path, tmp_path: Path) -> None:
    rows = save(tmp_path / "rows.jsonl", [{"text": t} for t in ["a good film", "the plot"] * 20])
    report = run(writer, rows, tmp_path / "out/", max_new_tokens=12)
    assert report.counters.duplicate_rows == 38
    assert len({row["generated_text"] for row in rows_of(tmp_path / "out")}) == 2
    assert report.counters.generated_tokens == sum(row["num_generated_tokens"] for row in rows_of(tmp_path / "out")[:2])


def test_the_seed_column_takes_the_place_of_the_row_number(writer: Path, tmp_path: Path) -> None:
    same = save(tmp_path / "same.jsonl", [{"text": "a good film", "user": "ann"} for _ in range(6)])
    run(writer, same, tmp_path / "same/", max_new_tokens=12, do_sample=True, seed_column="user")
    assert len({row["generated_text"] for row in rows_of(tmp_path / "same")}) == 1
    rows: list[dict[str, Any]] = [{"text": "a good film", "n": n} for n in (7, -1, 7, None, 2**62)]
    run(writer, save(tmp_path / "n.jsonl", rows), tmp_path / "n/", max_new_tokens=12, do_sample=True, seed_column="n")
    written = rows_of(tmp_path / "n")
    assert written[0]["generated_text"] == written[2]["generated_text"] != written[1]["generated_text"]
    assert written[3]["generated_text"] is None
    assert written[3]["error"]["kind"] == "null_seed"
    assert written[4]["error"] is None
    with pytest.raises(UsageError, match=r"--seed-column nobody: no such column; the input has text, user"):
        run(writer, same, tmp_path / "none/", seed_column="nobody")


def test_errors_are_rows_and_neighbours_are_untouched(writer: Path, tmp_path: Path) -> None:
    good = texts(9)
    rows: list[Any] = [*good[:3], None, *good[3:6], " ".join(WORDS * 5), *good[6:]]
    job = {"max_new_tokens": 8}
    run(writer, save(tmp_path / "bad.jsonl", [{"text": t} for t in rows]), tmp_path / "bad/", **job)
    run(writer, save(tmp_path / "good.jsonl", [{"text": t} for t in good]), tmp_path / "good/", **job)
    written, clean = rows_of(tmp_path / "bad"), rows_of(tmp_path / "good")
    assert written[3]["error"]["kind"] == "null_text"
    assert written[7]["error"]["kind"] == "prompt_too_long"
    assert "52 tokens, and the model takes 40" in written[7]["error"]["message"]
    assert all(written[i][name] is None for i in (3, 7) for name in ("generated_text", "finish_reason"))
    assert [row for i, row in enumerate(written) if i not in (3, 7)] == clean


def test_a_long_prompt_is_cut_where_that_is_said(writer: Path, tmp_path: Path) -> None:
    rows = save(tmp_path / "rows.jsonl", [{"text": " ".join(WORDS * 5)}, {"text": "a good film"}])
    report = run(writer, rows, tmp_path / "out/", max_new_tokens=8, long="truncate")
    long, short = rows_of(tmp_path / "out")
    assert long["num_prompt_tokens"] == 40 - 8
    assert short["num_prompt_tokens"] == 5
    assert (report.counters.truncated_rows, report.counters.truncated_tokens) == (1, 52 - 32)


def test_out_of_memory_halves_the_rows_at_once(writer: Path) -> None:
    loader = Loader(EngineConfig(model=str(writer), backend="null", max_new_tokens=6))
    stages = loader.stages(choose_writing(loader, 20, "text"), keep=[])
    table = pa.table({"text": texts(20)})
    expected = predict(ShardRows.of(table, {}), stages, Budget(1_000, 16))
    steps: list[int] = []
    small = NullGenerator(Decoding({"max_new_tokens": 6}), 40, capacity_rows=3, before_step=steps.append)
    tight = dataclasses.replace(stages, model=small)
    assert predict(ShardRows.of(table, {}), tight, Budget(1_000, 16)).equals(expected)
    assert len(steps) > 20 // 3


@pytest.mark.parametrize("tokens", [10_000, 40])
def test_a_prompt_that_never_fits_is_an_error_and_no_loop(writer: Path, tokens: int) -> None:
    loader = Loader(EngineConfig(model=str(writer), backend="null", max_new_tokens=6, logprobs=True))
    stages = loader.stages(choose_writing(loader, 20, "text"), keep=[])
    table = pa.table({"text": texts(20)})
    expected = predict(ShardRows.of(table, {}), stages, Budget(tokens, 16)).to_pylist()
    decoding = Decoding({"max_new_tokens": 6}, with_logprobs=True)
    none = dataclasses.replace(stages, model=NullGenerator(decoding, 40, capacity_rows=0))
    rows = predict(ShardRows.of(table, {}), none, Budget(tokens, 16)).to_pylist()
    assert {row["error"]["kind"] for row in rows} == {"out_of_memory"}
    some = dataclasses.replace(stages, model=FitsShort(decoding, 40))
    rows = predict(ShardRows.of(table, {}), some, Budget(tokens, 16)).to_pylist()
    kinds = [row["error"] and row["error"]["kind"] for row in rows]
    assert 0 < kinds.count("out_of_memory") < 20
    assert [row for row in rows if row["error"] is None] == [
        row for row, kind in zip(expected, kinds, strict=True) if kind is None
    ]


class FitsShort(NullGenerator):
    """Holds one prompt of a few tokens."""

    def generate(self, prompts: Prompts, max_rows: int, max_prefill_tokens: int, on_step: OnStep) -> Generated:
        if prompts.num_rows > 1 or int(prompts.tokens.lengths.max()) > 6:
            raise DeviceOutOfMemoryError("too long")
        return super().generate(prompts, max_rows, max_prefill_tokens, on_step)


def test_templates_and_chats_are_prompts(writer: Path, tmp_path: Path) -> None:
    (writer / "chat_template.jinja").write_text(CHAT)
    messages = [[{"role": "user", "content": t}] for t in ("a good film", "the plot")]
    rows: list[dict[str, Any]] = [
        {"title": "film", "n": i, "body": body, "chat": chat}
        for i, (body, chat) in enumerate(zip(["good plot", "dull"], messages, strict=True))
    ]
    source = save(tmp_path / "rows.jsonl", rows)
    plain = save(tmp_path / "plain.jsonl", [{"text": "the film 0: good plot"}, {"text": "the film 1: dull"}])
    run(writer, source, tmp_path / "template/", template="the {title} {n}: {body}", max_new_tokens=9)
    run(writer, plain, tmp_path / "plain/", max_new_tokens=9)
    assert _written(tmp_path / "template") == _written(tmp_path / "plain")
    assert list(rows_of(tmp_path / "template")[0])[:4] == ["title", "n", "body", "chat"]
    run(writer, source, tmp_path / "chat/", messages_column="chat", max_new_tokens=9)
    run(writer, source, tmp_path / "wrapped/", text_column="body", system_prompt="read", max_new_tokens=9)
    bare = partial(Tokenizer.from_file(str(writer / "tokenizer.json")).encode, add_special_tokens=False)
    chats = [len(bare(f"user {text} it ").ids) for text in ("a good film", "the plot")]
    assert [n for *_, n in _written(tmp_path / "chat")] == chats
    wrapped = [len(bare(f"system read user {text} it ").ids) for text in ("good plot", "dull")]
    assert [n for *_, n in _written(tmp_path / "wrapped")] == wrapped
    table = pa.table({"chat": messages})
    pq.write_table(table, tmp_path / "typed.parquet")
    run(writer, tmp_path / "typed.parquet", tmp_path / "typed/", messages_column="chat", max_new_tokens=9)
    assert _written(tmp_path / "typed") == _written(tmp_path / "chat")


def _written(folder: Path) -> list[tuple[str, int]]:
    return [(row["generated_text"], row["num_prompt_tokens"]) for row in rows_of(folder)]


def test_a_resumed_run_tells_the_chat_template_the_same_time(writer: Path, tmp_path: Path) -> None:
    (writer / "chat_template.jinja").write_text("{{ strftime_now('%S%f') }} " + CHAT)
    rows = save(tmp_path / "rows.jsonl", [{"text": t} for t in texts(30)])
    job = {"max_new_tokens": 9, "shard_rows": 4, "chat": True}
    assert run_until_stopped(writer, rows, tmp_path / "out/", 12, **job)
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    for name in ("out/", "copy/"):
        run(writer, rows, tmp_path / name, **job)
    run(writer, rows, tmp_path / "later/", **job)
    assert len(parts(tmp_path / "out")) == 8
    assert parts(tmp_path / "out") == parts(tmp_path / "copy")
    assert parts(tmp_path / "out") != parts(tmp_path / "later")


def test_some_rows_of_a_shard_keep_their_numbers(writer: Path) -> None:
    """As --retry-errors computes them."""
    loader = Loader(EngineConfig(model=str(writer), backend="null", max_new_tokens=9, do_sample=True))
    stages = loader.stages(choose_writing(loader, 20, "text"), keep=[])
    table, shard = pa.table({"text": ["a good film"] * 20}), Shard(3, 600, 20, Position(0, 0), Position(0, 20))
    picked = np.array([2, 3, 17])
    whole = predict(ShardRows(shard, table, {}), stages, Budget(1_000, 16))
    some = ShardRows(dataclasses.replace(shard, num_rows=3), table.take(picked), {}, picked)
    assert predict(some, stages, Budget(1_000, 16)).equals(whole.take(picked))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": 0.5}, "--temperature: belongs to generation, and this model does text-classification"),
        ({"template": "{text}"}, "--template, --messages-column and --chat make prompts"),
        ({"engine": "static"}, "--engine: belongs to generation"),
    ],
)
def test_settings_of_generation_are_refused_elsewhere(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    model = save_null_model(tmp_path / "classifier")
    rows = save(tmp_path / "rows.jsonl", [{"text": "a good film"}])
    with pytest.raises(UsageError, match=words):
        run(model, rows, tmp_path / "out/", **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batching": "padded"}, "--batching padded: not for text-generation"),
        ({"backend": "onnx"}, "--backend onnx: text-generation runs on torch or vllm or null"),
        ({"template": "{nobody}"}, "nobody"),
        ({"template": "{text}", "text_column": "text"}, "--text-column and --template both say what the prompt is"),
        ({"task": "summarization"}, "has no encoder: --task text-generation"),
        ({"json_schema": "[1]"}, "--json-schema"),
        ({"choices": ("a",)}, "at least two different ones"),
        ({"generation": {"temperature": 1}}, "it has a flag of its own, --temperature"),
        ({"chat": True}, "chat template"),
        ({"max_memory": "cpu=1GB"}, "--device-map"),
    ],
)
def test_what_cannot_be_meant_is_refused(writer: Path, tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    rows = save(tmp_path / "rows.jsonl", [{"text": "a good film"}])
    with pytest.raises(UsageError, match=words):
        packhorse.run(writer, rows, tmp_path / "out/", **({"backend": "null"} | settings))
    assert not (tmp_path / "out").exists()


def test_outputs_go_to_all_rows_that_their_prompt_stands_for() -> None:
    ids = np.arange(6, dtype=np.int32)
    made = Generated(
        ids, np.array([0, 1, 3, 3, 6]), np.array([0, 1, 0, 1], np.int8), np.array([4, 0, 0, 2], np.int32),
        ids.astype(np.float32), {1: RowError("engine_failed", "it did")},
    )  # fmt: skip
    spread = generating.spread(made, Unique(np.array([0, 3]), np.array([0, 1, -1, 1, 0])), 5)
    assert spread.ids.tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 5, 0, 1, 2]
    assert spread.lengths.tolist() == [1, 2, 0, 3, 0, 0, 0, 3, 1, 2]
    assert spread.reasons.tolist() == [0, 1, 0, 1, 0, 0, 0, 1, 0, 1]
    assert spread.near_ties.tolist() == [4, 0, 0, 2, 0, 0, 0, 2, 4, 0]
    assert spread.logprobs is not None
    assert spread.logprobs.tolist() == spread.ids.tolist()
    tokenized = Tokenized(Tokens(np.empty(0, np.int32), np.zeros(6, np.int64)), {2: RowError("null_text", "")})
    assert list(generating.all_errors(spread, tokenized)) == [1, 2, 3]


def test_an_engine_that_answers_for_too_few_prompts_is_noticed() -> None:
    class Partial(NullGenerator):
        def generate(self, prompts: Prompts, *args: Any) -> Generated:
            return super().generate(prompts.take(np.array([0, 1])), *args)

    prompts = Prompts(Tokens(np.arange(9, dtype=np.int32), np.array([0, 3, 6, 9])), np.arange(3, dtype=np.uint64))
    model = Partial(Decoding({"max_new_tokens": 4}), None)
    with pytest.raises(RuntimeError, match="2 outputs for 3 prompts"):
        generating.generate(prompts, model, 8, 100, lambda *_: None, Counters())
