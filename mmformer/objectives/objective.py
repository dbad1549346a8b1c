"""What every objective is: it prepares a batch, and weighs what the model's heads made of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmformer.spec import Parts, family, require
from mmformer.types import Batch, LossTerm, Outputs


@family
@dataclass(frozen=True)
class ObjectiveSpec(ABC):
    """One of a run's objectives.

    Attributes:
        weight: of its mean loss in the sum that is minimised.
    """

    mixes: ClassVar[bool] = False
    """Whether its loss heeds what other pictures are mixed in (Batch.mixed)."""

    weight: float = 1.0

    def __post_init__(self) -> None:
        require(self.weight > 0, self, "weight", "positive")

    @abstractmethod
    def build(self) -> Objective:
        """The objective; it has no parameters (those are the heads')."""

    @abstractmethod
    def check(self, parts: Parts) -> None:
        """Refuse a run that lacks what this objective reads.

        Raises:
            InputError: an encoder, a head or a label that is not there, or that does not fit.
        """


class Objective(ABC):
    """Sums and counts, so that ranks and micro-batches add up exactly."""

    couples_samples = False
    """Whether a sample's loss depends on the rest of its batch; then micro-batches may not be weighed one by one.

    Such an objective is handed embeddings and scales alone, those of the whole batch.
    """

    reads_tokens = False
    """Whether it reads the tokens of encoders (Outputs.tokens); those that no part of the model reads are left out
    otherwise."""

    def prepare(self, batch: Batch, seed: int) -> Batch:
        """Change a batch before the model sees it (mask, corrupt, mix).

        Randomness comes from (seed, position) alone, so that a sample's does not depend on its micro-batch or rank.
        """
        return batch

    def finds(self, outputs: Outputs) -> bool:
        """Whether a batch has what this objective reads; where sources differ, not every batch does."""
        return True

    @abstractmethod
    def items(self, batch: Batch) -> dict[str, Tensor]:
        """How many items each of its losses is a mean over; known before the model runs."""

    @abstractmethod
    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, LossTerm]:
        """Its losses, with the names and counts that ``items`` gives; without those that the batch does not have."""
