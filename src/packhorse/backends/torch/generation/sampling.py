"""Sampling whose noise belongs to a row: one uniform number a step from a counter, and the inverse of the row's own
cumulative distribution, in the order of the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from packhorse.data import Float64s, Int64s
from packhorse.generation import UInt64s

# Philox4x32-10: multipliers of the two products and steps of the two keys, of rounds 10 (Salmon, Moraes, Dror, Shaw:
# Parallel Random Numbers: As Easy as 1, 2, 3, SC11, table 2 and section 4.1).
MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
KEY_STEPS = np.array([[0x9E3779B9], [0xBB67AE85]], np.uint64)
ROUNDS = 10
LOW = np.uint64(0xFFFFFFFF)
WORD = np.uint64(32)

# Of the whole mass: a number so near to where a token's share ends may fall on either side of it.
NEAR_BOUNDARY = 1e-6

# top_p alone: how many of the most likely tokens are looked at first, and where they are not enough; into how many bins
# of scores all are put after that, and how many of the one bin where the cut falls are sorted; and how near to top_p a
# sum may come before transformers' own sort has to decide.
WIDTHS = (64, 1024)
BINS, BIN_WIDTH = 4096, 512
NEAR_TOP_P = 1e-6
# On a CPU, as a share of 1 - top_p: transformers sums up what is not left, in float32, and is off by up to 6.4e-7 of it
# (152,000 tokens, logits with a standard deviation of 0.5; 2.1e-7 with one of 2).
NEAR_OF_REST = 2e-6

# Elements of float64 that are worked on at a time: 8 MiB.
CHUNK = 2**20

# What these leave depends on the tokens left so far alone, so that they may be given only those.
NARROWING = frozenset({
    "TopPLogitsWarper", "MinPLogitsWarper", "TypicalLogitsWarper", "EpsilonLogitsWarper", "EtaLogitsWarper",
    "LogitNormalization",
})  # fmt: skip


class Choice(NamedTuple):
    """One token a row: ids [B] int64, is_near [B] bool."""

    ids: torch.Tensor
    is_near: torch.Tensor


class Likely(NamedTuple):
    """values [B, K] float32 of the tokens ids [B, K], -inf where not left; is_sure [B]: no other token is left; least
    [B]: so many tokens are left at least, of all (top_p alone)."""

    values: torch.Tensor
    ids: torch.Tensor
    is_sure: torch.Tensor
    least: torch.Tensor | None = None


def uniforms(seed: int, keys: UInt64s, samples: Int64s, steps: Int64s) -> Float64s:
    """[n] numbers in [0, 1), each a function of (seed, key, sample, step) alone: 53 bits of Philox4x32-10 with the
    seed as key and (step, sample, key) as counter. seed: its lowest 64 bits count."""
    counter = np.empty((4, len(keys)), np.uint64)
    counter[0], counter[1] = steps.astype(np.uint64) & LOW, samples.astype(np.uint64) & LOW
    counter[2], counter[3] = keys & LOW, keys >> WORD
    words = philox(counter, np.array([[seed & 0xFFFFFFFF], [seed >> 32 & 0xFFFFFFFF]], np.uint64))
    high, low = words[0] >> np.uint64(5), words[1] >> np.uint64(6)  # 27 and 26 bits
    result: Float64s = (high * 67108864.0 + low) / 9007199254740992.0
    return result


def philox(counter: UInt64s, key: UInt64s) -> UInt64s:
    """Philox4x32-10. counter [4, n] and key [2, 1], 32-bit words in 64 bits -> [4, n] words."""
    for step in range(ROUNDS):
        product = counter[0::2] * MULTIPLIERS  # of words 0 and 2
        mixed = (product[::-1] >> WORD) ^ counter[1::2] ^ (key + np.uint64(step) * KEY_STEPS & LOW)
        counter = np.stack([mixed[0], product[1] & LOW, mixed[1], product[0] & LOW])
    return counter


class Sampler:
    """transformers' warpers, and a choice among what they leave.

    Where top_k or top_p comes first only the tokens that can be left are looked at. Sets of tokens are those that the
    warpers leave of all scores: where rounding could decide, the row is done again with the warpers themselves.
    """

    def __init__(self, warpers: Sequence[Any]) -> None:
        """warpers: transformers', in their order."""
        self._warpers = list(warpers)
        rest = list(warpers)
        is_scaled = bool(rest) and _name(rest[0]) == "TemperatureLogitsWarper"
        self._temperature = rest.pop(0).temperature if is_scaled else 1.0
        first = _name(rest[0]) if rest else ""
        self._rest = rest[1:]
        is_narrow = all(_name(w) in NARROWING for w in self._rest)
        self._top_k = rest[0].top_k if is_narrow and first == "TopKLogitsWarper" else None
        self._top_p = rest[0].top_p if is_narrow and first == "TopPLogitsWarper" else None

    def choose(self, scores: torch.Tensor, uniform: torch.Tensor) -> Choice:
        """scores [B, V] float32 before the warpers, uniform [B] float64."""
        num_tokens = scores.shape[1]
        widths: tuple[int, ...] = ()
        if self._top_k is not None:
            widths = (self._top_k,) if self._top_k < num_tokens else ()
        elif self._top_p is not None:
            widths = tuple(width for width in WIDTHS if 2 * width <= num_tokens)
        return self._choose(scores, uniform, widths)

    def likely(self, scores: torch.Tensor, width: int) -> Likely:
        """What temperature and top_k, or top_p, leave of the `width` most likely tokens."""
        return self._top(scores) if self._top_k is not None else self._nucleus(scores, width)

    def _choose(self, scores: torch.Tensor, uniform: torch.Tensor, widths: Sequence[int]) -> Choice:
        if not widths:
            return self._among_all(scores, uniform) if self._top_p is None else self._among_cut(scores, uniform)
        likely = self.likely(scores, widths[0])
        choice = self._among(likely, uniform)
        unsure = (~likely.is_sure).nonzero()[:, 0]
        if not unsure.numel():
            return choice
        least = 0 if likely.least is None else float(likely.least[unsure].min())
        enough = [width for width in widths[1:] if width > least]
        return _with(choice, unsure, self._choose(scores[unsure], uniform[unsure], enough))

    def _among_cut(self, scores: torch.Tensor, uniform: torch.Tensor) -> Choice:
        """Without a sort, but for rows that are not sure."""
        assert self._top_p is not None
        rows = max(1, CHUNK // scores.shape[1])
        parts, sure = [], []
        for part, numbers in zip(scores.split(rows), uniform.split(rows), strict=True):
            values, is_sure = cut_at_mass(part / self._temperature, self._top_p)
            for warper in self._rest:
                values = warper(None, values)
            parts.append(inverse_cdf(values, numbers))
            sure.append(is_sure)
        choice = Choice(*(torch.cat(column) for column in zip(*parts, strict=True)))
        unsure = (~torch.cat(sure)).nonzero()[:, 0]
        if not unsure.numel():
            return choice
        return _with(choice, unsure, self._among_all(scores[unsure], uniform[unsure]))

    def _among(self, likely: Likely, uniform: torch.Tensor) -> Choice:
        ids, order = likely.ids.sort(-1)
        values = likely.values.gather(1, order)
        for warper in self._rest:
            values = warper(None, values)
        place, is_near = inverse_cdf(values, uniform)
        return Choice(ids.gather(1, place[:, None])[:, 0], is_near)

    def _among_all(self, scores: torch.Tensor, uniform: torch.Tensor) -> Choice:
        """The warpers and the sum over all scores."""
        rows = max(1, CHUNK // scores.shape[1])
        parts = []
        for part, numbers in zip(scores.split(rows), uniform.split(rows), strict=True):
            for warper in self._warpers:
                part = warper(None, part)
            parts.append(inverse_cdf(part, numbers))
        return Choice(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _top(self, scores: torch.Tensor) -> Likely:
        """Sure where the token behind them is less: transformers keeps all that equal the last."""
        assert self._top_k is not None
        values, ids = scores.topk(self._top_k + 1, -1)
        values = values / self._temperature
        return Likely(values[:, :-1], ids[:, :-1], values[:, -2] > values[:, -1])

    def _nucleus(self, scores: torch.Tensor, width: int) -> Likely:
        """A token is left where those more likely than it have less than top_p of the mass. Sure where no sum comes
        near top_p, the last token left has no equal and all of them are among the width."""
        values, ids = scores.topk(width, -1)
        values = values / self._temperature
        top = values[:, :1]
        mass = (scores / self._temperature).sub_(top).exp_().sum(-1, keepdim=True)
        share = (values - top).double().exp() / mass  # the mass in float32: its error is far below NEAR_TOP_P
        before = share.cumsum(-1) - share
        is_left = before < self._top_p
        is_left[:, 0] = True
        distance = (before[:, 1:] - self._top_p).abs().amin(-1)
        count = is_left.sum(-1, keepdim=True).clamp(max=width - 1)
        has_equal = values.gather(1, count - 1) == values.gather(1, count)
        is_sure = (distance > NEAR_TOP_P) & ~has_equal[:, 0] & ~is_left[:, -1]
        least = width + (self._top_p - share.sum(-1)) / share[:, -1]  # no other has more than the last
        return Likely(values.masked_fill(~is_left, -torch.inf), ids, is_sure, least)


class Bin(NamedTuple):
    """Where the mass of the likeliest reaches top_p. base and behind [B, 1]: the mass before it and with it."""

    values: torch.Tensor  # [B, BIN_WIDTH] float32 its best scores, -inf where it has fewer
    share: torch.Tensor  # [B, BIN_WIDTH] of the mass
    base: torch.Tensor
    behind: torch.Tensor


def cut_at_mass(scores: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What top_p leaves of scores [B, V] float32, -inf elsewhere, and whether that is sure [B], as in Sampler._nucleus.
    Tokens are put into bins by their scores, and only those of one bin are sorted."""
    values, share, base, behind = _bin_at(scores, top_p)
    before = base + share.cumsum(-1) - share
    is_there = values > -torch.inf
    count = (is_there & (before < top_p)).sum(-1, keepdim=True)
    cut = values.gather(1, (count - 1).clamp(min=0))
    has_equal = values.gather(1, count.clamp(max=values.shape[1] - 1)) == cut  # true as well where all are left
    distance = (torch.cat([before.masked_fill(~is_there, 2.0), behind], -1) - top_p).abs().amin(-1)
    near = NEAR_OF_REST * (1 - top_p) if scores.device.type == "cpu" else NEAR_TOP_P
    is_sure = (distance > near) & (count > 0)[:, 0] & ~has_equal[:, 0]
    return scores.masked_fill(scores < cut, -torch.inf), is_sure


def _bin_at(scores: torch.Tensor, top_p: float) -> Bin:
    """Of BINS equal ones, from the best score to the least that has any mass."""
    best = scores.amax(-1, keepdim=True)
    below = best - scores
    weights = (-below).exp()
    mass = weights.sum(-1, keepdim=True, dtype=torch.float64)
    span = below.masked_fill(weights == 0, 0.0).amax(-1, keepdim=True).clamp(min=1e-30)
    bins = (below * (BINS / span)).clamp_(max=BINS - 1).nan_to_num_(BINS - 1).long()
    shares = mass.new_zeros(len(scores), BINS).scatter_add_(1, bins, weights / mass)
    sums = shares.cumsum(-1)
    place = (sums < top_p).sum(-1, keepdim=True).clamp(max=BINS - 1)
    behind = sums.gather(1, place)
    values = scores.masked_fill(bins != place, -torch.inf).topk(min(BIN_WIDTH, scores.shape[1]), -1).values
    return Bin(values, (values - best).double().exp() / mass, behind - shares.gather(1, place), behind)


def inverse_cdf(scores: torch.Tensor, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """scores [B, K], uniform [B] float64 -> the first place [B] whose cumulative softmax exceeds the row's number, and
    whether the number is within NEAR_BOUNDARY of where that place's share begins or ends. In float64, in order."""
    weights = scores.to(torch.float64)
    cumulative = (weights - weights.amax(-1, keepdim=True)).exp_().cumsum(-1)
    total = cumulative[:, -1:]
    target = torch.minimum(uniform[:, None] * total, total.nextafter(torch.zeros_like(total)))
    place = torch.searchsorted(cumulative, target, right=True)
    above = cumulative.gather(1, place) - target
    below = target - torch.where(place > 0, cumulative.gather(1, (place - 1).clamp(min=0)), 0.0)
    return place[:, 0], (torch.minimum(above, below) < NEAR_BOUNDARY * total)[:, 0]


def _with(choice: Choice, rows: torch.Tensor, again: Choice) -> Choice:
    """The choice with those of some rows in their place."""
    return Choice(*(old.index_copy(0, rows, new) for old, new in zip(choice, again, strict=True)))


def _name(warper: Any) -> str:
    return type(warper).__name__
