"""How rotary positions reach further than they were trained for: their rates are slowed down.

Each way says what becomes of the rates, as factors between 1 (left alone) and 1 / ``factor`` (the row is squeezed into
the length that was trained). What depends on a pass's own length (dynamic NTK) is none of them: there, later tokens
would change what earlier ones gave.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmformer.spec import Catalogued, family, require


@family
@dataclass(frozen=True)
class RotaryScalingSpec(Catalogued, ABC):
    """A way to slow rotations down.

    Attributes:
        factor: how many times as far the row is to reach.
    """

    cost: ClassVar[str] = "D"

    factor: float = 2.0

    def __post_init__(self) -> None:
        require(self.factor >= 1, self, "factor", "at least 1")

    @property
    def gain(self) -> float:
        """What rotated features of queries and of keys are multiplied by."""
        return 1.0

    @abstractmethod
    def scaled(self, rates: Tensor, base: float) -> Tensor:
        """The rates to turn by.

        Args:
            rates: F, angles of a step, falling from 1.
            base: they are base^(-i / F).
        """

    def blended(self, rates: Tensor, kept: Tensor) -> Tensor:
        """The rates, of which a share is kept, from 0 to 1, and the rest squeezed."""
        return rates * (kept + (1 - kept) / self.factor)


@dataclass(frozen=True)
class LinearScalingSpec(RotaryScalingSpec):
    """Position interpolation: all rotations are slowed down alike."""

    source: ClassVar[str] = "Position Interpolation, Chen et al. 2023, §2.3"

    def scaled(self, rates: Tensor, base: float) -> Tensor:
        return rates / self.factor


@dataclass(frozen=True)
class NTKScalingSpec(RotaryScalingSpec):
    """NTK-aware: a higher base, such that the slowest rotation is slowed down by the whole factor, the fastest not."""

    source: ClassVar[str] = "bloc97 2023; YaRN, Peng et al. 2023, §3.1"

    def scaled(self, rates: Tensor, base: float) -> Tensor:
        steps = torch.arange(len(rates), device=rates.device) / max(1, len(rates) - 1)  # 0 to 1
        return rates * self.factor**-steps


@dataclass(frozen=True)
class YaRNScalingSpec(RotaryScalingSpec):
    """YaRN: rotations that turned often in the length that was trained are left alone, those that turned at most about
    once are squeezed, with a ramp between them; and attention becomes a little sharper.

    Attributes:
        factor: how many times as far the row is to reach.
        length: of the rows that were trained, in steps.
        fast: turns in that length from which on a rotation is left alone.
        slow: turns up to which it is squeezed by the whole factor.
        attention_factor: what queries and keys are multiplied by; None: 0.1 ln(factor) + 1.
    """

    source: ClassVar[str] = "YaRN, Peng et al. 2023, §3.2 and §3.4"

    factor: float = 4.0
    length: int = 2048
    fast: float = 32.0
    slow: float = 1.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.length >= 1, self, "length", "at least 1")
        require(self.slow > 0, self, "slow", "positive")
        require(self.fast > self.slow, self, "fast", f"above slow, {self.slow}")
        require(self.attention_factor is None or self.attention_factor > 0, self, "attention_factor", "positive")

    @property
    def gain(self) -> float:
        return 0.1 * math.log(self.factor) + 1 if self.attention_factor is None else self.attention_factor

    def scaled(self, rates: Tensor, base: float) -> Tensor:
        def index_of(turns: float) -> float:
            """Of the rotation that turns so often in the trained length."""
            return len(rates) * math.log(self.length / (turns * 2 * math.pi)) / math.log(base)

        # Bounds as in the published code, whose last index is that of a feature, not of a pair.
        first = max(math.floor(index_of(self.fast)), 0)
        last = min(math.ceil(index_of(self.slow)), 2 * len(rates) - 1)
        steps = torch.arange(len(rates), device=rates.device, dtype=torch.float32)
        squeezed = ((steps - first) / max(last - first, 0.001)).clamp(0, 1)
        return self.blended(rates, 1 - squeezed)


@dataclass(frozen=True)
class Llama3ScalingSpec(RotaryScalingSpec):
    """Llama 3.1's: as YaRN leaves fast rotations alone and squeezes slow ones, with the ramp over turns.

    Attributes:
        factor: how many times as far the row is to reach.
        length: of the rows that were trained, in steps.
        fast: turns in that length from which on a rotation is left alone.
        slow: turns up to which it is squeezed by the whole factor.
    """

    source: ClassVar[str] = "Llama 3.1, Meta 2024, its published code"

    factor: float = 8.0
    length: int = 8192
    fast: float = 4.0
    slow: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.length >= 1, self, "length", "at least 1")
        require(self.slow > 0, self, "slow", "positive")
        require(self.fast > self.slow, self, "fast", f"above slow, {self.slow}")

    def scaled(self, rates: Tensor, base: float) -> Tensor:
        turns = self.length * rates / (2 * math.pi)
        return self.blended(rates, ((turns - self.slow) / (self.fast - self.slow)).clamp(0, 1))
