"""Context parallel: processes that compute the same rows share out the places of their tokens.

Between the entrance of a stack and its end, each process has the tokens of its places. What is made of each token by
itself is as in one process; attention, where a token looks at others, is computed by plans (``nn/plan.py``) in one of
two ways. Both have the positions, masks and segments of whole rows, and give what one process gives.

- ``gather``: every process has all keys and values, and the queries of its places (Grattafiori et al. 2024, Llama 3,
  §3.3.2). A row is cut into two chunks a process, of which the first has the first and the last, and so on inwards:
  in a causal pass later places see more, and so all have as much to do.
- ``ulysses``: tokens are exchanged for heads and back, so that every process attends in whole rows with a part of the
  heads (Jacobs et al. 2023, DeepSpeed-Ulysses, §3). A row is cut into one chunk a process: all have as much to do.

What leaves a stack is gathered, and of its loss each process measures an even share of the tokens. Gradients of
parameters are parts of a sum, which FSDP2 adds up as it does those of the parts of a batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.nn.functional import all_reduce, all_to_all_single
from torch.distributed.tensor import DTensor, Partial, Shard
from torch.nn import functional as F

from mmformer.models.decoder import Decoder
from mmformer.models.model import Model
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.kernel import attend
from mmformer.nn.mask import Mask
from mmformer.nn.mixer import View
from mmformer.nn.pattern import PatternSpec
from mmformer.nn.plan import Plan
from mmformer.nn.position import Rotary, unexpanded
from mmformer.nn.stack import Stack, StackOutput
from mmformer.parallel.dividing import ContextMethod
from mmformer.parallel.tensor import own_heads
from mmformer.types import Tokens


def cut_rows(model: Model, mesh: Any, method: ContextMethod) -> None:
    """Share out the rows of a model's decoders and their stacks, in place.

    To be done after layers are shared out, and before the model is sharded.

    Args:
        mesh: of all processes, with the dimensions ``context`` and ``tensor``. Each has the whole model.
        method: how tokens look at those of other processes.
    """
    for stack in model.stacks.values():
        assert isinstance(stack, Stack), "a model's stacks"
        cut_stack(stack, mesh, method)
    for decoder in model.decoders.values():
        assert type(decoder) is Decoder, "it is done once"
        decoder.__class__ = ContextDecoder
        assert isinstance(decoder, ContextDecoder)
        decoder.mesh = mesh["context"]


def cut_stack(stack: Stack, mesh: Any, method: ContextMethod) -> None:
    """Share out the rows of a stack."""
    assert type(stack) is Stack, "it is done once"
    stack.__class__ = ContextStack
    assert isinstance(stack, ContextStack)
    size = mesh["context"].size()
    balanced = tuple((first, 2 * size - 1 - first) for first in range(size))
    chunks = balanced if method == "gather" else tuple((number,) for number in range(size))
    stack.cut, stack.method, stack.tensor = Cut(mesh["context"], chunks), method, mesh["tensor"]


class Cut(NamedTuple):
    """Rows cut into even chunks, and which of them each process has."""

    mesh: Any  # of one dimension
    chunks: tuple[tuple[int, ...], ...]  # process -> the numbers of its chunks, in order

    @property
    def number(self) -> int:
        """How many chunks a row has."""
        return sum(map(len, self.chunks))

    @property
    def own(self) -> tuple[int, ...]:
        """The numbers of this process's chunks."""
        return self.chunks[self.mesh.get_local_rank()]

    def part(self, x: Tensor, dim: int = 1) -> Tensor:
        """This process's places, of what all processes have of whole rows."""
        pieces = x.chunk(self.number, dim)
        return torch.cat([pieces[number] for number in self.own], dim)

    def whole(self, x: Tensor, dim: int = 1) -> Tensor:
        """Whole rows, of what each process has of its places; its gradient is the sum of what all say of it."""
        held = DTensor.from_local(x.contiguous(), self.mesh, [Shard(0)], run_check=False)
        gathered = held.full_tensor(grad_placements=[Partial()])
        pieces: dict[int, Tensor] = {}
        for numbers, part in zip(self.chunks, gathered.chunk(len(self.chunks)), strict=True):
            pieces.update(zip(numbers, part.chunk(len(numbers), dim), strict=True))
        return torch.cat([pieces[number] for number in range(self.number)], dim)

    def of(self, tokens: Tokens) -> Tokens:
        """This process's places of rows of tokens."""
        pos = self.part(unexpanded(tokens.pos)).expand(len(tokens.x), -1, -1)
        valid, segment = (None if value is None else self.part(value) for value in (tokens.valid, tokens.segment))
        return Tokens(self.part(tokens.x), pos, valid, segment)


