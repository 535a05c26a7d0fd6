"""For people who have a Ray Data pipeline: a step of it that predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from packhorse.integrations.batches import with_predictions
from packhorse.integrations.rows import RowPredictor


class Predictor:
    """Rows of a Ray Dataset with their predictions, a model for each actor.

    >>> ds.map_batches(
    ...     Predictor, fn_constructor_kwargs={"model": "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
    ...     "text_column": "text"}, batch_format="pyarrow", batch_size=4096, concurrency=4, num_gpus=1,
    ... )  # doctest: +SKIP

    Each batch comes back with the columns of a run's output behind its own: label and score, embedding or
    generated_text, then error, {kind, message} of a row that could not be done. Rows keep their number and order.
    The numbers are those of `packhorse run` up to rounding: rows share batches with others than there.
    """

    def __init__(self, model: str | Path, **settings: Any) -> None:
        """settings: those of packhorse.load(), and text_column, pair_column, template, messages_column, seed_column and
        output_prefix of packhorse.run(). An actor uses the cores that Ray has assigned to it.

        Raises UsageError, RefusedError or ModelError.
        """
        self._predict = RowPredictor(model, settings, cores=_assigned_cores())

    def __call__(self, batch: Any) -> Any:
        """batch: a pyarrow.Table, a pandas.DataFrame or a dict of numpy arrays; it comes back in the same format.

        Raises UsageError for a column that is not there.
        """
        return with_predictions(batch, self._predict)


def _assigned_cores() -> int | None:
    """None where this is no worker of Ray, or one that was promised no core (as for an actor with a GPU alone)."""
    import ray

    if not ray.is_initialized() or ray.get_runtime_context().worker.mode != ray.WORKER_MODE:
        return None
    cores = ray.get_runtime_context().get_assigned_resources().get("CPU", 0)
    return max(int(cores), 1) if cores else None
