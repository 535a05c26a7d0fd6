"""What goes wrong in one row, or stands in a model's own files, and must neither end a job nor become an output."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from packhorse.backends.torch.generation.continuous import ContinuousEngine
from packhorse.backends.torch.generation.kv_attention import Group, StepKeys
from packhorse.backends.torch.generation.slots import BLOCK, Slots, Span
from packhorse.backends.torch.generation.static import StaticEngine
from packhorse.backends.torch.generation.stepping import NOT_FINITE, Stepper
from packhorse.errors import ModelError
from packhorse.generation import Decoding
from tests.cpu.engine import load
from tests.cpu.generating import TRIAL, alone, nothing, outputs, prompts_of, stepper_of
from tests.cpu.generating import texts as ids_of
from tests.generators import causal_model
from tests.models import word_piece_tokenizer
from tests.writers_of_text import Reference, save_writer, texts

SICK = 7  # a token whose embedding is no number
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "top-k": {"do_sample": True, "top_k": 20},
    "top-p": {"do_sample": True, "top_k": 0, "top_p": 0.9},
    "all": {"do_sample": True, "top_k": 0},
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def sick_model() -> Any:
    model = causal_model("llama", tie_word_embeddings=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[SICK] = torch.nan
    return model


def prompts() -> tuple[list[Any], list[int]]:
    """Prompts of many lengths, every third with the sick token, and which those are."""
    made = ids_of((5, 60, 12, 63, 7, 64, 30, 3, 100, 9, 61, 20))
    for prompt in made:
        prompt[prompt == SICK] += 1
    sick = list(range(0, len(made), 3))
    for i in sick:
        made[i][1] = SICK
    return made, sick


# --- NaN and infinity ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["continuous", "static"])
@pytest.mark.parametrize("sampling", list(SAMPLINGS))
def test_a_row_whose_scores_are_no_numbers_is_in_error_and_no_other(
    engine: str, sampling: str, sick_model: Any
) -> None:
    made, sick = prompts()
    asked = SAMPLINGS[sampling]
    stepper = stepper_of(sick_model, logprobs=True, suppress_tokens=[SICK], **asked)
    own = (stepper, "cpu", TRIAL) if engine == "static" else (stepper, "cpu")
    writer: Any = (StaticEngine if engine == "static" else ContinuousEngine)(sick_model, *own)
    written = writer.generate(prompts_of(made), 3, 100, nothing)
    assert sorted(written.errors) == sick
    assert {error.kind for error in written.errors.values()} == {"not_finite"}
    assert all(written.lengths[sick] == 0)
    assert np.isfinite(written.logprobs).all()
    well = [i for i in range(len(made)) if i not in sick]
    expected = writer.generate(prompts_of([made[i] for i in well], keys=well), 3, 100, nothing)
    assert [outputs(written)[i] for i in well] == outputs(expected)
    if sampling == "greedy":
        for i in well:
            assert outputs(written)[i] == alone(sick_model, made[i], suppress_tokens=[SICK])[0]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("sampling", list(SAMPLINGS))
def test_nothing_is_chosen_by_scores_that_are_no_numbers(value: float, sampling: str) -> None:
    model = causal_model("llama")
    stepper = Stepper(model, word_piece_tokenizer(), Decoding({"max_new_tokens": 4, **SAMPLINGS[sampling]}), None)
    rows = [stepper.row(prompt, key, 0) for key, prompt in enumerate(ids_of((4, 4)))]
    logits = torch.randn(2, 400, generator=torch.Generator().manual_seed(0))
    logits[0, slice(None) if value == -torch.inf else 3] = value
    stepper.step(rows, logits)
    assert (rows[0].error, rows[0].is_done, rows[0].ids) == (NOT_FINITE, True, [])
    assert (rows[1].error, rows[1].is_done, len(rows[1].ids)) == (None, False, 1)


def test_what_remove_invalid_values_mends_is_chosen_by() -> None:
    model = causal_model("llama")
    stepper = Stepper(
        model, word_piece_tokenizer(), Decoding({"max_new_tokens": 4, "remove_invalid_values": True}), None
    )
    row = stepper.row(ids_of((4,))[0], 0, 0)
    logits = torch.full((1, 400), -1.0)
    logits[0, 3] = torch.nan  # transformers' processor makes 0 of it
    stepper.step([row], logits)
    assert (row.error, row.ids) == (None, [3])


class Given:
    def __init__(self, length: int) -> None:
        self.length, self.last_id = length, 0


def test_what_a_row_leaves_behind_in_its_slot_reaches_no_other_row() -> None:
    """Two rows; the second one's keys are NaN. Its slot is taken by a shorter row, and grows into the next bucket."""

    def keys(length: int, value: float | None = None) -> list[Span]:
        x = torch.randn(2, length, 8) if value is None else torch.full((2, length, 8), value)
        return [Span({0: (x, x)}, 0, length)]

    torch.manual_seed(0)
    slots: Slots[Any] = Slots()
    first, sick, late = Given(BLOCK - 4), Given(BLOCK - 2), Given(2)
    slots.enter(first, keys(first.length))
    slots.enter(sick, keys(sick.length, torch.nan))
    slots.leave([sick])
    slots.enter(late, keys(late.length))
    for _ in range(8):
        slots.make_room()
        groups: list[Group] = slots.groups()
        query, new = (torch.randn(1, 2, len(slots.running), 8) for _ in range(2))
        module = torch.nn.Module()
        module.layer_idx = 0  # type: ignore[assignment]
        attended = StepKeys(groups, "cpu").attend(module, query, new, new, None, 1.0, None)  # type: ignore[arg-type]
        assert attended.isfinite().all()
        for row in slots.running:
            row.length += 1


