"""Sums over the keys that queries see, weighed by products of features, without the table of all pairs.

``y = Σ (query · key) value`` is what linear attention of every kind computes. Over all keys, key ⊗ value is summed once
for all queries. Causally, a row is cut into chunks: pairs are formed within a chunk, and the keys before it enter as
one sum (Katharopoulos et al. 2020, §3.3; in chunks as in FLASH, Hua et al. 2022, §3.2). Decoding goes on from that sum.
With F features, values of width E and chunks of C tokens, L tokens take L·C·(F + E) + 2·L·F·E products, and hold
L·C + L·F·E / C numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmformer.nn.mask import Mask
from mmformer.nn.mixer import State

CHUNK = 64
"""Tokens of a chunk: about as many as there are features, so that pairs and sums take as long."""


class Summed(NamedTuple):
    """What is known of the tokens that were seen: one sum."""

    key_value: Tensor  # B H F E


class Kept(NamedTuple):
    """The same for rows that several segments share, each of which would have a sum of its own: keys and values."""

    key: Tensor  # B H L F
    value: Tensor  # B H L E


def weigh(
    query: Tensor, key: Tensor, value: Tensor, mask: Mask, past: State | None, keep: bool
) -> tuple[Tensor, Summed | Kept | None]:
    """The sum over the keys that each query sees; nothing where it sees none.

    Args:
        query: B H Q F.
        key: B H K F, of the tokens that are new: the last ones of the mask's.
        value: B H K E.
        mask: without a pattern.
        past: what the last call returned.
        keep: return a state.

    Returns:
        B H Q E, and what the next call goes on from.
    """
    new = key.shape[2]
    if mask.valid is not None:
        unseen = ~mask.valid[:, None, mask.valid.shape[1] - new :, None]
        key, value = key.masked_fill(unseen, 0.0), value.masked_fill(unseen, 0.0)
    early, late = _by_order(key, mask, begins=past is None)
    if mask.query_segment is not None and mask.key_segment is not None:
        kept = Kept(key, value)
        mixed = _weigh_by_segment(query, early, late, value, mask, None if past is None else Kept(*past))
        if past is not None:
            kept = Kept(*(torch.cat(both, dim=2) for both in zip(past, kept, strict=True)))
        return mixed, kept if keep else None
    total = None if past is None else past[0]  # B H F E, of what all queries see
    if early is not None:
        total = _plus(early.mT @ value, total)
    y = None if total is None else query @ total  # B H Q E
    if late is not None:
        y = _plus(causal_product(query, late, value), y)
        total = _plus(late.mT @ value, total) if keep else None
    assert y is not None
    return y, Summed(total) if keep and total is not None else None


def causal_product(query: Tensor, key: Tensor, value: Tensor, segment: Tensor | None = None) -> Tensor:
    """Σ over j ≤ i of (query i · key j) value j, chunk by chunk.

    Args:
        query: B H L F.
        key: B H L F.
        value: B H L E.
        segment: B L, int64, ascending along the row: pairs of other segments do not count; None: all are of one.
    """
    length = query.shape[2]
    size = min(CHUNK, length)
    query, key, value = (_chunked(x, size) for x in (query, key, value))
    pairs = (query @ key.mT).tril_()  # B H N C C
    if segment is not None:
        segment = F.pad(segment, (0, -length % size)).view(len(segment), 1, -1, size)  # B 1 N C
        pairs = pairs.masked_fill_(segment[..., :, None] != segment[..., None, :], 0.0)
    y = pairs @ value
    if length > size:
        y = y + _from_chunks_before(query, key, value, segment)
    return y.flatten(2, 3)[:, :, :length]


def _chunked(x: Tensor, size: int) -> Tensor:
    """B H L width -> B H N C width, with zeros after the last token."""
    batch, heads, length, width = x.shape
    if length % size:
        x = F.pad(x, (0, 0, 0, -length % size))
    return x.reshape(batch, heads, -1, size, width)


def _from_chunks_before(query: Tensor, key: Tensor, value: Tensor, segment: Tensor | None) -> Tensor:
    """B H N C E."""
    if segment is None:
        return query @ _later((key.mT @ value).cumsum(2), 1)
    # Segments ascend: what a chunk hands on is its last segment's, and what it is handed its first one's.
    first, last = segment[..., :1], segment[..., -1:]  # B 1 N 1
    sums = key.masked_fill((segment != last)[..., None], 0.0).mT @ value  # B H N F E
    goes_on = F.pad(first[:, :, 1:] == last[:, :, :-1], (0, 0, 1, 0))  # the one's is the other's
    through = (goes_on & (first == last))[..., None].to(sums.dtype)
    step = 1
    while step < sums.shape[2]:  # sums of 1, 2, 4 … chunks (Hillis and Steele 1986)
        sums, through = sums + through * _later(sums, step), through * _later(through, step)
        step *= 2
    handed = _later(sums, 1) * goes_on[..., None]
    return query.masked_fill((segment != first)[..., None], 0.0) @ handed


def _later(x: Tensor, steps: int) -> Tensor:
    """What stood some chunks before, zero at the beginning: B H N …"""
    return F.pad(x[:, :, :-steps], (0, 0, 0, 0, steps, 0))


def _by_order(key: Tensor, mask: Mask, begins: bool) -> tuple[Tensor | None, Tensor | None]:
    """The keys that all queries see, and those that are seen from their own place on; None: there are no such."""
    if not mask.causal:
        return key, None
    if mask.prefix is None or not begins:  # a prefix is whole in the first call
        return None, key
    early = (torch.arange(key.shape[2], device=key.device) < mask.prefix[:, None])[:, None, :, None]
    return key.masked_fill(~early, 0.0), key.masked_fill(early, 0.0)


def _weigh_by_segment(
    query: Tensor, early: Tensor | None, late: Tensor | None, value: Tensor, mask: Mask, past: Kept | None
) -> Tensor:
    """B H Q E. Sorted by segment, with the keys that all see before the tokens that ask, everything is causal."""
    assert mask.query_segment is not None
    assert mask.key_segment is not None
    before = mask.key_segment.shape[1] - value.shape[2]
    rows = [] if past is None else [(past.key, past.value, mask.key_segment[:, :before])]
    if early is not None:
        rows.append((early, value, mask.key_segment[:, before:]))
    if late is None:
        late, value = torch.zeros_like(query), value.new_zeros(*query.shape[:3], value.shape[3])
    rows.append((late, value, mask.query_segment))
    keys, values, segments = zip(*rows, strict=True)
    segment = torch.cat(segments, dim=1)
    order = segment.argsort(dim=1, stable=True)
    queries = query.shape[2]
    query = F.pad(query, (0, 0, segment.shape[1] - queries, 0))
    query, key, value = (_taken(x, order) for x in (query, torch.cat(keys, dim=2), torch.cat(values, dim=2)))
    y = causal_product(query, key, value, segment.gather(1, order))
    return _taken(y, order.argsort(dim=1)[:, -queries:])


def _taken(x: Tensor, index: Tensor) -> Tensor:
    """Row by row, the tokens at some indexes: B H L width, B P -> B H P width."""
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def _plus(a: Tensor, b: Tensor | None) -> Tensor:
    return a if b is None else a + b
