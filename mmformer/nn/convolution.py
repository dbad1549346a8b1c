"""Depthwise convolution as a mixer: over the tokens of a row, or over the grid where patches stand.

Between two projections it is what hybrids put beside attention: Conformer's convolution module (gated, normalised), or,
in a layer without a feed-forward and with a wide middle, the feed-forward of PVTv2 and LocalViT. Without projections it
is a positional encoding that follows from content (Chu et al. 2021). What may not be looked at is read as zero.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.nn.ability import Ability
from mmformer.nn.canvas import Canvas
from mmformer.nn.dropout import Dropout
from mmformer.nn.initialisation import Roles, Rows
from mmformer.nn.mixer import Mixer, MixerSpec, State, View
from mmformer.nn.norm import NormSpec
from mmformer.spec import require, require_probability
from mmformer.types import AXES, Aux


@dataclass(frozen=True)
class DepthwiseSpec(MixerSpec, ABC):
    """What depthwise convolutions share: each channel is convolved by itself, between two projections.

    Attributes:
        ratio: width of the convolved channels over the model's; None: the tokens are convolved as they are, without
            projections.
        gated: the first projection makes a gate too, whose sigmoid its other half is multiplied by.
        norm: of each token, after the convolution; None: none.
        activation: after convolution and norm; None: none.
        bias: whether the projections and the convolution have biases.
        dropout: on what enters the second projection, or leaves where there is none.
    """

    ratio: float | None = 1.0
    gated: bool = False
    norm: NormSpec | None = None
    activation: Literal["gelu", "silu"] | None = "gelu"
    bias: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require(self.ratio is None or self.ratio > 0, self, "ratio", "None or positive")
        require(not self.gated or self.ratio is not None, self, "gated", "false without projections (ratio None)")
        require(self.activation in (None, "gelu", "silu"), self, "activation", "None, 'gelu' or 'silu'")
        require_probability(self, "dropout")

    @property
    def asks_order(self) -> bool:
        return True

    def channels(self, width: int) -> int:
        """How many are convolved in a stack of a width."""
        return width if self.ratio is None else max(1, int(width * self.ratio))

    @property
    @abstractmethod
    def kernel(self) -> tuple[int, int]:
        """Places that are read: rows and columns."""


@dataclass(frozen=True)
class ConvolutionSpec(DepthwiseSpec):
    """Along the real tokens of a segment, in their order. A causal pass reads none of those after.

    Attributes:
        before: tokens before its own place that a token reads.
        after: tokens after it.
        dilation: steps between the tokens that are read.
    """

    cost: ClassVar[str] = "L·ratio·D·(before + after + D)"
    source: ClassVar[str] = (
        "van den Oord et al. 2016, WaveNet, §2.1; with gate and norm: Gulati et al. 2020, Conformer, §2.2"
    )

    before: int = 3
    after: int = 3
    dilation: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.before >= 0, self, "before", "at least 0")
        require(self.after >= 0, self, "after", "at least 0")
        require(self.before + self.after >= 1, self, "after", "at least 1 where before is 0: a token read itself alone")
        require(self.dilation >= 1, self, "dilation", "at least 1")

    @property
    def abilities(self) -> frozenset[Ability]:
        return frozenset({"causal", "bidirectional", "prefix", "cache", "padding", "packing"})

    @property
    def lays_out(self) -> tuple[int, ...]:
        return ()

    @property
    def kernel(self) -> tuple[int, int]:
        return 1, self.before + 1 + self.after

    def build(self, width: int, memory_width: int | None = None) -> Convolution:
        assert memory_width is None, "LayerSpec.cross asks for the ability"
        return Convolution(self, width)


@dataclass(frozen=True)
class GridConvolutionSpec(DepthwiseSpec):
    """Over the grid where patches stand. Special tokens, and others that stand alone, read themselves only.

    Attributes:
        rows: of patches above and below that a patch reads.
        columns: of patches to the left and to the right.
        dilation: steps between the patches that are read.
        axes: the coordinate axes of rows and columns; what differs on the third one is another grid.
    """

    cost: ClassVar[str] = "L·ratio·D·(rows·columns + D)"
    source: ClassVar[str] = "Chu et al. 2021, CPVT, §3.2; as a feed-forward: Wang et al. 2022, PVTv2, §3.2"

    rows: int = 1
    columns: int = 1
    dilation: int = 1
    axes: tuple[int, int] = (1, 2)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rows >= 0, self, "rows", "at least 0")
        require(self.columns >= 0, self, "columns", "at least 0")
        require(self.rows + self.columns >= 1, self, "columns", "at least 1 where rows is 0: a patch read itself alone")
        require(self.dilation >= 1, self, "dilation", "at least 1")
        known = len(set(self.axes)) == 2 and all(0 <= axis < AXES for axis in self.axes)
        require(known, self, "axes", f"two of 0 to {AXES - 1}")

    @property
    def abilities(self) -> frozenset[Ability]:
        return frozenset({"bidirectional", "padding", "packing"})

    @property
    def lays_out(self) -> tuple[int, ...]:
        return self.axes

    @property
    def kernel(self) -> tuple[int, int]:
        return 2 * self.rows + 1, 2 * self.columns + 1

    def build(self, width: int, memory_width: int | None = None) -> GridConvolution:
        assert memory_width is None, "LayerSpec.cross asks for the ability"
        return GridConvolution(self, width)


class Kernel(nn.Module):
    """The weights of a depthwise convolution, as ``nn.Conv2d`` has and draws them."""

    def __init__(self, channels: int, size: tuple[int, int], bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, *size))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.weight[0].numel())
        for parameter in self.parameters(recurse=False):
            nn.init.uniform_(parameter, -bound, bound)


class Depthwise(Mixer):
    """Projects, convolves each channel, normalises, activates, projects back."""

    def __init__(self, spec: DepthwiseSpec, width: int) -> None:
        super().__init__()
        self.activation, self.gated, projected = spec.activation, spec.gated, spec.ratio is not None
        channels = spec.channels(width)
        self.up = nn.Linear(width, channels * (2 if spec.gated else 1), bias=spec.bias) if projected else None
        self.kernel = Kernel(channels, spec.kernel, spec.bias)
        self.norm = None if spec.norm is None else spec.norm.build(channels)
        self.dropout = Dropout(spec.dropout)
        self.down = nn.Linear(channels, width, bias=spec.bias) if projected else None

    def roles(self) -> Roles:
        if self.down is None:
            return {}
        entering = (Rows("inner", self.down.in_features),) * (2 if self.gated else 1)
        return {"up": entering, "down": (Rows("output"),)}

    def forward(self, x: Tensor, view: View, state: State | None, keep: bool) -> tuple[Tensor, State | None, Aux]:
        x = x if self.up is None else self.up(x)
        x = F.glu(x) if self.gated else x  # B L channels
        y, after = self.convolved(x, view, state, keep)
        y = y if self.kernel.bias is None else y + self.kernel.bias.to(y.dtype)
        y = y if self.norm is None else self.norm(y)
        if self.activation is not None:
            y = F.gelu(y) if self.activation == "gelu" else F.silu(y)
        y = self.dropout(y)
        return (y if self.down is None else self.down(y)), after, {}

    @abstractmethod
    def convolved(self, x: Tensor, view: View, state: State | None, keep: bool) -> tuple[Tensor, State | None]:
        """B L channels, without the bias."""


class Convolution(Depthwise):
    def __init__(self, spec: ConvolutionSpec, width: int) -> None:
        super().__init__(spec, width)
        self.before, self.after, self.dilation = spec.before, spec.after, spec.dilation

    def convolved(self, x: Tensor, view: View, state: State | None, keep: bool) -> tuple[Tensor, State | None]:
        mask = view.mask
        tokens = x if state is None else torch.cat((Past(*state).tokens, x), dim=1)
        canvas = view.canvases.get(())
        if canvas is None:
            line = tokens.transpose(1, 2)[:, :, None]  # B channels 1 N
            y = self._taps(line, None if mask.causal else line)[:, :, 0].transpose(1, 2)
            reach = self.before * self.dilation
            return y[:, -x.shape[1] :], Past(tokens[:, max(0, tokens.shape[1] - reach) :]) if keep else None
        known = canvas.place.shape[1]
        tokens = F.pad(tokens, (0, 0, known - tokens.shape[1], 0))  # what is past reach is not in the state
        line, ahead = canvas.lay_out(tokens), None
        if not mask.causal:
            ahead = line
        elif mask.prefix is not None:
            seen = torch.arange(known, device=x.device) < mask.prefix[:, None]
            ahead = canvas.lay_out(tokens * seen[..., None])
        own = self._weight(x)[:, 0, 0, self.before]
        y = canvas.take_up(self._taps(line, ahead), len(x)) + _alone(tokens, canvas, own)
        return y[:, -x.shape[1] :], Past(tokens) if keep else None

    def _taps(self, line: Tensor, ahead: Tensor | None) -> Tensor:
        """B channels 1 N, of which taps before a place and on it read ``line``, those after it ``ahead``."""
        weight, reach = self._weight(line), (self.before * self.dilation, self.after * self.dilation)
        groups, dilation = len(weight), (1, self.dilation)
        if ahead is line:
            return F.conv2d(F.pad(line, reach), weight, dilation=dilation, groups=groups)
        behind, after = weight[..., : self.before + 1], weight[..., self.before + 1 :]
        y = F.conv2d(F.pad(line, (reach[0], 0)), behind, dilation=dilation, groups=groups)
        if ahead is None or not self.after:
            return y
        shifted = F.pad(ahead, (0, reach[1]))[..., self.dilation :]
        return y + F.conv2d(shifted, after, dilation=dilation, groups=groups)

    def _weight(self, x: Tensor) -> Tensor:
        return self.kernel.weight.to(x.dtype)


class Past(NamedTuple):
    """What has been convolved so far: as far back as a token reads, or all where a row holds more than one sequence."""

    tokens: Tensor  # B N channels


class GridConvolution(Depthwise):
    def __init__(self, spec: GridConvolutionSpec, width: int) -> None:
        super().__init__(spec, width)
        self.axes, self.dilation = spec.axes, spec.dilation
        self.reach = (spec.rows * spec.dilation, spec.columns * spec.dilation)

    def convolved(self, x: Tensor, view: View, state: State | None, keep: bool) -> tuple[Tensor, State | None]:
        canvas = view.canvases[self.axes]
        weight = self.kernel.weight.to(x.dtype)
        y = F.conv2d(canvas.lay_out(x), weight, padding=self.reach, dilation=self.dilation, groups=len(weight))
        own = weight[:, 0, weight.shape[2] // 2, weight.shape[3] // 2]
        return canvas.take_up(y, len(x)) + _alone(x, canvas, own), None


def _alone(x: Tensor, canvas: Canvas, own: Tensor) -> Tensor:
    """What tokens that stand alone read: themselves, by the weight of a token's own place."""
    return (x * own).masked_fill(~canvas.alone[..., None], 0.0)