# --- prompts ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_writer(tmp_path_factory.mktemp("writer"), "llama")


@pytest.mark.parametrize("engine", ["continuous", "static", "generate"])
def test_a_token_that_the_model_has_no_embedding_of_is_an_error_of_its_row(engine: str, folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    known = (folder / "tokenizer.json").read_bytes()
    tokenizer.add_tokens([f"<new {i}>" for i in range(40)])
    tokenizer.save_pretrained(folder)
    try:
        with load(folder, tune="off", max_new_tokens=6, engine=engine) as made:
            rows = made.predict(["a film", "a <new 39> film", "the opera"]).to_pylist()
        reference = Reference(folder)
    finally:
        (folder / "tokenizer.json").write_bytes(known)
    for i, text in ((0, "a film"), (2, "the opera")):
        assert rows[i]["generated_text"] == reference.generate(text, max_new_tokens=6)[0].text
    assert rows[1]["generated_text"] is None
    assert rows[1]["error"]["kind"] == "refused_by_model"
    assert "the model has embeddings of 320" in rows[1]["error"]["message"]


@pytest.mark.parametrize(
    "asked", [{"num_return_sequences": 2, "do_sample": True}, {"logprobs": True}, {}], ids=["samples", "logprobs", ""]
)
def test_a_shard_of_errors_alone_is_written(asked: Mapping[str, Any], folder: Path) -> None:
    with load(folder, tune="off", max_new_tokens=4, **asked) as engine:
        rows = engine.predict([None, None, None]).to_pylist()
        assert [row["error"]["kind"] for row in rows] == ["null_text"] * 3
        assert all(value is None for row in rows for name, value in row.items() if name != "error")
        assert engine.predict([]).num_rows == 0


def test_a_prompt_as_long_as_max_length_is_an_error(folder: Path) -> None:
    """generate() raises there."""
    with load(folder, tune="off", generation={"max_length": 12}, max_new_tokens=None) as engine:
        rows = engine.predict(["a film", "the opera " * 12]).to_pylist()
    assert rows[0]["error"] is None and rows[0]["generated_text"]
    assert rows[1]["error"]["kind"] == "prompt_too_long"
    assert "max_length is 12" in rows[1]["error"]["message"]


# --- a model's own generation_config.json ----------------------------------------------------------------------------


@pytest.fixture
def with_own(folder: Path) -> Iterator[Callable[..., Path]]:
    path = folder / "generation_config.json"
    before = path.read_text()

    def changed(**settings: Any) -> Path:
        path.write_text(json.dumps(json.loads(before) | settings))
        return folder

    yield changed
    path.write_text(before)


@pytest.mark.parametrize(
    "own",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 4},
        {"max_time": 1e-6},
        {"return_dict_in_generate": True, "output_scores": True},
    ],
    ids=lambda own: next(iter(own)),
)
@pytest.mark.parametrize("num_beams", [1, 2])
def test_what_changes_no_token_in_a_models_settings_changes_nothing(
    own: Mapping[str, Any], num_beams: int, with_own: Callable[..., Path]
) -> None:
    asked: dict[str, Any] = {"max_new_tokens": 10, "num_beams": num_beams}
    plain = with_own()
    expected = [Reference(plain).generate(text, **asked)[0].text for text in texts(4)]
    with load(with_own(**own), tune="off", **asked) as engine:
        assert engine.plan.engine == ("continuous" if num_beams == 1 else "generate")
        assert engine.generate(texts(4)) == expected


def test_a_cache_that_was_asked_for_is_used_by_the_engine_that_has_it(folder: Path) -> None:
    with load(folder, tune="off", max_new_tokens=4, generation={"cache_implementation": "static"}) as engine:
        assert engine.plan.engine == "generate"


def test_only_the_job_says_how_many_outputs_a_prompt_has(with_own: Callable[..., Path]) -> None:
    own = with_own(do_sample=True, num_return_sequences=3)
    with load(own, tune="off", max_new_tokens=4) as engine:
        assert all(isinstance(text, str) for text in engine.generate(["a film", "the opera"]))
    with load(own, tune="off", max_new_tokens=4, num_return_sequences=2) as engine:
        assert [len(several) for several in engine.generate(["a film", "the opera"])] == [2, 2]


@pytest.mark.parametrize("own", [{"eos_token_id": "x"}, {"max_new_tokens": "abc"}], ids=lambda own: next(iter(own)))
def test_settings_of_a_model_that_mean_nothing_are_its_fault(
    own: Mapping[str, Any], with_own: Callable[..., Path]
) -> None:
    with pytest.raises(ModelError, match=r"generation_config|cannot be loaded"):
        load(with_own(**own), tune="off")
