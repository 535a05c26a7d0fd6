"""Where the tensors of anyone's own loop lie, what is copied between host and device there, and what waits for it.

findings.py holds the nouns and needs no torch; tensors.py lists, watching.py looks on while a batch is computed,
judging.py and traffic.py say what is wrong, auditor.py is `packhorse.audit`, aligning.py is `packhorse.align`.
"""
