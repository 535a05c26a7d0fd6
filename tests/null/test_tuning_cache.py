"""Decisions that outlive a run: found again, never believed where they are broken or another's."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packhorse.data import Tokens
from packhorse.tuning import cache
from packhorse.tuning.gate import Verdict

DECISION = {"chosen": {"backend": "torch"}, "tuned_s": 1.5}
GOOD = Verdict(True, "within", 512, 0.01, 0.005, 0, 0.006)
BAD = Verdict(False, "beyond", 512, 0.9, 0.5, 40, 0.1)


@pytest.fixture(autouse=True)
def plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "packhorse" / "plans"


def tokens_of(rows: list[list[int]], with_types: bool = False) -> Tokens:
    flat = np.array([i for row in rows for i in row], np.int32)
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return Tokens(flat, offsets, np.zeros_like(flat) if with_types else None)


# -- keys


def test_a_key_is_that_of_the_parts_whatever_their_order() -> None:
    key = cache.key({"a": 1, "b": [2, {"c": None}]})
    assert key == cache.key({"b": [2, {"c": None}], "a": 1})
    assert len({key, cache.key({"a": 1}), cache.key({"a": 2, "b": [2, {"c": None}]})}) == 3
    assert len(key) == 64 and set(key) <= set("0123456789abcdef")


@given(st.integers(1, 2**50))
def test_a_bucket_holds_the_jobs_between_two_powers_of_4(tokens: int) -> None:
    bucket = cache.job_bucket(tokens)
    assert 4**bucket <= tokens < 4 ** (bucket + 1)


@pytest.mark.parametrize("tokens", [0, 0.3, 1, 3.99])
def test_the_first_bucket_begins_at_0(tokens: float) -> None:
    assert cache.job_bucket(tokens) == 0


def test_a_profile_names_median_and_90th_percentile_as_powers_of_2() -> None:
    assert cache.length_profile(np.array([30] * 80 + [500] * 20)) == "p50=32 p90=512"
    assert cache.length_profile(np.array([0, 0, 30, 30])) == "p50=32 p90=32"
    assert cache.length_profile(np.zeros(3, np.int64)) == "no tokens"


def test_samples_of_one_distribution_usually_have_one_profile() -> None:
    """1,024 rows, the size of a job's sample, twice from each of 200 distributions."""
    random = np.random.default_rng(0)
    agreeing = 0
    for median in np.exp(random.uniform(math.log(8), math.log(2_000), 200)):
        spread = random.uniform(0.2, 1.2)
        drawn = [np.exp(random.normal(math.log(median), spread, 1_024)).astype(np.int64) + 1 for _ in range(2)]
        agreeing += cache.length_profile(drawn[0]) == cache.length_profile(drawn[1])
        assert cache.length_profile(drawn[0]) != cache.length_profile(8 * drawn[1])
    assert agreeing >= 160


def test_a_digest_is_that_of_ids_rows_and_types() -> None:
    digests = [
        cache.rows_digest(tokens)
        for tokens in (
            tokens_of([[1, 2], [3]]), tokens_of([[1], [2, 3]]), tokens_of([[1, 2], [4]]),
            tokens_of([[1, 2], [3]], with_types=True),
        )
    ]  # fmt: skip
    assert len(set(digests)) == 4
    assert cache.rows_digest(tokens_of([[1, 2], [3]])) == digests[0]


# -- files


def test_what_was_stored_is_found_again(plans: Path) -> None:
    key = cache.key({"model": "a"})
    assert cache.load(key) is None
    cache.store(key, DECISION)
    assert cache.load(key) == DECISION
    assert cache.load(cache.key({"model": "b"})) is None
    assert [path.name for path in plans.iterdir()] == [f"{key}.json"]
    cache.store(key, {"tuned_s": 2})
    assert cache.load(key) == {"tuned_s": 2}


