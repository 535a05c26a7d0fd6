"""The one attention function that knows where rows end; everything else in a model sees a single sequence.

Registered with transformers' AttentionInterface under NAME. No mask function is registered, so that transformers makes
no mask; the boundaries come as the keyword argument `pack`, which models hand on from their forward.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from packhorse.packing.linear import is_available as has_linear
from packhorse.packing.pack import Pack, Run

NAME = "packhorse_packed"
# Tokens a row up to which matmul, softmax, matmul beat SDPA on a CPU in half precision: 1.8 to 2.6 times as fast, while
# beyond the scores outgrow the caches. In fp32 SDPA is 1.2 to 2 times as fast, and for long rows the product of
# oneDNN, head by head, once more 1.25 (heads of 32) to 1.6 times (of 64).
MATMUL_MAX_LENGTH = 512
HEAD_BY_HEAD = range(200, 1_025)
HALF_VECTOR = 32  # values of half precision in 512 bits
FLASH_PACKAGES = {"flash_attention_3": "flash_attn_interface", "flash_attention_2": "flash_attn"}
# Arguments that change what attention means, and that this function does not know.
UNKNOWN = ("softcap", "s_aux", "sinks", "position_bias", "cache", "alibi", "indices", "block_indices")


class PackingError(Exception):
    """This model, or this call, cannot be packed."""


def register() -> None:
    """Makes NAME an attention implementation of transformers; again does nothing new."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)


def select(model: Any, name: str) -> None:
    """The model's attention implementation from now on. Some versions of transformers only warn where they do not see
    that a model asks AttentionInterface (5.3 of ModernBERT); its config is what the model reads."""
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        model.config._attn_implementation = name


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    pack: Pack | None = None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """query [1, h, T, d], key and value [1, k, T, d] with k a divisor of h -> [1, T, h, d].

    A token at i sees j of its row where |i - j| < sliding_window, and only j <= i if causal. Raises PackingError.
    """
    if pack is None:
        raise PackingError(f"{type(module).__name__} does not hand the rows' boundaries on to attention")
    pack.attended.append(type(module).__name__)
    unknown = [name for name in UNKNOWN if others.get(name) is not None]
    if unknown or attention_mask is not None:
        raise PackingError(f"{type(module).__name__} uses {', '.join(unknown) or 'a mask'} in its attention")
    if query.shape[2] != key.shape[2]:
        raise PackingError(f"{type(module).__name__} attends to other tokens than its own")
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if pack.cache is None:
        return attend_rows(query, key, value, pack, scale, causal, sliding_window), None
    if not causal:
        raise PackingError(f"{type(module).__name__} looks ahead, so that no row can be written token by token")
    return pack.cache.attend(module, query, key, value, pack, scale, sliding_window), None


def attend_rows(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, scale: float, causal: bool,
    window: int | None,
) -> torch.Tensor:  # fmt: skip
    """query [1, h, T, d], key and value [1, k, T, d] -> [1, T, h, d], each row of the pack by itself."""
    if query.is_cuda:
        return _varlen(query, key, value, pack, scale, causal, window)
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
    for run in pack.runs:
        mask = pack.mask(run.length, window, causal)
        _attend_run(query, key, value, out, run, scale, mask)
    return out


# -- CPU: rows of one length at a time


def _attend_run(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    run: Run,
    scale: float,
    mask: torch.Tensor | None,
) -> None:
    """Writes the run's part of out [1, T, h, d]."""
    tokens = slice(run.start, run.start + run.rows * run.length)
    q, k, v = (x[0, :, tokens].unflatten(1, (run.rows, run.length)) for x in (query, key, value))  # [h, n, L, d]
    place = out[0, tokens].unflatten(0, (run.rows, run.length))  # [n, L, h, d]
    if query.dtype == torch.float32 and run.length in HEAD_BY_HEAD and mask is None and has_linear(query.dtype):
        place.copy_(_head_by_head(q, k, v, scale).permute(1, 2, 0, 3))
        return
    if run.length > MATMUL_MAX_LENGTH or query.dtype == torch.float32:
        by_q, by_k, by_v = (x.transpose(0, 1) for x in (q, k, v))  # [n, h, L, d]
        attended = F.scaled_dot_product_attention(
            by_q, by_k, by_v, attn_mask=mask, scale=scale, enable_gqa=k.shape[0] != q.shape[0]
        )
        place.copy_(attended.transpose(1, 2))
        return
    place.copy_(_matmul_attention(q, k, v, scale, mask).permute(1, 2, 0, 3))


