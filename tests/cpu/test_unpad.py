"""unpad(): the same outputs as before without the padding inside; restore() gives the model back as it was."""

from __future__ import annotations

import copy
import functools
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import packhorse
from packhorse.errors import ModelError
from packhorse.packing.unpad import UnpaddedForward
from tests.cpu import packable
from tests.models import save_tokenizer

TOLERANCE = 1e-5
LENGTHS = (12, 3, 7, 1, 12)
ENCODERS = ["bert", "roberta", "camembert", "distilbert", "electra", "albert", "modernbert", "nomic_bert"]
DECODERS = ["llama", "qwen3", "mistral", "gpt2"]
SEQUENCE = "AutoModelForSequenceClassification"
HEADS = {
    SEQUENCE: ENCODERS,
    "AutoModelForTokenClassification": ENCODERS,
    "AutoModelForQuestionAnswering": [k for k in ENCODERS if k != "nomic_bert"],
    "AutoModelForMaskedLM": ENCODERS,
}
PAD = 0


def batch(lengths: tuple[int, ...] = LENGTHS, side: str = "right", seed: int = 3) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask [B, S]."""
    rows = packable.ids_of(lengths, seed)
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD, padding_side=side)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True, padding_side=side)
    return {"input_ids": ids, "attention_mask": mask}


def unpadded(model: Any, **options: Any) -> Any:
    found = packhorse.unpad(model, **options)
    assert found is model
    return model


@pytest.fixture()
def packed_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each call that ran packed."""
    calls: list[int] = []
    original = UnpaddedForward._packed

    def counting(self: Any, inputs: Any, pack: Any) -> Any:
        calls.append(int(pack.lengths.sum()))
        return original(self, inputs, pack)

    monkeypatch.setattr(UnpaddedForward, "_packed", counting)
    return calls


@torch.no_grad()
def call(model: Any, **inputs: Any) -> Any:
    return model(**inputs)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.numel() == 0 or expected.float().std() > 1_000 * TOLERANCE, "values too alike to tell a mix-up"
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


def alone(model: Any, inputs: dict[str, torch.Tensor], name: str) -> list[torch.Tensor]:
    """An output of each row by itself, without padding."""
    rows = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
    return [call(model, input_ids=ids[mask][None])[name][0] for ids, mask in rows]


# -- heads and bodies


@pytest.mark.parametrize(("auto", "kind"), [(auto, kind) for auto, kinds in HEADS.items() for kind in kinds])
@pytest.mark.parametrize("side", ["right", "left"])
def test_every_head_gives_the_outputs_of_before(packed_calls: list[int], auto: str, kind: str, side: str) -> None:
    model = packable.made(kind, auto, **({"num_labels": 2} if auto.endswith("QuestionAnswering") else {}))
    if kind == "modernbert" and auto == SEQUENCE:
        side = "right"  # its head reads the first position, which is padding on the left
    inputs = batch(side=side)
    before = call(model, **inputs)
    found = call(unpadded(model), **inputs)
    assert type(found) is type(before) and found.keys() == before.keys()
    mask = inputs["attention_mask"].bool()
    for name, expected in before.items():
        assert found[name].shape == expected.shape and found[name].dtype == expected.dtype
        if expected.shape[:2] == mask.shape:
            assert_close(found[name][mask], expected[mask])
        elif side == "right":
            assert_close(found[name], expected)
    has_table = kind not in ("modernbert", "nomic_bert")
    if not (has_table and side == "left"):  # whose positions are then its own affair
        assert packed_calls[-1] == sum(LENGTHS)
        packhorse.restore(model)
        if auto == SEQUENCE and side == "right":
            assert_close(found.logits, torch.stack(alone(model, inputs, "logits")))


