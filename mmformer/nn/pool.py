"""From tokens to one vector a sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmformer.nn.attention import AttentionSpec
from mmformer.nn.feedforward import DenseFeedForwardSpec, FeedForwardSpec
from mmformer.nn.mask import Mask
from mmformer.nn.mixer import View
from mmformer.nn.norm import LayerNormSpec, NormSpec
from mmformer.spec import Catalogued, family, require
from mmformer.types import Tokens, is_special


@family
@dataclass(frozen=True)
class PoolSpec(Catalogued, ABC):
    """A reduction over the tokens of a sample."""

    @property
    def reads_first(self) -> bool:
        """Whether it reads a token that stands first, which in a causal stack would have seen itself alone."""
        return False

    @property
    def special(self) -> int:
        """How many of a sample's special tokens it must find, a class token first."""
        return 0

    def embedding_width(self, width: int) -> int:
        """The width of its vector, of tokens of a width."""
        return width

    @abstractmethod
    def build(self, width: int) -> Pool:
        """The module for tokens of a width."""


class Pool(nn.Module, ABC):
    @abstractmethod
    def forward(self, tokens: Tokens) -> Tensor:
        """B L D -> B E, the spec's ``embedding_width``."""

    def places(self, tokens: Tokens) -> Tensor | None:
        """Which tokens of each sample alone it reads, B K, int64; None: all.

        Where it says so, it makes of those what it makes of all: what nobody reads need not be computed.

        Args:
            tokens: where they stand and which are real; what they are is not asked.
        """
        return None

    def of_places(self, x: Tensor) -> Tensor:
        """What it makes of the tokens in those places: B K D -> B E."""
        return x[:, 0] if x.shape[1] == 1 else x.mean(1)


@dataclass(frozen=True)
class ClassTokenPoolSpec(PoolSpec):
    """The class token, which the encoder puts first, or special tokens after it.

    Attributes:
        index: which special token it begins with: 0 is the class token, 1 the one after it (DeiT's distillation token).
        number: how many it takes the mean of, from there on (AST: two).
    """

    cost: ClassVar[str] = "number·D"
    source: ClassVar[str] = (
        "ViT, Dosovitskiy et al. 2020, §3.1; DeiT, Touvron et al. 2020, §4; AST, Gong et al. 2021, §2.2, its code"
    )

    index: int = 0
    number: int = 1

    def __post_init__(self) -> None:
        require(self.index >= 0, self, "index", "at least 0")
        require(self.number >= 1, self, "number", "at least 1")

    @property
    def reads_first(self) -> bool:
        return True

    @property
    def special(self) -> int:
        return self.index + self.number

    def build(self, width: int) -> Pool:
        return ClassTokenPool(self)


class ClassTokenPool(Pool):
    def __init__(self, spec: ClassTokenPoolSpec) -> None:
        super().__init__()
        self.first, self.end = spec.index, spec.special

    def forward(self, tokens: Tokens) -> Tensor:
        return self.of_places(tokens.x[:, self.first : self.end])

    def places(self, tokens: Tokens) -> Tensor:
        places = torch.arange(self.first, self.end, device=tokens.x.device)
        return places.expand(len(tokens.x), -1)


@dataclass(frozen=True)
class FirstPoolSpec(PoolSpec):
    """The first real token that is not special: what a text begins with (BERT's [CLS] is a piece of its vocabulary)."""

    cost: ClassVar[str] = "D"
    source: ClassVar[str] = "BERT, Devlin et al. 2018, §3"

    @property
    def reads_first(self) -> bool:
        return True

    def build(self, width: int) -> Pool:
        return FirstPool()


class FirstPool(Pool):
    def forward(self, tokens: Tokens) -> Tensor:
        return _picked(tokens.x, self.places(tokens))

    def places(self, tokens: Tokens) -> Tensor:
        return _content(tokens).long().argmax(dim=1, keepdim=True)  # B 1; of equal ones the first


@dataclass(frozen=True)
class MeanPoolSpec(PoolSpec):
    """The mean of the real tokens, special tokens left out."""

    cost: ClassVar[str] = "L·D"
    source: ClassVar[str] = "ViT, Dosovitskiy et al. 2020, appendix D.3"

    def build(self, width: int) -> Pool:
        return MeanPool()


class MeanPool(Pool):
    def forward(self, tokens: Tokens) -> Tensor:
        weight = _content(tokens).to(tokens.x.dtype)[..., None]  # B L 1
        return (tokens.x * weight).sum(1) / weight.sum(1).clamp(min=1)


