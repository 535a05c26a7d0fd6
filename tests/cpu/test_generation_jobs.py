"""Generation jobs with torch against transformers' generate(), one prompt at a time, in fp32: whatever the batch, the
shards and the engine, each row has the output that it has alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import packhorse
from packhorse.backends.torch.generation.compat import missing_for_paging
from packhorse.errors import InterruptedRunError, UsageError
from packhorse.executors.local import Stop
from packhorse.generation import NEAR_TIE
from tests.cpu.engine import load
from tests.null.runs import AfterLooks, parts
from tests.writers_of_text import CHAT, DECODERS, KINDS, POSITIONS, Reference, Written, save_writer, texts

TEXTS = texts(20)
NEW = 24
ASKED = {"max_new_tokens": NEW}
NAMES = {"t5": "summary_text", "bart": "translation_text"}  # of tasks that name their column otherwise

Alone = Callable[..., list[Written]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("writers")
    return {kind: save_writer(root / kind, kind, chat=CHAT) for kind in KINDS}


@pytest.fixture(scope="module")
def references(folders: dict[str, Path]) -> dict[str, Reference]:
    return {kind: Reference(folder) for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def alone(references: dict[str, Reference]) -> Alone:
    """What each text becomes by itself, greedily."""
    known: dict[str, list[Written]] = {}

    def written(kind: str) -> list[Written]:
        if kind not in known:
            known[kind] = [references[kind].generate(text, **ASKED)[0] for text in TEXTS]
        return known[kind]

    return written


def check_rows(table: Any, expected: Sequence[Written], reference: Reference, near_ties: int | None = None) -> None:
    """The columns are those of the reference. Another token is right only where the reference's two best logits are
    closer than NEAR_TIE, and only where the job counted such a step."""
    ids = table["generated_token_ids"].to_pylist()
    same = [i for i, (found, wanted) in enumerate(zip(ids, expected, strict=True)) if found == wanted.ids]
    for i in set(range(len(expected))) - set(same):
        assert near_ties, f"row {i}: {ids[i]} instead of {expected[i].ids}"
        assert reference_gap(reference, TEXTS[i], expected[i].ids, ids[i]) < NEAR_TIE
    assert len(same) >= len(expected) - (near_ties or 0)
    for i in same:
        assert table.column(0)[i].as_py() == expected[i].text
        assert table["num_prompt_tokens"][i].as_py() == expected[i].num_prompt_tokens
        assert table["num_generated_tokens"][i].as_py() == len(expected[i].ids)
        ends = expected[i].ids[-1] in reference.ends
        assert table["finish_reason"][i].as_py() == ("stop" if ends else "length")
    assert table["error"].null_count == len(table)


def reference_gap(reference: Reference, text: str, expected: list[int], found: list[int]) -> float:
    """Between the two best logits at the first step that differs."""
    step = next(i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b)
    best = reference.logits(text, expected)[step].topk(2).values
    return float(best[0] - best[1])


def engines_of(kind: str) -> list[tuple[str, int]]:
    sizes = [("auto", size) for size in (1, 5, 64)]
    return sizes + ([("static", 5), ("paged", 5), ("generate", 5)] if kind in DECODERS else [("generate", 5)])


@pytest.mark.parametrize(("kind", "engine", "rows"), [(k, *way) for k in KINDS for way in engines_of(k)])
def test_every_row_has_the_tokens_that_it_has_alone(
    folders: dict[str, Path], references: dict[str, Reference], alone: Alone, kind: str, engine: str, rows: int
) -> None:
    if engine == "paged" and (missing := missing_for_paging()) is not None:
        pytest.skip(missing)
    expected = alone(kind)
    lengths = {len(written.ids) for written in expected}
    is_cut = NEW in lengths or kind == "t5"  # whose first weights, and so lengths, differ by transformers' version
    assert len(lengths) > 3 and is_cut and min(lengths) < NEW // 2, "outputs too alike"
    logprobs = engine not in ("generate", "paged")  # transformers gives none of the model's own
    with load(folders[kind], engine=engine, batch_size=rows, logprobs=logprobs, **ASKED) as loaded:
        best = "continuous" if kind in DECODERS else "static"
        assert loaded.plan.engine == (best if engine == "auto" else engine) and loaded.plan.precision == "fp32"
        table = loaded.predict(TEXTS)
    if not logprobs:
        ids = pa.array([written.ids for written in expected], pa.list_(pa.int32()))
        assert table.column(0).to_pylist() == [written.text for written in expected]
        table = table.append_column("generated_token_ids", ids)
    check_rows(table, expected, references[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_in_shards_writes_what_each_row_has_alone(
    folders: dict[str, Path], references: dict[str, Reference], alone: Alone, kind: str, tmp_path: Path
) -> None:
    report = packhorse.run(
        folders[kind], {"text": TEXTS, "id": list(range(20))}, tmp_path / "out", devices="cpu", shard_rows=6,
        logprobs=True, keep=("id",), **ASKED,
    )  # fmt: skip
    table = pq.read_table(tmp_path / "out")
    assert table["id"].to_pylist() == list(range(20)) and report.parts == [f"part-{i:06d}.parquet" for i in range(4)]
    expected, counters = alone(kind), report.counters
    check_rows(table.drop_columns("id"), expected, references[kind], counters.near_ties)
    assert counters.rows == 20 and not counters.errors
    assert counters.generated_tokens == sum(len(written.ids) for written in expected)
    prompts = sum(written.num_prompt_tokens for written in expected)
    assert counters.real_tokens == prompts + counters.generated_tokens <= counters.computed_tokens + 20


@pytest.mark.parametrize("kind", ["llama", "bart"])
def test_beams_are_those_of_generate(folders: dict[str, Path], references: dict[str, Reference], kind: str) -> None:
    asked = {"num_beams": 3, "num_return_sequences": 2, **ASKED}
    with load(folders[kind], batch_size=8, **asked) as engine:
        assert engine.plan.engine == "generate"
        assert any("num_beams=3" in note for note in engine.plan.notes)
        table = engine.predict(TEXTS[:8])
    expected = [references[kind].generate(text, **asked) for text in TEXTS[:8]]
    assert table["generated_text"].to_pylist() == [[each.text for each in both] for both in expected]
    assert [len(row) for row in table["finish_reason"].to_pylist()] == [2] * 8


# -- sampling

SAMPLED = {"do_sample": True, "temperature": 1.3, "top_k": 40, "seed": 5, "max_new_tokens": NEW, "devices": "cpu"}


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_samples_are_the_same_under_other_batches_shards_limits_and_after_a_resume(
    folders: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    rows = {"text": ["the film", *TEXTS[1:10], *["the film"] * 5]}

    def written(name: str, **job: Any) -> list[str]:
        packhorse.run(folders[kind], rows, tmp_path / name, **SAMPLED | job)
        return list(pq.read_table(tmp_path / name)["generated_text"].to_pylist())

    first = written("a", shard_rows=4, batch_size=64)
    assert len({first[0], *first[10:]}) == 6, "equal prompts have samples of their own"
    assert written("b", batch_size=3) == first
    assert written("c", limit=7, batch_size=1) == first[:7]
    assert sum(a != b for a, b in zip(written("d", seed=6), first, strict=True)) > 10
    table, stops = pa.table(rows), 0
    for looks in (3, 9, 30):
        try:
            stop = Stop(AfterLooks(looks), signum=15)
            packhorse.run(folders[kind], table, tmp_path / "e", shard_rows=4, batch_size=64, stop=stop, **SAMPLED)
        except InterruptedRunError:
            stops += 1
    packhorse.run(folders[kind], table, tmp_path / "e", shard_rows=4, batch_size=64, **SAMPLED)
    assert stops >= 2 and parts(tmp_path / "e") == parts(tmp_path / "a")


def test_the_engines_draw_the_same_samples(folders: dict[str, Path]) -> None:
    def written(**settings: Any) -> list[list[str]]:
        with load(folders["qwen3"], **SAMPLED | {"num_return_sequences": 3} | settings) as engine:
            return list(engine.generate(TEXTS[:6]))

    continuous = written(batch_size=4)
    assert all(len(set(samples)) == 3 for samples in continuous[:5])
    assert written(batch_size=7, engine="static") == continuous
    assert [samples[0] for samples in continuous] == written(num_return_sequences=1)


def test_very_peaked_sampling_is_greedy(folders: dict[str, Path], alone: Alone) -> None:
    with load(folders["gpt2"], do_sample=True, top_k=1, **ASKED) as engine:
        assert engine.generate(TEXTS) == [written.text for written in alone("gpt2")]


# -- columns


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "bart"])
def test_logprobs_are_those_of_a_plain_forward(
    folders: dict[str, Path], references: dict[str, Reference], kind: str
) -> None:
    """Of the model's own distribution: neither the penalty nor the temperature is in them."""
    asked = {"do_sample": True, "temperature": 0.7, "repetition_penalty": 1.2}
    with load(folders[kind], logprobs=True, batch_size=4, **asked, **ASKED) as engine:
        table = engine.predict(TEXTS[:8])
    for text, ids, logprobs in zip(
        TEXTS[:8], table["generated_token_ids"].to_pylist(), table["logprobs"].to_pylist(), strict=True
    ):
        np.testing.assert_allclose(logprobs, references[kind].logprobs(text, ids), atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "bart"])
