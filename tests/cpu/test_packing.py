"""Packed rows against plain transformers, row by row: right, or refused with a reason, never silently wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from packhorse.backends.torch.reduce import Reducer
from packhorse.data import Reduction
from packhorse.devices.host import cpu_precisions
from packhorse.errors import ModelError
from packhorse.packing import attention
from packhorse.packing.heads import PackedModel, position_table
from packhorse.packing.pack import Pack, make_pack, pack_of_mask, row_positions
from tests.cpu import packable, reference
from tests.cpu.engine import load

TOLERANCE = 1e-5
TEXTS = packable.texts()
ONE_PACK = 8_192  # tokens: all of the texts
POOLINGS = ("mean", "cls", "max", "last")
POOL: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda h: h.mean(0), "cls": lambda h: h[0], "max": lambda h: h.max(0).values, "last": lambda h: h[-1],
}  # fmt: skip


def assert_equal(found: Any, expected: Any) -> None:
    wanted = np.asarray(expected)
    assert wanted.std(0).max() > 1_000 * TOLERANCE, "rows too alike to tell a mix-up"
    np.testing.assert_allclose(np.asarray(found), wanted, atol=TOLERANCE)


def scores(engine: Any, texts: list[str], pairs: list[str] | None = None) -> np.ndarray:
    table = engine.predict(texts, pairs)
    assert table["error"].null_count == len(texts)
    return np.array(table["scores"].to_pylist(), np.float32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders of models whose tokenizers put no special tokens around a text, each made once."""
    root = tmp_path_factory.mktemp("packable")

    def folder(kind: str, auto: str = "AutoModelForSequenceClassification") -> Path:
        path = root / f"{kind}-{auto}"
        return path if path.exists() else packable.without_special_tokens(packable.save(path, kind, auto))

    return folder


# -- through the engine


@pytest.mark.parametrize("kind", packable.PACKED)
def test_a_packed_classifier_equals_transformers_row_by_row(folders: Callable[..., Path], kind: str) -> None:
    folder = folders(kind)
    expected = reference.logits(folder, TEXTS, max_length=packable.MAX_LENGTH).softmax(1)
    with load(folder, scores="all", attention="packed", max_batch_tokens=ONE_PACK) as engine:
        assert (engine.plan.attention, engine.plan.batching) == ("packed", "packed")
        assert_equal(scores(engine, TEXTS), expected)


@pytest.mark.parametrize("kind", packable.PACKED)
def test_packed_embeddings_equal_transformers_row_by_row(folders: Callable[..., Path], kind: str) -> None:
    folder = folders(kind, "AutoModel")
    pooling = POOLINGS[packable.PACKED.index(kind) % 3] if kind not in ("qwen3", "llama", "mistral") else "last"
    hidden = reference.hidden_states(folder, TEXTS, max_length=packable.MAX_LENGTH)
    with load(folder, attention="packed", pooling=pooling, max_batch_tokens=ONE_PACK) as engine:
        assert engine.plan.attention == "packed"
        assert_equal(engine.embed(TEXTS), torch.stack([POOL[pooling](h) for h in hidden]))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("budget", [40, ONE_PACK])
def test_every_pooling_is_right_in_small_and_large_packs(
    folders: Callable[..., Path], pooling: str, budget: int
) -> None:
    folder = folders("bert", "AutoModel")
    hidden = reference.hidden_states(folder, TEXTS, max_length=packable.MAX_LENGTH)
    with load(folder, attention="packed", pooling=pooling, max_batch_tokens=budget) as engine:
        assert_equal(engine.embed(TEXTS), torch.stack([POOL[pooling](h) for h in hidden]))


def test_packing_is_what_auto_takes_and_no_token_is_padding(folders: Callable[..., Path], tmp_path: Path) -> None:
    with load(folders("bert"), scores="all") as engine:
        assert (engine.plan.attention, engine.plan.batching) == ("packed", "packed")
        counters = engine.run({"text": TEXTS}, str(tmp_path / "out")).counters
    assert counters.computed_tokens == counters.real_tokens == sum(packable.LENGTHS)


@pytest.mark.parametrize("batching", ["padded", "fixed"])
def test_other_batching_of_a_packed_model_gives_the_same_values(folders: Callable[..., Path], batching: str) -> None:
    folder = folders("bert")
    expected = reference.logits(folder, TEXTS, max_length=packable.MAX_LENGTH).softmax(1)
    with load(folder, scores="all", batching=batching) as engine:
        assert_equal(scores(engine, TEXTS), expected)


