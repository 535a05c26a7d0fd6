"""dataset: inputs: folders of save_to_disk, and repositories of a server that answers like the hub."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from packhorse.data import Position
from packhorse.errors import InputError, UsageError
from packhorse.readers.dataset import open_dataset
from tests.cpu.command import forked
from tests.fork_server import NO_TORCH
from tests.hub_server import Hub, serving
from tests.null.runs import parts, rows_of, run, run_until_stopped

datasets = pytest.importorskip("datasets")
# datasets itself reads the variables of the hub
DATASETS = [*NO_TORCH, "asyncio", "dill", "fsspec", "multiprocess", "pyarrow.dataset", "xxhash", "yaml"]
NAME = "org/films"


def rows(count: int, first: int = 0) -> dict[str, list[Any]]:
    numbers = range(first, first + count)
    return {"id": list(numbers), "text": [f"film {i} was good" if i % 7 else None for i in numbers]}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """5,000 rows in record batches of 100, in two files."""
    folder = tmp_path / "saved"
    datasets.Dataset.from_dict(rows(5_000)).save_to_disk(folder, num_shards=2)
    return folder


def texts(reader: Any, start: int = 0) -> list[Any]:
    found: list[Any] = []
    for chunk in reader.read(Position(0, start), ["id", "text"], ["text"]):
        assert chunk.table.schema.field("text").type == pa.large_string()
        assert chunk.marks.tolist() == list(range(start + len(found), start + len(found) + chunk.table.num_rows + 1))
        found += chunk.table.to_pylist()
    return found


def test_a_saved_dataset_without_files_is_named(tmp_path: Path) -> None:
    """The package writes it, and cannot read it."""
    datasets.Dataset.from_dict(rows(3)).select([]).save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError, match=r"saved: cannot be read.*any rows"):
        open_dataset(f"dataset:{tmp_path}/saved")


def test_a_saved_dataset_gives_its_rows_from_any_row_on(saved: Path) -> None:
    reader = open_dataset(f"dataset:{saved}")
    expected = pa.table(rows(5_000)).to_pylist()
    assert texts(reader) == expected
    for start in (1, 2_499, 2_500, 4_999):
        assert texts(reader, start) == expected[start:]
    assert texts(reader, 5_000) == []
    assert reader.num_rows() == 5_000
    assert reader.schema().names == ["id", "text"]
    assert reader.progress(Position(0, 2_500)) == 0.5
    assert [p.mark for p in reader.spread(4)] == [0, 1_250, 2_500, 3_750]
    assert {Path(f).parent for f in reader.files} == {saved}


def test_its_rows_are_mapped_and_not_loaded(saved: Path) -> None:
    before = pa.total_allocated_bytes()
    reader = open_dataset(f"dataset:{saved}")
    assert pa.total_allocated_bytes() - before < 64 << 10
    assert reader._table.nbytes > 64 << 10  # type: ignore[attr-defined]


def test_a_run_stopped_anywhere_gives_the_bytes_of_a_whole_one(null_model: Path, saved: Path, tmp_path: Path) -> None:
    address = f"dataset:{saved}"
    whole = run(null_model, address, tmp_path / "whole", shard_rows=700)
    assert (whole.rows, whole.shards) == (5_000, 8)
    of_table = run(null_model, rows(5_000), tmp_path / "table", shard_rows=700)
    assert of_table.rows == 5_000
    assert parts(tmp_path / "table") == parts(tmp_path / "whole")
    for looks in (3, 9, 14):
        output = tmp_path / f"stopped{looks}"
        assert run_until_stopped(null_model, address, output, looks, shard_rows=700)
        run(null_model, address, output, shard_rows=700)
        assert parts(output) == parts(tmp_path / "whole")
    assert [r["id"] for r in rows_of(tmp_path / "whole")] == list(range(5_000))


def test_another_dataset_is_another_input(null_model: Path, saved: Path, tmp_path: Path) -> None:
    from packhorse.errors import ChangedError

    address = f"dataset:{saved}"
    assert open_dataset(address).fingerprint() == open_dataset(address).fingerprint()
    run(null_model, address, tmp_path / "out")
    datasets.Dataset.from_dict(rows(5_000, first=1)).save_to_disk(tmp_path / "other", num_shards=2)
    for file in saved.iterdir():
        file.write_bytes((tmp_path / "other" / file.name).read_bytes())
    with pytest.raises(ChangedError, match="input"):
        run(null_model, address, tmp_path / "out")


def test_splits_of_a_saved_dict(null_model: Path, tmp_path: Path) -> None:
    made = {name: datasets.Dataset.from_dict(rows(n)) for name, n in (("train", 5), ("test", 3))}
    datasets.DatasetDict(made).save_to_disk(tmp_path / "dict")
    assert open_dataset(f"dataset:{tmp_path}/dict:test").num_rows() == 3
    with pytest.raises(UsageError, match=r"which split\? It has train, test: say .*dict:train"):
        open_dataset(f"dataset:{tmp_path}/dict")
    with pytest.raises(UsageError, match=r"no split 'tset'; did you mean 'test'\?; it has train, test"):
        open_dataset(f"dataset:{tmp_path}/dict:tset")
    datasets.DatasetDict({"dev": made["test"]}).save_to_disk(tmp_path / "one")
    assert open_dataset(f"dataset:{tmp_path}/one").num_rows() == 3
    assert run(null_model, f"dataset:{tmp_path}/dict:train", tmp_path / "out").rows == 5


def test_what_is_no_dataset_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="there is no such folder"):
        open_dataset("dataset:/nothing/here")
    with pytest.raises(UsageError, match=r"save_to_disk did not write it.*read as they are"):
        open_dataset(f"dataset:{tmp_path}")
    with pytest.raises(UsageError, match=r"legal is dataset:ORGANISATION/NAME\[@REVISION\]\[:CONFIG\]\[:SPLIT\]"):
        open_dataset("dataset:org/name:a:b:c")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"pip install 'packhorse\[datasets\]'"):
        open_dataset("dataset:org/name")


# -- the hub


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as server:
        yield server


def parquet(count: int, first: int = 0) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(rows(count, first)), sink)
    return sink.getvalue()


def lines(count: int) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in pa.table(rows(count)).to_pylist()).encode()


def command(hub: Hub, folder: Path, model: Path, address: str, *arguments: str, **variables: str) -> Any:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    settings = {
        "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "5", "HF_HUB_ETAG_TIMEOUT": "5", "COLUMNS": "400",
    }  # fmt: skip
    line = ("run", model, address, "--backend", "null", *arguments)
    return forked(*line, env=kept | settings | variables, preload=DATASETS)


def test_a_dataset_of_the_hub_is_read_and_then_read_offline(hub: Hub, null_model: Path, tmp_path: Path) -> None:
    files = {"data/train-00000-of-00001.parquet": parquet(50), "data/test-00000-of-00001.parquet": parquet(20, 50)}
    commit = hub.dataset(NAME).push(files)
    out, again = f"{tmp_path}/out/", f"{tmp_path}/again/"
    done = command(hub, tmp_path, null_model, f"dataset:{NAME}:test", "-o", out)
    assert done.returncode == 0, done.stderr
    assert [r["id"] for r in rows_of(Path(out))] == list(range(50, 70))
    manifest = json.loads((Path(out) / "_packhorse/manifest.json").read_text())
    assert manifest["input"] == [
        {"path": f"dataset:{NAME}", "commit": commit, "config": "default", "split": "test", "num_rows": 20}
    ]
    seen = len(hub.requests)
    offline = command(hub, tmp_path, null_model, f"dataset:{NAME}:test", "-o", again, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert len(hub.requests) == seen
    assert parts(Path(again)) == parts(Path(out))
    which = command(hub, tmp_path, null_model, f"dataset:{NAME}", "-o", f"{tmp_path}/x/")
    assert which.returncode == 2
    assert "which split? It has" in which.stderr and "train" in which.stderr and "test" in which.stderr
    hub.dataset(NAME).push({"data/test-00000-of-00001.parquet": parquet(20, 60)})
    moved = command(hub, tmp_path, null_model, f"dataset:{NAME}:test", "-o", out)
    assert moved.returncode == 3 and "commit" in moved.stderr
    pinned = command(hub, tmp_path, null_model, f"dataset:{NAME}@{commit}:test", "-o", out)
    assert pinned.returncode == 0, pinned.stderr


def test_configs_of_a_hub_dataset(hub: Hub, null_model: Path, tmp_path: Path) -> None:
    train = {name: [{"split": "train", "path": f"{name}/*.jsonl"}] for name in ("short", "long")}
    configs = [{"config_name": name, "data_files": files} for name, files in train.items()]
    card = f"---\nconfigs: {json.dumps(configs)}\n---\n".encode()
    hub.dataset(NAME).push({"README.md": card, "short/a.jsonl": lines(4), "long/a.jsonl": lines(9)})
    done = command(hub, tmp_path, null_model, f"dataset:{NAME}:long", "-o", f"{tmp_path}/out/")
    assert done.returncode == 0, done.stderr
    assert len(rows_of(tmp_path / "out")) == 9
    named = command(hub, tmp_path, null_model, f"dataset:{NAME}:short:train", "-o", f"{tmp_path}/named/")
    assert named.returncode == 0, named.stderr
    assert len(rows_of(tmp_path / "named")) == 4
    for parts_of_it, word in (("", "which config?"), (":shrot:train", "did you mean 'short'")):
        wrong = command(hub, tmp_path, null_model, f"dataset:{NAME}{parts_of_it}", "-o", f"{tmp_path}/x/")
        assert wrong.returncode == 2
        assert word in wrong.stderr and "short, long" in wrong.stderr, wrong.stderr


def test_a_dataset_that_is_not_there_and_a_hub_that_is_not_there(hub: Hub, null_model: Path, tmp_path: Path) -> None:
    done = command(hub, tmp_path, null_model, "dataset:org/nothing", "-o", f"{tmp_path}/x/")
    assert done.returncode == 2
    assert "there is no such dataset, or it is private" in done.stderr
    offline = command(hub, tmp_path, null_model, "dataset:org/nothing", "-o", f"{tmp_path}/x/", HF_HUB_OFFLINE="1")
    assert offline.returncode == 1
    assert "the hub cannot be reached" in offline.stderr