class ContextStack(Stack):
    """What a stack becomes, in place: whole rows enter and leave it, and its layers have this process's places."""

    cut: Cut
    method: ContextMethod
    tensor: Any  # the mesh that shares out the heads, of one dimension

    def forward(self, tokens: Tokens, *, causal: bool = False, **rest: Any) -> StackOutput:
        assert causal and all(value is None for value in rest.values()), "check_context allows no other pass"
        output = super().forward(_filled_up(tokens, self.cut.number), causal=True)
        x = self.cut.whole(output.tokens.x)[:, : tokens.x.shape[1]]
        return output._replace(tokens=Tokens(x, tokens.pos, tokens.valid, tokens.segment))

    def _viewed(self, tokens: Tokens, pos: Tensor, mask: Mask) -> tuple[Tokens, View]:
        own = self.cut.of(tokens)
        gathers = self.method == "gather"
        if mask.valid is not None and not bool((mask.valid[:, 1:] & ~mask.valid[:, :-1]).any()):
            mask = mask._replace(valid=None)  # what is not real is behind all that is, which sees nothing of it
        _, view = super()._viewed(own if gathers else tokens, pos, mask)
        rotary = view.rotary
        if rotary is not None and not gathers:
            rotary = Rotary(*(self.cut.part(table, 2) for table in rotary))
        plan = self._gathered if gathers else self._exchanged
        patterns = {mixer.pattern for mixer in self.spec.mixers if isinstance(mixer, AttentionSpec)}
        plans: dict[PatternSpec | None, Plan] = {each: plan(each, view, pos) for each in patterns}
        seen = Mask(True, valid=own.valid, query_segment=own.segment, key_segment=own.segment)
        return own, View(seen, rotary, plans=plans)

    def _gathered(self, pattern: PatternSpec | None, view: View, pos: Tensor) -> Gathered:
        """The plan of a pattern; ``view`` is of this process's places at whole rows."""
        mask, bias = view.mask._replace(pattern=pattern), self._bias(pattern, view)
        size, chunks = pos.shape[1] // self.cut.number, []
        for place, number in enumerate(self.cut.own):
            seen = (number + 1) * size
            asked = None if bias is None else bias[:, :, place * size : (place + 1) * size, :seen]
            chunks.append(Dense(*_last(mask, size, seen).sdpa(size, seen, asked, pos.device)))
        return Gathered(self.cut, tuple(chunks))

    def _exchanged(self, pattern: PatternSpec | None, view: View, pos: Tensor) -> Exchanged:
        """The plan of a pattern; ``view`` is of whole rows."""
        plan, bias, mesh = view.plans.get(pattern), self._bias(pattern, view), self.cut.mesh
        if bias is not None and bias.shape[1] > 1:
            bias = bias.chunk(mesh.size(), 1)[mesh.get_local_rank()]
        if plan is None:
            mask, length = view.mask._replace(pattern=pattern), pos.shape[1]
            plan = Dense(*mask.sdpa(length, length, bias, pos.device))
        return Exchanged(mesh, plan)

    def _bias(self, pattern: PatternSpec | None, view: View) -> Tensor | None:
        """What the position adds to scores, of the heads that this process would compute without ``context``."""
        spread = self.tensor.size() > 1 and pattern is None  # under a pattern, biased heads are not (``shares_out``)
        return own_heads(view.bias, self.tensor) if spread and view.bias is not None else view.bias