@pytest.mark.parametrize("engine", ["auto", "generate"])
def test_stop_strings_end_an_output_where_generate_ends_it(
    folders: dict[str, Path], references: dict[str, Reference], alone: Alone, kind: str, engine: str
) -> None:
    stops = sorted({text[1] for text in (w.text for w in alone(kind)) if len(text) > 8 and text[1].isprintable()})[:3]
    asked = {"stop_strings": stops, **ASKED}
    expected = [references[kind].generate(text, **asked)[0] for text in TEXTS[:8]]
    ends = references[kind].ends
    with load(folders[kind], engine=engine, **asked) as loaded:
        table = loaded.predict(TEXTS[:8])
    assert table["generated_text"].to_pylist() == [written.text for written in expected]
    ended = [len(w.ids) < NEW or any(s in w.text for s in stops) for w in expected]
    assert any(ended[i] and expected[i].ids[-1] not in ends for i in range(8)), "no stop string was written"
    reasons = table["finish_reason"].to_pylist()
    assert [r for r, w in zip(reasons, expected, strict=True) if w.ids[-1] not in ends and len(w.ids) == NEW] == [
        "stop" if any(s in w.text for s in stops) else "length"
        for w in expected
        if w.ids[-1] not in ends and len(w.ids) == NEW
    ]
    assert all(r == "stop" for r, w in zip(reasons, expected, strict=True) if len(w.ids) < NEW)


