"""How many processes a job on a processor is given where --devices all leaves it open: measured, with the real ones.

One process has a forward for each core and shares weights and interpreter; one for each group of cores has its own.
Which is faster is a matter of memory nodes, caches and of how much runs between forwards, so both compute the same
shards, made of the job's first rows. Outputs are the same to the byte either way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from packhorse.config import RunConfig
from packhorse.devices.cores import num_groups
from packhorse.errors import DeviceOutOfMemoryError, WorkerDiedError, first_line
from packhorse.executors.executor import Executor, Stop
from packhorse.executors.processes import Processes
from packhorse.loading import Loader
from packhorse.metrics import LiveCounters
from packhorse.plans import Plan
from packhorse.readers.cut import ShardRows
from packhorse.readers.sources import STANDARD_INPUT
from packhorse.shard import Budget, Budgets

TRIAL_S = 5.0  # of each way; starting and ending a run takes several processes some 0.3 s of it
SHARDS = 4  # of a trial, for each process
JOB_SHARE = 0.03  # of the job, at most, that starting processes and the trials may take
GAIN = 1.02  # several have to be so much faster: they hold the weights several times
MEMORY_MARGIN = 1.3

Say = Callable[[str], None]


def num_to_try(config: RunConfig, loader: Loader, plan: Plan, weight_bytes: int, setup_s: float) -> tuple[int, str]:
    """Processes beside the usual one; 1 and why, where that is not open or not worth finding out. setup_s: what setting
    up this process took, and another would."""
    if config.devices != "all" or plan.device != "cpu" or loader.placement.is_split:
        return 1, ""
    count = min(num_groups(), plan.workers)
    if count < 2:
        return 1, "one process: " + ("a forward has all cores" if plan.workers < 2 else "there is one core")
    rate, rows = _rows_per_s(plan), plan.forecast.rows if plan.forecast else 0.0
    if config.tune == "off" or rate is None or config.input == STANDARD_INPUT:
        return 1, f"one process: whether {count} are faster was not measured"
    if config.tune == "quick" and rows / rate * JOB_SHARE < setup_s + 3 * TRIAL_S:
        return 1, f"one process: {rows:,.0f} rows are too few to repay trying {count}"
    free = loader.backend.free_bytes("cpu")
    if free is not None and free < weight_bytes * count * MEMORY_MARGIN:
        return 1, f"one process: {count} more need {weight_bytes * count / 2**30:.1f} GiB for their weights"
    return count, ""


def trial_rows(plan: Plan, count: int) -> int:
    """Of one shard."""
    return max(int((_rows_per_s(plan) or 0.0) * TRIAL_S) // (SHARDS * count), 8)


def several_if_faster(
    one: Executor, start: Callable[[], Processes], shards: Sequence[ShardRows], budget: Budget, stop: Stop, say: Say
) -> Processes | None:
    """The processes, where they are faster. Both compute the shards, which are not committed."""
    processes: Processes | None = None
    try:
        processes = start()
        processes.wait_for_all(stop.check)
        several, alone = _rate(processes, shards, budget, stop), _rate(one, shards, budget, stop)
    except (DeviceOutOfMemoryError, WorkerDiedError) as error:
        _end(processes)
        say(f"one process: several could not be compared with it: {first_line(error)}")
        return None
    except BaseException:
        _end(processes)
        raise
    gain, count = several / alone, len(processes.workers)
    if gain > GAIN:
        say(f"{count} processes: they compute {gain:.2f} times the rows/s of one")
        return processes
    processes.close()
    say(f"one process: {count} compute {gain:.2f} times its rows/s")
    return None


def _end(processes: Processes | None) -> None:
    if processes is not None:
        processes.kill()


def _rate(executor: Executor, shards: Sequence[ShardRows], budget: Budget, stop: Stop) -> float:
    """Rows/s, after half of the shards to warm up on: kernels are chosen for the shapes that a process sees first."""
    _run(executor, shards[: len(shards) // 2], budget, stop)
    begin = time.perf_counter()
    _run(executor, shards, budget, stop)
    return sum(rows.shard.num_rows for rows in shards) / max(time.perf_counter() - begin, 1e-9)


def _run(executor: Executor, shards: Sequence[ShardRows], budget: Budget, stop: Stop) -> None:
    executor.run(iter(shards), Budgets([(0, budget)]), lambda *_: None, _too_much, LiveCounters(), stop)


def _too_much(shard: int, budget: Budget) -> None:
    raise DeviceOutOfMemoryError(f"a batch of {budget.max_batch_tokens:,} tokens did not fit beside the others")


def _rows_per_s(plan: Plan) -> float | None:
    forecast = plan.forecast
    if forecast is None or not forecast.tokens_per_s or not forecast.rows or not forecast.tokens:
        return None
    return forecast.tokens_per_s * forecast.rows / forecast.tokens