@pytest.mark.parametrize("kind", packable.TAKES_TOKEN_TYPES)
def test_pairs_keep_their_token_types(tmp_path: Path, kind: str) -> None:
    folder = packable.save(tmp_path, kind)
    texts, pairs = packable.texts((2, 5, 30, 120, 1, 5)), packable.texts((30, 5, 1, 150, 1, 5), seed=4)
    expected = reference.logits(folder, texts, pairs, max_length=packable.MAX_LENGTH).softmax(1)
    turned = reference.logits(folder, pairs, texts, max_length=packable.MAX_LENGTH).softmax(1)
    assert (expected - turned).abs().max() > 1_000 * TOLERANCE
    with load(folder, scores="all", attention="packed") as engine:
        assert_equal(scores(engine, texts, pairs), expected)


PADDING_IN_TEXT = [
    "[PAD]", "good [PAD] film", "[PAD] good film", "good film [PAD] [PAD]", "a plain film", "bad [PAD] end [PAD] sad",
]  # fmt: skip


@pytest.mark.parametrize("specials", [True, False], ids=["special tokens", "none"])
@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert", "bert", "modernbert", "distilbert"])
def test_a_text_may_contain_the_padding_token(tmp_path: Path, kind: str, specials: bool) -> None:
    """RoBERTa gives such a token the position of padding and does not count it."""
    folder = packable.save(tmp_path, kind)
    if not specials:
        packable.without_special_tokens(folder)
    texts = PADDING_IN_TEXT + packable.texts((5, 30))
    expected = reference.logits(folder, texts, max_length=packable.MAX_LENGTH).softmax(1)
    with load(folder, scores="all", attention="packed") as engine:
        assert_equal(scores(engine, texts), expected)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "opt"])
def test_a_decoders_head_reads_the_last_token_that_is_no_padding(folders: Callable[..., Path], kind: str) -> None:
    """Of a text that ends in the padding token transformers reads the token before it, be the row alone or not."""
    folder = folders(kind)
    texts = PADDING_IN_TEXT[1:] + packable.texts((5, 30))
    expected = reference.logits(folder, texts, max_length=packable.MAX_LENGTH).softmax(1)
    with load(folder, scores="all") as engine:
        assert_equal(scores(engine, texts), expected)


# -- which tokens a head reads


@pytest.mark.parametrize(
    ("kind", "pooling", "reads"),
    [
        ("bert", None, "first"),
        ("modernbert", "cls", "first"),
        ("modernbert", "mean", "all"),
        ("eurobert", "bos", "first"),
        ("eurobert", "mean", "all"),
        ("eurobert", "late", "all"),
        ("llama", None, "last"),
        ("gpt2", None, "last"),
    ],
)
def test_what_a_head_reads_is_found_and_its_scores_are_right(
    tmp_path: Path, kind: str, pooling: str | None, reads: str
) -> None:
    changes = {} if pooling is None else {"classifier_pooling": pooling}
    folder = packable.without_special_tokens(packable.save(tmp_path, kind, **changes))
    expected = reference.logits(folder, TEXTS, max_length=packable.MAX_LENGTH)
    with load(folder, scores="all", attention="packed", max_batch_tokens=ONE_PACK) as engine:
        assert_equal(scores(engine, TEXTS), expected.softmax(1))
    model, ids = packable.made(kind, **changes), packable.ids_of()
    for candidate in ("first", "last", "all"):
        if candidate == "last" and reads == "all":
            continue
        alike = np.allclose(*packed_and_alone(model, ids, candidate), atol=TOLERANCE)
        assert alike == (candidate == reads or (candidate == "all" and reads == "first")), candidate


# -- PackedModel itself


def packed_hidden(model: Any, ids: list[torch.Tensor], reads: Any = "all") -> tuple[torch.Tensor, Pack, PackedModel]:
    """Hidden states [T, H] of the rows in the given order, one pack."""
    attention.register()
    before = model.config._attn_implementation
    lengths = np.array([len(row) for row in ids], np.int64)
    pack, flat = make_pack(lengths, "cpu"), torch.cat(ids)
    table = position_table(model)
    positions = row_positions(flat.numpy(), lengths, None if table is None else table.padding_idx)
    packed = PackedModel(model, reads)
    try:
        attention.select(model, attention.NAME)
        with torch.inference_mode():
            return packed.hidden(flat, None, torch.from_numpy(positions), pack), pack, packed
    finally:
        attention.select(model, before)


def packed_and_alone(model: Any, ids: list[torch.Tensor], reads: Any) -> tuple[np.ndarray, np.ndarray]:
    with torch.inference_mode():
        hidden, pack, packed = packed_hidden(model, ids, reads)
        alone = torch.cat([model(input_ids=row[None]).logits for row in ids])
        return packed.head(hidden, pack, torch.cat(ids)).logits.numpy(), alone.numpy()


