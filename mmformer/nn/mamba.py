"""Mamba: a state space whose steps, inflow and reading are chosen by each token (S6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.nn.ability import Ability
from mmformer.nn.initialisation import Roles, Rows
from mmformer.nn.mixer import Mixer, MixerSpec, State, View
from mmformer.nn.norm import NormSpec
from mmformer.nn.precision import exact_dtype, without_autocast
from mmformer.nn.scan import RESET, selective_scan
from mmformer.spec import require
from mmformer.types import Aux


@dataclass(frozen=True)
class MambaSpec(MixerSpec):
    """A selective state space: what a token remembers and forgets depends on the token.

    It sees what is before a token, and is what the paper calls a block: in a stack of it alone, layers need no
    feed-forward. No position is needed. It keeps a state of ``expand * states * D`` numbers, however long a row is;
    only packed rows that go on from one another are run anew from their beginning, since any segment may go on.

    Attributes:
        expand: channels over the width.
        states: numbers that each channel remembers, N.
        convolution: tokens that a channel's causal convolution reads, the token's own among them.
        rank: of the projection to step sizes; None: the width over 16, rounded up.
        steps: step sizes are drawn between these two at first, evenly in their logarithm; a channel remembers about one
            over its step size tokens.
        bias: whether the projections in and out have biases.
        convolution_bias: whether the convolution has one.
        norm: of what is chosen, each by itself: the projection that step sizes come from, inflow and reading (Jamba,
            Lieber et al. 2024, §6.4, which keeps large models stable by it); None: none.
        bidirectional: a second scan runs backwards, with a convolution and a choice of its own, and the two are added
            (Vision Mamba, Zhu et al. 2024, §3.2): every token sees all. It cannot be causal then.
    """

    cost: ClassVar[str] = "L·expand·D·(D + states)"
    source: ClassVar[str] = "Gu and Dao 2023, Mamba, §3; bidirectional: Zhu et al. 2024, Vision Mamba, §3.2"

    expand: int = 2
    states: int = 16
    convolution: int = 4
    rank: int | None = None
    steps: tuple[float, float] = (0.001, 0.1)
    bias: bool = False
    convolution_bias: bool = True
    bidirectional: bool = False
    norm: NormSpec | None = None

    def __post_init__(self) -> None:
        require(self.expand >= 1, self, "expand", "at least 1")
        require(self.states >= 1, self, "states", "at least 1")
        require(self.convolution >= 1, self, "convolution", "at least 1")
        require(self.rank is None or self.rank >= 1, self, "rank", "None or at least 1")
        require(0 < self.steps[0] <= self.steps[1], self, "steps", "two positive numbers, the smaller one first")

    @property
    def abilities(self) -> frozenset[Ability]:
        able: frozenset[Ability] = frozenset({"padding", "packing"})
        return able | ({"bidirectional"} if self.bidirectional else {"causal", "cache"})

    def build(self, width: int, memory_width: int | None = None) -> Mamba:
        return Mamba(self, width)


class MambaState(NamedTuple):
    """What is remembered of the tokens so far."""

    tail: Tensor  # B convolution-1 E: what the convolution reads of them
    hidden: Tensor  # B N E


class Seen(NamedTuple):
    """The same for rows that several segments share: all of them, as they came in."""

    tokens: Tensor  # B L D


class Line(NamedTuple):
    """How the tokens of rows follow one another; those that are not valid come last."""

    order: Tensor  # B L, int64: where each stands in its row
    valid: Tensor  # B L, bool
    segment: Tensor | None  # B L

    @classmethod
    def of(cls, valid: Tensor | None, segment: Tensor | None) -> Line | None:
        """Segment after segment; None: the tokens stand in line already."""
        if valid is None and segment is None:
            return None
        if segment is None:
            assert valid is not None
            order = (~valid).to(torch.uint8).argsort(dim=1, stable=True)
            return cls(order, valid.gather(1, order), None)
        if valid is None:
            valid = torch.ones_like(segment, dtype=torch.bool)
        order = segment.masked_fill(~valid, torch.iinfo(segment.dtype).max).argsort(dim=1, stable=True)
        return cls(order, valid.gather(1, order), segment.gather(1, order))

    def flipped(self) -> Line:
        return Line(*(None if each is None else each.flip(1) for each in self))  # type: ignore[arg-type]

    def together(self, distance: int) -> Tensor | None:
        """Whether tokens are of the segment of the one so far before them: B L 1; before a row's first, it is asked
        nothing. None: all are."""
        if self.segment is None:
            return None
        same = torch.ones_like(self.valid)
        same[:, distance:] = self.segment[:, distance:] == self.segment[:, : max(0, same.shape[1] - distance)]
        return same[..., None]


class Mamba(Mixer):
    """Two projections round the scan, one of them of a gate."""

    def __init__(self, spec: MambaSpec, width: int) -> None:
        super().__init__()
        channels = spec.expand * width
        self.enter = nn.Linear(width, 2 * channels, bias=spec.bias)
        self.forwards = SelectiveStateSpace(spec, width)
        self.backwards = SelectiveStateSpace(spec, width) if spec.bidirectional else None
        self.out = nn.Linear(channels, width, bias=spec.bias)

    def roles(self) -> Roles:
        entering = Rows("inner", self.out.in_features)
        return {"enter": (entering, entering), "out": (Rows("output"),)}

    def forward(self, x: Tensor, view: View, state: State | None, keep: bool) -> tuple[Tensor, State | None, Aux]:
        length, mask = x.shape[1], view.mask
        if keep and mask.key_segment is not None:
            seen = x if state is None else torch.cat((Seen(*state).tokens, x), dim=1)
            y, _ = self._mixed(seen, Line.of(mask.valid, mask.key_segment), None)
            return y[:, -length:], Seen(seen), {}
        valid = None if mask.valid is None else mask.valid[:, -length:]
        past = None if state is None else MambaState(*state)
        y, after = self._mixed(x, Line.of(valid, mask.query_segment), past)
        return y, (after if keep else None), {}

    def _mixed(self, x: Tensor, line: Line | None, past: MambaState | None) -> tuple[Tensor, MambaState]:
        if line is None:
            return self._in_line(x, None, past)
        x = _taken(x, line.order).masked_fill(~line.valid[..., None], 0.0)
        y, after = self._in_line(x, line, past)
        return _taken(y.masked_fill(~line.valid[..., None], 0.0), line.order.argsort(dim=1)), after

    def _in_line(self, x: Tensor, line: Line | None, past: MambaState | None) -> tuple[Tensor, MambaState]:
        u, gate = self.enter(x).chunk(2, dim=-1)  # B L E
        if line is not None:
            u = u.masked_fill(~line.valid[..., None], 0.0)
        y, after = self.forwards(u, line, past)
        if self.backwards is not None:
            back, _ = self.backwards(u.flip(1), None if line is None else line.flipped(), None)
            y = y + back.flip(1)
        return self.out((y * F.silu(gate)).to(x.dtype)), after


class SelectiveStateSpace(nn.Module):
    """A short convolution along the row, then the scan."""

    undecayed = ("log_decay", "skip", "kernel_bias", "step_bias")

    def __init__(self, spec: MambaSpec, width: int) -> None:
        super().__init__()
        channels, rank = spec.expand * width, spec.rank or math.ceil(width / 16)
        self.parts, self.steps = (rank, spec.states, spec.states), spec.steps
        self.kernel = nn.Parameter(torch.empty(spec.convolution, channels))
        self.kernel_bias = nn.Parameter(torch.empty(channels)) if spec.convolution_bias else None
        self.select = nn.Linear(channels, sum(self.parts), bias=False)
        self.norms = None if spec.norm is None else nn.ModuleList(map(spec.norm.build, self.parts))
        self.step = nn.Parameter(torch.empty(channels, rank))
        self.step_bias = nn.Parameter(torch.empty(channels))
        self.log_decay = nn.Parameter(torch.empty(channels, spec.states))
        self.skip = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """§3.6 and its code: decays 1 to N (S4D-Real, Gu et al. 2022), and the steps that the spec says."""
        for parameter in (self.kernel, self.kernel_bias):
            if parameter is not None:
                nn.init.uniform_(parameter, -(len(self.kernel) ** -0.5), len(self.kernel) ** -0.5)
        nn.init.uniform_(self.step, -(self.step.shape[1] ** -0.5), self.step.shape[1] ** -0.5)
        low, high = (math.log(step) for step in self.steps)
        with torch.no_grad():
            step = self.step_bias.uniform_(low, high).exp_()
            self.step_bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus gives the step back
            self.log_decay.copy_(torch.arange(1, self.log_decay.shape[1] + 1).log().expand_as(self.log_decay))
        nn.init.ones_(self.skip)

    def forward(self, u: Tensor, line: Line | None, past: MambaState | None) -> tuple[Tensor, MambaState]:
        """B L E -> B L E, and what is remembered after the last valid token."""
        u, tail = self._convolved(u, line, None if past is None else past.tail)
        u = F.silu(u)
        exact = exact_dtype(u)
        with without_autocast(u):  # what is chosen compounds along the row, and is little to compute
            selected = F.linear(u.to(exact), self.select.weight.to(exact))
            chosen, b, c = self._normalised(torch.split(selected, list(self.parts), dim=-1))
            step = F.softplus(F.linear(chosen, self.step.to(exact)) + self.step_bias)  # B L E
        if line is not None:
            step = step.masked_fill(~line.valid[..., None], 0.0)
        flow = step * u
        same = None if line is None else line.together(1)
        if same is not None:
            step = step.masked_fill(~same, RESET)
        decay = -self.log_decay.to(exact).exp().T
        y, hidden = selective_scan(flow, step, decay, b, c, None if past is None else past.hidden)
        return y + self.skip * u, MambaState(tail, hidden)

    def _normalised(self, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        if self.norms is None:
            return parts
        own = self.select.weight.dtype
        return [norm(part.to(own)).to(part.dtype) for norm, part in zip(self.norms, parts, strict=True)]

    def _convolved(self, u: Tensor, line: Line | None, tail: Tensor | None) -> tuple[Tensor, Tensor]:
        """B L E, and the tail of what was convolved."""
        reach, length = len(self.kernel) - 1, u.shape[1]
        if tail is None:
            tail = u.new_zeros(len(u), reach, u.shape[2])
        whole = torch.cat((tail, u), dim=1)  # B reach+L E
        y = whole[:, reach:] * self.kernel[reach]
        for distance in range(1, reach + 1):
            before = whole[:, reach - distance : reach - distance + length]
            same = None if line is None else line.together(distance)
            before = before if same is None else before.masked_fill(~same, 0.0)
            y = torch.addcmul(y, before, self.kernel[reach - distance])
        y = y if self.kernel_bias is None else y + self.kernel_bias
        if line is None:
            return y, whole[:, length:]
        last = line.valid.sum(1, keepdim=True) + torch.arange(reach, device=u.device)  # B reach
        return y, _taken(whole, last)


def _taken(x: Tensor, index: Tensor) -> Tensor:
    """B L F, B M -> B M F."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
