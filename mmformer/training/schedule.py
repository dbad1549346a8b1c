"""The learning rate over a run, by name."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from mmformer.spec import family, require


@family
@dataclass(frozen=True)
class ScheduleSpec(ABC):
    """The learning rate over a run: a pure function of the step, so that there is no state to resume.

    Attributes:
        warmup_steps: the first updates, over which it rises evenly to its peak.
        cooldown_steps: the last updates, over which what it has come to falls evenly to nothing.
    """

    warmup_steps: int = 0
    cooldown_steps: int = 0

    def __post_init__(self) -> None:
        require(self.warmup_steps >= 0, self, "warmup_steps", "at least 0")
        require(self.cooldown_steps >= 0, self, "cooldown_steps", "at least 0")

    def factor(self, step: int, steps: int) -> float:
        """What the peak is multiplied by in update ``step`` (0 the first) of ``steps``."""
        cool = min(1.0, max(0, steps - step) / (self.cooldown_steps + 1)) if self.cooldown_steps else 1.0
        if step < self.warmup_steps:
            return cool * (step + 1) / (self.warmup_steps + 1)
        between = max(1, steps - self.warmup_steps - self.cooldown_steps)
        return cool * self.after_warmup(min(step - self.warmup_steps, between), between)

    @abstractmethod
    def after_warmup(self, step: int, steps: int) -> float:
        """The factor ``step`` updates after warm-up, of the ``steps`` between that and the cool-down."""


@dataclass(frozen=True)
class FallingScheduleSpec(ScheduleSpec):
    """Down from the peak.

    Attributes:
        final: the share of the peak that is left at the end.
    """

    final: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.final <= 1, self, "final", "from 0 to 1")


@dataclass(frozen=True)
class CosineScheduleSpec(FallingScheduleSpec):
    """Half a cosine down to a share of the peak (Loshchilov and Hutter 2016)."""

    def after_warmup(self, step: int, steps: int) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * step / steps)) / 2


@dataclass(frozen=True)
class LinearScheduleSpec(FallingScheduleSpec):
    """A straight line down to a share of the peak (as BERT's, Devlin et al. 2018, §A.2)."""

    def after_warmup(self, step: int, steps: int) -> float:
        return 1 + (self.final - 1) * step / steps


@dataclass(frozen=True)
class ConstantScheduleSpec(ScheduleSpec):
    """The peak, after warm-up; with ``cooldown_steps``, warm-up–stable–decay (WSD).

    WSD (Hu et al. 2024, MiniCPM, §4; Hägele et al. 2024) is this schedule with both ``warmup_steps`` and
    ``cooldown_steps``. A run that was stopped before the cool-down can be made longer.
    """

    def after_warmup(self, step: int, steps: int) -> float:
        return 1.0


@dataclass(frozen=True)
class InverseSquareRootScheduleSpec(ScheduleSpec):
    """Falls as one over the root of the steps, without an end in view (Vaswani et al. 2017, §5.3).

    Attributes:
        timescale: updates after warm-up in which it falls to the root of a half; None: one more than
            ``warmup_steps``, which makes it the paper's.
    """

    timescale: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.timescale is None or self.timescale >= 1, self, "timescale", "None or at least 1")

    def after_warmup(self, step: int, steps: int) -> float:
        timescale = self.timescale or self.warmup_steps + 1
        return math.sqrt(timescale / (timescale + step))
