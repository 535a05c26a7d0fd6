"""The next token of rows of different lengths at different steps against transformers' generate() of each alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from packhorse.backends.torch.generation.sampling import Sampler, cut_at_mass, inverse_cdf, philox, uniforms
from packhorse.backends.torch.generation.stepping import Row, Stepper, generated, greedy
from packhorse.backends.torch.generation.stops import StopStrings
from packhorse.data import RowError
from packhorse.errors import UsageError
from packhorse.generation import LENGTH, NEAR_TIE, STOP, Decoding
from tests.generators import byte_level_tokenizer, sentencepiece_tokenizer, tiny_llm
from tests.models import word_piece_tokenizer

NEW = 12


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def llms() -> dict[str, Any]:
    return {kind: tiny_llm(kind) for kind in ("llama", "gpt2", "qwen3", "bart")}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_level_tokenizer()


def prompts_of(count: int = 7, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 320, rng.integers(1, 17)).astype(np.int32) for _ in range(count)]


def logits_of(model: Any, row: Row) -> torch.Tensor:
    """[V] after everything in the row, by a forward without a cache."""
    ids = torch.tensor([[*row.start.tolist(), *row.ids]])
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            return model(input_ids=torch.from_numpy(row.prompt).long()[None], decoder_input_ids=ids).logits[0, -1]
        return model(input_ids=ids).logits[0, -1]


def write(model: Any, stepper: Stepper, prompts: list[Any], seed: int = 0, samples: int = 1) -> list[Row]:
    """Every row to its end: at each step some of those that are not done, in any order."""
    rng = np.random.default_rng(seed)
    start = np.array([2], np.int32) if model.config.is_encoder_decoder else None
    rows = [stepper.row(p, 1000 + i, s, start) for i, p in enumerate(prompts) for s in range(samples)]
    while any(not row.is_done for row in rows):
        live = [row for row in rows if not row.is_done]
        chosen = [live[i] for i in rng.permutation(len(live))[: rng.integers(1, len(live) + 1)]]
        stepper.step(chosen, torch.stack([logits_of(model, row) for row in chosen]))
    return rows


def reference(model: Any, prompt: Any, tokenizer: Any = None, **asked: Any) -> list[int]:
    ids = torch.from_numpy(prompt).long()[None]
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), use_cache=False, tokenizer=tokenizer, pad_token_id=0, **asked
    )[0].tolist()
    return out[1:] if model.config.is_encoder_decoder else out[len(prompt) :]


GREEDY: dict[str, dict[str, Any]] = {
    "plain": {},
    "repetition": {"repetition_penalty": 1.7},
    "ngrams": {"no_repeat_ngram_size": 2},
    "unigrams": {"no_repeat_ngram_size": 1},
    "bad words": {"bad_words_ids": [[5], [7, 9], [11, 12, 13], *([i, j] for i in range(40, 60) for j in range(9))]},
    "suppressed": {"suppress_tokens": list(range(30, 200)), "begin_suppress_tokens": list(range(200, 260))},
    "ends": {"eos_token_id": list(range(3, 60))},
    "long enough": {"eos_token_id": list(range(3, 90)), "min_new_tokens": 5},
    "min_length": {"eos_token_id": list(range(3, 90)), "min_length": 12},
    "forced": {"forced_eos_token_id": 2, "forced_bos_token_id": 17, "eos_token_id": 2},
    "decay": {"exponential_decay_length_penalty": [2, 1.9], "eos_token_id": list(range(3, 40))},
    "biased": {"sequence_bias": [[[5], 4.0], [[6, 7], -9.0], [[8], -3.0]], "repetition_penalty": 0.8},
    "encoder": {"encoder_repetition_penalty": 1.4, "encoder_no_repeat_ngram_size": 2},
    "finite": {"remove_invalid_values": True, "renormalize_logits": True, "suppress_tokens": [3, 4]},
    "all": {
        "repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "bad_words_ids": [[5], [7, 9]], "min_new_tokens": 3,
        "eos_token_id": list(range(3, 60)), "suppress_tokens": [70, 71], "sequence_bias": [[[80, 81], 2.0]],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", GREEDY)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bart"])
def test_greedy_is_generate_of_each_prompt_alone(kind: str, name: str, llms: dict[str, Any], tokenizer: Any) -> None:
    asked = {"max_new_tokens": NEW, "do_sample": False, **GREEDY[name]}
    prompts = prompts_of()
    rows = write(llms[kind], Stepper(llms[kind], tokenizer, Decoding(asked), None), prompts)
    assert [row.ids for row in rows] == [reference(llms[kind], p, **asked) for p in prompts]
    ends = asked.get("eos_token_id", 2)
    is_end = [row.last_id in (ends if isinstance(ends, list) else [ends]) for row in rows]
    assert [row.reason for row in rows] == [STOP if end else LENGTH for end in is_end]


def test_the_settings_change_what_is_written(llms: dict[str, Any], tokenizer: Any) -> None:
    """Else the comparisons above would prove nothing."""
    prompts = prompts_of()
    texts = [[reference(llms["llama"], p, max_new_tokens=NEW, **asked) for p in prompts] for asked in GREEDY.values()]
    assert sum(a != texts[0] for a in texts[1:]) >= len(texts) - 2


def test_stop_strings_end_outputs_where_generate_does(llms: dict[str, Any], tokenizer: Any) -> None:
    from transformers import PreTrainedTokenizerFast

    asked = {"max_new_tokens": 30, "stop_strings": ["t", "\n", "é", "op"]}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    prompts = prompts_of(9)
    rows = write(llms["qwen3"], Stepper(llms["qwen3"], tokenizer, Decoding(asked), None), prompts)
    assert [row.ids for row in rows] == [reference(llms["qwen3"], p, fast, **asked) for p in prompts]
    assert {row.reason for row in rows} == {STOP, LENGTH} or STOP in {row.reason for row in rows}


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece", "word_piece"])
def test_stop_strings_agree_with_transformers_on_random_ids(kind: str) -> None:
    from tokenizers import decoders
    from transformers import PreTrainedTokenizerFast, StopStringCriteria

    makers = {"byte_level": byte_level_tokenizer, "sentencepiece": sentencepiece_tokenizer}
    tokenizer = makers.get(kind, word_piece_tokenizer)()
    if kind == "word_piece":
        tokenizer.decoder = decoders.WordPiece()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    rng = np.random.default_rng(1)
    likely = [i for t, i in tokenizer.get_vocab().items() if set(t.lower()) & set("stop é\nĠ▁")][:70]
    found = 0
    for strings in (["stop"], ["st", "pp"], ["s"], ["to s", "op"], [" s", "tt"], ["opst"], ["é", "\n\n"]):
        if kind == "word_piece" and "é" in strings:
            continue  # no token ends one of them: transformers refuses, ours would never stop
        ours, theirs = StopStrings(tokenizer, strings), StopStringCriteria(fast, strings)
        for _ in range(250):
            ids = rng.choice(likely, rng.integers(1, 9))
            if rng.random() < 0.1:
                ids[rng.integers(len(ids))] = tokenizer.get_vocab_size() + 5
            cut = int(rng.integers(0, len(ids)))
            expected = bool(theirs(torch.from_numpy(ids)[None], None)[0])
            assert ours.ends(ids[:cut].astype(np.int32), ids[cut:].tolist()) == expected, (strings, ids)
            found += expected
    assert found > 50


def test_a_tokenizer_that_changes_text_takes_no_stop_strings() -> None:
    with pytest.raises(UsageError, match=r"stop_strings: .*'a ##b ##c"):
        StopStrings(word_piece_tokenizer(), ["stop"])  # it has no decoder


def test_lengths_are_those_of_generate(llms: dict[str, Any], tokenizer: Any) -> None:
    llama = tiny_llm("llama")
    prompt = prompts_of()[0]
    assert Stepper(llama, tokenizer, Decoding(), None).max_new_tokens == 256
    llama.generation_config.max_new_tokens = 9
    assert Stepper(llama, tokenizer, Decoding(), None).max_new_tokens == 9
    assert Stepper(llama, tokenizer, Decoding({"max_new_tokens": 4}), None).max_new_tokens == 4
    llama.generation_config.max_new_tokens = None
    llama.generation_config.max_length = 20
    rows = write(llama, Stepper(llama, tokenizer, Decoding(), None), [prompt])
    assert rows[0].ids == reference(llama, prompt) and rows[0].num_generated == 20 - len(prompt)
    rows = write(llama, Stepper(llama, tokenizer, Decoding({"max_new_tokens": 30}), None), [prompt])
    assert rows[0].num_generated == 30


def test_no_output_goes_beyond_the_models_positions(llms: dict[str, Any], tokenizer: Any) -> None:
    prompts = prompts_of()
    stepper = Stepper(llms["llama"], tokenizer, Decoding({"max_new_tokens": NEW}), 15)
    rows = write(llms["llama"], stepper, prompts)
    for row, prompt in zip(rows, prompts, strict=True):
        full = reference(llms["llama"], prompt, max_new_tokens=NEW)
        assert row.ids == full[: max(0, 15 - len(prompt))] and row.is_done and row.reason == LENGTH


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"max_new_token": 3}, r"--generation max_new_token=3: .*did you mean 'max_new_tokens'"),
        ({"temperature": 0.0, "do_sample": True}, "strictly positive"),
        ({"temperature": "hot", "do_sample": True}, "--generation"),
        ({"max_new_tokens": 0}, "greater than 0"),
        ({"num_return_sequences": 3}, "num_return_sequences"),
        ({"max_time": 3.0}, "depend on the machine"),
        ({"output_scores": True}, "not tensors"),
        ({"stop_strings": [""]}, "stop_strings"),
        ({"bad_words_ids": []}, "bad_words_ids"),
    ],
)
def test_what_cannot_be_meant_is_refused(asked: dict[str, Any], words: str, llms: Any, tokenizer: Any) -> None:
    with pytest.raises(UsageError, match=words):
        Stepper(llms["llama"], tokenizer, Decoding(asked), None)


def test_what_only_generate_can_do_is_said(llms: dict[str, Any], tokenizer: Any) -> None:
    for asked in ({"num_beams": 4}, {"guidance_scale": 2.0}, {"use_cache": False}, {"prompt_lookup_num_tokens": 3}):
        reason = Stepper(llms["llama"], tokenizer, Decoding(asked), None).needs_library
        assert reason is not None and next(iter(asked)) in reason
    assert Stepper(llms["llama"], tokenizer, Decoding({"num_beams": 1}), None).needs_library is None


def test_near_ties_are_counted(llms: dict[str, Any], tokenizer: Any) -> None:
    stepper = Stepper(llms["llama"], tokenizer, Decoding({"max_new_tokens": 3}), None)
    rows = [stepper.row(p, 0, 0) for p in prompts_of(3)]
    logits = torch.zeros(3, 320)
    logits[0, [5, 9]] = torch.tensor([4.0, 4.0 - NEAR_TIE / 2])
    logits[1, [5, 9]] = torch.tensor([4.0 - NEAR_TIE * 2, 4.0])
    logits[2, [8, 11]] = 4.0
    before = logits.clone()
    stepper.step(rows, logits)
    assert [row.last_id for row in rows] == [5, 9, 8] and [row.near_ties for row in rows] == [1, 0, 1]
    assert torch.equal(logits, before)
    ids, near = greedy(logits[:1].expand(4, -1))
    assert ids.tolist() == [5] * 4 and near.all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprobs_are_of_the_models_own_distribution(dtype: torch.dtype, llms: Any, tokenizer: Any) -> None:
    asked = {"max_new_tokens": 1, "repetition_penalty": 3.0, "temperature": 0.5, "do_sample": True}
    stepper = Stepper(llms["llama"], tokenizer, Decoding(asked, with_logprobs=True), None)
    rows = [stepper.row(p, i, 0) for i, p in enumerate(prompts_of())]
    logits = torch.randn(len(rows), 320).to(dtype) * 4
    stepper.step(rows, logits)
    expected = torch.log_softmax(logits.float(), -1)[range(len(rows)), [row.last_id for row in rows]]
    assert [row.logprobs[0] for row in rows] == expected.tolist()


# --- sampling --------------------------------------------------------------------------------------------------------

WARPED: list[dict[str, Any]] = [
    {},
    {"top_k": 0},
    {"top_k": 0, "temperature": 0.7, "top_p": 0.9},
    {"top_k": 20, "temperature": 1.7, "top_p": 0.8, "min_p": 0.03},
    {"top_k": 0, "typical_p": 0.6},
    {"top_k": 0, "epsilon_cutoff": 0.003, "eta_cutoff": 0.004},
    {"top_k": 5, "renormalize_logits": True, "repetition_penalty": 1.5},
    {"top_k": 0, "top_p": 0.7, "min_p": 0.02, "typical_p": 0.9},
    {"top_h": 0.5},
    {"top_k": 0, "min_p": 0.1},
]


@pytest.mark.parametrize("asked", WARPED)
def test_samples_come_from_what_generates_warpers_leave(asked: dict[str, Any], llms: Any, tokenizer: Any) -> None:
    """Many samples of one step: exactly the tokens that generate() leaves, each as often as it should come."""
    model, prompt, count = llms["llama"], prompts_of()[0], 4000
    asked = {"max_new_tokens": 1, "do_sample": True, **asked}
    out = model.generate(
        torch.from_numpy(prompt).long()[None], **asked, output_scores=True, return_dict_in_generate=True
    )
    chance = out.scores[0][0].double().softmax(-1).numpy()
    stepper = Stepper(model, tokenizer, Decoding(asked), None)
    rows = [stepper.row(prompt, 7, sample) for sample in range(count)]
    stepper.step(rows, logits_of(model, rows[0]).expand(count, -1))
    counts = np.bincount([row.last_id for row in rows], minlength=320)
    assert counts[chance == 0].sum() == 0
    is_common = chance * count >= 5
    expected = np.append(chance[is_common], chance[~is_common].sum()) * count
    seen = np.append(counts[is_common], counts[~is_common].sum())
    statistic = float(((seen - expected) ** 2 / np.maximum(expected, 1e-9)).sum())
    freedom = max(1, len(expected) - 1)
    assert statistic < freedom + 5 * np.sqrt(2 * freedom) + 5


@pytest.mark.parametrize("top", [{"top_k": 40}, {"top_p": 0.9}, {"top_p": 0.5}, {"top_k": 3}, {"top_p": 0.0}])
@pytest.mark.parametrize("spread", [0.3, 3.0, 9.0])
def test_looking_at_the_likely_tokens_alone_changes_nothing(top: dict[str, Any], spread: float) -> None:
    """Against transformers' warpers over the whole vocabulary and a sum over all of it."""
    from transformers.generation.logits_process import (
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    generator = torch.Generator().manual_seed(int(spread * 10))
    scores = torch.randn(200, 3000, generator=generator) * spread
    scores[:40] = scores[:40].round()  # equal scores, also where the cut falls
    scores[:20, 1500:] = -torch.inf
    uniform = torch.rand(200, generator=generator, dtype=torch.float64)
    first = TopKLogitsWarper(top["top_k"]) if "top_k" in top else TopPLogitsWarper(top["top_p"])
    warpers = [TemperatureLogitsWarper(0.7), first, MinPLogitsWarper(0.01)]
    sampler, width = Sampler(warpers), 64
    likely = sampler.likely(scores, width)
    left = torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, likely.ids, likely.values > -torch.inf)
    expected = warpers[1](None, warpers[0](None, scores)) > -torch.inf
    assert torch.equal(left[likely.is_sure], expected[likely.is_sure])
    assert spread < 9 or likely.is_sure[40:].float().mean() > 0.8
    warped = scores
    for warper in warpers:
        warped = warper(None, warped)
    assert sampler.choose(scores, uniform).ids.tolist() == inverse_cdf(warped, uniform)[0].tolist()


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.0, 0.3, 2.0, 30.0])
def test_what_top_p_leaves_without_a_sort_is_what_it_leaves(top_p: float, spread: float) -> None:
    """Flat distributions, where neither few tokens nor one bin of them hold the mass; against transformers' warper."""
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

    generator = torch.Generator().manual_seed(int(spread * 10))
    scores = torch.randn(24, 9000, generator=generator) * spread
    scores[:6] = (scores[:6] * 4).round() / 4  # equal scores where the cut falls
    scores[3:9, 2000:] = -torch.inf
    warper = TopPLogitsWarper(top_p)
    left, is_sure = cut_at_mass(scores, top_p)
    assert torch.equal(left[is_sure], warper(None, scores)[is_sure])
    assert spread in (0, 30) or is_sure[9:].float().mean() > 0.6
    uniform = torch.rand(24, generator=generator, dtype=torch.float64)
    for warpers in ([warper], [TemperatureLogitsWarper(1.5), warper]):
        warped = scores
        for each in warpers:
            warped = each(None, warped)
        assert Sampler(warpers).choose(scores, uniform).ids.tolist() == inverse_cdf(warped, uniform)[0].tolist()


