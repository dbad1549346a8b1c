"""Attention within a window of a row's sorted order, in chunks, each with the ends of its neighbours.

Time and memory grow with L·window. Weights are computed again for the gradient, so that those of one order alone are
ever held.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmformer.nn.mask import Mask
from mmformer.nn.precision import exact_dtype

CHUNK = 64
"""Least tokens of a chunk: small ones follow a window closely, large ones make large matrix products."""

PAIRS = 2**22
"""Pairs whose weights are held at a time, where rows are not longer than that."""

ALONE = -1e5
"""The score of a token with itself: of no weight beside any other, and all of it where nothing else is seen."""


class Order(NamedTuple):
    """The tokens of N rows sorted into groups, in the groups as in the row, and filled up to P places, whole chunks."""

    token: Tensor  # N P, int64: which token stands at a place
    place: Tensor  # N L, int64: where a token stands
    code: Tensor  # N P, int32: two tokens of a group differ by the steps between them, others by more than any window


def make_order(group: Tensor, mask: Mask, window: int) -> Order:
    """Sort the tokens of every head into groups, which segments split; what is not valid is in no group.

    Args:
        group: B H L, int64, at least 0.
        mask: whose padding and segments count.
        window: the largest that the order will be asked for.

    Returns:
        An order of B H rows.
    """
    heads, length = group.shape[1:]
    position = torch.arange(length, device=group.device)
    if mask.key_segment is not None:
        group = group + (group.amax() + 1) * mask.key_segment[:, None]
    group = group.flatten(0, 1)
    rank = group * length + position
    alone = torch.zeros_like(group, dtype=torch.bool)
    if mask.valid is not None:
        alone = (~mask.valid).repeat_interleave(heads, dim=0)
        rank = rank.masked_fill(alone, torch.iinfo(rank.dtype).max)  # the last
    token = rank.argsort(-1)
    group = group.gather(-1, token)
    begins = alone.gather(-1, token)
    begins[:, 1:] |= group[:, 1:] != group[:, :-1]
    code = position + window * begins.cumsum(-1)
    missing = -length % min(max(CHUNK, window), length)
    further = code[:, -1:] + (window + 1) * torch.arange(1, missing + 1, device=code.device)
    place = torch.empty_like(token).scatter_(-1, token, position.expand_as(token))
    return Order(F.pad(token, (0, missing)), place, torch.cat((code, further), dim=-1).int())


def attend_in_order(
    query: Tensor, key: Tensor, value: Tensor, order: Order, early: Tensor | None, before: int, after: int
) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ) v over the tokens of a query's group that are near it; itself, only where there is no other.

    Args:
        query: N L width.
        key: N L width.
        value: N L width.
        order: of the rows, made for the larger of ``before`` and ``after``.
        early: N L, bool: keys that may be seen from before them; None: all may.
        before: places before a query's own that it sees.
        after: places after it.

    Returns:
        N L width, and N L: the logarithm of the sum of what was divided by. Gradients pass both.
    """
    near = max(CHUNK, before, after) + before + after
    rows = max(1, PAIRS // (order.token.shape[1] * near))
    tensors = (query, key, value, *order, early)
    parts = zip(*([None] * len(query) if x is None else x.split(rows) for x in tensors), strict=False)  # type: ignore[no-untyped-call]
    done = [_InOrder.apply(*part, before, after) for part in parts]  # type: ignore[no-untyped-call]
    y, sums = (torch.cat(each) for each in zip(*done, strict=True))
    return y, sums


class _InOrder(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        token: Tensor,
        place: Tensor,
        code: Tensor,
        early: Tensor | None,
        before: int,
        after: int,
    ) -> tuple[Tensor, Tensor]:
        cut = _Cut(token, place, code, early, before, after)
        scores, _ = cut.scores(query, key)
        most = scores.amax(-1, keepdim=True)
        weights = scores.sub_(most).exp_()
        total = weights.sum(-1, keepdim=True)
        y = weights.to(value.dtype) @ cut.near(cut.chunks(value)) / total.to(value.dtype)
        y, sums = cut.back(y), cut.back(most + total.log())
        ctx.save_for_backward(query, key, value, token, place, code, early, y, sums)
        ctx.reach = before, after
        return y, sums[..., 0]

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dsums: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, token, place, code, early, y, sums = ctx.saved_tensors
        cut = _Cut(token, place, code, early, *ctx.reach)
        scores, own = cut.scores(query, key)
        weights = scores.sub_(cut.chunks(sums)).exp_()  # N C c K
        shift = dsums[..., None] - (dy * y).sum(-1, keepdim=True, dtype=sums.dtype)  # N L 1
        dy = cut.chunks(dy)
        dvalue = cut.fold(weights.to(dy.dtype).mT @ dy)
        dscores = (dy @ cut.near(cut.chunks(value)).mT).to(weights.dtype).add_(cut.chunks(shift)).mul_(weights)
        dscores = dscores.masked_fill_(own, 0.0).to(query.dtype)  # that score is a constant
        dquery = dscores @ cut.near(cut.chunks(key))
        dkey = cut.fold(dscores.mT @ cut.chunks(query))
        return cut.back(dquery), cut.back(dkey), cut.back(dvalue), *(None,) * 6


class _Cut(NamedTuple):
    """An order cut into C chunks of c places; each sees K = before + c + after, its neighbours' ends and its own."""

    token: Tensor
    place: Tensor
    code: Tensor
    early: Tensor | None
    before: int
    after: int

    def chunks(self, x: Tensor) -> Tensor:
        """N L width -> N C c width."""
        size = min(max(CHUNK, self.before, self.after), self.token.shape[1])  # a short row is one chunk
        return _rows(x, self.token).view(len(x), -1, size, x.shape[-1])

    def back(self, x: Tensor) -> Tensor:
        """N C c width -> N L width."""
        return _rows(x.flatten(1, 2), self.place)

    def near(self, x: Tensor, outside: int = 0) -> Tensor:
        """N C c width -> N C K width; ``outside`` is what stands before the first chunk and after the last."""
        if x.shape[1] == 1:
            return x
        first, last = (x.new_full((len(x), 1, size, x.shape[3]), outside) for size in (self.before, self.after))
        earlier = torch.cat((first, x[:, :-1, x.shape[2] - self.before :]), dim=1)
        later = torch.cat((x[:, 1:, : self.after], last), dim=1)
        return torch.cat((earlier, x, later), dim=2)

    def fold(self, x: Tensor) -> Tensor:
        """N C K width -> N C c width: the sums of what ``near`` made copies of."""
        if x.shape[1] == 1:
            return x
        size = x.shape[2] - self.before - self.after
        y = x[:, :, self.before : self.before + size].clone()
        y[:, :-1, size - self.before :] += x[:, 1:, : self.before]
        y[:, 1:, : self.after] += x[:, :-1, self.before + size :]
        return y

    def scores(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """N L width, twice -> N C c K: minus infinity where a key is not seen; and the pairs of a token with itself."""
        query, key = self.chunks(query), self.near(self.chunks(key))
        code = self.code.view(*query.shape[:3], 1)  # N C c 1
        ahead = self.near(code, outside=-(2**30)).mT - code  # N C c K
        unseen = (ahead < -self.before) | (ahead > self.after)
        if self.early is not None:
            unseen |= (ahead > 0) & ~self.near(self.chunks(self.early[..., None])).mT
        own = ahead == 0
        scores = (query @ key.mT).to(exact_dtype(query))
        return scores.masked_fill_(unseen, float("-inf")).masked_fill_(own, ALONE), own


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Row by row, the tokens at some indexes: N L width, N P -> N P width."""
    first = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, (first + index).flatten()).view(*index.shape, x.shape[2])