@pytest.mark.parametrize("kind", [*ENCODERS, "eurobert", *DECODERS, "opt"])
def test_a_bodys_padded_positions_are_zero_and_the_others_as_each_row_alone(packed_calls: list[int], kind: str) -> None:
    model, inputs = packable.made(kind, "AutoModel"), batch()
    mask, expected = inputs["attention_mask"].bool(), alone(model, inputs, "last_hidden_state")
    before = call(model, **inputs, output_hidden_states=True)
    found = call(unpadded(model), **inputs, output_hidden_states=True)
    assert packed_calls[-1] == sum(LENGTHS)
    assert_close(found.last_hidden_state[mask], torch.cat(expected))
    assert not found.last_hidden_state[~mask].any()
    assert len(found.hidden_states) == len(before.hidden_states)
    for layer, layer_before in zip(found.hidden_states, before.hidden_states, strict=True):
        assert_close(layer[mask], layer_before[mask])
        assert not layer[~mask].any()
    if "pooler_output" in before:
        assert_close(found.pooler_output, before.pooler_output)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_decoders_classifier_gives_the_scores_of_each_row_alone(kind: str, side: str) -> None:
    model, inputs = packable.made(kind, SEQUENCE), batch(side=side)
    if kind == "gpt2" and side == "left":
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    expected = torch.stack(alone(model, inputs, "logits"))
    assert_close(call(unpadded(model), **inputs).logits, expected)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "roberta"])
def test_left_padding_without_positions_is_what_the_model_makes_of_it(kind: str) -> None:
    model, inputs = packable.made(kind, "AutoModel"), batch(side="left")
    mask = inputs["attention_mask"].bool()
    before = call(model, **inputs).last_hidden_state[mask]
    assert_close(call(unpadded(model), **inputs).last_hidden_state[mask], before)


def test_padding_between_the_tokens_of_a_row_is_no_token(packed_calls: list[int]) -> None:
    model, inputs = packable.made("qwen3", "AutoModel"), batch((12, 12, 12))
    inputs["attention_mask"][1, 3:6] = 0
    inputs["attention_mask"][2, ::2] = 0
    mask = inputs["attention_mask"].bool()
    inputs["position_ids"] = torch.arange(12)[None].expand(3, -1)
    before = call(model, **inputs).last_hidden_state[mask]
    assert_close(call(unpadded(model), **inputs).last_hidden_state[mask], before)
    assert packed_calls[-1] == 12 + 9 + 6


def test_a_row_without_any_token_is_zero_and_leaves_the_others_alone(packed_calls: list[int]) -> None:
    model, inputs = packable.made("bert", SEQUENCE), batch()
    expected = torch.stack(alone(model, inputs, "logits"))
    inputs["attention_mask"][2] = 0
    unpadded(model)
    found = call(model.base_model, **inputs).last_hidden_state
    assert not found[2].any() and torch.isfinite(found).all()
    kept = [0, 1, 3, 4]
    assert_close(call(model, **inputs).logits[kept], expected[kept])
    assert packed_calls[-1] == sum(LENGTHS) - LENGTHS[2]


def test_a_batch_without_any_token_is_all_zero_or_what_it_was_before() -> None:
    model, inputs = packable.made("bert", "AutoModel"), batch()
    inputs["attention_mask"][:] = 0
    found = call(unpadded(model), **inputs).last_hidden_state
    assert found.shape == (*inputs["input_ids"].shape, 64) and torch.isfinite(found).all()


def test_without_padding_or_without_a_mask_a_call_is_the_plain_one(packed_calls: list[int]) -> None:
    model, inputs = packable.made("bert", SEQUENCE), batch((9, 9))
    ids = inputs["input_ids"]
    before = call(model, input_ids=ids).logits
    unpadded(model)
    packed_calls.clear()
    assert torch.equal(call(model, input_ids=ids).logits, before)
    assert torch.equal(call(model, input_ids=ids, attention_mask=torch.ones_like(ids)).logits, before)
    assert not packed_calls


def test_a_4d_mask_is_obeyed_as_before(packed_calls: list[int]) -> None:
    model, ids = packable.made("bert", "AutoModel"), batch((9, 9))["input_ids"]
    mask = torch.zeros(2, 1, 9, 9)
    mask[:, :, :, 4:] = torch.finfo(torch.float32).min
    before = call(model, input_ids=ids, attention_mask=mask).last_hidden_state
    assert not torch.equal(before, call(model, input_ids=ids).last_hidden_state)
    unpadded(model)
    packed_calls.clear()
    assert torch.equal(call(model, input_ids=ids, attention_mask=mask).last_hidden_state, before)
    assert not packed_calls


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32])
def test_a_mask_of_any_type_is_understood(packed_calls: list[int], dtype: torch.dtype) -> None:
    model, inputs = packable.made("bert", SEQUENCE), batch()
    expected = torch.stack(alone(model, inputs, "logits"))
    found = call(unpadded(model), input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"].to(dtype))
    assert_close(found.logits, expected)
    assert packed_calls[-1] == sum(LENGTHS)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "modernbert", "qwen3", "gpt2"])