def test_scores_that_are_no_numbers_are_never_sure() -> None:
    scores = torch.randn(4, 5000)
    scores[0, 7], scores[1, 7], scores[2] = torch.nan, torch.inf, -torch.inf
    assert cut_at_mass(scores, 0.9)[1].tolist()[:3] == [False, False, False]


def test_rows_that_were_not_sure_are_done_again(llms: dict[str, Any], tokenizer: Any) -> None:
    """Equal scores at the cut of top_k: all of them are left, as transformers has it."""
    asked = {"max_new_tokens": 1, "do_sample": True, "top_k": 2}
    stepper = Stepper(llms["llama"], tokenizer, Decoding(asked), None)
    rows = [stepper.row(prompts_of()[0], key, 0) for key in range(500)]
    logits = torch.zeros(500, 320)
    logits[:, 7], logits[:, [11, 30, 200]] = 3.0, 2.0
    stepper.step(rows, logits)
    assert {row.last_id for row in rows} == {7, 11, 30, 200}


def test_a_sample_depends_on_its_own_row_alone(llms: dict[str, Any], tokenizer: Any) -> None:
    asked = {"max_new_tokens": NEW, "do_sample": True, "num_return_sequences": 2, "temperature": 1.3, "top_p": 0.95}
    model, prompts = llms["llama"], prompts_of()
    stepper = Stepper(model, tokenizer, Decoding(asked, seed=5), None)
    rows = write(model, stepper, prompts, seed=1, samples=2)
    assert [row.ids for row in rows] == [row.ids for row in write(model, stepper, prompts, seed=2, samples=2)]
    last = stepper.row(prompts[3], 1003, 1)
    while not last.is_done:
        stepper.step([last], logits_of(model, last)[None])
    assert last.ids == rows[7].ids
    assert len({tuple(row.ids) for row in rows}) == len(rows)  # samples differ
    other = write(model, Stepper(model, tokenizer, Decoding(asked, seed=6), None), prompts, seed=1, samples=2)
    assert [row.ids for row in other] != [row.ids for row in rows]


