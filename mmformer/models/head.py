"""Heads: modules that, inside the model's forward, turn what the encoders made into what an objective weighs.

They run inside ``forward`` because FSDP2 would hand sharded weights to whoever calls them outside.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmformer.nn.dropout import Dropout
from mmformer.spec import family, require, require_probability
from mmformer.types import Batch, Outputs


@family
@dataclass(frozen=True)
class HeadSpec(ABC):
    """A head over what the encoders made."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The encoders that it needs."""
        return ()

    @abstractmethod
    def build(self, widths: Mapping[str, int]) -> Head:
        """The module; ``widths`` has every encoder's embedding width."""


class Head(nn.Module, ABC):
    @abstractmethod
    def forward(self, outputs: Outputs, batch: Batch) -> HeadOutput | None:
        """What it makes of a batch; None when what it reads is absent from it.

        Args:
            outputs: all encoders have run, and the heads that the model names before this one.
            batch: what they ran on: its ids and labels.
        """


@dataclass(frozen=True)
class HeadOutput:
    logits: Tensor | None = None  # B classes
    scale: Tensor | None = None  # (1,)
    bias: Tensor | None = None  # (1,)
    exits: Tensor | None = None  # B exits classes


@dataclass(frozen=True)
class ContrastiveHeadSpec(HeadSpec):
    """A learned temperature on cosine similarities (CLIP, Radford et al. 2021, §2.5), and a bias for the sigmoid loss.

    The defaults are CLIP's. SigLIP's (Zhai et al. 2023, §3.2) are a temperature of 0.1 without a bound, bias -10.

    Attributes:
        temperature: at the start.
        lowest_temperature: the learned one goes no lower; None: it may.
        bias: learned too, added to the scaled similarities: where it starts. The sigmoid loss needs one, since most
            pairs are negative; a softmax has no use for it. None: none.
    """

    temperature: float = 0.07
    lowest_temperature: float | None = 0.01
    bias: float | None = None

    def __post_init__(self) -> None:
        require(self.temperature > 0, self, "temperature", "positive")
        require(self.bias is None or math.isfinite(self.bias), self, "bias", "None or finite")
        if self.lowest_temperature is None:
            return
        require(self.lowest_temperature > 0, self, "lowest_temperature", "None or positive")
        good = self.temperature >= self.lowest_temperature
        require(good, self, "temperature", f"at least lowest_temperature ({self.lowest_temperature})")

    def build(self, widths: Mapping[str, int]) -> ContrastiveHead:
        return ContrastiveHead(self)


class ContrastiveHead(Head):
    undecayed = ("log_scale", "bias")

    def __init__(self, spec: ContrastiveHeadSpec) -> None:
        super().__init__()
        self.spec = spec
        self.log_scale = nn.Parameter(torch.empty(1))  # of shape (1,): FSDP2 cannot shard a scalar
        self.bias = None if spec.bias is None else nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.log_scale, -math.log(self.spec.temperature))
        if self.bias is not None and self.spec.bias is not None:
            nn.init.constant_(self.bias, self.spec.bias)

    @property
    def scale(self) -> Tensor:
        """The factor on cosine similarities, (1,): the inverse temperature, bounded."""
        return self.scale_of(self.log_scale)

    def scale_of(self, log_scale: Tensor) -> Tensor:
        """The scale that a value of the parameter means."""
        if self.spec.lowest_temperature is None:
            return log_scale.float().exp()
        highest = -math.log(self.spec.lowest_temperature)
        bounded: Tensor = _Bounded.apply(log_scale.float(), highest)  # type: ignore[no-untyped-call]
        return bounded.exp()

    def forward(self, outputs: Outputs, batch: Batch) -> HeadOutput:
        return HeadOutput(scale=self.scale, bias=None if self.bias is None else self.bias.float())


class _Bounded(torch.autograd.Function):
    """A value, or the highest allowed. Past that, the gradient still passes where a step along it leads back.

    ``clamp`` has no gradient there: a parameter that one large step took past the bound would never return.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, highest: float) -> Tensor:
        ctx.save_for_backward(value)
        ctx.highest = highest
        return value.clamp(max=highest)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (value,), (gradient,) = ctx.saved_tensors, upstream
        outwards = (value >= ctx.highest) & (gradient < 0)  # a NaN is no direction, and is not hidden
        return gradient.masked_fill(outwards, 0.0), None


@dataclass(frozen=True)
class ClassificationHeadSpec(HeadSpec):
    """A linear map from one encoder's embedding to class logits.

    Attributes:
        encoder: whose embedding it reads.
        classes: number of classes.
        dropout: on the embedding.
    """

    encoder: str
    classes: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require(self.classes >= 2, self, "classes", "at least 2")
        require_probability(self, "dropout")

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.encoder,)

    def build(self, widths: Mapping[str, int]) -> ClassificationHead:
        return ClassificationHead(self, widths[self.encoder])


class ClassificationHead(Head):
    def __init__(self, spec: ClassificationHeadSpec, width: int) -> None:
        super().__init__()
        self.encoder = spec.encoder
        self.dropout = Dropout(spec.dropout)
        self.projection = nn.Linear(width, spec.classes)

    def forward(self, outputs: Outputs, batch: Batch) -> HeadOutput | None:
        if self.encoder not in outputs.embedding:
            return None
        return HeadOutput(logits=self.projection(self.dropout(outputs.embedding[self.encoder])))