READ_BY = {
    "eurobert": "all", "qwen3": "last", "llama": "last", "mistral": "last", "gpt2": "last", "opt": "last",
}  # fmt: skip


@pytest.mark.parametrize("kind", packable.PACKED)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_hidden_states_of_a_pack_are_those_of_its_rows(kind: str, implementation: str) -> None:
    model, ids = packable.made(kind, "AutoModel"), packable.ids_of()
    model.set_attn_implementation(implementation)
    with torch.inference_mode():
        alone = [model(input_ids=row[None]).last_hidden_state[0] for row in ids]
    hidden, pack, packed = packed_hidden(model, ids)
    assert hidden.shape == (sum(packable.LENGTHS), 64)
    assert_equal(hidden, torch.cat(alone))
    reducer = Reducer(Reduction("pool", pooling=POOLINGS), "cpu")
    pooled = torch.stack([torch.cat([POOL[mode](h) for mode in POOLINGS]) for h in alone])
    assert_equal(reducer.packed(hidden, pack, packed), pooled)


@pytest.mark.parametrize("kind", packable.PACKED)
def test_the_head_of_a_pack_gives_the_logits_of_its_rows(kind: str) -> None:
    found, alone = packed_and_alone(packable.made(kind), packable.ids_of(), READ_BY.get(kind, "first"))
    assert_equal(found, alone)


def test_a_prompt_is_left_out_of_every_pooling() -> None:
    model, ids, skip = packable.made("bert", "AutoModel"), packable.ids_of((4, 5, 5, 30)), 3
    hidden, pack, packed = packed_hidden(model, ids)
    rows = [h[skip:] for h in hidden.split([len(row) for row in ids])]
    found = Reducer(Reduction("pool", pooling=POOLINGS, skip_tokens=skip), "cpu").packed(hidden, pack, packed)
    assert_equal(found, torch.stack([torch.cat([POOL[mode](h) for mode in POOLINGS]) for h in rows]))


def test_roberta_does_not_count_padding_tokens_inside_a_row() -> None:
    model = packable.made("roberta", "AutoModel", pad_token_id=1, max_position_embeddings=332)
    ids = packable.ids_of((5, 30, 30, 7))
    for row, places in zip(ids, ([0], [3, 4], [29], []), strict=True):
        row[places] = 1
    with torch.inference_mode():
        alone = torch.cat([model(input_ids=row[None]).last_hidden_state[0] for row in ids])
    assert_equal(packed_hidden(model, ids)[0], alone)


def test_the_packed_model_leaves_the_model_as_it_was() -> None:
    model, ids = packable.made("bert"), packable.ids_of((5, 30))
    modules, before = list(model.modules()), model(input_ids=ids[0][None]).logits
    packed_and_alone(model, ids, "first")
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
    assert torch.equal(model(input_ids=ids[0][None]).logits, before)


def test_a_body_has_no_head_to_call() -> None:
    hidden, pack, packed = packed_hidden(packable.made("bert", "AutoModel"), packable.ids_of((5,)))
    with pytest.raises(TypeError, match="head"):
        packed.head(hidden, pack, torch.ones(5, dtype=torch.long))


# -- packs


def test_runs_are_neighbours_of_one_length() -> None:
    pack = make_pack(np.array([7, 7, 3, 7, 3, 3]), "cpu")
    assert [tuple(run) for run in pack.runs] == [(0, 2, 7), (14, 1, 3), (17, 1, 7), (24, 2, 3)]
    assert pack.cu_seqlens.tolist() == [0, 7, 14, 17, 24, 27, 30]
    assert pack.cu_seqlens.dtype == torch.int32 and pack.max_seqlen == 7
    assert pack.starts.tolist() == [0, 7, 14, 17, 24, 27] and pack.ends.tolist() == [6, 13, 16, 23, 26, 29]