def test_numbers_near_a_boundary_are_counted() -> None:
    scores = torch.log(torch.tensor([[0.5, 0.25, 0.25]])).expand(4, -1)
    uniform = torch.tensor([0.5 - 1e-9, 0.5 + 1e-9, 0.6, 1 - 2**-53], dtype=torch.float64)
    place, is_near = inverse_cdf(scores, uniform)
    assert place.tolist() == [0, 1, 1, 2] and is_near.tolist() == [True, True, False, True]


def test_zero_weights_are_never_chosen() -> None:
    scores = torch.tensor([[-torch.inf, 1.0, -torch.inf, 1.0, -torch.inf]]).expand(3, -1)
    place, _ = inverse_cdf(scores, torch.tensor([0.0, 0.4, 1 - 2**-53], dtype=torch.float64))
    assert place.tolist() == [1, 1, 3]


def test_philox_gives_the_published_numbers() -> None:
    """Known answers of Random123's kat_vectors for philox4x32-10."""
    ones, pi = [0xFFFFFFFF] * 4, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    known = [
        ([0] * 4, [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (ones, ones[:2], [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (pi, [0xA4093822, 0x299F31D0], [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
    ]
    for counter, key, answer in known:
        words = philox(np.array(counter, np.uint64)[:, None], np.array(key, np.uint64)[:, None])
        assert words[:, 0].tolist() == answer


TYPES = (np.uint64, np.int64, np.int64)
number = st.integers(0, 2**64 - 1)


@given(number, st.lists(st.tuples(number, st.integers(0, 99), st.integers(0, 9999)), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_noise_is_a_function_of_its_four_numbers(seed: int, rows: list[tuple[int, int, int]]) -> None:
    keys, samples, steps = (np.array(c, t) for c, t in zip(zip(*rows, strict=True), TYPES, strict=True))
    together = uniforms(seed, keys, samples, steps)
    alone = [uniforms(seed, keys[i : i + 1], samples[i : i + 1], steps[i : i + 1])[0] for i in range(len(rows))]
    assert together.tolist() == alone and (together >= 0).all() and (together < 1).all()
    assert len(set(alone)) == len(set(rows))


@pytest.mark.parametrize("varied", ["key", "sample", "step", "seed"])
def test_noise_is_uniform_along_each_of_them(varied: str) -> None:
    n = 20_000
    along, same = np.arange(n), np.full(n, 3)
    parts = {name: along if name == varied else same for name in ("key", "sample", "step")}
    seeds = range(n) if varied == "seed" else [3]
    drawn = [uniforms(s, parts["key"].astype(np.uint64), parts["sample"], parts["step"]) for s in seeds[:200]]
    values = np.concatenate(drawn) if varied != "seed" else np.array([d[0] for d in drawn])
    expected = len(values) / 20
    counts = np.histogram(values, 20, (0, 1))[0]
    assert ((counts - expected) ** 2 / expected).sum() < 44  # 99.9% of 19 degrees of freedom
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 4 / np.sqrt(len(values))


# --- Generated -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_rows_in_error", [True, False])
def test_generated_puts_rows_in_their_places(with_rows_in_error: bool, llms: dict[str, Any], tokenizer: Any) -> None:
    asked = {"max_new_tokens": NEW, "do_sample": True, "num_return_sequences": 2, "eos_token_id": list(range(99))}
    stepper = Stepper(llms["llama"], tokenizer, Decoding(asked, with_logprobs=True), None)
    rows = write(llms["llama"], stepper, prompts_of(3), samples=2)
    kept = rows if with_rows_in_error else rows[:2] + rows[4:]
    errors = {1: RowError("empty_prompt", "")}
    result = generated(kept, 3, 2, True, errors)
    assert result.errors == errors and result.lengths[2:4].tolist() == [0, 0] and result.logprobs is not None
    for j in (0, 1, 4, 5):
        own = slice(result.offsets[j], result.offsets[j + 1])
        assert result.ids[own].tolist() == rows[j].ids
        assert result.logprobs[own].tolist() == pytest.approx(rows[j].logprobs)
        assert result.reasons[j] == rows[j].reason and result.near_ties[j] == rows[j].near_ties
    with pytest.raises(ValueError, match="rows for 3 prompts"):
        generated(rows[:3], 3, 2, False, {})
