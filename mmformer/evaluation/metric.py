"""What every metric is, and the loop that feeds them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch

from mmformer.errors import InputError, nearest
from mmformer.evaluation.details import Details
from mmformer.evaluation.rows import Column, Rows
from mmformer.models.model import Model
from mmformer.spec import Parts, family
from mmformer.tokenizers.text import TextEncoder
from mmformer.types import Batch, Outputs


class Score(NamedTuple):
    """One number, and what guessing would give."""

    value: float
    chance: float | None = None
    unit: str = ""  # "%" or nothing
    margin: float | None = None  # half of the 95 % confidence interval, where it is a mean over draws

    def shown(self, value: float | None) -> str:
        """The value, or the chance, for a person: percent with one digit, or two where it is small."""
        if value is None:
            return ""
        if self.unit == "%":
            return f"{value:.{2 if value < 1 else 1}f} %"
        return f"{value:.2f}".rstrip("0").rstrip(".")

    @property
    def text(self) -> str:
        """The value with its margin."""
        return self.shown(self.value) + ("" if self.margin is None else f" ± {self.shown(self.margin)}")


@family
@dataclass(frozen=True)
class MetricSpec(ABC):
    """A measure of a model on a split.

    Attributes:
        only: which of its scores are told, in this order; empty: all.
    """

    generates: ClassVar[bool] = False
    """Whether it has decoders write, outside of the model's forward pass."""

    learns: ClassVar[bool] = False
    """Whether it sees the training split first, to learn what it measures with."""

    only: tuple[str, ...] = field(default=(), kw_only=True)

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
    """Sees a split batch by batch, then says its scores.

    All that it remembers is ``rows``, and ``learned`` of the training split: with the rows of several processes, each
    of which has seen a part of the batches, it computes what one process would.
    """

    def __init__(self) -> None:
        self.rows, self.learned = Rows(), Rows()

    def start(self, model: Model, encoders: Mapping[str, TextEncoder], device: torch.device) -> None:  # noqa: B027
        """A hook for what it needs besides the batches; most metrics need nothing."""

    @abstractmethod
    def keep(self, outputs: Outputs, batch: Batch) -> Mapping[str, Column]:
        """What it has to remember of a batch."""

    def update(self, outputs: Outputs, batch: Batch) -> None:
        """Take in one batch."""
        self.rows.add({"key": batch.keys, **self.keep(outputs, batch)})

    def learn(self, outputs: Outputs, batch: Batch) -> None:
        """Take in one batch of the training split."""
        self.learned.add(self.keep(outputs, batch))

    def finish(self) -> None:  # noqa: B027
        """A hook for what is made of the model once, after all batches, such as class prompts."""

    @abstractmethod
    def compute(self) -> dict[str, Score]:
        """The scores over all that it has seen."""

    def details(self) -> Details:
        """What stands behind the scores, after ``compute``."""
        return Details()


def evaluate(
    model: Model,
    batches: Iterable[Batch],
    metrics: Mapping[str, MetricSpec],
    encoders: Mapping[str, TextEncoder],
    device: torch.device | str = "cpu",
    training: Iterable[Batch] | None = None,
    gather: Callable[[Mapping[str, Metric]], None] | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Score]:
    """Run a model over batches and take every metric's scores, as "metric/score".

    The model is left in the mode, training or not, that it was found in.

    Args:
        training: batches of the training split, as they are read for evaluation; needed where a metric learns.
        gather: called when the metrics have seen all batches of this process, to give them those of the others.
        dtype: what the model computes in.
    """
    built = {name: spec.build() for name, spec in metrics.items()}
    learning = [name for name, spec in metrics.items() if spec.learns]
    if learning and training is None:
        raise InputError(f"The metric '{learning[0]}' learns from a training split, but none was handed in.")
    with evaluating(model, dtype):
        start(built, model, encoders, device)
        if learning:
            observe(model, training or (), {name: built[name] for name in learning}, device, learn=True)
        observe(model, batches, built, device)
        if gather is not None:
            gather(built)
        for metric in built.values():
            metric.finish()
        return scores_of(built, metrics)


@contextmanager
def evaluating(model: Model, dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Inside, no gradients are kept, and the model is in evaluation mode, computing in a precision."""
    training = model.training
    # Where a model is cut into stages, parameters of the others have no data.
    device = next(parameter for parameter in model.parameters() if not parameter.is_meta).device.type
    model.eval()
    try:
        # Not inference_mode: sharded parameters are gathered into tensors that training goes on with.
        with torch.no_grad(), torch.autocast(device, dtype, enabled=dtype != torch.float32):
            yield
    finally:
        model.train(training)


def start(
    metrics: Mapping[str, Metric],
    model: Model,
    encoders: Mapping[str, TextEncoder],
    device: torch.device | str,
) -> None:
    for metric in metrics.values():
        metric.start(model, encoders, torch.device(device))


def observe(
    model: Model,
    batches: Iterable[Batch],
    metrics: Mapping[str, Metric],
    device: torch.device | str,
    learn: bool = False,
) -> None:
    """Have metrics take in batches, within ``evaluating``; ``learn``: they are of the training split."""
    for batch in batches:
        moved = batch.to(device)
        # Metrics read embeddings, logits and what a decoder writes, none of which the losses of decoders give.
        outputs = model(moved, decode=False)
        for metric in metrics.values():
            (metric.learn if learn else metric.update)(outputs, moved)


def scores_of(metrics: Mapping[str, Metric], specs: Mapping[str, MetricSpec]) -> dict[str, Score]:
    """The scores that are asked for, as "metric/score"; they are computed in full precision.

    Raises:
        InputError: a metric has no such score.
    """
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.autocast(kind, enabled=False), torch.autocast("cpu", enabled=False):
        computed = {name: metric.compute() for name, metric in metrics.items()}
    scores: dict[str, Score] = {}
    for name, found in computed.items():
        for key in specs[name].only or found:
            if key not in found:
                raise InputError(
                    f"{type(specs[name]).__name__}.only of the metric '{name}' has '{key}', but its scores are "
                    f"{', '.join(found)}.{nearest(key, found)}"
                )
            scores[f"{name}/{key}"] = found[key]
    return scores


def check_pair(where: str, pair: tuple[str, str], embedding_widths: Mapping[str, int]) -> None:
    """Refuse two encoders whose embeddings cannot be held against each other.

    Raises:
        InputError: the model has no such encoder, or the embeddings differ in width.
    """
    for name in pair:
        check_encoder(where, name, embedding_widths)
    first, second = (embedding_widths[name] for name in pair)
    if first != second:
        raise InputError(
            f"{where} holds '{pair[0]}' against '{pair[1]}', but their embeddings are {first} and {second} wide: give "
            f"both encoders the same embedding."
        )


def check_encoder(where: str, name: str, embedding_widths: Mapping[str, int]) -> None:
    """Refuse an encoder that the model does not have."""
    if name not in embedding_widths:
        raise InputError(
            f"{where} is '{name}', but the model's encoders are {', '.join(embedding_widths)}."
            f"{nearest(name, embedding_widths)}"
        )


def check_label(spec: str, label: str, labels: Iterable[str]) -> None:
    """Refuse a label that the data does not have."""
    known = list(labels)
    if label not in known:
        raise InputError(
            f"{spec} reads the label '{label}', but data.labels has {', '.join(known) or 'none'}."
            f"{nearest(label, known)}"
        )
