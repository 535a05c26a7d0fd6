"""packhorse doctor: what this machine has, what of packhorse works on it, and where a model would lie.

diagnosis.py holds the nouns; limits.py, found.py, packages.py and trials.py look; placing.py is about a model; text.py
draws. Nothing is downloaded, and no weight is read.
"""
