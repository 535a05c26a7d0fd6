"""Third-party logs and loading bars stay out of our output; what matters is raised as an error instead."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' logger, its progress bars and Python warnings inside the block, and restores them."""
    from transformers.utils import logging as hf_logging

    verbosity, had_bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    root_level = logging.getLogger("torch").level
    hf_logging.set_verbosity(logging.CRITICAL)
    hf_logging.disable_progress_bar()
    logging.getLogger("torch").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(verbosity)
        logging.getLogger("torch").setLevel(root_level)
        if had_bars:
            hf_logging.enable_progress_bar()
