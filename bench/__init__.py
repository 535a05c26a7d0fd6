"""Benchmarks: packhorse beside the ways people use today, on the same rows. Run `python bench/compare.py`."""