@pytest.mark.parametrize("kind", DECODERS)
def test_the_models_last_position_ends_an_output(tmp_path: Path, folders: dict[str, Path], kind: str) -> None:
    endless = save_writer(tmp_path / kind, kind, ends=None)
    reference = Reference(endless)
    prompt = "abc " * 60
    room = POSITIONS - (POSITIONS - 9)
    text = reference.tokenizer.decode(reference.tokenizer(prompt).input_ids[: POSITIONS - room])
    num_prompt = len(reference.tokenizer(text).input_ids)
    with load(endless, **ASKED) as engine:
        table = engine.predict(["a film", text, prompt])
    expected = [
        reference.generate("a film", **ASKED)[0],
        reference.generate(text, max_new_tokens=POSITIONS - num_prompt)[0],
    ]
    assert table["generated_text"].to_pylist() == [*(w.text for w in expected), None]
    assert table["num_generated_tokens"].to_pylist() == [NEW, POSITIONS - num_prompt, None]
    assert table["finish_reason"].to_pylist() == ["length", "length", None]
    assert table["error"][2].as_py()["kind"] == "prompt_too_long"


def test_summaries_and_translations_have_columns_of_their_own(folders: dict[str, Path], alone: Alone) -> None:
    for kind, task in (("t5", "summarization"), ("bart", "translation")):
        with load(folders[kind], task=task, **ASKED) as engine:
            assert engine.predict(TEXTS)[NAMES[kind]].to_pylist() == [w.text for w in alone(kind)]


# -- prompts


