"""The simulation of many devices keeps what every run has to keep, and the made-up rows of the scale benchmark are the
same from anywhere on."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from bench.scale_books import look
from bench.scale_engine import simulate
from bench.scale_figures import Figures
from bench.scale_lanes import lanes
from bench.scale_picture import BOTTOM, LABEL_PX, TOP, _apart, picture
from bench.scale_rows import SyntheticReader, tokens_of
from bench.scale_simulation import SCENARIOS, as_json
from bench.scale_world import Devices, World
from hypothesis import given, settings
from hypothesis import strategies as st

from packhorse.data import Position, Shard
from packhorse.outputs.manifest import RunFolder
from packhorse.outputs.records import Commit
from packhorse.outputs.stores.objects import COMMITS
from packhorse.readers.cut import cut_shards

ROWS = 3_000_000
RAMP_ROWS = 1_024 + 4_096 + 16_384  # the first three shards; the others have 65,536


def num_shards(rows: int) -> int:
    return 3 + -(-(rows - RAMP_ROWS) // 65_536)


def check_each_row_once(world: World, commits: list[Commit]) -> None:
    assert [c.shard.index for c in commits] == list(range(num_shards(world.rows)))
    ends = np.cumsum([c.shard.num_rows for c in commits])
    assert ends[-1] == world.rows
    assert [c.shard.first_row for c in commits] == [0, *ends[:-1]]
    assert len({c.part for c in commits}) == len(commits)


def deterministic(figures: Figures) -> Figures:
    return replace(figures, cpu_us_per_shard=0.0)


@settings(max_examples=25)
@given(
    devices=st.integers(1, 24),
    seed=st.integers(0, 1_000),
    mtbf_s=st.floats(100.0, 5_000.0),
    slow_share=st.floats(0.0, 0.5),
    has_backups=st.booleans(),
    object_commits=st.sampled_from([1, 2, 8]),
)
def test_each_shard_is_committed_once_and_in_order_whatever_fails(devices: int, seed: int, **world: Any) -> None:
    job = World(devices, ROWS, spread=0.4, noise=0.3, put_s=(0.05, 0.2), ramp_s=(0.0, 60.0), seed=seed, **world)
    figures, commits = simulate(job)
    check_each_row_once(job, commits)
    assert figures.shards == len(commits) and figures.rows == ROWS
    assert 0 < figures.efficiency <= 1 and 0 <= figures.tail_s <= figures.wall_s


def test_devices_that_die_in_every_second_shard_make_the_job_go_on_from_its_records() -> None:
    job = World(4, ROWS, mtbf_s=60.0, seed=3)
    figures, commits = simulate(job)
    check_each_row_once(job, commits)
    assert figures.deaths > 20 and figures.restarts > 0 and figures.lost_s > 0


def test_one_device_is_always_busy() -> None:
    figures, _ = simulate(World(1, ROWS))
    assert figures.efficiency == pytest.approx(1.0)
    assert figures.busy_s == pytest.approx(ROWS / 1_000.0) and figures.wall_s == pytest.approx(figures.busy_s)


def test_more_devices_are_never_slower_where_none_fails() -> None:
    walls = [simulate(World(devices, ROWS))[0].wall_s for devices in (1, 2, 3, 5, 8, 13, 21, 34)]
    assert walls == sorted(walls, reverse=True) and walls[0] > 15 * walls[-1]


def test_the_same_seed_gives_the_same_figures_and_another_one_others() -> None:
    job = World(7, ROWS, spread=0.3, noise=0.2, slow_share=0.3, mtbf_s=2_000.0, put_s=(0.05, 0.2), seed=1)
    figures = [deterministic(simulate(world)[0]) for world in (job, job, replace(job, seed=2))]
    assert figures[0] == figures[1] != figures[2]


def test_one_slow_device_holds_up_all_others_and_a_backup_does_not_let_it() -> None:
    """Nine devices finish their share of the window and wait for the tenth, which takes ten times as long."""
    rows = 40_000_000
    job = next(w for w in (World(10, rows, slow_share=0.1, seed=s) for s in range(99)) if num_slow(w) == 1)
    plain, backed = simulate(replace(job, has_backups=False))[0], simulate(job)[0]
    assert plain.efficiency < 0.5 and backed.wall_s < plain.wall_s / 2


def num_slow(world: World) -> int:
    return sum(speed < 0.5 for speed in Devices(world).speeds)


def test_commits_to_an_object_store_take_turns_or_are_put_at_the_same_time() -> None:
    """Two answers a commit of 0.1 s each, the part and its record: where devices are faster, they wait."""
    job = World(100, ROWS, rows_per_s=1e6, put_s=(0.1, 0.1))
    figures, commits = simulate(replace(job, object_commits=1))
    assert figures.commit_busy_s == pytest.approx(0.2 * len(commits), rel=0.02)
    assert figures.wall_s == pytest.approx(figures.commit_busy_s, rel=0.05) and figures.efficiency < 0.02
    rounds = -(-len(commits) // COMMITS)
    assert simulate(job)[0].wall_s == pytest.approx(0.2 * rounds, rel=0.1)


def test_the_picture_has_a_line_and_a_name_for_each_scenario() -> None:
    names = ["all alike", "object store"]
    points = [
        as_json(name, world, simulate(world)[0])
        for name in names
        for world in (World(d, 1_000_000, **SCENARIOS[name]) for d in (1, 10))
    ]
    root = ElementTree.fromstring(picture(points))
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == [2, 2]
    assert set(names) <= {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}


@given(st.lists(st.floats(TOP, BOTTOM), max_size=8))
def test_names_in_the_picture_do_not_touch(wanted: list[float]) -> None:
    placed = _apart(sorted(wanted))
    assert all(b - a >= LABEL_PX - 1e-6 for a, b in pairwise(placed)) and max(placed, default=0) <= BOTTOM


def test_the_coordinator_of_sleeping_workers_commits_all_in_order() -> None:
    figures = lanes(3, 0.01)  # it checks the order itself
    assert figures["workers"] == 3 and figures["cpu_s"] >= 0


def test_made_up_rows_are_the_same_from_anywhere_on() -> None:
    whole, part = tokens_of(np.arange(1_000)), tokens_of(np.arange(400, 600))
    taken = whole.take(np.arange(400, 600))
    assert np.array_equal(taken.ids, part.ids) and np.array_equal(taken.offsets, part.offsets)
    reader = SyntheticReader(100_000)
    shards = list(cut_shards(reader.read(Position(0, 0), [], ["text"]), Position(0, 0), 0, 0, ["text"], None, 8, None))
    texts = [text for rows in shards for text in rows.table["text"].to_pylist()]
    assert texts == [str(row) for row in range(100_000)]
    later = shards[2].shard
    again = cut_shards(reader.read(later.start, [], ["text"]), later.start, 2, later.first_row, ["text"], None, 8, None)
    assert next(again).table.equals(shards[2].table)


def test_rows_that_are_made_up_are_all_different() -> None:
    tokens = tokens_of(np.arange(50_000))
    rows = {tokens.ids[a:b].tobytes() for a, b in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)}
    assert len(rows) == 50_000


def test_what_is_looked_at_in_a_run_folder_is_what_a_run_left(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path / "out"), is_file=False)
    folder.write_manifest({"finished": False})
    for index in range(5):
        shard = Shard(index, 10 * index, 10, Position(0, 10 * index), Position(0, 10 * index + 10))
        folder.commit(shard, ".parquet", lambda paths: Path(paths[0]).touch(), {"rows": 10})
    found = look(str(tmp_path / "out"))
    records = (tmp_path / "out/_packhorse/shards").glob("*.json")
    assert found["records_bytes"] == sum(record.stat().st_size for record in records)
    assert folder.manifest()["finished"] and found["read_records_s"] >= 0
