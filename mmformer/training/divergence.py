"""Which updates are not applied: those whose loss or gradient is no number, or whose loss jumps."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mmformer import collectives
from mmformer.spec import require


@dataclass(frozen=True)
class DivergenceSpec:
    """What is done where training diverges. The update at which it does is never applied, whatever is done next.

    Such an update counts as one that was tried: the next one reads the next batch. ``refused.tsv`` names its samples.

    Attributes:
        policy: "stop" ends the run; "skip" goes on; "roll_back" goes on from the last checkpoint's weights, averages
            and optimizer, with the batches that come next: those since the checkpoint are not read again (Chowdhery et
            al. 2022, PaLM, §5.1, who restart in the same way).
        in_a_row: how many updates after each other may be skipped or rolled back; one more, and the run ends.
        total: how many of the whole run may be.
        spike: a loss above this many times the median of the ``window`` losses before it is a divergence too, once
            there are as many; of those of its kind, where sources take turns. Where the median is not positive, no loss
            is one. None: only what is no number is.
        window: how many losses the median is of.
    """

    policy: Literal["stop", "skip", "roll_back"] = "stop"
    in_a_row: int = 3
    total: int = 100
    spike: float | None = None
    window: int = 100

    def __post_init__(self) -> None:
        require(self.in_a_row >= 1, self, "in_a_row", "at least 1")
        require(self.total >= 1, self, "total", "at least 1")
        require(self.spike is None or self.spike > 1, self, "spike", "None or above 1")
        require(self.window >= 1, self, "window", "at least 1")
        goes_on = self.policy != "stop"
        require(goes_on or (self.in_a_row, self.total) == (3, 100), self, "policy", "skip or roll_back for limits")
        require(self.spike is not None or self.window == 100, self, "window", "left as it is where spike is None")


def finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all their values are numbers: what is none is its tensor's least value or its largest, and nan is both.

    ``isfinite`` of each value would write as many, and take twenty times as long on a CPU.
    """
    ends = [torch.stack(torch.aminmax(each)).isfinite().all() for each in tensors if each.numel()]
    return not ends or bool(torch.stack(ends).all())


@dataclass(frozen=True)
class Refused:
    """An update that was not applied."""

    update: int  # 1 the first
    cause: str
    loss: float
    norm: float  # of its gradient


class Guard:
    """Says of each update whether it may be applied. Every process says the same.

    It looks at each update before the optimizer does, so that the host waits for the device once an update. What was
    found only later would be in the weights, the optimizer's moments and the averages, of which a second copy would
    have to be held; and there is no other way in which any optimizer can leave an update out exactly.
    """

    def __init__(self, spec: DivergenceSpec) -> None:
        self.spec = spec
        self.in_a_row, self.total = 0, 0
        self._losses: dict[int, deque[float]] = {}  # kind of batch -> its last applied losses

    def judge(self, update: int, kind: int, loss: Tensor, norm: Tensor) -> Refused | None:
        """Look at an update, and count it.

        Args:
            update: 1 the first.
            kind: of its batch: kinds have losses of their own sizes.
            loss: a scalar, the same in all processes but for rounding.
            norm: of the gradient, likewise.
        """
        own = torch.stack([loss.detach().float(), norm.detach().to(loss.device).float()])
        # Largest values, so that none decides by another's last bit; what is no number has no order, and is counted.
        told = torch.stack([(~own.isfinite()).any().float(), own[0].nan_to_num()])
        wrong, shared = collectives.largest(told).tolist()
        cause = "not finite" if wrong else self._spike(kind, shared)
        if cause is None:
            self.in_a_row = 0
            if self.spec.spike is not None:
                self._losses.setdefault(kind, deque(maxlen=self.spec.window)).append(shared)
            return None
        self.in_a_row, self.total = self.in_a_row + 1, self.total + 1
        return Refused(update, cause, *own.tolist())

    def _spike(self, kind: int, loss: float) -> str | None:
        before = self._losses.get(kind, ())
        if self.spec.spike is None or len(before) < self.spec.window:
            return None
        median = statistics.median(before)
        spikes = 0 < median < loss / self.spec.spike
        return f"a spike: the median before is {median:.6g}" if spikes else None

    @property
    def exhausted(self) -> str | None:
        """Why no more updates may be left out; None while they may."""
        if self.spec.policy == "stop":
            return ""
        if self.in_a_row > self.spec.in_a_row:
            return f" It is the {self.in_a_row}. in a row, and divergence.in_a_row allows {self.spec.in_a_row}."
        if self.total > self.spec.total:
            return f" It is the {self.total}. of the run, and divergence.total allows {self.spec.total}."
        return None

    def state(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        losses = {kind: list(values) for kind, values in self._losses.items()}
        return {"in_a_row": self.in_a_row, "total": self.total, "losses": losses}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from it."""
        self.in_a_row, self.total = int(state["in_a_row"]), int(state["total"])
        self._losses = {
            int(kind): deque((float(value) for value in values if math.isfinite(value)), maxlen=self.spec.window)
            for kind, values in state["losses"].items()
        }
