"""How texts are tokenized, and texts of which only the beginning is looked at."""

from __future__ import annotations

from dataclasses import dataclass

from packhorse.data import RowError

# A text is cut here before tokenizing: 10 MB take 13 s and 1.5 GB, and a model reads the first tokens alone.
MIN_TEXT_CHARS = 200_000
CHARS_PER_TOKEN = 32
MAX_UNTRUNCATED_CHARS = 1_000_000
# Tokens that a cut text must make beyond those that can be kept, so that the cut cannot have changed them.
MARGIN_TOKENS = 8


@dataclass(frozen=True, slots=True)
class TokenizeSettings:
    """max_length in tokens, special ones included; None: never truncated.

    with_special_tokens: whether those of the tokenizer's post-processor are put around a text. Special tokens that
    stand in a text are read as what they are in either case.
    """

    max_length: int | None
    prompt: str = ""
    truncation_side: str = "right"
    with_type_ids: bool = False
    threads: int = 1
    with_special_tokens: bool = True
    mask_id: int = -1


def heads(texts: list[str], settings: TokenizeSettings) -> tuple[list[str], dict[int, bool]]:
    """Texts within the limit; which of them were cut, and (True) not at white space."""
    limit, cuts = _max_chars(settings), {}
    for i in [i for i, t in enumerate(texts) if len(t) > limit]:
        cut = _tail if settings.truncation_side == "left" else _head
        texts[i], cuts[i] = cut(texts[i], limit)
    return texts, cuts


def too_long(settings: TokenizeSettings) -> RowError:
    """Of a text that was cut, and made too few tokens then."""
    what = f"the text has more than {_max_chars(settings):,} characters, and "
    if settings.max_length is None:
        return RowError("text_too_long", what + "this model has no maximum length; --max-length sets one")
    few = f"the first of them make too few tokens to fill the maximum length of {settings.max_length}"
    return RowError("text_too_long", what + few)


def _max_chars(settings: TokenizeSettings) -> int:
    if settings.max_length is None:
        return MAX_UNTRUNCATED_CHARS
    return max(MIN_TEXT_CHARS, CHARS_PER_TOKEN * settings.max_length)


def _head(text: str, limit: int) -> tuple[str, bool]:
    """The text up to the last white space before the limit, or (True) up to the limit where none is near."""
    cut = max(text.rfind(space, limit - limit // 20, limit) for space in " \n\t")
    return (text[:cut], False) if cut >= 0 else (text[:limit], True)


def _tail(text: str, limit: int) -> tuple[str, bool]:
    """The same from the other end."""
    begin = len(text) - limit
    found = [at for at in (text.find(space, begin, begin + limit // 20) for space in " \n\t") if at >= 0]
    return (text[min(found) :], False) if found else (text[begin:], True)
