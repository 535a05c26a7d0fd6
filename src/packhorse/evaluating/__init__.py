"""packhorse eval: a model's predictions held against labels, with the metrics' state on the model's device.

A measure is one file, found by the task's name. evaluate.py is the way through, labelled.py and retrieval.py its two
loops; device.py runs shards whose values stay on the device; states.py, entity_state.py and nearest.py have what is
kept there; text.py and page.py show what was found.
"""
