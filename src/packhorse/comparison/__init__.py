"""Ways to run a model over rows, side by side: each contender in a process of its own, judged before it is timed.

`packhorse bench` and the developers' bench/compare.py both run this code. The path: rows (rows.py) and a model
(subject.py) -> files and the reference's outputs -> one child process a trial (trials.py, child.py, contenders/) ->
parity.py -> summary.py -> terminal (table.py), JSON and HTML (page.py).
"""