def test_embeddings_instead_of_ids(packed_calls: list[int], kind: str) -> None:
    model, inputs = packable.made(kind, "AutoModel"), batch()
    mask = inputs["attention_mask"]
    embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
    before = call(model, inputs_embeds=embeds, attention_mask=mask).last_hidden_state[mask.bool()]
    found = call(unpadded(model), inputs_embeds=embeds, attention_mask=mask).last_hidden_state
    assert_close(found[mask.bool()], before)
    assert packed_calls[-1] == sum(LENGTHS)


@pytest.mark.parametrize("kind", ["bert", "roberta", "qwen3", "gpt2"])
def test_positions_that_are_given_are_taken(packed_calls: list[int], kind: str) -> None:
    model, inputs = packable.made(kind, "AutoModel"), batch()
    mask = inputs["attention_mask"].bool()
    size = inputs["input_ids"].shape
    positions = torch.randint(1, 60, size, generator=torch.Generator().manual_seed(0))
    before = call(model, **inputs, position_ids=positions).last_hidden_state[mask]
    usual = call(model, **inputs).last_hidden_state[mask]
    assert (before - usual).abs().max() > 100 * TOLERANCE
    assert_close(call(unpadded(model), **inputs, position_ids=positions).last_hidden_state[mask], before)
    one_row = positions[:1]
    before = call(packhorse.restore(model), **inputs, position_ids=one_row).last_hidden_state[mask]
    assert_close(call(unpadded(model), **inputs, position_ids=one_row).last_hidden_state[mask], before)
    assert packed_calls[-1] == sum(LENGTHS)


@pytest.mark.parametrize("kind", ["bert", "electra", "albert", "nomic_bert"])
def test_token_types_are_taken(kind: str) -> None:
    model, inputs = packable.made(kind, SEQUENCE), batch()
    types = (torch.arange(inputs["input_ids"].shape[1]) > 4).long()[None].expand(len(LENGTHS), -1)
    before = call(model, **inputs, token_type_ids=types).logits
    assert (before - call(model, **inputs).logits).abs().max() > 100 * TOLERANCE
    assert_close(call(unpadded(model), **inputs, token_type_ids=types).logits, before)


@pytest.mark.parametrize("kind", ["roberta", "camembert"])
def test_roberta_rows_that_contain_the_padding_token(kind: str) -> None:
    """Such a token is attended to, has the position of padding, and is not counted."""
    model, inputs = packable.made(kind, SEQUENCE), batch()
    inputs["input_ids"][0, [0, 5]] = PAD
    inputs["input_ids"][2, 6] = PAD
    expected = torch.stack(alone(model, inputs, "logits"))
    assert_close(call(unpadded(model), **inputs).logits, expected)


@pytest.mark.parametrize("auto", ["AutoModel", SEQUENCE])
def test_return_dict_false_gives_the_same_tuple(auto: str) -> None:
    model, inputs = packable.made("bert", auto), batch()
    mask = inputs["attention_mask"].bool()
    before = call(model, **inputs, return_dict=False)
    found = call(unpadded(model), **inputs, return_dict=False)
    assert type(found) is tuple and len(found) == len(before)
    for one, other in zip(found, before, strict=True):
        assert_close(*((one[mask], other[mask]) if one.shape[:2] == mask.shape else (one, other)))


def test_arguments_by_position_mean_what_they_meant() -> None:
    model, inputs = packable.made("bert", "AutoModel"), batch()
    with torch.no_grad():
        before = model(inputs["input_ids"], inputs["attention_mask"]).pooler_output
        found = unpadded(model)(inputs["input_ids"], inputs["attention_mask"]).pooler_output
    assert_close(found, before)


