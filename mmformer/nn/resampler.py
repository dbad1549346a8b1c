"""From however many tokens left a stack to a fixed number of them, for those who read them: pools, heads, decoders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmformer.nn.attention import AttentionSpec
from mmformer.nn.mask import Mask
from mmformer.nn.mixer import View
from mmformer.nn.norm import LayerNormSpec, NormSpec
from mmformer.spec import Catalogued, family, require
from mmformer.types import AXES, SPECIAL, Tokens


@family
@dataclass(frozen=True)
class ResamplerSpec(Catalogued, ABC):
    """A fixed number of learned queries that read tokens.

    Attributes:
        queries: how many tokens it makes. They stand at 0, 1, 2 … on the first axis.
        width: of those tokens; None: as wide as what it reads.
        class_query: the first query makes the class token, which pools read; decoders read the others alone.
    """

    queries: int = 64
    width: int | None = None
    class_query: bool = False

    def __post_init__(self) -> None:
        least = 1 + self.class_query
        require(self.queries >= least, self, "queries", f"at least {least}")
        require(self.width is None or self.width >= 1, self, "width", "None or at least 1")

    def width_of(self, width: int) -> int:
        """The width of its tokens, of tokens of a width."""
        return self.width or width

    @property
    def places(self) -> tuple[int, ...]:
        """How many places its tokens take on each coordinate axis."""
        return (self.queries - self.class_query, *(1,) * (AXES - 1))

    @abstractmethod
    def build(self, width: int) -> Resampler:
        """The module for tokens of a width."""


class Resampler(nn.Module, ABC):
    """Holds the queries; what they do is the subclass's."""

    undecayed: tuple[str, ...] = ("query",)

    def __init__(self, spec: ResamplerSpec, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(spec.queries, spec.width_of(width)))  # Q W
        self.class_query = spec.class_query
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.query, std=0.02)

    @abstractmethod
    def read(self, tokens: Tokens) -> Tensor:
        """What the queries make of tokens: B L D -> B Q W."""

    def forward(self, tokens: Tokens) -> Tokens:
        """B L D -> B Q W, all of them real; a class token first, where there is one."""
        place = torch.arange(len(self.query), device=tokens.x.device)
        if self.class_query:
            place = place - 1
        rest = torch.where(place < 0, SPECIAL, 0)
        pos = torch.stack((place, *(rest,) * (AXES - 1)), dim=-1)  # Q A
        return Tokens(self.read(tokens), pos.expand(len(tokens.x), -1, -1))


@dataclass(frozen=True)
class AttentionResamplerSpec(ResamplerSpec):
    """Queries attend to the tokens once (CoCa's attentional pooler).

    Attributes:
        attention: how they attend; its heads divide the width of the queries.
        norm: of the queries, and of the tokens that they attend to.
        final_norm: normalise what they make, too.
    """

    cost: ClassVar[str] = "L·queries·width"
    source: ClassVar[str] = "CoCa, Yu et al. 2022, §3.2, in open_clip; Set Transformer, Lee et al. 2019, §3.2"

    attention: AttentionSpec = field(default_factory=AttentionSpec)
    norm: NormSpec = field(default_factory=LayerNormSpec)
    final_norm: bool = False

    def build(self, width: int) -> Resampler:
        return AttentionResampler(self, width)


class AttentionResampler(Resampler):
    def __init__(self, spec: AttentionResamplerSpec, width: int) -> None:
        super().__init__(spec, width)
        own = spec.width_of(width)
        self.query_norm, self.memory_norm = spec.norm.build(own), spec.norm.build(width)
        self.attention = spec.attention.build(own, memory_width=width)
        self.norm = spec.norm.build(own) if spec.final_norm else nn.Identity()

    def read(self, tokens: Tokens) -> Tensor:
        query = self.query_norm(self.query).to(tokens.x.dtype).expand(len(tokens.x), -1, -1)
        view = View(Mask(valid=tokens.valid), memory=self.memory_norm(tokens.x))
        made: Tensor = self.norm(self.attention(query, view, None, False)[0])
        return made
