"""Softmax attention as arithmetic: the choice of a kernel, with one meaning."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmformer.nn.dropout import drop
from mmformer.nn.mask import hiding
from mmformer.nn.precision import product_dtype

PLAIN_KEYS = 512
"""Longest key sequence that is weighed by plain matrix products, whose weights are held for the gradient."""
FEWEST_HEADS = 24
"""Of all rows, from which it is worth it to ask with one query a row by products of our own."""


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    dropout: float,
    scale: float | None = None,
) -> Tensor:
    """softmax(scale q kᵀ) v. A query that may see nothing gets zero.

    Args:
        query: B H Q width of a head.
        key: B Hk K width; Hk divides H, and each key head serves H / Hk query heads.
        value: B Hk K width.
        mask: (B or 1) (H or 1) (Q or 1) K: booleans, True where a query sees a key, or a bias to add, in the
            precision of the query; or None.
        causal: query i sees keys 0 to i; then Q = K, and the mask is None.
        dropout: on the weights.
        scale: None: one over the root of the head's width.
    """
    if _is_of_one(query.device, query.dtype, query.shape[2]) and query.shape[0] * query.shape[1] >= FEWEST_HEADS:
        assert not causal or key.shape[2] == 1, "queries and keys are as many"
        return _of_one(query, key, value, mask, dropout, scale)
    if _is_plain(query.device, query.dtype, key.shape[2]):
        return _plain(query, key, value, mask, causal, dropout, scale)
    grouped = query.shape[1] != key.shape[1]
    if grouped and query.shape[2] == 1 and not causal:
        # A group's heads ask as so many queries. With a mask, PyTorch's kernels for groups repeat all keys and values.
        rows, heads, groups = query.shape[0], key.shape[1], query.shape[1] // key.shape[1]
        asked = query.reshape(rows, heads, groups, -1)  # B Hk G width
        if mask is not None and mask.shape[1] != 1:
            mask = mask.reshape(mask.shape[0], heads, groups, -1)  # (B or 1) Hk G K
        made = F.scaled_dot_product_attention(asked, key, value, attn_mask=mask, dropout_p=dropout, scale=scale)
        return made.reshape(query.shape)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=grouped
    )


def lower(mask: Tensor, x: Tensor, keys: int) -> Tensor:
    """A mask as ``attend`` takes it fastest, for layers that are applied to x: on a CPU the fused kernel would make a
    bias of booleans each time.
    """
    dtype = product_dtype(x)
    if mask.dtype != torch.bool:  # of one that is learned, layers' gradients are to be added up in its own precision
        return mask if mask.requires_grad else mask.to(dtype)
    plain = _is_plain(x.device, dtype, keys) or _is_of_one(x.device, dtype, x.shape[1])
    as_it_is = x.device.type != "cpu" or plain
    return mask if as_it_is else hiding(mask, dtype)


def _is_plain(device: torch.device, dtype: torch.dtype, keys: int) -> bool:
    # PyTorch's fused CPU kernel has a bfloat16 backward that makes it 1.5 to 8 times as slow as plain products
    # (benchmarks/results/attention). Its forward pass is faster. A pass without a gradient alone may be followed by
    # one with it that is to make the same (GradCache); one in inference mode is not.
    may_be_repeated = torch.compiler.is_compiling() or not torch.is_inference_mode_enabled()
    return may_be_repeated and device.type == "cpu" and dtype == torch.bfloat16 and keys <= PLAIN_KEYS


def _is_of_one(device: torch.device, dtype: torch.dtype, queries: int) -> bool:
    """Whether it is one query a row, as of each id that is written, which products of our own are faster for."""
    alone = queries == 1 and torch.is_inference_mode_enabled() and not torch.compiler.is_compiling()
    return alone and device.type == "cpu" and dtype == torch.bfloat16


def _of_one(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scale: float | None
) -> Tensor:
    """Of one query a row, by products with its keys on the left: two to three times as fast as the fused kernel, which
    brings keys of each head into another order first (benchmarks/results/attention). Scores are rounded as they are in
    an update's plain products.
    """
    rows, heads, _, width = query.shape
    asked = (query * (width**-0.5 if scale is None else scale)).reshape(rows, key.shape[1], -1, width)  # B Hk G width
    scores = (key @ asked.transpose(-1, -2)).transpose(-1, -2)  # B Hk G K
    weights = drop(weigh(scores.reshape(rows, heads, 1, key.shape[2]), mask), dropout)  # B H 1 K
    return (weights.view(scores.shape) @ value).view(query.shape)


def _plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    dropout: float,
    scale: float | None = None,
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-1, -2)  # B H Q K
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    weights = weigh(scores, mask)
    return drop(weights, dropout) @ value


def weigh(scores: Tensor, mask: Tensor | None) -> Tensor:
    """The softmax over what a mask lets be seen, B H Q K; where that is nothing, zeros."""
    if mask is None:
        return scores.softmax(-1)
    allowed = mask if mask.dtype == torch.bool else mask > float("-inf")
    scores = scores if mask.dtype == torch.bool else scores + mask
    # A finite floor and a second masking: the softmax of nothing but minus infinity would be NaN.
    return scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(~allowed, 0.0)