def test_a_loss_is_that_of_before() -> None:
    model, inputs = packable.made("bert", SEQUENCE), batch()
    labels = torch.tensor([0, 1, 2, 0, 1])
    before = call(model, **inputs, labels=labels).loss
    assert before > 0
    torch.testing.assert_close(call(unpadded(model), **inputs, labels=labels).loss, before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_models_own_implementation_stands_as_it_was_after_a_call(implementation: str) -> None:
    model, inputs = packable.made("bert", SEQUENCE), batch()
    model.set_attn_implementation(implementation)
    before = call(model, **inputs).logits
    assert_close(call(unpadded(model), **inputs).logits, before)
    assert model.config._attn_implementation == implementation


# -- what only a padded call can give


def test_attention_weights_are_the_real_ones_and_the_warning_comes_once() -> None:
    eager, inputs = packable.made("bert", SEQUENCE), batch()
    eager.set_attn_implementation("eager")
    expected = call(eager, **inputs, output_attentions=True)
    model = unpadded(packable.made("bert", SEQUENCE))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        first, second = (call(model, **inputs, output_attentions=True) for _ in range(2))
    ours = [w for w in seen if "output_attentions" in str(w.message)]
    assert len(ours) == 1
    for found in (first, second):
        assert len(found.attentions) == 2
        for one, other in zip(found.attentions, expected.attentions, strict=True):
            assert_close(one, other)
        assert_close(found.logits, expected.logits)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("auto", ["AutoModel", SEQUENCE])
def test_a_head_mask_is_refused_instead_of_swallowed(auto: str) -> None:
    model = unpadded(packable.made("bert", auto))
    with pytest.raises(TypeError, match="head_mask"):
        model(**batch(), head_mask=torch.ones(2, 4))
    call(model, **batch(), head_mask=None)


def test_in_training_mode_it_runs_plain_and_gradients_flow(packed_calls: list[int]) -> None:
    model, inputs, labels = packable.made("bert", SEQUENCE), batch(), torch.tensor([0, 1, 2, 0, 1])
    unpadded(model).train()
    packed_calls.clear()
    torch.manual_seed(5)
    loss = model(**inputs, labels=labels).loss
    loss.backward()
    assert not packed_calls
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    packhorse.restore(model)
    torch.manual_seed(5)
    assert torch.equal(model(**inputs, labels=labels).loss, loss)


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_in_eval_mode_are_those_of_a_plain_call(fused: bool) -> None:
    model, inputs, labels = packable.made("bert", SEQUENCE), batch(), torch.tensor([0, 1, 2, 0, 1])
    model(**inputs, labels=labels).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    unpadded(model, fused=fused)(**inputs, labels=labels).loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], atol=1e-5, rtol=1e-3)
    assert max(g.abs().max() for g in expected.values()) > 1e-3


# -- the model stays the model


@pytest.mark.parametrize("fused", [False, True])
def test_state_dict_and_saved_weights_are_the_same_in_both_states(tmp_path: Path, fused: bool) -> None:
    from transformers import AutoModelForSequenceClassification

    model, inputs = packable.made("bert", SEQUENCE), batch()
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    before = call(model, **inputs).logits
    unpadded(model, fused=fused)
    call(model, **inputs)
    for state, folder in (("unpadded", tmp_path / "a"), ("restored", tmp_path / "b")):
        if state == "restored":
            packhorse.restore(model)
        found = model.state_dict()
        assert found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)
        model.save_pretrained(folder)
        loaded = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        assert loaded.config._attn_implementation == "sdpa"
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
        assert torch.equal(call(loaded, **inputs).logits, before)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert (tmp_path / "a" / "config.json").read_text() == (tmp_path / "b" / "config.json").read_text()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", ["bert", "qwen3", "gpt2"])
def test_restore_is_exact(kind: str, fused: bool) -> None:
    model, inputs = packable.made(kind, SEQUENCE), batch()
    parameters, modules = list(model.parameters()), list(model.modules())
    before, attributes = call(model, **inputs).logits, set(vars(model.base_model))
    call(unpadded(model, fused=fused), **inputs)
    assert packhorse.restore(model) is model
    assert "forward" not in vars(model.base_model) and set(vars(model.base_model)) == attributes
    assert model.base_model.forward.__func__ is type(model.base_model).forward
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
    assert torch.equal(call(model, **inputs).logits, before)
    packhorse.restore(model)  # again: nothing


