"""Who may look at whom, as structure that is turned into a tensor only where a kernel needs one.

``dense`` is the meaning; ``sdpa`` lowers it to what PyTorch's fused attention takes, ``nn/blocked.py`` to the blocks
that a pattern leaves. A query that may see no key gets a zero output, not NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmformer.nn.pattern import PatternSpec, Places, added


class Mask(NamedTuple):
    """The structure of a mask between queries and keys; everything that is given must allow a pair.

    The queries are the last of the keys' sequence when ``causal`` or under a pattern: with a cache, ``queries < keys``.
    """

    causal: bool = False  # a query sees the keys up to its own place
    prefix: Tensor | None = None  # B, int64: with causal, the first prefix[b] keys are seen by every query
    valid: Tensor | None = None  # B keys, bool: True where a key may be seen
    query_segment: Tensor | None = None  # B queries, int64
    key_segment: Tensor | None = None  # B keys, int64: seen from the same segment only
    trailing: bool = False  # what is not valid stands after all that is, and nothing is asked of it as a query
    pattern: PatternSpec | None = None  # the mixer's own, over where these stand:
    pos: Tensor | None = None  # (B or 1) keys A, int64
    order: Tensor | None = None  # B keys, int64: how many real keys of its segment are before each; None: all are
    total: Tensor | None = None  # (B or 1) keys, int64: how many it has in all; for patterns over lengths

    def dense(self, queries: int, keys: int, device: torch.device | None = None) -> Tensor | None:
        """The mask as booleans, True where a query sees a key; None when everything is seen.

        Returns:
            (B or 1, 1, queries, keys), which broadcasts over heads.
        """
        allowed = self.allowed(torch.arange(keys - queries, keys, device=device), torch.arange(keys, device=device))
        return None if allowed is None else allowed[:, None]

    def allowed(self, query: Tensor, key: Tensor) -> Tensor | None:
        """Whether queries see keys; None when everything is seen.

        Args:
            query: … Q, int64: indexes in the keys' sequence. ``…`` are blocks, or nothing.
            key: … K, int64.

        Returns:
            (B or 1) … Q K, bool.
        """
        return self.sees(*self._paired(query, key))

    def bias(self, query: Tensor, key: Tensor) -> Tensor | None:
        """What the pattern adds to scores: (B or 1) … Q K, of indexes as ``allowed`` has them; None: nothing."""
        return self.weighs(*self._paired(query, key))

    def sees(self, row: Tensor, query: Tensor, key: Tensor) -> Tensor | None:
        """Whether queries see keys, element by element: the indexes of rows, queries and keys broadcast."""
        allowed: Tensor | None = None
        if self.causal:
            allowed = key <= query
            if self.prefix is not None:
                allowed = allowed | (key < self.prefix[row])
        if self.pattern is not None:
            allowed = _both(allowed, self.pattern.allows(self.places(row, query), self.places(row, key)))
        if self.valid is not None:
            allowed = _both(allowed, self.valid[row, key])
        if self.query_segment is not None and self.key_segment is not None:
            past = self.key_segment.shape[1] - self.query_segment.shape[1]
            allowed = _both(allowed, self.query_segment[row, query - past] == self.key_segment[row, key])
        return allowed

    def weighs(self, row: Tensor, query: Tensor, key: Tensor) -> Tensor | None:
        """What the pattern adds to scores, element by element, as ``sees`` has them."""
        return None if self.pattern is None else self.pattern.bias(self.places(row, query), self.places(row, key))

    def _paired(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Indexes of rows, queries and keys that broadcast to pairs."""
        each = (self.prefix, self.valid, self.key_segment, self.pos, self.order, self.total)
        rows = [len(part) for part in each if part is not None] or [1]
        row = torch.arange(max(rows), device=query.device)
        return row.view(-1, *[1] * (query.dim() + 1)), query[None, ..., :, None], key[None, ..., None, :]

    def places(self, row: Tensor, index: Tensor) -> Places:
        """Where the keys of some indexes of some rows stand."""
        order = index if self.order is None else self.order[row, index]
        total = None if self.total is None else self.total[_shared(row, self.total), index]
        if self.pos is None:
            return Places(order, total=total)
        shared = _shared(row, self.pos)
        return Places(order, tuple(axis[shared, index] for axis in self.pos.unbind(-1)), total)

    def sdpa(self, queries: int, keys: int, bias: Tensor | None, device: torch.device) -> tuple[Tensor | None, bool]:
        """The two arguments ``attn_mask`` and ``is_causal`` of ``scaled_dot_product_attention``.

        Args:
            bias: added to the scores, broadcastable to B H queries keys, or None.
            device: of the queries.
        """
        unseen = self.trailing and self.causal and self.prefix is None  # padding, by all before it
        plain = (self.valid is None or unseen) and self.key_segment is None and self.pattern is None and bias is None
        if plain and (not self.causal or queries == 1):
            return None, False
        if plain and self.prefix is None and queries == keys:
            return None, True
        allowed = self.dense(queries, keys, device)
        own = self.bias(torch.arange(keys - queries, keys, device=device), torch.arange(keys, device=device))
        bias = added(bias, None if own is None else own[:, None])
        return (bias if allowed is None else masked(allowed, bias)), False


def masked(allowed: Tensor, bias: Tensor | None) -> Tensor:
    """A mask as kernels take it: a bias, minus infinity where a pair is not allowed; without one, what is allowed."""
    return allowed if bias is None else bias + hiding(allowed, bias.dtype)  # adding is much faster than filling


def hiding(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as a bias: zero where a pair is allowed, minus infinity where it is not."""
    return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, float("-inf"))


def _shared(row: Tensor, part: Tensor) -> Tensor:
    """The rows to look at in a part that all rows may share."""
    return row * 0 if len(part) == 1 else row


def _both(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a & b
