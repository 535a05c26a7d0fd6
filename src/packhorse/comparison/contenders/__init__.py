"""One file per contender, named as on the command line; files that start with an underscore are shared code.

A contender has a docstring (its first line is what users are shown), `TASKS`, `PRECISIONS`, `IS_SLOW`, and
`run(model: ModelSpec, rows: Rows, options: Options) -> Result`. Importing it loads neither torch nor
transformers. It may have `BACKENDS` and `ATTENTIONS`, where it lets one choose, `HAS_BATCH_SIZE` where a number may
follow its name, `NEEDS`: packages that do not come with packhorse, and `BY_DEFAULT`: what of it bench/compare.py runs
when no contenders are named, each as it stands behind the colon of a label.
"""