def test_templates_and_messages_are_prompts(
    folders: dict[str, Path], references: dict[str, Reference], tmp_path: Path
) -> None:
    """Chats go through the tokenizer's own apply_chat_template, and no special token is put around them."""
    reference = references["qwen3"]
    chats = [
        [{"role": "user", "content": "the film"}],
        [{"role": "system", "content": "be brief"}, {"role": "user", "content": "naïve café?"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
    ]
    rows = [{"title": f"film {i}", "year": 1990 + i, "chat": json.dumps(chat)} for i, chat in enumerate(chats)]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def written(name: str, **job: Any) -> list[str]:
        packhorse.run(folders["qwen3"], source, tmp_path / name, devices="cpu", **ASKED, **job)
        return list(pq.read_table(tmp_path / name)["generated_text"].to_pylist())

    plain = [f"{row['title']} ({row['year']}):" for row in rows]
    assert written("template", template="{title} ({year}):") == [
        reference.generate(text, **ASKED)[0].text for text in plain
    ]

    def of_chats(chats: list[Any]) -> list[str]:
        prompts = [
            reference.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats
        ]
        return [reference.generate(prompt, special=False, **ASKED)[0].text for prompt in prompts]

    assert written("chat", messages_column="chat") == of_chats(chats)
    wrapped = [[{"role": "system", "content": "rate"}, {"role": "user", "content": f"{r['title']}!"}] for r in rows]
    assert written("wrapped", template="{title}!", system_prompt="rate") == of_chats(wrapped)
    with load(folders["qwen3"], **ASKED) as engine:
        mixed = engine.generate([chats[0], None, "the film", "", chats[2]])
        whole = of_chats([chats[0], chats[0], chats[2]])
        assert [mixed[0], mixed[2], mixed[4]] == whole and mixed[1] is None
        assert mixed[3] == of_chats([[{"role": "user", "content": ""}]])[0], "an empty message is a message"


def test_generate_gives_texts_and_none_where_there_is_nothing_to_go_on_from(
    folders: dict[str, Path], alone: Alone
) -> None:
    with load(folders["llama"], **ASKED) as engine:
        assert engine.generate([TEXTS[0], None, "", TEXTS[1]]) == [
            alone("llama")[0].text, None, None, alone("llama")[1].text
        ]  # fmt: skip
        kinds = [e and e["kind"] for e in engine.predict([None, "", TEXTS[0], 5, "\ud800"])["error"].to_pylist()]
        assert kinds == ["null_text", "no_tokens", None, "not_text", "lone_surrogate"]
        assert engine.generate([]) == []
        with pytest.raises(UsageError, match="leave pairs out"):
            engine.predict(["a"], ["b"])


# -- constrained, adapted


@pytest.fixture(scope="module")
def plain_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing but </s> ends its outputs."""
    return save_writer(tmp_path_factory.mktemp("plain") / "llama", "llama", ends=[2])


SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["good", "bad"]}, "stars": {"type": "integer", "minimum": 1, "maximum": 5}},
    "required": ["label", "stars"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
def test_constrained_outputs_are_valid(plain_llama: Path, tmp_path: Path, sampled: bool) -> None:
    pytest.importorskip("xgrammar")
    job = {"max_new_tokens": 64, "do_sample": sampled, "devices": "cpu", "batch_size": 7}
    rows = {"text": TEXTS}
    packhorse.run(plain_llama, rows, tmp_path / "schema", json_schema=json.dumps(SCHEMA), **job)
    for row in pq.read_table(tmp_path / "schema").to_pylist():
        assert row["finish_reason"] == "stop" and row["error"] is None
        made = json.loads(row["generated_text"])
        assert set(made) == {"label", "stars"} and made["label"] in ("good", "bad") and 1 <= made["stars"] <= 5
    packhorse.run(plain_llama, rows, tmp_path / "choices", choices=("stop", "stopped", "the end"), **job)
    chosen = pq.read_table(tmp_path / "choices")["generated_text"].to_pylist()
    assert set(chosen) <= {"stop", "stopped", "the end"} and len(set(chosen)) > 1


def test_an_adapter_is_merged_and_the_task_is_read_from_the_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(folders["llama"], dtype=torch.float32)

    torch.manual_seed(1)
    settings = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    get_peft_model(base(), settings).save_pretrained(tmp_path / "adapter")
    tuned = Reference(folders["llama"], PeftModel.from_pretrained(base(), tmp_path / "adapter").eval())
    expected = [tuned.generate(text, **ASKED)[0] for text in TEXTS]
    with load(folders["llama"], adapter=str(tmp_path / "adapter"), **ASKED) as engine:
        assert engine.task == "text-generation"
        assert engine.generate(TEXTS) == [written.text for written in expected]
    with load(folders["llama"], **ASKED) as engine:
        assert engine.generate(TEXTS) != [written.text for written in expected]
