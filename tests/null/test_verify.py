"""verify finds every byte that is not as it was committed."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

import packhorse
from packhorse.errors import DamagedError, UsageError
from packhorse.outputs.records import sealed, unsealed
from tests.null.reference import some_texts
from tests.null.runs import parts, run, run_until_stopped

TEXTS = some_texts(200)
OUTPUTS = ("folder", "whole.parquet", "whole.jsonl")
every_output = pytest.mark.parametrize("name", OUTPUTS)


def finished(model: Path, output: Path) -> Path:
    """The root of what was written: the folder itself, or that beside a one-file output."""
    run(model, {"text": TEXTS}, output, shard_rows=40)
    return output if output.is_dir() else output.with_name(output.name + ".packhorse")


def covered(output: Path, root: Path) -> list[Path]:
    """The files that verify answers for, by kind."""
    shown = sorted(output.glob("part-*")) if output.is_dir() else [output]
    return [*shown, *sorted((root / "_packhorse/shards").iterdir()), root / "_packhorse/manifest.json"]


def is_found(output: Path) -> bool:
    try:
        packhorse.verify(output)
    except DamagedError:
        return True
    return False


@every_output
def test_a_good_output_is_good(null_model: Path, tmp_path: Path, name: str) -> None:
    root = finished(null_model, tmp_path / name)
    found = packhorse.verify(tmp_path / name)
    shown = covered(tmp_path / name, root)[: 5 if name == "folder" else 1]
    assert (found.shards, found.rows, found.is_finished) == (5, 200, True)
    assert found.num_bytes == sum(p.stat().st_size for p in shown)


@every_output
def test_60_flipped_bits_are_all_found(null_model: Path, tmp_path: Path, name: str) -> None:
    output = tmp_path / "naïve" / name
    files = covered(output, finished(null_model, output))
    draw = random.Random(7)
    missed = []
    for turn in range(60):
        file = files[turn % len(files)]
        good = file.read_bytes()
        bit = draw.randrange(8 * len(good))
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        if not is_found(output):
            missed.append((file.name, bit))
        file.write_bytes(good)
    assert missed == [] and not is_found(output)


def test_no_flipped_bit_of_a_record_is_missed() -> None:
    """A bit can change the bytes and not what they mean as JSON: the case of an escape's digit or of an exponent."""
    record = sealed({"path": "/data/caf\u00e9.parquet", "flops": 1.5e17, "counts": [1, None, True]})
    missed = []
    for bit in range(8 * len(record)):
        damaged = bytearray(record)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            unsealed(bytes(damaged))
            missed.append(bytes(damaged[max(bit // 8 - 4, 0) : bit // 8 + 3]))
        except ValueError:
            continue
    assert missed == []


@every_output
def test_a_truncated_or_a_missing_file_is_found_by_name(null_model: Path, tmp_path: Path, name: str) -> None:
    output = tmp_path / name
    for file in covered(output, finished(null_model, output)):
        good = file.read_bytes()
        file.write_bytes(good[:-1])
        with pytest.raises(DamagedError, match=file.name):
            packhorse.verify(output)
        file.unlink()
        if file.name != "manifest.json":
            assert is_found(output)
        file.write_bytes(good)


def test_all_damages_are_listed(null_model: Path, tmp_path: Path) -> None:
    finished(null_model, tmp_path)
    (tmp_path / "part-000001.parquet").unlink()
    (tmp_path / "part-000003.parquet").write_bytes(b"PAR1")
    with pytest.raises(DamagedError) as caught:
        packhorse.verify(tmp_path)
    words = ["part-000001.parquet: missing", "part-000003.parquet: 4 bytes"]
    assert all(word in str(caught.value) for word in words) and "part-000002" not in str(caught.value)


def test_a_part_that_no_record_knows_is_found(null_model: Path, tmp_path: Path) -> None:
    finished(null_model, tmp_path)
    shutil.copy(tmp_path / "part-000001.parquet", tmp_path / "part-000005.parquet")
    with pytest.raises(DamagedError, match=r"part-000005\.parquet: no record knows this part"):
        packhorse.verify(tmp_path)


def test_two_parts_that_changed_places_are_found(null_model: Path, tmp_path: Path) -> None:
    finished(null_model, tmp_path)
    one, two = (tmp_path / f"part-00000{i}.parquet" for i in (1, 2))
    first = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(first)
    assert is_found(tmp_path)


@pytest.mark.parametrize("name", ["folder", "whole.parquet"])
def test_an_unfinished_run_answers_for_what_it_committed(null_model: Path, tmp_path: Path, name: str) -> None:
    output = tmp_path / name
    assert run_until_stopped(null_model, {"text": TEXTS}, output, 9, shard_rows=20)
    root = output if output.is_dir() else output.with_name(name + ".packhorse")
    done = len(parts(root))
    found = packhorse.verify(output)
    assert (found.shards, found.rows, found.is_finished) == (done, 20 * done, False)
    assert found.num_bytes == sum(map(len, parts(root).values())) and 0 < done < 10
    part = root / "part-000000.parquet"
    part.write_bytes(part.read_bytes().replace(b"PAR1", b"PAR2"))
    assert is_found(output)


def test_what_no_run_wrote_cannot_be_verified(tmp_path: Path) -> None:
    for output in (tmp_path, tmp_path / "nothing", tmp_path / "nothing.parquet"):
        with pytest.raises(UsageError, match="nothing to verify against"):
            packhorse.verify(output)