def test_a_verdict_is_found_for_the_rows_that_it_was_reached_on() -> None:
    key = cache.key({})
    cache.store(key, DECISION, "rows a", {"torch bf16": GOOD})
    cache.store(key, DECISION, "rows b", {"torch bf16": BAD})
    cache.store(key, DECISION, "rows a", {"torch int8": BAD})
    cache.store(key, DECISION)
    assert cache.verdicts(key, "rows a") == {"torch bf16": GOOD, "torch int8": BAD}
    assert cache.verdicts(key, "rows b") == {"torch bf16": BAD}
    assert cache.verdicts(key, "rows c") == {} and cache.verdicts(cache.key({"x": 1}), "rows a") == {}
    assert cache.load(key) == DECISION


def test_verdicts_of_many_inputs_do_not_pile_up() -> None:
    key = cache.key({})
    for i in range(cache.KEPT_ROWS + 3):
        cache.store(key, DECISION, f"rows {i}", {"torch bf16": GOOD})
    kept = [i for i in range(cache.KEPT_ROWS + 3) if cache.verdicts(key, f"rows {i}")]
    assert kept == list(range(3, cache.KEPT_ROWS + 3))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{}",
        b'{"format": 1, "key": "KEY", "decision": 3, "verdicts": {}}',
        b'{"format": 1, "key": "KEY", "decision": {}}',
        b'{"format": 1, "key": "KEY", "decision": {}, "verdicts": {"rows": {"torch bf16": {"passed": true}}}}',
        b'{"format": 1, "key": "another", "decision": {}, "verdicts": {}}',
        b'{"format": 0, "key": "KEY", "decision": {}, "verdicts": {}}',
    ],
)
def test_a_file_that_is_not_ours_is_none_and_is_replaced(content: bytes, plans: Path) -> None:
    key = cache.key({})
    plans.mkdir(parents=True)
    (plans / f"{key}.json").write_bytes(content.replace(b"KEY", key.encode()))
    assert cache.load(key) is None and cache.verdicts(key, "rows") == {}
    cache.store(key, DECISION)
    assert cache.load(key) == DECISION


def test_every_part_of_a_file_is_no_file(plans: Path) -> None:
    """A write that stopped anywhere."""
    key = cache.key({})
    cache.store(key, DECISION, "rows", {"torch bf16": GOOD})
    path = plans / f"{key}.json"
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        assert cache.load(key) is None


def test_a_folder_in_its_place_is_none(plans: Path) -> None:
    (plans / f"{cache.key({})}.json").mkdir(parents=True)
    assert cache.load(cache.key({})) is None
    cache.store(cache.key({}), DECISION)
    assert cache.load(cache.key({})) is None


def test_a_home_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cache.store(cache.key({}), DECISION)
    assert cache.load(cache.key({})) is None


def test_what_is_no_json_is_an_error_and_leaves_no_file(plans: Path) -> None:
    with pytest.raises(TypeError):
        cache.store(cache.key({}), {"chosen": object()})
    assert not plans.exists() or list(plans.iterdir()) == []


def test_the_ones_unused_for_longest_go_first(plans: Path) -> None:
    keys = [cache.key({"i": i}) for i in range(cache.KEPT + 4)]
    for age, key in enumerate(keys[: cache.KEPT]):
        cache.store(key, DECISION)
        os.utime(plans / f"{key}.json", (1_000 + age, 1_000 + age))
    assert cache.load(keys[1]) == DECISION  # used now
    for key in keys[cache.KEPT :]:
        cache.store(key, DECISION)
    left = {path.stem for path in plans.iterdir()}
    assert left == set(keys) - {keys[0], *keys[2:5]}


def test_a_record_is_json_that_other_tools_read(plans: Path) -> None:
    cache.store(cache.key({}), {"rate": math.inf})
    record = json.loads((plans / f"{cache.key({})}.json").read_text())
    assert record["decision"] == {"rate": None}
