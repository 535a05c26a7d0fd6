"""Third-party logs and loading bars stay out of our output; what matters is raised as an error instead."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LIBRARIES = ("torch", "torchao", "bitsandbytes", "accelerate")  # two say at import which kernels they do not find


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' logger and progress bars, the loggers of libraries that it imports and Python warnings
    inside the block, and restores them."""
    from transformers.utils import logging as hf_logging

    verbosity, had_bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    levels = {name: logging.getLogger(name).level for name in LIBRARIES}
    hf_logging.set_verbosity(logging.CRITICAL)
    hf_logging.disable_progress_bar()
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(verbosity)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if had_bars:
            hf_logging.enable_progress_bar()
