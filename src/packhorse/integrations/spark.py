"""For people who have a Spark pipeline: predict_batch_udf over a column, or mapInArrow over whole partitions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from packhorse.errors import UsageError
from packhorse.integrations.batches import table_of
from packhorse.integrations.rows import RowPredictor, made_fields

Predict = Callable[[np.ndarray], dict[str, np.ndarray]]
Batches = Iterator[pa.RecordBatch]
ERROR_FIELDS = ("error_kind", "error_message")  # predict_batch_udf knows no struct inside a struct


def predict_fn(model: str | Path, **settings: Any) -> Callable[[], Predict]:
    """For pyspark.ml.functions.predict_batch_udf, whose return_type is return_type() of the same arguments.

    >>> made = return_type(MODEL)  # doctest: +SKIP
    >>> predict = predict_batch_udf(predict_fn(MODEL), return_type=made, batch_size=4096)  # doctest: +SKIP
    >>> frame.withColumn("made", predict("text")).select("*", "made.*")  # doctest: +SKIP

    The model is loaded once for each Python worker. A row in error has its error_kind and error_message, null as label
    or text, NaN as score and in an embedding. settings: those of packhorse.load(). Raises UsageError for outputs that
    predict_batch_udf cannot give; predict_partitions() can.
    """
    prefix = str(settings.get("output_prefix", ""))
    names = [field.name for field in _simple_fields(model, settings)]

    def make() -> Predict:
        rows = RowPredictor(model, settings, _task_cores())

        def predict(texts: np.ndarray) -> dict[str, np.ndarray]:
            return _columns(rows(*table_of({"text": texts})), prefix, names)

        return predict

    return make


def return_type(model: str | Path, **settings: Any) -> Any:
    """pyspark.sql.types.StructType of what predict_fn() gives. Reads the model's folder, not its weights."""
    return _spark_schema(_simple_fields(model, settings))


def predict_partitions(model: str | Path, **settings: Any) -> Callable[[Batches], Batches]:
    """For DataFrame.mapInArrow, whose schema is output_schema(): each row with its predictions behind its columns. The
    model is loaded once a partition: have as many partitions as devices.

    settings: those of packhorse.load(), and text_column, template and so on, as packhorse.integrations.ray.Predictor
    takes them.
    """
    made_schema = pa.schema([_for_spark(field) for field in made_fields(model, settings)])

    def predict(batches: Batches) -> Batches:
        rows = RowPredictor(model, settings, _task_cores())
        try:
            for batch in batches:
                made = rows(pa.Table.from_batches([batch])).cast(made_schema)
                columns = [*batch.columns, *(c.combine_chunks() for c in made.columns)]
                yield pa.RecordBatch.from_arrays(columns, schema=pa.schema([*batch.schema, *made_schema]))
        finally:
            rows.close()

    return predict


def output_schema(rows: Any, model: str | Path, **settings: Any) -> Any:
    """pyspark.sql.types.StructType of a frame's columns and those that predict_partitions() adds.

    rows: a pyspark.sql.DataFrame.
    """
    from pyspark.sql.types import StructType

    made = _spark_schema([_for_spark(field) for field in made_fields(model, settings)])
    return StructType([*rows.schema.fields, *made.fields])


def _simple_fields(model: str | Path, settings: dict[str, Any]) -> list[pa.Field]:
    *made, _ = [_for_spark(field) for field in made_fields(model, settings)]
    for field in made:
        is_list = pa.types.is_list(field.type)
        if is_list and not pa.types.is_floating(field.type.value_type):
            raise UsageError(f"predict_batch_udf gives no {field.type} as {field.name!r}: use predict_partitions()")
    prefix = str(settings.get("output_prefix", ""))
    return [*made, *(pa.field(prefix + name, pa.string()) for name in ERROR_FIELDS)]


def _spark_schema(fields: list[pa.Field]) -> Any:
    from pyspark.sql.pandas.types import from_arrow_schema

    return from_arrow_schema(pa.schema(fields))


def _for_spark(field: pa.Field) -> pa.Field:
    return field.with_type(_spark_type(field.type)).with_nullable(True)


def _spark_type(kind: pa.DataType) -> pa.DataType:
    """The nearest that Spark has: lists of any length, float32 for float16, int16 for uint8."""
    if pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_uint8(kind):
        return pa.int16()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_spark_type(field.type)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(_spark_type(kind.value_type))
    return kind


def _columns(made: pa.Table, prefix: str, names: list[str]) -> dict[str, np.ndarray]:
    """As predict_batch_udf wants them: [n] of texts and numbers, [n, D] of lists."""
    error = made[prefix + "error"].combine_chunks()
    texts = [_objects(error.field(at).filter(error.is_valid()), error.is_valid()) for at in range(2)]
    *own, kind, message = names
    return {name: _numpy(made[name].combine_chunks()) for name in own} | {kind: texts[0], message: texts[1]}


def _numpy(column: pa.Array) -> np.ndarray:
    if pa.types.is_fixed_size_list(column.type):
        found = np.full((len(column), column.type.list_size), np.nan, np.float32)
        is_valid = column.is_valid().to_numpy(zero_copy_only=False)
        found[is_valid] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
        return found
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        numbers: np.ndarray = column.to_numpy(zero_copy_only=False)
        return numbers
    return np.array(column.to_pylist(), object)


def _objects(values: pa.Array, is_valid: pa.Array) -> np.ndarray:
    """[n] texts; None where not valid."""
    found = np.full(len(is_valid), None, object)
    found[is_valid.to_numpy(zero_copy_only=False)] = values.to_pylist()
    return found


def _task_cores() -> int | None:
    """Of a task of Spark (spark.task.cpus); None outside of one."""
    from pyspark import TaskContext

    context = TaskContext.get()
    return None if context is None else int(context.cpus())
