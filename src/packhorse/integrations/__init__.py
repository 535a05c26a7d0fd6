"""packhorse inside a pipeline that people have already: Ray Data, Spark, Daft, Polars."""
