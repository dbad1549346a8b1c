"""Attention by locality-sensitive hashing: a query sees the nearest of the tokens that were hashed as it was.

Queries and keys are one shared projection. Random rotations hash it into buckets, several times over; in each of these
rounds the tokens are sorted by bucket, and a query sees those of its bucket that stand within a window of it in that
order. Reformer cuts the sorted row into chunks instead, where what is seen hangs on where a chunk happens to begin:
later tokens move it. Places counted within a bucket depend on the tokens in between alone, so that what is seen is
causal, knows neither padding nor other segments, and is the same from a cache. It is still computed in chunks
(``nn/sorted.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.nn.ability import MEANINGS, Ability
from mmformer.nn.initialisation import Roles, Rows
from mmformer.nn.kernel import attend
from mmformer.nn.mask import Mask
from mmformer.nn.mixer import Mixer, MixerSpec, State, View, even_heads
from mmformer.nn.position import Heads, rotate
from mmformer.nn.precision import exact_dtype, without_autocast
from mmformer.nn.sorted import ALONE, Order, attend_in_order, make_order
from mmformer.spec import require
from mmformer.types import Aux


@dataclass(frozen=True)
class LSHAttentionSpec(MixerSpec):
    """Attention to the nearest tokens that hash alike, in several rounds (Reformer, with windows in place of chunks).

    Scores are the products of queries with keys of unit length. A pair that meets in several rounds counts as often.

    Attributes:
        heads: share the width out evenly; each hashes for itself.
        buckets: an even number. L / buckets tokens share one; where that is far above ``window``, take more of them.
        rounds: of hashing: the more, the more of the keys that matter are found.
        window: tokens of its bucket before a query that it sees, and as many after it where the pass is not causal.
        seed: of the rotations. In training they are drawn anew in every pass, from the stream that dropout draws from.
    """

    cost: ClassVar[str] = "L·rounds·(window + buckets)·D"
    source: ClassVar[str] = "Reformer, Kitaev et al. 2020, §2; hashing: Andoni et al. 2015, §3"

    heads: int = 8
    buckets: int = 64
    rounds: int = 2
    window: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.heads >= 1, self, "heads", "at least 1")
        require(self.buckets >= 2 and self.buckets % 2 == 0, self, "buckets", "even and at least 2")
        require(self.rounds >= 1, self, "rounds", "at least 1")
        require(self.window >= 1, self, "window", "at least 1")
        require(0 <= self.seed < 2**31, self, "seed", "from 0 to 2^31 - 1")

    @property
    def abilities(self) -> frozenset[Ability]:
        return frozenset(MEANINGS) - {"cross", "bias"}

    def heads_of(self, width: int) -> Heads:
        return even_heads(self, width, self.heads)

    def build(self, width: int, memory_width: int | None = None) -> LSHAttention:
        return LSHAttention(self, width)


class Hashed(NamedTuple):
    """What a layer knows of the tokens that it has seen."""

    shared: Tensor  # B H L width of a head: queries and keys, rotated already
    value: Tensor  # B H L width of a head
    bucket: Tensor  # B H L rounds, int64

    def and_then(self, new: Hashed) -> Hashed:
        return Hashed(*(torch.cat(both, dim=2) for both in zip(self, new, strict=True)))


class LSHAttention(Mixer):
    def __init__(self, spec: LSHAttentionSpec, width: int) -> None:
        super().__init__()
        self.spec, self.head_width = spec, spec.heads_of(width).width
        self.shared_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def roles(self) -> Roles:
        width = self.out.in_features
        return {"shared_value": (Rows("query", width), Rows("value", width)), "out": (Rows("output"),)}

    def forward(self, x: Tensor, view: View, state: State | None, keep: bool) -> tuple[Tensor, State | None, Aux]:
        shared, value = (self._split(half) for half in self.shared_value(x).chunk(2, dim=-1))  # B H L width of a head
        if view.rotary is not None:
            shared = rotate(shared, view.rotary)
        # Calls that go on from one another have to hash alike.
        seen = Hashed(shared, value, self._buckets(shared, anew=self.training and not keep))
        if state is not None:
            seen = Hashed(*state).and_then(seen)
        orders = [make_order(bucket, view.mask, self.spec.window) for bucket in seen.bucket.unbind(-1)]
        if state is None:
            y = self._attend_in_chunks(seen, orders, view.mask)
        else:
            y = self._attend_to_past(shared, seen, orders, view.mask)
        if view.mask.valid is not None:  # a token that is not valid sees nothing
            y = y.masked_fill(~view.mask.valid[:, None, -x.shape[1] :, None], 0.0)
        return self.out(y.transpose(1, 2).flatten(2)), (seen if keep else None), {}

    def _split(self, x: Tensor) -> Tensor:  # B L D -> B H L width of a head
        return x.view(*x.shape[:-1], self.spec.heads, self.head_width).transpose(1, 2).contiguous()

    @torch.no_grad()
    def _buckets(self, shared: Tensor, anew: bool) -> Tensor:
        """B H L rounds: which of the rotated axes, or of their opposites, a token is nearest to."""
        size = (self.spec.heads, self.head_width, self.spec.rounds * self.spec.buckets // 2)
        rotation = torch.randn(size, device=shared.device) if anew else _rotation(size, self.spec.seed)
        exact = exact_dtype(shared)
        with without_autocast(shared):
            rotated = shared.to(exact) @ rotation.to(shared.device, exact)
        rotated = rotated.view(*rotated.shape[:-1], self.spec.rounds, -1)  # B H L rounds buckets/2
        axis = rotated.abs().argmax(-1)
        opposite = rotated.gather(-1, axis[..., None])[..., 0] < 0
        return axis + opposite * rotated.shape[-1]

    def _attend_in_chunks(self, seen: Hashed, orders: list[Order], mask: Mask) -> Tensor:
        """B H L width of a head: every token asks."""
        batch, heads, length, _ = seen.shared.shape
        query, key, value = (x.flatten(0, 1) for x in (seen.shared, F.normalize(seen.shared, dim=-1), seen.value))
        early = None
        if mask.prefix is not None:
            early = torch.arange(length, device=query.device) < mask.prefix[:, None]  # B L
            early = early.repeat_interleave(heads, dim=0)
        before, after = self.spec.window, 0 if mask.causal and early is None else self.spec.window
        rounds = [attend_in_order(query, key, value, order, early, before, after) for order in orders]
        y, sums = (torch.stack(parts) for parts in zip(*rounds, strict=True))  # rounds N L width, rounds N L
        y = (y * sums.softmax(0)[..., None].to(y.dtype)).sum(0)  # N L width
        return y.view(batch, heads, length, -1)

    def _attend_to_past(self, query: Tensor, seen: Hashed, orders: list[Order], mask: Mask) -> Tensor:
        """B H Q width of a head: the last tokens, few, ask, and are compared with all."""
        queries, keys = query.shape[2], seen.shared.shape[2]
        met = query.new_zeros(*query.shape[:3], keys)  # in how many rounds
        for order in orders:
            code = order.code.gather(-1, order.place).view(*query.shape[:2], keys)  # B H keys
            apart = (code[..., None, :] - code[..., -queries:, None]).abs()
            met = met + (apart <= self.spec.window)
        order_alone = Mask(mask.causal, mask.prefix)  # padding and segments are in the codes
        allowed = order_alone.dense(queries, keys, query.device)
        scores = met.log() if allowed is None else met.log().masked_fill(~allowed, float("-inf"))
        place = torch.arange(keys, device=query.device)
        scores = scores.masked_fill(place == place[-queries:, None], ALONE)
        key = F.normalize(seen.shared, dim=-1)
        return attend(query, key, seen.value, scores, False, 0.0, scale=1.0)


def _rotation(size: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), device="cpu")


# As torch.compiler.assume_constant_result does, which imports the compiler: as long as all else that a command imports.
_rotation._dynamo_marked_constant = True  # type: ignore[attr-defined]