@dataclass(frozen=True)
class LastPoolSpec(PoolSpec):
    """The last real token: what a causal stack has read the whole text at (CLIP, GPT)."""

    cost: ClassVar[str] = "D"
    source: ClassVar[str] = "CLIP, Radford et al. 2021, §2.4"

    def build(self, width: int) -> Pool:
        return LastPool()


class LastPool(Pool):
    def forward(self, tokens: Tokens) -> Tensor:
        return tokens.x[:, -1] if tokens.valid is None else _picked(tokens.x, self.places(tokens))

    def places(self, tokens: Tokens) -> Tensor:
        place = torch.arange(tokens.x.shape[1], device=tokens.x.device)
        if tokens.valid is None:
            return place[-1:].expand(len(tokens.x), -1)
        return (place * tokens.valid).amax(dim=1, keepdim=True)  # B 1


@dataclass(frozen=True)
class AttentionPoolSpec(PoolSpec):
    """A learned query attends to the real tokens (Set Transformer, Lee et al. 2019 §3.2; the pool of SigLIP).

    Attributes:
        attention: how it attends; its heads divide the width.
        feedforward: applied to the result, normalised, as a residual branch; None: none.
        norm: of that branch.
    """

    cost: ClassVar[str] = "L·D²"
    source: ClassVar[str] = "Set Transformer, Lee et al. 2019, §3.2; SigLIP, Zhai et al. 2023"

    attention: AttentionSpec = field(default_factory=AttentionSpec)
    feedforward: FeedForwardSpec | None = None
    norm: NormSpec = field(default_factory=LayerNormSpec)

    def __post_init__(self) -> None:
        read = self.feedforward is not None or self.norm == LayerNormSpec()
        require(read, self, "norm", "left alone when there is no feedforward to normalise for")
        # A pool returns a vector alone: what a router asks for would be lost.
        dense = self.feedforward is None or isinstance(self.feedforward, DenseFeedForwardSpec)
        require(dense, self, "feedforward", "None or a feed-forward without experts")

    def build(self, width: int) -> Pool:
        return AttentionPool(self, width)


class AttentionPool(Pool):
    undecayed = ("query",)

    def __init__(self, spec: AttentionPoolSpec, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, 1, width))
        self.attention = spec.attention.build(width, memory_width=width)
        self.norm = None if spec.feedforward is None else spec.norm.build(width)
        self.feedforward = None if spec.feedforward is None else spec.feedforward.build(width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.query, std=0.02)

    def forward(self, tokens: Tokens) -> Tensor:
        view = View(Mask(valid=tokens.valid), memory=tokens.x)
        x, _, _ = self.attention(self.query.expand(tokens.x.shape[0], -1, -1).to(tokens.x.dtype), view, None, False)
        if self.feedforward is not None and self.norm is not None:
            x = x + self.feedforward(self.norm(x))[0]
        pooled: Tensor = x[:, 0]  # B D
        return pooled


@dataclass(frozen=True)
class JoinedPoolSpec(PoolSpec):
    """Vectors of several pools, side by side (the class token and the patches' mean, which DINOv2's classifier reads).

    Attributes:
        pools: two or more.
    """

    cost: ClassVar[str] = "the sum of theirs"
    source: ClassVar[str] = "DINOv2, Oquab et al. 2023, §7.1, its code"

    pools: tuple[PoolSpec, ...] = (ClassTokenPoolSpec(), MeanPoolSpec())

    def __post_init__(self) -> None:
        require(len(self.pools) >= 2, self, "pools", "two or more")

    @property
    def reads_first(self) -> bool:
        return any(pool.reads_first for pool in self.pools)

    @property
    def special(self) -> int:
        return max(pool.special for pool in self.pools)

    def embedding_width(self, width: int) -> int:
        return sum(pool.embedding_width(width) for pool in self.pools)

    def build(self, width: int) -> Pool:
        return JoinedPool(self, width)


class JoinedPool(Pool):
    def __init__(self, spec: JoinedPoolSpec, width: int) -> None:
        super().__init__()
        self.pools = nn.ModuleList(pool.build(width) for pool in spec.pools)

    def forward(self, tokens: Tokens) -> Tensor:
        return torch.cat([pool(tokens) for pool in self.pools], dim=-1)


def _picked(x: Tensor, place: Tensor) -> Tensor:
    """One token of each sample: B L D at B 1 -> B D."""
    return x.gather(1, place[..., None].expand(-1, 1, x.shape[2]))[:, 0]


def _content(tokens: Tokens) -> Tensor:
    """B L, True for real tokens that stand somewhere."""
    content = ~is_special(tokens.pos)
    return content if tokens.valid is None else content & tokens.valid
