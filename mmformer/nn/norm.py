"""Normalisation over the width: LayerNorm (Ba et al. 2016) and RMSNorm (Zhang and Sennrich 2019)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from mmformer.spec import Catalogued, family, require


@family
@dataclass(frozen=True)
class NormSpec(Catalogued, ABC):
    """A normalisation over the last axis.

    Attributes:
        eps: added to the variance, or mean square, so that what is constant is not divided by zero.
    """

    eps: float = 1e-6

    def __post_init__(self) -> None:
        require(self.eps > 0, self, "eps", "positive")

    @abstractmethod
    def build(self, width: int) -> nn.Module:
        """A module from (…, width) to (…, width)."""


@dataclass(frozen=True)
class LayerNormSpec(NormSpec):
    """Subtract the mean, divide by the standard deviation, apply a gain and a bias.

    Attributes:
        bias: whether there is one.
    """

    cost: ClassVar[str] = "L·D"
    source: ClassVar[str] = "Ba et al. 2016"

    bias: bool = True

    def build(self, width: int) -> nn.Module:
        return nn.LayerNorm(width, eps=self.eps, bias=self.bias)


@dataclass(frozen=True)
class RMSNormSpec(NormSpec):
    """Divide by the root mean square and apply a gain."""

    cost: ClassVar[str] = "L·D"
    source: ClassVar[str] = "Zhang and Sennrich 2019"

    def build(self, width: int) -> nn.Module:
        return nn.RMSNorm(width, eps=self.eps)