def _matmul_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, mask: torch.Tensor | None
) -> torch.Tensor:
    """[h, n, L, d]: plain products of contiguous blocks."""
    heads, rows, length, size = q.shape
    groups = heads // k.shape[0]
    blocks = k.shape[0] * rows
    if groups > 1:  # the query heads of one key head side by side: [k * n, g * L, d]
        q = q.unflatten(0, (-1, groups)).transpose(1, 2)
    q = q.reshape(blocks, groups * length, size)
    k, v = k.reshape(blocks, length, size), v.reshape(blocks, length, -1)
    scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=scale)
    if mask is not None:
        scores.view(blocks * groups, length, length).masked_fill_(~mask, float("-inf"))
    attended = torch.bmm(softmax(scores), v)
    if groups > 1:
        return attended.view(-1, rows, groups, length, v.shape[-1]).transpose(1, 2).flatten(0, 1)
    return attended.view(heads, rows, length, v.shape[-1])


def _head_by_head(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """[h, n, L, d]: a linear layer of oneDNN with the keys as weight, and one with the values."""
    groups = q.shape[0] // k.shape[0]
    q, k = (q * scale).contiguous(), k.contiguous()  # with any other stride oneDNN takes its slowest way
    values = v.transpose(2, 3).contiguous()
    out = q.new_empty(*q.shape[:3], v.shape[3])
    product = torch.ops.mkldnn._linear_pointwise
    for head in range(q.shape[0]):
        for row in range(q.shape[1]):
            scores = product(q[head, row], k[head // groups, row], None, "none", [], "")
            weights = torch.softmax(scores, -1)
            out[head, row] = product(weights, values[head // groups, row], None, "none", [], "")
    return out


def softmax(scores: torch.Tensor) -> torch.Tensor:
    """Over the last dimension. torch's own for half precision is 2 to 3 times slower where rows are no multiple of its
    vectors (54 tokens: 1.40 ms, by way of fp32 0.6)."""
    if scores.dtype == torch.float32 or scores.shape[-1] % HALF_VECTOR == 0:
        return torch.softmax(scores, -1)
    return torch.softmax(scores, -1, dtype=torch.float32).to(scores.dtype)


# -- CUDA: one kernel for rows of any length


def _varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, scale: float, causal: bool,
    window: int | None,
) -> torch.Tensor:  # fmt: skip
    """[1, T, h, d]. window: tokens on either side, the token itself counted."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, h, d]
    sides = (-1, -1) if window is None else (window - 1, window - 1)
    if causal:
        sides = (sides[0], 0)
    attend = varlen_kernel(pack.kernel)
    return attend(q, k, v, pack.cu_seqlens, pack.max_seqlen, scale, causal, sides).unsqueeze(0)


Kernel = Callable[..., torch.Tensor]


def varlen_kernel(name: str = "auto") -> Kernel:
    """auto: torch's own varlen_attn (2.12 and later: any window and GQA), else flash-attn where it is installed, else
    what the older varlen_attn can. Raises PackingError where there is none."""
    if name != "auto":
        return _flash_varlen(name)
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        varlen_attn = None
    names = set(inspect.signature(varlen_attn).parameters) if varlen_attn else set()
    if "window_size" in names:
        return _torch_varlen(varlen_attn, names)
    for flash, package in FLASH_PACKAGES.items():
        if importlib.util.find_spec(package):
            return _flash_varlen(flash)
    if varlen_attn is not None:
        return _old_torch_varlen(varlen_attn)
    raise PackingError(
        f"no kernel for rows of different lengths: torch {torch.__version__} has no varlen_attn (2.10 has), and "
        "flash-attn is not installed (pip install flash-attn)"
    )


def _torch_varlen(varlen_attn: Any, names: set[str]) -> Kernel:
    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu: torch.Tensor, longest: int, scale: float, causal: bool,
        sides: tuple[int, int],
    ) -> torch.Tensor:  # fmt: skip
        options: dict[str, Any] = {"scale": scale, "window_size": sides}
        if k.shape[1] != q.shape[1]:
            if "enable_gqa" in names:
                options["enable_gqa"] = True
            else:
                k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        out: torch.Tensor = varlen_attn(q, k, v, cu, cu, longest, longest, **options)
        return out

    return attend


def _old_torch_varlen(varlen_attn: Any) -> Kernel:
    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu: torch.Tensor, longest: int, scale: float, causal: bool,
        sides: tuple[int, int],
    ) -> torch.Tensor:  # fmt: skip
        if sides[0] >= 0 and sides[0] < longest - 1:
            raise PackingError(f"varlen_attn of torch {torch.__version__} has no sliding window")
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        out: torch.Tensor = varlen_attn(q * (scale * q.shape[-1] ** 0.5), k, v, cu, cu, longest, longest, causal)
        return out

    return attend


def _flash_varlen(name: str) -> Kernel:
    flash_attn_varlen_func = importlib.import_module(FLASH_PACKAGES[name]).flash_attn_varlen_func

    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu: torch.Tensor, longest: int, scale: float, causal: bool,
        sides: tuple[int, int],
    ) -> torch.Tensor:  # fmt: skip
        out = flash_attn_varlen_func(
            q, k, v, cu, cu, longest, longest, softmax_scale=scale, causal=causal, window_size=sides
        )
        return out[0] if isinstance(out, tuple) else out

    return attend
