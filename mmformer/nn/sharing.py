"""Layers that are applied several times: a stack's depth beyond the weights that it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mmformer.spec import Catalogued, require


@dataclass(frozen=True)
class SharingSpec(Catalogued):
    """Few layers, applied until a stack has its depth. Whatever decoding carries, it carries for each application.

    Attributes:
        distinct: number of layers that have weights of their own; 1: all applications are of one layer.
        order: ``sequence`` applies each layer several times in a row (ALBERT's groups), ``cycle`` goes through them
            all and begins again.
        step_signal: add a wave, different for each application, to what enters it, so that one layer can tell how often
            it was applied. Its height is 1: where tokens are much smaller, normalise them first (``input_norm``).
    """

    cost: ClassVar[str] = "0"
    source: ClassVar[str] = (
        "ALBERT, Lan et al. 2020, §3.1; cycle and step_signal: Universal Transformers, Dehghani et al. 2019, §2.1"
    )

    distinct: int = 1
    order: Literal["sequence", "cycle"] = "sequence"
    step_signal: bool = False

    def __post_init__(self) -> None:
        require(self.distinct >= 1, self, "distinct", "at least 1")
        require(self.order in ("sequence", "cycle"), self, "order", "'sequence' or 'cycle'")
        differs = self.distinct > 1 or self.order == "sequence"
        require(differs, self, "order", "left out with one distinct layer, which has but one order")

    def applied(self, depth: int) -> tuple[int, ...]:
        """Which of the distinct layers each application is of; the groups of ``sequence`` differ by one at most."""
        if self.order == "cycle":
            return tuple(index % self.distinct for index in range(depth))
        return tuple(index * self.distinct // depth for index in range(depth))


def step_signal(application: int, width: int, device: torch.device) -> Tensor:
    """What tells an application, 0 the first, from the others: sines, then cosines, of its number: D, float32."""
    half = (width + 1) // 2
    exponent = torch.arange(half, device=device, dtype=torch.float32) / half
    angle = (application + 1) * 10_000.0**-exponent
    return torch.cat((angle.sin(), angle.cos()))[:width]
