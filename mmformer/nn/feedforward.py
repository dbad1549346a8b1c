"""The position-wise half of a layer: GELU (Hendrycks and Gimpel 2016) and SwiGLU (Shazeer 2020, §2)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.spec import Catalogued, family, require, require_probability
from mmformer.types import Aux


@family
@dataclass(frozen=True)
class FeedForwardSpec(Catalogued, ABC):
    """A map of every token by itself.

    Attributes:
        ratio: hidden width over model width.
        multiple: the hidden width is rounded up to a multiple of this.
        bias: whether the projections have biases.
        dropout: on the hidden units.
    """

    ratio: float = 4.0
    multiple: int = 8
    bias: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require(self.ratio > 0, self, "ratio", "positive")
        require(self.multiple >= 1, self, "multiple", "at least 1")
        require_probability(self, "dropout")

    def hidden(self, width: int) -> int:
        """The hidden width for a model width."""
        return -(-max(1, int(width * self.ratio)) // self.multiple) * self.multiple

    @abstractmethod
    def build(self, width: int) -> FeedForward:
        """The module for a stack's width."""


class FeedForward(nn.Module, ABC):
    """The module that a FeedForwardSpec builds."""

    @abstractmethod
    def forward(self, x: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Aux]:
        """Map.

        Args:
            x: B L D.
            valid: B L; where tokens are chosen among (a router's capacity), those that are not valid take no room.

        Returns:
            B L D, and the losses that it asks for.
        """


@dataclass(frozen=True)
class GELUFeedForwardSpec(FeedForwardSpec):
    """Two projections with a GELU between them.

    Attributes:
        approximate: ``tanh`` is GPT-2's approximation, and somewhat cheaper; ``none`` is the GELU itself.
    """

    cost: ClassVar[str] = "L·ratio·D²"
    source: ClassVar[str] = "Hendrycks and Gimpel 2016"

    approximate: Literal["none", "tanh"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.approximate in ("none", "tanh"), self, "approximate", "'none' or 'tanh'")

    def build(self, width: int) -> GELUFeedForward:
        return GELUFeedForward(self, width)


class GELUFeedForward(FeedForward):
    def __init__(self, spec: GELUFeedForwardSpec, width: int) -> None:
        super().__init__()
        self.approximate = spec.approximate
        self.up = nn.Linear(width, spec.hidden(width), bias=spec.bias)
        self.dropout = nn.Dropout(spec.dropout)
        self.down = nn.Linear(spec.hidden(width), width, bias=spec.bias)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Aux]:
        return self.down(self.dropout(F.gelu(self.up(x), approximate=self.approximate))), {}


@dataclass(frozen=True)
class SwiGLUFeedForwardSpec(FeedForwardSpec):
    """A SiLU-gated projection. The default ratio, 8/3, has the parameters of a GELU feed-forward of ratio 4."""

    cost: ClassVar[str] = "L·ratio·D²"
    source: ClassVar[str] = "Shazeer 2020, §2"

    ratio: float = 8 / 3
    bias: bool = False

    def build(self, width: int) -> SwiGLUFeedForward:
        return SwiGLUFeedForward(self, width)


class SwiGLUFeedForward(FeedForward):
    def __init__(self, spec: SwiGLUFeedForwardSpec, width: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * spec.hidden(width), bias=spec.bias)
        self.dropout = nn.Dropout(spec.dropout)
        self.down = nn.Linear(spec.hidden(width), width, bias=spec.bias)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Aux]:
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # B L hidden, twice
        return self.down(self.dropout(F.silu(gate) * up)), {}
