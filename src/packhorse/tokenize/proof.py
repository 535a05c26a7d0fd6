"""Which fast package is used, and the proof that it may be: the same ids on rows of the job and on odd texts."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

from packhorse.errors import UsageError
from packhorse.tokenize.checked import CheckedEncoder, QuickTokenizer
from packhorse.tokenize.encoder import HfEncoder
from packhorse.tokenize.odd import odd_texts

# The fastest first: 100,000 reviews and sentences, WordPiece, on 2 cores in 0.04 s and 0.15 s (hf: 2.0 s).
PACKAGES = ("nanotoken", "tokie")
MIN_AUTO_ROWS = 1_000  # a smaller job is over before the proof would have paid
MAX_SAMPLE_CHARS = 500_000
MAX_OTHER_SHARE = 0.5  # of the rows; with more the reference does most of the work anyway


class TokenizerChoice(NamedTuple):
    """The tokenizer that is used, what a plan says about those that are not, and the package's encoder."""

    name: str
    notes: tuple[str, ...] = ()
    encoder: CheckedEncoder | None = None


def check_installed(asked: str) -> None:
    """Raises UsageError where a package is asked for by name that is not there."""
    if asked in PACKAGES and find_spec(asked) is None:
        raise UsageError(f"--tokenizer {asked}: not installed; pip install 'packhorse[fast-tokenizers]'")


def choose_tokenizer(
    asked: str, backend: Any, texts: Sequence[str | None], prompt: str, threads: int
) -> TokenizerChoice:
    """The fastest package proven on `texts`, which are rows of the job, and on odd texts; else hf, and notes say why.

    asked: auto, hf or a package. auto looks for a package only where there are enough rows to gain by it.
    """
    notes: list[str] = []
    for name in _candidates(asked, len(texts)):
        encoder = open_checked(name, backend, threads)
        failure = encoder if isinstance(encoder, str) else prove(encoder, sample_of(texts, prompt))
        if not isinstance(encoder, str) and failure is None:
            return TokenizerChoice(name, (), encoder)
        notes.append(f"tokenizer {name} is not used: {failure}")
        if not isinstance(encoder, str):
            encoder.close()
    return TokenizerChoice("hf", tuple(notes))


def _candidates(asked: str, num_rows: int) -> list[str]:
    if asked == "auto":
        return [name for name in PACKAGES if num_rows >= MIN_AUTO_ROWS and find_spec(name) is not None]
    return [name for name in PACKAGES if name == asked and find_spec(name) is not None]


def open_checked(name: str, backend: Any, threads: int) -> CheckedEncoder | str:
    """The package's tokenizer, watched; or why it cannot read this one."""
    module = importlib.import_module(f"packhorse.tokenize.{name}")
    reference = HfEncoder(backend, threads)
    try:
        quick: QuickTokenizer = getattr(module, f"{name.capitalize()}Tokenizer")(backend.to_str(), threads)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - a panic of Rust code is no Exception
        reference.close()
        return f"{type(error).__name__}: {error}"[:200]
    return CheckedEncoder(quick, reference, backend)


def sample_of(texts: Sequence[str | None], prompt: str) -> list[str]:
    """Rows with their prompt, as many as the proof has time for."""
    sample, chars = [], 0
    for text in texts:
        if text is not None and chars < MAX_SAMPLE_CHARS:
            sample.append(prompt + text)
            chars += len(sample[-1])
    return sample


def prove(encoder: CheckedEncoder, sample: list[str]) -> str | None:
    """Why the encoder may not be used; None: it gives the tokens of the reference, on these rows and on odd texts."""
    odd = odd_texts()
    for texts in (sample, odd, [" ".join(encoder.usual(odd))]):
        difference = encoder.prove(texts)
        if difference is not None:
            return str(difference)
    others = len(sample) - len(encoder.usual(sample))
    if others > len(sample) * MAX_OTHER_SHARE:
        return f"{others:,} of {len(sample):,} rows hold special tokens or characters for which it is not proven"
    return None
