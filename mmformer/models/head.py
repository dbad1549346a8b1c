"""Heads: modules that, inside the model's forward, turn what the encoders made into what an objective weighs.

They run inside ``forward`` because FSDP2 would hand sharded weights to whoever calls them outside.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.errors import InputError, nearest
from mmformer.nn.norm import NormSpec
from mmformer.nn.pool import PoolSpec
from mmformer.nn.stack import Stack
from mmformer.spec import family, require, require_probability, told
from mmformer.tokenizers.image import ImagePatchesSpec
from mmformer.tokenizers.text import TextTokens
from mmformer.types import Aux, Batch, LossTerm, Outputs


class Source(NamedTuple):
    """An encoder, as heads know it before there are weights."""

    embedding: int  # the width of its embedding
    tokens: int  # the width of the tokens that it hands on
    special: int  # how many of those, the first, are special
    text: bool  # whether the others are those of a text, one for each id
    patches: ImagePatchesSpec | None = (
        None  # what cuts a picture into patches, where the others are those, one for each
    )


class Shared(NamedTuple):
    """Modules of a model that its heads may use, and that are not theirs."""

    texts: Mapping[str, TextTokens]  # encoder of texts -> its tokens, whose table a head may share
    stacks: Mapping[str, Stack]


@family
@dataclass(frozen=True)
class HeadSpec(ABC):
    """A head over what the encoders made."""

    writes: ClassVar[bool] = False
    """Whether its logits are over a vocabulary, for each id of a text."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The encoders that it needs."""
        return ()

    @property
    def reads_tokens(self) -> bool:
        """Whether it reads the tokens of those, and not their embeddings alone."""
        return True

    @property
    def runs(self) -> str | None:
        """The name of the stack that it runs; None: none."""
        return None

    def check(self, where: str, sources: Mapping[str, Source], before: Mapping[str, HeadSpec]) -> None:  # noqa: B027
        """Refuse what does not fit the model.

        Args:
            where: the key of the head.
            sources: the model's encoders; those that it reads are among them.
            before: the heads that the model names before this one.

        Raises:
            InputError: what there is, and what to change.
        """

    @abstractmethod
    def build(self, sources: Mapping[str, Source], shared: Shared) -> Head:
        """The module.

        Args:
            sources: the model's encoders.
            shared: what there is before the heads are made.
        """


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
    logits: Tensor | None = None  # B classes; over a vocabulary B L V; pixels of patches B L (P P 3)
    scale: Tensor | None = None  # (1,)
    bias: Tensor | None = None  # (1,)
    exits: Tensor | None = None  # B exits classes
    loss: LossTerm | None = None  # where it measures one itself
    aux: Aux = field(default_factory=dict)  # what layers of its own ask to be minimised


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

    def build(self, sources: Mapping[str, Source], shared: Shared) -> ContrastiveHead:
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
class ClassHeadSpec(HeadSpec):
    """A head whose logits are over classes.

    Attributes:
        encoder: what it classifies.
        classes: number of classes.
    """

    encoder: str
    classes: int

    def __post_init__(self) -> None:
        require(self.classes >= 2, self, "classes", "at least 2")

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.encoder,)


