"""Who gets which shard: in order, alone after a death, never more than the window holds."""

from __future__ import annotations

import threading

import pyarrow as pa
import pytest

from packhorse.data import Position, Shard
from packhorse.errors import WorkerDiedError
from packhorse.executors.handing import Handing, Task
from packhorse.executors.lanes import Breaker
from packhorse.executors.worker import Computed
from packhorse.metrics import Counters
from packhorse.readers.cut import ShardRows
from packhorse.shard import Budget, Budgets


def task(index: int) -> Task:
    at = Position(0, index)
    return Task(ShardRows(Shard(index, index * 10, 10, at, at), pa.table({"text": ["a"] * 10}), {}), 0.0)


def computed(made: Task, tokens: int = 64) -> Computed:
    return Computed(made.rows.shard, {}, Counters(), Budget(tokens, None))


def opened(count: int) -> tuple[Handing, list[Task]]:
    handing, tasks = Handing(Breaker(), count), [task(i + 3) for i in range(count)]
    for made in tasks:
        assert handing.put(made)
    return handing, tasks


def test_shards_are_handed_out_in_order_two_at_a_time_and_given_on_in_order() -> None:
    handing, tasks = opened(4)
    held = [handing.take([], 0), handing.take(tasks[:1], 0)]
    assert held == tasks[:2] and handing.take(tasks[:2], 0) is None
    assert handing.take([], 0) is tasks[2]
    handing.done(tasks[1], computed(tasks[1]), None)
    assert handing.next_done(0) is None
    handing.done(tasks[0], computed(tasks[0]), None)
    for made in tasks[:2]:
        assert handing.next_done(0) is made
        handing.committed(made)
    assert not handing.is_over


def test_a_shard_whose_worker_died_is_handed_out_alone_and_ends_the_job_with_its_second() -> None:
    handing, tasks = opened(4)
    held = [made for made in (handing.take([], 0), handing.take(tasks[:1], 0)) if made]
    handing.give_back(held, "was killed")
    assert handing.take([task(0)], 0) is tasks[2]  # not beside another
    assert handing.take([], 0) is tasks[0]
    assert handing.take([tasks[0]], 0) is None  # nor another beside it
    with pytest.raises(WorkerDiedError, match=r"shard 3, rows 30 to 39: two worker processes in a row .* was killed"):
        handing.give_back([tasks[0]], "was killed")


def test_a_shard_that_came_through_may_lose_another_worker_later() -> None:
    handing, tasks = opened(1)
    for _ in range(3):
        assert handing.take([], 0) is tasks[0]
        handing.give_back(tasks, "was killed")
        assert handing.take([], 0) is tasks[0]
        handing.done(tasks[0], computed(tasks[0]), None)
        handing.again(tasks[0])
    assert tasks[0].computed is None


def test_no_more_shards_are_open_than_the_window_holds() -> None:
    handing, tasks = opened(2)
    put = threading.Thread(target=lambda: handing.put(task(5)), daemon=True)
    put.start()
    put.join(0.2)
    assert put.is_alive()
    assert handing.take([], 0) is tasks[0]
    handing.done(tasks[0], computed(tasks[0]), None)
    assert put.is_alive()
    handing.committed(tasks[0])
    put.join(5)
    assert not put.is_alive()


def test_a_stop_wakes_the_reader() -> None:
    handing, _ = opened(1)
    found: list[bool] = []
    put = threading.Thread(target=lambda: found.append(handing.put(task(4))), daemon=True)
    put.start()
    handing.stop()
    put.join(5)
    assert found == [False] and handing.is_over and handing.take([], 0) is None


def test_a_budget_lowered_for_a_later_shard_is_not_raised_by_an_earlier_one() -> None:
    """Else a worker that waits for less than it had may see just that again, and wait forever."""
    budgets = Budgets([(0, Budget(64, 8))])
    assert [budgets.lower(shard).max_batch_tokens for shard in (7, 7, 5)] == [32, 16, 32]
    assert [budgets.at(shard).max_batch_tokens for shard in (4, 5, 6, 7, 8)] == [64, 32, 32, 16, 16]
    assert budgets.lower(6).max_batch_tokens == 16 and budgets.at(7) == Budget(16, 2)


