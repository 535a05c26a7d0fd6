"""How embeddings stand in their column, by --embedding-format: exact bounds, exact bits, nulls for rows in error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import packhorse
from packhorse.config import EngineConfig
from packhorse.data import EMBEDDING_FORMAT, Reduction, Tokens
from packhorse.errors import UsageError
from packhorse.sequences import Results, Tokenized
from packhorse.tasks.feature_extraction import FeatureExtraction, to_int8

TEXTS = ["a good film", None, "the end", "a good film", "\ud800", "very boring " * 40]
rows = arrays.arrays(
    np.float32,
    st.tuples(st.integers(0, 4), st.integers(1, 9)),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@given(rows)
@settings(deadline=None, max_examples=300)
def test_int8_is_within_its_bound_of_any_vector(values: np.ndarray) -> None:
    quantized, scales = to_int8(values)
    assert quantized.dtype == np.int8 and scales.dtype == np.float32 and np.isfinite(scales).all()
    assert (np.abs(quantized.astype(int)) <= 127).all()
    back = quantized * scales.astype(np.float64)[:, None]
    assert (np.abs(values - back) <= (0.5 + 2**-17) * scales.astype(np.float64)[:, None]).all()
    normal = np.abs(values).max(1, initial=0) / 127 >= np.finfo(np.float32).tiny
    assert (np.abs(quantized.astype(int)).max(1, initial=0)[normal] == 127).all()  # the range is used


@pytest.mark.parametrize("row", [[0.0, 0.0], [1e-45, -1e-45], [3.4028235e38, -1.0], [-0.0, 5e-44], [1.4e-43, 3e-44]])
def test_int8_of_the_smallest_and_the_largest(row: list[float]) -> None:
    values = np.array([row], np.float32)
    quantized, scales = to_int8(values)
    assert np.isfinite(scales).all()
    assert (np.abs(values.astype(float) - quantized * float(scales[0])) <= (0.5 + 2**-17) * float(scales[0])).all()


@pytest.mark.parametrize("width", [32, 384, 1024])
def test_int8_keeps_the_direction(width: int) -> None:
    values = np.random.default_rng(width).standard_normal((500, width)).astype(np.float32)
    quantized, scales = to_int8(values)
    back = quantized * scales[:, None]
    cosines = (values * back).sum(1) / np.linalg.norm(values, axis=1) / np.linalg.norm(back, axis=1)
    assert cosines.min() >= 0.999


def test_a_row_does_not_depend_on_the_others() -> None:
    values = np.random.default_rng(0).standard_normal((50, 20)).astype(np.float32)
    values[7] *= 1000
    together = to_int8(values)
    for i in range(50):
        alone = to_int8(values[i : i + 1])
        assert (alone[0][0] == together[0][i]).all() and alone[1][0] == together[1][i]


def finished(values: np.ndarray, kind: str, is_valid: np.ndarray | None = None) -> pa.Table:
    task = FeatureExtraction(Reduction("pool"), EngineConfig(model="none", embedding_format=kind))
    nothing = Tokens(np.empty(0, np.int32), np.zeros(len(values) + 1, np.int64))
    valid = np.ones(len(values), np.bool_) if is_valid is None else is_valid
    return pa.Table.from_arrays(
        task.finish(Results(values, valid, Tokenized(nothing, {}), [""] * len(values))),
        schema=pa.schema(task.fields(values.shape[1])),
    )


@pytest.mark.parametrize("width", [1, 7, 8, 9, 384])
def test_a_bit_says_whether_a_number_is_above_zero(width: int) -> None:
    values = np.random.default_rng(width).choice([-1.5, -0.0, 0.0, 1e-30, 2.0], (20, width)).astype(np.float32)
    unsigned = finished(values, "ubinary")["embedding"].to_pylist()
    signed = finished(values, "binary")["embedding"].to_pylist()
    for row, packed, shifted in zip(values.tolist(), unsigned, signed, strict=True):
        bits = "".join(f"{byte:08b}" for byte in packed)
        assert bits == "".join("1" if x > 0 else "0" for x in row).ljust(-(-width // 8) * 8, "0")
        assert [byte - 128 for byte in packed] == shifted


def test_hamming_distances_are_those_of_the_signs() -> None:
    values = np.random.default_rng(1).standard_normal((30, 100)).astype(np.float32)
    for kind in ("binary", "ubinary"):
        packed = np.array(finished(values, kind)["embedding"].to_pylist()).astype(np.uint8)
        distances = np.bitwise_count(packed[:, None] ^ packed[None]).sum(2)
        assert (distances == ((values > 0)[:, None] != (values > 0)[None]).sum(2)).all()


@pytest.mark.parametrize("kind", ["float32", "float16", "int8", "binary", "ubinary"])
def test_rows_in_error_are_null_and_the_column_says_what_it_is(kind: str) -> None:
    table = finished(np.ones((3, 12), np.float32), kind, np.array([True, False, True]))
    assert [[v is None for v in column.to_pylist()] for column in table.columns] == [
        [False, True, False] for _ in table.columns
    ]
    told = table.schema.field("embedding").metadata
    assert told == {EMBEDDING_FORMAT: kind.encode(), b"packhorse.embedding_width": b"12"}
    assert table.column_names == (["embedding", "embedding_scale"] if kind == "int8" else ["embedding"])


def engine(model: Path, kind: str) -> packhorse.Engine:
    return packhorse.load(model, backend="null", task="feature-extraction", embedding_format=kind)


def test_embed_multiplies_the_scale_in(null_model: Path) -> None:
    with engine(null_model, "float32") as exact, engine(null_model, "int8") as quantized:
        expected, found, table = exact.embed(TEXTS), quantized.embed(TEXTS), quantized.predict(TEXTS)
    assert found.dtype == np.float32
    assert np.isnan(found[[1, 4]]).all() and np.isnan(expected[[1, 4]]).all()
    good = [0, 2, 3, 5]
    scales = np.array(table["embedding_scale"].to_pylist(), float)[good]
    assert (np.abs(found[good].astype(float) - expected[good]) <= 0.501 * scales[:, None]).all()
    assert np.abs(found[good] - expected[good]).max() > 0


@pytest.mark.parametrize("kind", ["binary", "ubinary"])
def test_embed_does_not_make_numbers_of_bits(null_model: Path, kind: str) -> None:
    with engine(null_model, kind) as loaded, pytest.raises(UsageError, match=r"predict\(\)"):
        loaded.embed(TEXTS)


@pytest.mark.parametrize("value", ["uint8", "bf16"])
def test_an_unknown_format_is_refused(null_model: Path, value: Any) -> None:
    with pytest.raises(UsageError, match=r"--embedding-format .*'ubinary'"):
        engine(null_model, value)
