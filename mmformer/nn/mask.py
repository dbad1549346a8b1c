"""Who may look at whom, as structure that is turned into a tensor only where a kernel needs one.

``dense`` is the meaning; ``sdpa`` lowers it to what PyTorch's fused attention takes. A query that may see no key gets
a zero output, not NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Mask(NamedTuple):
    """The structure of a mask between queries and keys; everything that is given must allow a pair.

    The queries are the last of the keys' sequence when ``causal``: with a cache, ``queries < keys``.
    """

    causal: bool = False  # a query sees the keys up to its own place
    prefix: Tensor | None = None  # B, int64: with causal, the first prefix[b] keys are seen by every query
    valid: Tensor | None = None  # B keys, bool: True where a key may be seen
    query_segment: Tensor | None = None  # B queries, int64
    key_segment: Tensor | None = None  # B keys, int64: seen from the same segment only

    def dense(self, queries: int, keys: int, device: torch.device | None = None) -> Tensor | None:
        """The mask as booleans, True where a query sees a key; None when everything is seen.

        Returns:
            (B or 1, 1, queries, keys), which broadcasts over heads.
        """
        allowed: Tensor | None = None
        if self.causal:
            key = torch.arange(keys, device=device)
            query = torch.arange(keys - queries, keys, device=device)
            allowed = (key[None, :] <= query[:, None])[None, None]  # 1 1 queries keys
            if self.prefix is not None:
                allowed = allowed | (key[None, :] < self.prefix[:, None])[:, None, None, :]
        if self.valid is not None:
            allowed = _both(allowed, self.valid[:, None, None, :])
        if self.query_segment is not None and self.key_segment is not None:
            same = self.query_segment[:, :, None] == self.key_segment[:, None, :]  # B queries keys
            allowed = _both(allowed, same[:, None])
        return allowed

    def sdpa(self, queries: int, keys: int, bias: Tensor | None, device: torch.device) -> tuple[Tensor | None, bool]:
        """The two arguments ``attn_mask`` and ``is_causal`` of ``scaled_dot_product_attention``.

        Args:
            bias: added to the scores, broadcastable to B H queries keys, or None.
            device: of the queries.
        """
        plain = self.valid is None and self.key_segment is None and bias is None
        if plain and (not self.causal or queries == 1):
            return None, False
        if plain and self.prefix is None and queries == keys:
            return None, True
        allowed = self.dense(queries, keys, device)
        if bias is None:
            return allowed, False
        return (bias if allowed is None else bias.masked_fill(~allowed, float("-inf"))), False


def _both(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a & b
