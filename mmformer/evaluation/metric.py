"""What every metric is, and the loop that feeds them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from mmformer.errors import InputError, nearest
from mmformer.models.model import Model
from mmformer.spec import Parts, family
from mmformer.tokenizers.text import TextEncoder
from mmformer.types import Batch, Outputs


class Score(NamedTuple):
    """One number, and what guessing would give."""

    value: float
    chance: float | None = None
    unit: str = ""  # "%" or nothing

    def shown(self, value: float | None) -> str:
        """The value, or the chance, for a person: percent with one digit, or two where it is small."""
        if value is None:
            return ""
        if self.unit == "%":
            return f"{value:.{2 if value < 1 else 1}f} %"
        return f"{value:.2f}".rstrip("0").rstrip(".")


@family
@dataclass(frozen=True)
class MetricSpec(ABC):
    """A measure of a model on a split."""

    generates: ClassVar[bool] = False
    """Whether it has decoders write, outside of the model's forward pass."""

    @abstractmethod
    def build(self) -> Metric:
        """A fresh one, which has seen nothing."""

    @abstractmethod
    def check(self, parts: Parts) -> None:
        """Refuse a run that lacks what this metric reads.

        Raises:
            InputError: an encoder, head or label that is not there.
        """


class Metric(ABC):
    """Sees a split batch by batch, then says its scores."""

    def start(self, model: Model, encoders: Mapping[str, TextEncoder], device: torch.device) -> None:  # noqa: B027
        """A hook for what has to be computed once, such as class prompts; most metrics need none."""

    @abstractmethod
    def update(self, outputs: Outputs, batch: Batch) -> None:
        """Take in one batch."""

    @abstractmethod
    def compute(self) -> dict[str, Score]:
        """The scores over all that it has seen."""


@torch.no_grad()  # not inference_mode: sharded parameters are gathered into tensors that training goes on with
def evaluate(
    model: Model,
    batches: Iterable[Batch],
    metrics: Mapping[str, MetricSpec],
    encoders: Mapping[str, TextEncoder],
    device: torch.device | str = "cpu",
) -> dict[str, Score]:
    """Run a model over batches and take every metric's scores, as "metric/score".

    The model is left in the mode, training or not, that it was found in.
    """
    device = torch.device(device)
    built = {name: spec.build() for name, spec in metrics.items()}
    training = model.training
    model.eval()
    try:
        for metric in built.values():
            metric.start(model, encoders, device)
        for batch in batches:
            moved = batch.to(device)
            # Metrics read embeddings, logits and what a decoder writes, none of which the losses of decoders give.
            outputs = model(moved, decode=False)
            for metric in built.values():
                metric.update(outputs, moved)
    finally:
        model.train(training)
    return {f"{name}/{key}": score for name, metric in built.items() for key, score in metric.compute().items()}


def check_pair(where: str, pair: tuple[str, str], embedding_widths: Mapping[str, int]) -> None:
    """Refuse two encoders whose embeddings cannot be held against each other.

    Raises:
        InputError: the model has no such encoder, or the embeddings differ in width.
    """
    for name in pair:
        if name not in embedding_widths:
            raise InputError(
                f"{where} is '{name}', but the model's encoders are {', '.join(embedding_widths)}."
                f"{nearest(name, embedding_widths)}"
            )
    first, second = (embedding_widths[name] for name in pair)
    if first != second:
        raise InputError(
            f"{where} holds '{pair[0]}' against '{pair[1]}', but their embeddings are {first} and {second} wide: give "
            f"both encoders the same embedding."
        )