def test_unpadded_twice_is_restored_once() -> None:
    model = packable.made("bert", SEQUENCE)
    unpadded(unpadded(model), fused=True)
    packhorse.restore(model)
    assert "forward" not in vars(model.base_model)


@pytest.mark.parametrize("is_wrapper", [True, False], ids=["functools.wraps", "args and kwargs"])
def test_somebody_elses_hook_on_forward_is_kept_and_given_back(packed_calls: list[int], is_wrapper: bool) -> None:
    model, inputs, calls = packable.made("bert", SEQUENCE), batch(), []
    own = model.base_model.forward

    @functools.wraps(own) if is_wrapper else lambda f: f
    def hooked(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return own(*args, **kwargs)

    before = call(model, **inputs).logits
    model.base_model.forward = hooked
    unpadded(model)
    calls.clear()
    assert_close(call(model, **inputs).logits, before)
    assert calls and packed_calls
    assert packhorse.restore(model).base_model.forward is hooked


@pytest.mark.parametrize("fused", [False, True])
def test_a_deep_copy_works_on_its_own(fused: bool) -> None:
    model, inputs = unpadded(packable.made("bert", SEQUENCE), fused=fused), batch()
    before = call(model, **inputs).logits
    copied = copy.deepcopy(model)
    assert_close(call(copied, **inputs).logits, before)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(1.5)
    changed = call(copied, **inputs).logits
    assert (changed - before).abs().max() > 1e-2
    assert_close(call(model, **inputs).logits, before)
    packhorse.restore(model)
    assert_close(call(copied, **inputs).logits, changed)
    packhorse.restore(copied)
    assert "forward" not in vars(copied.base_model)
    assert_close(call(copied, **inputs).logits, changed)


# -- generate, pipeline, Trainer


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", DECODERS)
def test_greedy_generation_gives_the_same_tokens_and_packs_the_prompt_once(
    packed_calls: list[int], kind: str, fused: bool
) -> None:
    model = packable.made(kind, "AutoModelForCausalLM", use_cache=True)
    inputs, new = batch((20, 3, 9, 1), side="left"), 12  # beyond mistral's window
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": PAD}
    expected = model.generate(**inputs, **options)
    unpadded(model, fused=fused)
    packed_calls.clear()
    assert torch.equal(model.generate(**inputs, **options), expected)
    assert packed_calls == [20 + 3 + 9 + 1]
    assert len({tuple(row) for row in expected[:, -new:].tolist()}) > 1


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_a_prompts_cache_holds_every_rows_keys_where_the_plain_call_puts_them(kind: str) -> None:
    model, inputs = packable.made(kind, "AutoModelForCausalLM", use_cache=True), batch(side="left")
    mask = inputs["attention_mask"].bool()
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    before = call(model, **inputs, use_cache=True).past_key_values
    found = call(unpadded(model), **inputs, use_cache=True).past_key_values
    assert found.get_seq_length() == before.get_seq_length() == mask.shape[1]
    for one, other in zip(found.layers, before.layers, strict=True):
        for name in ("keys", "values"):
            assert_close(getattr(one, name).transpose(1, 2)[mask], getattr(other, name).transpose(1, 2)[mask])


def test_under_a_pipeline_the_scores_are_those_of_before(packed_calls: list[int], tmp_path: Path) -> None:
    from transformers import AutoTokenizer, pipeline

    save_tokenizer(tmp_path, packable.MAX_LENGTH)
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), packable.made("bert", SEQUENCE)
    texts = packable.texts((30, 2, 5, 1, 100, 5))
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu", top_k=None)
    expected = [{r["label"]: r["score"] for r in classify([text])[0]} for text in texts]
    unpadded(model)
    packed_calls.clear()
    found = [{r["label"]: r["score"] for r in row} for row in classify(texts, batch_size=3)]
    assert len(packed_calls) == 2
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=TOLERANCE)


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="Trainer needs accelerate")
def test_under_a_trainer_evaluation_gives_the_loss_of_before(packed_calls: list[int], tmp_path: Path) -> None:
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments
    from transformers import PreTrainedTokenizerFast as Fast

    from tests.models import word_piece_tokenizer

    collate = DataCollatorWithPadding(Fast(tokenizer_object=word_piece_tokenizer(), pad_token="[PAD]"))
    rows = [{"input_ids": ids.tolist(), "label": i % 3} for i, ids in enumerate(packable.ids_of())]
    model = packable.made("bert", SEQUENCE)
    arguments = TrainingArguments(str(tmp_path), per_device_eval_batch_size=4, report_to=[], use_cpu=True)
    trainer = Trainer(model, arguments, collate, eval_dataset=rows)
    expected = trainer.evaluate()["eval_loss"]
    unpadded(model)
    packed_calls.clear()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-5)
    assert packed_calls


