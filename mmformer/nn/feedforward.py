"""The position-wise half of a layer: hidden units between two projections, plain or gated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.nn.ability import MEANINGS, Ability
from mmformer.nn.dropout import Dropout
from mmformer.nn.fused import can_fuse, linear_gelu
from mmformer.nn.initialisation import Part, Roles, Rows
from mmformer.nn.patient import PatientLinear
from mmformer.nn.recomputed import product_of, product_of_units
from mmformer.spec import Catalogued, family, require, require_probability
from mmformer.types import Aux


@family
@dataclass(frozen=True)
class FeedForwardSpec(Catalogued, ABC):
    """What a layer does to its tokens after they have been mixed."""

    @property
    def abilities(self) -> frozenset[Ability]:
        """What a stack can with it: all, where every token is mapped by itself."""
        return frozenset(MEANINGS)

    def require_able(self, where: str, needed: Iterable[Ability], why: str) -> None:
        """Refuse it where it cannot what it is to do (see ``require_abilities``); ``where`` is the field with it."""

    @abstractmethod
    def build(self, width: int) -> FeedForward:
        """The module for a stack's width."""


class FeedForward(Part, ABC):
    """The module that a FeedForwardSpec builds."""

    by_token: ClassVar[bool] = False
    """Whether every token is mapped by itself, whichever others there are."""

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
class DenseFeedForwardSpec(FeedForwardSpec, ABC):
    """A map of every token by itself: to hidden units, and back.

    Attributes:
        ratio: hidden width over model width.
        multiple: the hidden width is rounded up to a multiple of this.
        hidden_width: the hidden width itself, in place of ratio and multiple; None: as those say.
        bias: whether the projections have biases.
        dropout: on the hidden units.
    """

    cost: ClassVar[str] = "L·ratio·D²"
    gated: ClassVar[bool] = False
    """Whether every hidden unit is the product of an activated feature and another one."""

    ratio: float = 4.0
    multiple: int = 8
    bias: bool = True
    dropout: float = 0.0
    hidden_width: int | None = None

    def __post_init__(self) -> None:
        require(self.ratio > 0, self, "ratio", "positive")
        require(self.multiple >= 1, self, "multiple", "at least 1")
        require(self.hidden_width is None or self.hidden_width >= 1, self, "hidden_width", "None or at least 1")
        for name in ("ratio", "multiple"):
            free = self.hidden_width is None or getattr(self, name) == getattr(type(self), name)
            require(free, self, name, f"left alone where there is a hidden_width ({self.hidden_width})")
        require_probability(self, "dropout")

    def hidden(self, width: int) -> int:
        """The hidden width for a model width."""
        if self.hidden_width is not None:
            return self.hidden_width
        return -(-max(1, int(width * self.ratio)) // self.multiple) * self.multiple

    def features(self, width: int) -> int:
        """The width of what the first projection makes: two features for each hidden unit where it is gated."""
        return self.hidden(width) * (2 if self.gated else 1)

    @abstractmethod
    def activate(self, x: Tensor) -> Tensor:
        """The activation, feature by feature."""

    def units(self, features: Tensor) -> Tensor:
        """The hidden units of what the first projection makes: … features -> … hidden."""
        if not self.gated:
            return self.activate(features)
        gate, up = features.chunk(2, dim=-1)
        return self.activate(gate) * up

    def build(self, width: int) -> FeedForward:
        return GatedFeedForward(self, width) if self.gated else PlainFeedForward(self, width)


class PlainFeedForward(FeedForward):
    makes_input_again = True
    by_token = True

    def __init__(self, spec: DenseFeedForwardSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.up = nn.Linear(width, spec.features(width), bias=spec.bias)
        self.dropout = Dropout(spec.dropout)
        self.down = nn.Linear(spec.hidden(width), width, bias=spec.bias)

    def roles(self) -> Roles:
        return {"up": (Rows("inner"),), "down": (Rows("output"),)}

    def forward(self, x: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Aux]:
        up = self.up.now(x) if isinstance(self.up, PatientLinear) else self.up
        if isinstance(self.spec, GELUFeedForwardSpec) and can_fuse(x, up, self.spec.approximate):
            return self._out(linear_gelu(x, up, self.spec.approximate)), {}
        return product_of_units(product_of(x, up), self.spec.units, self._out), {}

    def _out(self, units: Tensor) -> Tensor:
        y: Tensor = self.down(self.dropout(units))
        return y


class GatedFeedForward(FeedForward):
    makes_input_again = True
    by_token = True

    def __init__(self, spec: DenseFeedForwardSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.gate_up = nn.Linear(width, spec.features(width), bias=spec.bias)
        self.dropout = Dropout(spec.dropout)
        self.down = nn.Linear(spec.hidden(width), width, bias=spec.bias)

    def roles(self) -> Roles:
        hidden = Rows("inner", self.down.in_features)
        return {"gate_up": (hidden, hidden), "down": (Rows("output"),)}

    def forward(self, x: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Aux]:
        return product_of_units(product_of(x, self.gate_up), self.spec.units, self._out), {}

    def _out(self, units: Tensor) -> Tensor:
        y: Tensor = self.down(self.dropout(units))
        return y


@dataclass(frozen=True)
class GELUFeedForwardSpec(DenseFeedForwardSpec):
    """Two projections with a GELU between them.

    Attributes:
        approximate: ``tanh`` is GPT-2's approximation, and somewhat cheaper; ``sigmoid`` is x σ(1.702 x), CLIP's
            QuickGELU; ``none`` is the GELU itself.
    """

    source: ClassVar[str] = "Hendrycks and Gimpel 2016, §2"

    approximate: Literal["none", "tanh", "sigmoid"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        known = self.approximate in ("none", "tanh", "sigmoid")
        require(known, self, "approximate", "'none', 'tanh' or 'sigmoid'")

    def activate(self, x: Tensor) -> Tensor:
        if self.approximate == "sigmoid":
            return x * torch.sigmoid(1.702 * x)
        return F.gelu(x, approximate=self.approximate)


@dataclass(frozen=True)
class ReLUFeedForwardSpec(DenseFeedForwardSpec):
    """Two projections with a rectifier between them.

    Attributes:
        squared: what it lets through is squared, as in Primer.
    """

    source: ClassVar[str] = "Vaswani et al. 2017, §3.3; squared: So et al. 2021, Primer, §3"

    squared: bool = False

    def activate(self, x: Tensor) -> Tensor:
        return F.relu(x).square() if self.squared else F.relu(x)


@dataclass(frozen=True)
class SiLUFeedForwardSpec(DenseFeedForwardSpec):
    """Two projections with a SiLU, x σ(x), between them: what Marian's translators call swish."""

    source: ClassVar[str] = "Ramachandran et al. 2017, §3; Elfwing et al. 2017, §2"

    def activate(self, x: Tensor) -> Tensor:
        return F.silu(x)


@dataclass(frozen=True)
class SwiGLUFeedForwardSpec(DenseFeedForwardSpec):
    """A SiLU-gated projection. The default ratio, 8/3, has the parameters of a GELU feed-forward of ratio 4."""

    source: ClassVar[str] = "Shazeer 2020, §2"
    gated: ClassVar[bool] = True

    ratio: float = 8 / 3
    bias: bool = False

    def activate(self, x: Tensor) -> Tensor:
        return F.silu(x)


@dataclass(frozen=True)
class GLUFeedForwardSpec(DenseFeedForwardSpec):
    """A projection gated by another one: SwiGLU's siblings.

    Attributes:
        gate: the gate's activation: ``gelu`` makes GEGLU, ``gelu_tanh`` the same by its approximation (T5 1.1),
            ``relu`` ReGLU, ``sigmoid`` the GLU itself, ``identity`` the bilinear one.
    """

    source: ClassVar[str] = "Dauphin et al. 2016; Shazeer 2020, §2"
    gated: ClassVar[bool] = True

    ratio: float = 8 / 3
    bias: bool = False
    gate: Literal["gelu", "gelu_tanh", "relu", "sigmoid", "identity"] = "gelu"

    def __post_init__(self) -> None:
        super().__post_init__()
        known = self.gate in ("gelu", "gelu_tanh", "relu", "sigmoid", "identity")
        require(known, self, "gate", "'gelu', 'gelu_tanh', 'relu', 'sigmoid' or 'identity'")

    def activate(self, x: Tensor) -> Tensor:
        match self.gate:
            case "gelu":
                return F.gelu(x)
            case "gelu_tanh":
                return F.gelu(x, approximate="tanh")
            case "relu":
                return F.relu(x)
            case "sigmoid":
                return torch.sigmoid(x)
            case "identity":
                return x
