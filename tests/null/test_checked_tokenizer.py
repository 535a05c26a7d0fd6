"""A fast package that lies, panics or is not there: the tokens are those of the reference, and the report says so."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import AddedToken, Tokenizer

import packhorse
from packhorse.config import RunConfig
from packhorse.errors import UsageError
from packhorse.executors.local import Stop
from packhorse.jobs.job import Job
from packhorse.loading import Loader
from packhorse.loading.material import Material
from packhorse.metrics import RunReport
from packhorse.outputs.manifest import RunFolder
from packhorse.readers.table import TableReader
from packhorse.report.reporter import Reporter
from packhorse.sequences import Sequencing
from packhorse.tokenize.checked import MIN_ROWS, CheckedEncoder
from packhorse.tokenize.encoder import Encoder, HfEncoder
from packhorse.tokenize.fast import FastTokenizer, Retokenized
from packhorse.tokenize.huge import TokenizeSettings
from packhorse.tokenize.proof import choose_tokenizer, prove
from packhorse.tokenize.sequencing import SequenceTokenizer
from packhorse.tokenize.truncate import Raw
from tests.models import word_piece_tokenizer
from tests.null.reference import some_texts
from tests.null.runs import parts, run, run_until_stopped
from tests.null.test_fast_tokenizer import ids, tokenize

TEXTS = [f"good film {i}" for i in range(2 * MIN_ROWS)]


class Panic(BaseException):
    """As a panic of Rust code comes out of an extension: no Exception."""


class Fake:
    """Encodes as the reference does, until `spoil` changes the result. Keeps what it was given."""

    name = "fake"
    avoided: tuple[str, ...] = ("secret",)

    def __init__(self, backend: Tokenizer, spoil: Callable[[list[str], Raw], Raw] = lambda _, raw: raw) -> None:
        self._hf, self._spoil = HfEncoder(backend, 1), spoil
        self.given: list[str] = []

    def encode(self, texts: list[str]) -> Raw:
        self.given += texts
        return self._spoil(texts, self._hf.encode_column(texts))


def lie(texts: list[str], raw: Raw) -> Raw:
    """Another first token wherever a text has a liar in it."""
    begins = np.cumsum(raw.lengths) - raw.lengths
    changed = raw.ids.copy()
    changed[[begins[i] for i, text in enumerate(texts) if "liar" in text]] += 1
    return raw._replace(ids=changed)


def panic(texts: list[str], raw: Raw) -> Raw:
    if any("liar" in text for text in texts):
        raise Panic("index out of bounds")
    return raw


def drop_a_row(texts: list[str], raw: Raw) -> Raw:
    return Raw(raw.ids[: -int(raw.lengths[-1]) or None], raw.lengths[:-1]) if "liar" in "".join(texts) else raw


SPOILS = {"another_token": lie, "panic": panic, "a_row_less": drop_a_row}


def checked(fake: Fake) -> CheckedEncoder:
    return CheckedEncoder(fake, HfEncoder(word_piece_tokenizer(), 1), word_piece_tokenizer())


def fast(encoder: Encoder, **settings: object) -> FastTokenizer:
    return FastTokenizer(word_piece_tokenizer(), TokenizeSettings(16, **settings), encoder)  # type: ignore[arg-type]


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_a_package_that_fails_is_replaced_and_the_tokens_are_right(spoil: Callable[[list[str], Raw], Raw]) -> None:
    texts = [*TEXTS, "the liar"]
    tokenizer = fast(checked(Fake(word_piece_tokenizer(), spoil)))
    good = tokenizer.tokenize(TEXTS, None)
    assert ids(good) == ids(tokenize(TEXTS)) and not isinstance(good, Retokenized)
    bad = tokenizer.tokenize([None, *texts], None)
    assert isinstance(bad, Retokenized) and ids(bad) == ids(tokenize([None, *texts]))
    assert str(bad.difference).startswith("fake ")
    later = tokenizer.tokenize(texts, None)
    assert ids(later) == ids(tokenize(texts)) and not isinstance(later, Retokenized)


def test_the_row_of_a_difference_is_the_shards_own_number() -> None:
    made = fast(checked(Fake(word_piece_tokenizer(), lie))).tokenize([None, "the liar", *TEXTS], None)
    assert isinstance(made, Retokenized)
    assert made.difference.row == 1 and str(made.difference) == "fake differs from hf on 'the liar'"


def test_a_difference_in_the_second_texts_redoes_the_first_ones_as_well() -> None:
    fake = Fake(word_piece_tokenizer(), lambda texts, raw: lie([t.replace("end", "liar") for t in texts], raw))
    firsts, seconds = [*TEXTS[:40], "the end", *TEXTS[40:]], [*TEXTS, "the end"]
    made = fast(checked(fake), with_type_ids=True).tokenize(firsts, seconds)
    assert isinstance(made, Retokenized) and ids(made) == ids(tokenize(firsts, seconds))


def test_sequences_of_rows_are_redone_and_told_as_well() -> None:
    fake = Fake(word_piece_tokenizer(), lambda texts, raw: lie([t.replace("end", "liar") for t in texts], raw))
    firsts, seconds = [None, *TEXTS, "the film"], ["a", *TEXTS, "the end"]
    given, settings = Sequencing(long="windows", stride=2), TokenizeSettings(16, with_type_ids=True)
    tokenizer = SequenceTokenizer(word_piece_tokenizer(), settings, given, checked(fake))
    right = SequenceTokenizer(word_piece_tokenizer(), settings, given).tokenize(firsts, seconds)
    made = tokenizer.tokenize(firsts, seconds)
    assert isinstance(made, Retokenized) and ids(made) == ids(right)
    assert made.difference.row == len(TEXTS) + 1 and str(made.difference) == "fake differs from hf on 'the end'"
    later = tokenizer.tokenize(firsts, seconds)
    assert ids(later) == ids(right) and not isinstance(later, Retokenized)


def test_rows_outside_the_proof_never_reach_the_package() -> None:
    odd = ["a [SEP] b", "[sep]", "[CLS]good", "bell\x07", "", " \t ", "a secret", "del\x7f"]
    fake = Fake(word_piece_tokenizer())
    made = fast(checked(fake)).tokenize([*odd, *TEXTS], None)
    assert ids(made) == ids(tokenize([*odd, *TEXTS]))
    assert set(fake.given) & set(odd) <= {"", "[sep]"}


def test_characters_on_which_the_package_differs_go_to_the_reference() -> None:
    texts = ["café", "naïve", "ça", "über é", *TEXTS]
    fake = Fake(word_piece_tokenizer(), lambda texts, raw: lie([t.replace("é", "liar") for t in texts], raw))
    made = fast(checked(fake)).tokenize(texts, None)
    assert ids(made) == ids(tokenize(texts)) and not isinstance(made, Retokenized)
    assert "café" not in fake.given and "über é" not in fake.given


def test_a_token_that_is_looked_for_in_normalized_text_is_found_in_all_that_becomes_it() -> None:
    backend = word_piece_tokenizer()
    backend.add_tokens([AddedToken("filmes", normalized=True)])
    texts = ["a filmes b", "xFILMES", "fílmeś", "fil\u200bmes é", "ﬁlmes"]
    fake = Fake(backend)
    made = CheckedEncoder(fake, HfEncoder(backend, 1), backend).encode([[*texts, *TEXTS]])[0]
    expected = HfEncoder(backend, 1).encode_column([*texts, *TEXTS])
    assert np.array_equal(made.ids, expected.ids) and not set(texts) & set(fake.given)


def test_few_rows_are_the_references_at_once() -> None:
    fake = Fake(word_piece_tokenizer(), lie)
    texts = ["the liar"] * (MIN_ROWS - 1)
    made = fast(checked(fake)).tokenize(texts, None)
    assert ids(made) == ids(tokenize(texts)) and not fake.given


def test_the_proof_names_package_and_text() -> None:
    backend = word_piece_tokenizer()
    assert prove(checked(Fake(backend)), TEXTS) is None
    assert prove(checked(Fake(backend, lie)), ["good", "a liar"]) == "fake differs from hf on 'a liar'"
    assert "raised Panic" in (prove(checked(Fake(backend, panic)), ["good", "a liar"]) or "")
    caps = Fake(backend, lambda texts, raw: lie([t.replace("MiXeD", "liar") for t in texts], raw))
    assert prove(checked(caps), TEXTS) == "fake differs from hf on 'MiXeD CaSe'"
    assert "5 of 6 rows" in (prove(checked(Fake(backend)), ["good", *["x [SEP]"] * 5]) or "")


# -- whole jobs


class LyingMaterial(Material):
    """As if a package had been proven that lies on later rows."""

    def encoder(self, package: str, threads: int) -> Encoder | None:
        return None if package == "hf" else checked(Fake(word_piece_tokenizer(), lie))


def run_lying(model: Path, rows: pa.Table, output: Path) -> RunReport:
    config = RunConfig(
        model=str(model), backend="null", input="(in memory)", output=str(output), progress="none", shard_rows=100,
        tokenizer=pytest.importorskip("nanotoken").__name__,
    )  # fmt: skip
    folder = RunFolder(config.output, config.output_is_file)
    return Job(config, Loader(config, LyingMaterial(config)), TableReader(rows), folder, Reporter("none"), Stop()).run()


def test_a_shard_in_which_the_package_lies_is_done_again_and_the_report_says_so(
    null_model: Path, tmp_path: Path
) -> None:
    texts = [f"good film {i}" for i in range(400)]
    texts[200] = texts[300] = "a liar"
    report = run_lying(null_model, pa.table({"text": texts}), tmp_path / "lying")
    run(null_model, pa.table({"text": texts}), tmp_path / "hf", tokenizer="hf", shard_rows=100)
    assert parts(tmp_path / "lying") == parts(tmp_path / "hf")
    assert list(report.counters.notes.items()) == [
        (
            "tokenizer: fake differs from hf on 'a liar', in shard 2, row 200; "
            "that shard and the rest were tokenized by hf",
            1,
        )
    ]
    assert report.to_dict()["counters"]["notes"]


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tokie", "nanotoken"):
        monkeypatch.setitem(sys.modules, name, None)


def test_a_package_that_is_not_there_is_a_usage_error_with_its_extra(null_model: Path, no_packages: None) -> None:
    with pytest.raises(UsageError, match=r"--tokenizer tokie: not installed; pip install 'packhorse\[fast-tok"):
        packhorse.load(str(null_model), backend="null", tokenizer="tokie")


def test_without_packages_auto_is_hf_and_says_nothing(null_model: Path, tmp_path: Path, no_packages: None) -> None:
    report = run(null_model, pa.table({"text": TEXTS * 10}), tmp_path / "out")
    assert report.plan["tokenizer"] == "hf" and not any("tokenizer" in note for note in report.plan["notes"])


@pytest.mark.parametrize("settings", [{"exact": True}, {"tokenizer": "hf"}, {"limit": 999}])
def test_exact_and_small_jobs_are_hf(null_model: Path, tmp_path: Path, settings: dict) -> None:
    report = run(null_model, pa.table({"text": TEXTS * 10}), tmp_path / "out", **settings)
    assert report.plan["tokenizer"] == "hf" and not any("tokenizer" in note for note in report.plan["notes"])


def test_a_run_goes_on_without_the_package_it_began_with(
    null_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nanotoken")
    rows = pa.table({"text": pa.array(some_texts(3_000), pa.large_string())})
    settings = {"tokenizer": "auto", "shard_rows": 500, "progress": "none"}
    whole = run(null_model, rows, tmp_path / "whole", **settings)
    assert whole.plan["tokenizer"] == "nanotoken" and not whole.counters.notes
    assert run_until_stopped(null_model, rows, tmp_path / "begun", 12, **settings)
    for name in ("tokie", "nanotoken"):
        monkeypatch.setitem(sys.modules, name, None)
    assert run(null_model, rows, tmp_path / "begun", **settings).plan["tokenizer"] == "nanotoken"
    assert parts(tmp_path / "begun") == parts(tmp_path / "whole")


def test_a_tokenizer_that_no_package_reads_is_hf_with_a_note_for_each() -> None:
    from tokenizers import models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "good": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    for name in ("tokie", "nanotoken"):
        pytest.importorskip(name)
        choice = choose_tokenizer(name, backend, ["good"], "", 1)
        assert choice.name == "hf" and choice.notes[0].startswith(f"tokenizer {name} is not used: ")
    assert len(choose_tokenizer("auto", backend, ["good"] * 1_000, "", 1).notes) == 2