# -- fused


@pytest.mark.parametrize("kind", [*ENCODERS, *DECODERS])
def test_fused_gives_the_outputs_of_before(packed_calls: list[int], kind: str) -> None:
    model, inputs = packable.made(kind, SEQUENCE), batch()
    before = call(model, **inputs).logits
    assert_close(call(unpadded(model, fused=True), **inputs).logits, before)
    assert packed_calls[-1] == sum(LENGTHS)
    full = {"input_ids": inputs["input_ids"][:1]}
    assert_close(call(model, **full).logits, call(packhorse.restore(model), **full).logits)


def test_fused_leaves_the_models_own_modules_alone() -> None:
    model = packable.made("bert", SEQUENCE)
    modules = dict(model.named_modules())
    call(unpadded(model, fused=True), **batch())
    assert dict(model.named_modules()) == modules


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_fused_sees_weights_that_were_changed_in_place_or_replaced(kind: str) -> None:
    model, inputs = packable.made(kind, SEQUENCE), batch()
    unpadded(model, fused=True)
    before = call(model, **inputs).logits

    def check() -> torch.Tensor:
        found = call(model, **inputs).logits
        plain = packable.made(kind, SEQUENCE)
        plain.load_state_dict(model.state_dict())
        assert_close(found, call(plain, **inputs).logits)
        return found

    parameter = next(p for p in model.base_model.parameters() if p.ndim == 2 and p.shape[0] != packable.VOCAB)
    with torch.no_grad():
        for p in model.base_model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    second = check()
    assert (second - before).abs().max() > 1e-3
    model.load_state_dict({k: v * 1.1 for k, v in model.state_dict().items()})
    third = check()
    assert (third - second).abs().max() > 1e-3
    parameter.data = parameter.data * 3
    check()


def test_fused_sees_a_module_that_was_replaced() -> None:
    model, inputs = packable.made("bert", SEQUENCE), batch()
    unpadded(model, fused=True)
    before = call(model, **inputs).logits
    torch.manual_seed(9)
    model.base_model.encoder.layer[0].intermediate.dense = torch.nn.Linear(64, 128)
    found = call(model, **inputs).logits
    assert (found - before).abs().max() > 1e-3
    assert_close(found, call(packhorse.restore(model), **inputs).logits)


# -- refused


@pytest.mark.parametrize("kind", ["mpnet", "deberta-v2", "bloom", "falcon", "gemma2"])
@pytest.mark.parametrize("fused", [False, True])
def test_what_cannot_be_packed_is_refused_and_left_untouched(kind: str, fused: bool) -> None:
    model, inputs = packable.made(kind, SEQUENCE), batch()
    implementation, attributes = model.config._attn_implementation, set(vars(model.base_model))
    before, state = call(model, **inputs).logits, {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ModelError, match="cannot run without padding"):
        packhorse.unpad(model, fused=fused)
    assert set(vars(model.base_model)) == attributes
    assert model.config._attn_implementation == implementation
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(call(model, **inputs).logits, before)


@pytest.mark.parametrize("kind", ["mpnet", "deberta-v2", "bloom"])
def test_half_precision_hides_no_attention_across_rows(kind: str) -> None:
    model = packable.made(kind, "AutoModel", initializer_range=0.02).to(torch.bfloat16)
    with pytest.raises(ModelError, match="cannot run without padding"):
        packhorse.unpad(model)


def test_what_is_no_transformers_model_is_refused() -> None:
    with pytest.raises(ModelError, match="Linear"):
        packhorse.unpad(torch.nn.Linear(2, 2))


def test_a_model_in_training_mode_stays_in_training_mode() -> None:
    model = packable.made("bert", SEQUENCE).train()
    unpadded(model)
    assert all(m.training for m in model.modules())