@dataclass(frozen=True)
class ClassificationHeadSpec(ClassHeadSpec):
    """A linear map from one encoder's embedding to class logits, or from a pool of its own.

    What is before it, where it is asked for, comes in the order of the fields: a norm (AST, Gong et al. 2021, its
    published code), hidden units (DistilBERT, Sanh et al. 2019, its published code), dropout.

    Attributes:
        pool: what it reads of the tokens that the encoder hands on (the one after the class token is DeiT's, for
            distillation, Touvron et al. 2020, §4); None: it reads the embedding.
        norm: of what it reads; None: none.
        hidden: units between two linear maps; None: there is one map.
        activation: of the hidden units.
        dropout: on what is mapped to logits.
        bias: whether logits have one.
    """

    dropout: float = 0.0
    pool: PoolSpec | None = None
    norm: NormSpec | None = None
    hidden: int | None = None
    activation: Literal["relu", "gelu", "tanh"] = "relu"
    bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_probability(self, "dropout")
        require(self.hidden is None or self.hidden >= 1, self, "hidden", "None or at least 1")
        require(self.activation in _ACTIVATIONS, self, "activation", f"one of {', '.join(map(repr, _ACTIVATIONS))}")
        used = self.hidden is not None or self.activation == "relu"
        require(used, self, "activation", "left alone where hidden is None")

    @property
    def reads_tokens(self) -> bool:
        return self.pool is not None

    def check(self, where: str, sources: Mapping[str, Source], before: Mapping[str, HeadSpec]) -> None:
        number = sources[self.encoder].special
        if self.pool is not None and self.pool.special > number:
            raise InputError(
                f"{where}.pool is {told(self.pool)}, which reads {self.pool.special} special tokens, but "
                f"model.encoders.{self.encoder} has {number}: set its class_token and registers, or leave pool out."
            )

    def build(self, sources: Mapping[str, Source], shared: Shared) -> ClassificationHead:
        return ClassificationHead(self, sources[self.encoder])


class ClassificationHead(Head):
    def __init__(self, spec: ClassificationHeadSpec, source: Source) -> None:
        super().__init__()
        self.encoder, self.activation = spec.encoder, _ACTIVATIONS[spec.activation]
        self.pool = None if spec.pool is None else spec.pool.build(source.tokens)
        width = source.embedding if spec.pool is None else spec.pool.embedding_width(source.tokens)
        self.norm = nn.Identity() if spec.norm is None else spec.norm.build(width)
        self.hidden = None if spec.hidden is None else nn.Linear(width, spec.hidden)
        self.dropout = nn.Dropout(spec.dropout)
        self.projection = nn.Linear(spec.hidden or width, spec.classes, bias=spec.bias)

    def forward(self, outputs: Outputs, batch: Batch) -> HeadOutput | None:
        if self.encoder not in outputs.embedding:
            return None
        x = outputs.embedding[self.encoder] if self.pool is None else self.pool(outputs.tokens[self.encoder])
        x = self.norm(x)
        if self.hidden is not None:
            x = self.activation(self.hidden(x))
        return HeadOutput(logits=self.projection(self.dropout(x)))


_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "tanh": torch.tanh}


@dataclass(frozen=True)
class MeanLogitsHeadSpec(ClassHeadSpec):
    """The mean of the logits of several heads over the same classes (DeiT, Touvron et al. 2020, §4, of its two).

    Attributes:
        heads: two or more, which the model names before this one.
    """

    heads: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.heads) >= 2, self, "heads", "two or more")

    @property
    def reads_tokens(self) -> bool:
        return False  # other heads' logits

    def check(self, where: str, sources: Mapping[str, Source], before: Mapping[str, HeadSpec]) -> None:
        classed = {name: head for name, head in before.items() if isinstance(head, ClassHeadSpec)}
        for name in self.heads:
            if name not in classed:
                raise InputError(
                    f"{where}.heads has '{name}', but the heads over classes that the model names before it are "
                    f"{', '.join(classed) or 'none'}.{nearest(name, classed)}"
                )
            head = classed[name]
            for shared in ("encoder", "classes"):
                theirs, ours = getattr(head, shared), getattr(self, shared)
                if theirs != ours:
                    raise InputError(f"{where}.{shared} is {ours!r}, but that of its head '{name}' is {theirs!r}.")

    def build(self, sources: Mapping[str, Source], shared: Shared) -> MeanLogitsHead:
        return MeanLogitsHead(self)


class MeanLogitsHead(Head):
    def __init__(self, spec: MeanLogitsHeadSpec) -> None:
        super().__init__()
        self.heads = spec.heads

    def forward(self, outputs: Outputs, batch: Batch) -> HeadOutput | None:
        if self.heads[0] not in outputs.logits:  # all of them read one encoder
            return None
        return HeadOutput(logits=torch.stack([outputs.logits[name] for name in self.heads]).mean(0))