@pytest.mark.parametrize("seed", range(5))
def test_a_pack_of_a_mask_finds_every_real_token_and_puts_it_back(seed: int) -> None:
    mask = torch.rand(6, 9, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask[seed] = False
    pack = pack_of_mask(mask)
    values = torch.arange(54.0).view(6, 9, 1) + 1
    padded = pack.padded(values.flatten(0, 1)[pack.where])
    assert torch.equal(padded, values * mask[:, :, None])
    assert pack.lengths.tolist() == sorted((n for n in mask.sum(1).tolist() if n), reverse=True)


def test_only_a_pack_of_a_mask_can_be_padded() -> None:
    with pytest.raises(ValueError, match="padded"):
        make_pack(np.array([2, 3]), "cpu").padded(torch.ones(5, 1))


def test_masks_are_none_where_every_token_sees_its_whole_row() -> None:
    pack = make_pack(np.array([5]), "cpu")
    assert pack.mask(5, None, False) is None and pack.mask(5, 5, False) is None
    place = torch.arange(5)
    distance = place[:, None] - place
    assert torch.equal(pack.mask(5, 4, False), distance.abs() < 4)
    assert torch.equal(pack.mask(5, None, True), distance >= 0)
    assert torch.equal(pack.mask(5, 2, True), (distance >= 0) & (distance < 2))


# -- refused


@pytest.mark.parametrize("kind", packable.REFUSED)
def test_what_cannot_be_packed_runs_padded_and_says_why(folders: Callable[..., Path], kind: str) -> None:
    folder = folders(kind)
    expected = reference.logits(folder, TEXTS, max_length=packable.MAX_LENGTH).softmax(1)
    with load(folder, scores="all") as engine:
        assert engine.plan.attention != "packed" and engine.plan.batching != "packed"
        reasons = [note for note in engine.plan.notes if note.startswith("padded:")]
        assert len(reasons) == 1 and ("differ" in reasons[0] or "cannot be packed" in reasons[0])
        assert_equal(scores(engine, TEXTS), expected)


@pytest.mark.parametrize("kind", packable.REFUSED)
def test_asked_for_by_name_what_cannot_be_packed_is_a_model_error_that_says_why(
    folders: Callable[..., Path], kind: str
) -> None:
    with pytest.raises(ModelError, match=r"--attention packed: .*(differ from each row alone|cannot be packed: \w+)"):
        load(folders(kind), attention="packed")


@pytest.mark.skipif("bf16" not in cpu_precisions(), reason="the processor has no bf16 instructions")
@pytest.mark.parametrize("kind", packable.REFUSED)
def test_what_cannot_be_packed_is_not_packed_in_bf16_either(tmp_path: Path, kind: str) -> None:
    """Weights as narrow as transformers makes them: attention across rows then changes less than bf16 may round."""
    folder = packable.without_special_tokens(packable.save(tmp_path, kind, initializer_range=0.02))
    with load(folder, precision="bf16") as engine:
        assert engine.plan.attention != "packed"


def test_embeddings_of_what_cannot_be_packed_are_right_too(folders: Callable[..., Path]) -> None:
    folder = folders("mpnet", "AutoModel")
    hidden = reference.hidden_states(folder, TEXTS, max_length=packable.MAX_LENGTH)
    with load(folder) as engine:
        assert engine.plan.attention != "packed"
        assert_equal(engine.embed(TEXTS), torch.stack([h.mean(0) for h in hidden]))


@pytest.fixture()
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """BERT as somebody may write it: the encoder's layers are called without the keywords that the body was given."""
    from transformers.models.bert.modeling_bert import BertEncoder

    original = BertEncoder.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, *args, **{k: v for k, v in kwargs.items() if k != "pack"})

    monkeypatch.setattr(BertEncoder, "forward", forward)


@pytest.mark.usefixtures("forgetful")
def test_a_model_that_does_not_hand_its_keywords_on_is_refused(folders: Callable[..., Path]) -> None:
    folder = folders("bert")
    with load(folder, scores="all") as engine:
        assert engine.plan.attention == "sdpa"
        assert any("does not hand the rows' boundaries on" in note for note in engine.plan.notes)
        assert_equal(scores(engine, TEXTS), reference.logits(folder, TEXTS, max_length=320).softmax(1))
    with pytest.raises(ModelError, match="boundaries"):
        load(folder, attention="packed")


@pytest.mark.parametrize("extra", ["softcap", "s_aux", "position_bias"])
def test_arguments_that_change_what_attention_means_are_refused(extra: str) -> None:
    q = torch.ones(1, 2, 4, 8)
    pack = make_pack(np.array([4]), "cpu")
    with pytest.raises(attention.PackingError, match=extra):
        attention.packed_attention(torch.nn.Identity(), q, q, q, None, pack=pack, **{extra: 1.0})
    attention.packed_attention(torch.nn.Identity(), q, q, q, None, pack=pack, **{extra: None})


def test_a_mask_no_pack_and_other_tokens_are_refused() -> None:
    q, longer = torch.ones(1, 2, 4, 8), torch.ones(1, 2, 6, 8)
    pack, module = make_pack(np.array([4]), "cpu"), torch.nn.Identity()
    with pytest.raises(attention.PackingError, match="mask"):
        attention.packed_attention(module, q, q, q, torch.ones(1, 1, 4, 4), pack=pack)
    with pytest.raises(attention.PackingError, match="boundaries"):
        attention.packed_attention(module, q, q, q, None)
    with pytest.raises(attention.PackingError, match="other tokens"):
        attention.packed_attention(module, q, longer, longer, None, pack=pack)