def _filled_up(tokens: Tokens, number: int) -> Tokens:
    """Rows with tokens behind their last, which those before do not see, so that so many chunks of them are even."""
    missing = -tokens.x.shape[1] % number
    if not missing:
        return tokens
    behind = (0, missing)
    pos = F.pad(unexpanded(tokens.pos), (0, 0, *behind)).expand(len(tokens.x), -1, -1)
    valid = None if tokens.valid is None else F.pad(tokens.valid, behind)
    segment = None if tokens.segment is None else F.pad(tokens.segment, behind, value=-1)
    return Tokens(F.pad(tokens.x, (0, 0, *behind)), pos, valid, segment)


def _last(mask: Mask, queries: int, keys: int) -> Mask:
    """Of a mask of whole rows, the first keys, and the last of those as queries."""
    fields = ("valid", "key_segment", "pos", "order")
    first = {name: part[:, :keys] for name in fields if (part := getattr(mask, name)) is not None}
    asking = None if mask.key_segment is None else mask.key_segment[:, keys - queries : keys]
    return mask._replace(**first, query_segment=asking)


class Dense(NamedTuple):
    """A plan that computes all pairs of a mask, as a kernel takes it."""

    mask: Tensor | None
    causal: bool

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        mask = self.mask
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(query.dtype)
        return attend(query, key, value, mask, self.causal, dropout)


class Gathered(NamedTuple):
    """A plan that brings all keys and values to the queries, chunk by chunk of these as far as they see."""

    cut: Cut
    chunks: tuple[Dense, ...]

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # what is sent is no part of a layer's program
    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        both = self.cut.whole(torch.cat((key, value), dim=-1), dim=2)  # B Hk L (2 width of a head)
        key, value = both.chunk(2, dim=-1)
        asked, made = query.chunk(len(self.chunks), dim=2), []
        for asking, number, chunk in zip(asked, self.cut.own, self.chunks, strict=True):
            seen = slice((number + 1) * asking.shape[2])
            made.append(chunk.attend(asking, key[:, :, seen], value[:, :, seen], dropout))
        return torch.cat(made, dim=2)


class Exchanged(NamedTuple):
    """A plan that exchanges places for heads, attends in whole rows with this process's heads, and goes back."""

    mesh: Any
    plan: Plan

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # what is sent is no part of a layer's program
    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        parts, (batch, _, own, width) = self.mesh.size(), query.shape
        both = [x.reshape(batch, parts, -1, own, width) for x in (query, key, value)]
        heads = [x.shape[2] for x in both]
        told = self._exchange(torch.cat(both, dim=2).movedim(1, 0))  # parts B heads l width, of places
        query, key, value = torch.split(told.movedim(0, 2).flatten(2, 3), heads, dim=1)  # B heads L width
        y = self.plan.attend(query, key, value, dropout)
        y = y.reshape(batch, heads[0], parts, own, width).movedim(2, 0)
        return self._exchange(y).movedim(0, 1).flatten(1, 2)  # B H l width

    def _exchange(self, x: Tensor) -> Tensor:
        """Hand each process its part of x, processes ..., and take what all have for this one, in their order."""
        sent = x.contiguous()
        received: Tensor = all_to_all_single(torch.empty_like(sent), sent, group=self.mesh.get_group())  # type: ignore[no-untyped-call]
        return received


class ContextDecoder(Decoder):
    """What a decoder becomes, in place: each process measures its share of the tokens, and has the loss of all."""

    mesh: Any

    def _cross_entropy(self, x: Tensor, ids: Tensor, wanted: Tensor) -> Tensor:
        before = wanted.flatten().cumsum(0).view_as(wanted) - 1  # of those that are wanted
        share = before * self.mesh.size() // wanted.sum().clamp(min=1)
        own = super()._cross_entropy(x, ids, wanted & (share == self.mesh.get_local_rank()))
        # The gradient of a sum that all have is what all say of it: as many times too much as FSDP2, which takes the
        # mean over these processes as well, makes too little of their parts.
        total: Tensor = all_reduce(own, group=self.mesh.get_group())  # type: ignore[no-untyped-call]
        return total