# -- late shards


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def with_a_pace(count: int, clock: Clock) -> tuple[Handing, list[Task]]:
    """Shards of which the first was finished: 10 s for its 10 rows."""
    handing, tasks = Handing(Breaker(), count, clock=clock), [task(i) for i in range(count)]
    for made in tasks:
        assert handing.put(made)
    assert handing.take([], 0) is tasks[0]
    clock.now_s += 10.0
    assert handing.done(tasks[0], computed(tasks[0]), None, took_s=10.0)
    handing.committed(tasks[0])
    return handing, tasks


def with_one_out_twice() -> tuple[Handing, Task]:
    """A shard that was late with one worker, and was handed to another."""
    clock = Clock()
    handing, (_, made) = with_a_pace(2, clock)
    assert handing.take([], 0) is made
    clock.now_s += 100.0
    assert handing.take([], 0) is made
    return handing, made


def test_a_shard_that_is_late_is_handed_once_more_to_who_has_nothing_and_the_first_result_counts() -> None:
    clock = Clock()
    handing, (_, first, second) = with_a_pace(3, clock)
    assert handing.take([], 0) is first and handing.take([first], 0) is second
    clock.now_s += 19.9
    assert handing.take([], 0) is None  # twice the median of those that were finished
    clock.now_s += 0.2
    assert handing.take([task(9)], 0) is None  # it has something to do
    assert handing.take([], 0) is first
    assert handing.take([], 0) is None  # the second may take 20 s more: it was the second in line
    clock.now_s += 20.0
    assert handing.take([], 0) is second
    assert handing.done(first, computed(first), None, by=7)
    assert not handing.done(first, computed(first), None, by=0)
    assert handing.next_done(0) is first and first.by == 7
    handing.committed(first)
    assert not handing.is_wanted(first.index) and handing.is_wanted(second.index)
    assert handing.done(second, computed(second), None)
    handing.committed(second)
    assert not handing.done(second, computed(second), None)  # after its commit too
    handing.close()
    assert handing.is_over


def test_a_late_shard_is_still_computed_where_one_of_its_two_workers_dies() -> None:
    handing, made = with_one_out_twice()
    handing.give_back([made], "was killed")
    assert handing.take([], 0) is None  # the other has it, and it may have been the end of that worker
    assert handing.done(made, computed(made), None)
    handing.give_back([], "was killed")
    handing.again(made)
    assert handing.take([], 0) is made


def test_a_worker_that_dies_over_what_another_computed_gives_nothing_back() -> None:
    handing, made = with_one_out_twice()
    assert handing.done(made, computed(made), None)
    handing.give_back([made], "was killed")
    assert handing.take([], 0) is None and made.deaths == 0 and handing.next_done(0) is made


def test_the_second_result_counts_where_the_first_one_does_not_any_more() -> None:
    handing, made = with_one_out_twice()
    assert handing.done(made, computed(made), None)
    handing.again(made)  # another budget holds for it by now
    assert handing.num_waiting == 1
    assert handing.done(made, computed(made, tokens=32), None)
    assert handing.num_waiting == 0 and handing.take([], 0) is None
    assert made.computed is not None and made.computed.budget == Budget(32, None)


def test_the_window_is_twice_as_wide_while_all_shards_are_out_and_their_bytes_allow_it() -> None:
    num_bytes = task(0).rows.table.nbytes
    handing = Handing(Breaker(), 2, max_bytes=3 * num_bytes)
    for index in range(2):
        assert handing.put(task(index))
    assert not handing.has_room  # there is something to take
    first = handing.take([], 0)
    assert first is not None and not handing.has_room
    assert handing.take([first], 0) is not None and handing.has_room
    assert handing.put(task(2)) and not handing.has_room
    assert handing.take([], 0) is not None and not handing.has_room  # three times the bytes
    handing.done(first, computed(first), None)
    handing.committed(first)
    assert handing.has_room
