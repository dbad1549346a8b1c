"""Flamingo's resampler: latents that read features and one another, layer after layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmformer.nn.attention import AttentionSpec
from mmformer.nn.feedforward import DenseFeedForwardSpec, FeedForwardSpec, GELUFeedForwardSpec
from mmformer.nn.mask import Mask
from mmformer.nn.mixer import View
from mmformer.nn.norm import LayerNormSpec, NormSpec
from mmformer.nn.resampler import Resampler, ResamplerSpec
from mmformer.spec import require
from mmformer.types import Tokens, is_special


@dataclass(frozen=True)
class PerceiverResamplerSpec(ResamplerSpec):
    """Queries read tokens and one another, and go through a feed-forward, in several layers (Flamingo).

    A picture is one frame here: Flamingo's embeddings of the time of a video's frames are left out. Where queries have
    a width of their own, tokens are projected to it first.

    Attributes:
        depth: number of layers.
        attention: of each; its keys and values are made of the tokens and of the queries alike.
        feedforward: of each.
        norm: of the queries and of the tokens in each layer, of what enters the feed-forward, and of what leaves the
            last layer.
        content: read no special tokens (the class token of a ViT, its registers).
    """

    cost: ClassVar[str] = "L·queries·width·depth"
    source: ClassVar[str] = "Flamingo, Alayrac et al. 2022, §2.1, appendix A.1.1 with figure 5"

    depth: int = 6
    attention: AttentionSpec = field(default_factory=lambda: AttentionSpec(bias=False))
    feedforward: FeedForwardSpec = field(default_factory=lambda: GELUFeedForwardSpec(bias=False))
    norm: NormSpec = field(default_factory=LayerNormSpec)
    content: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.depth >= 1, self, "depth", "at least 1")
        require(self.attention.pattern is None, self, "attention", "one without a pattern: queries stand nowhere")
        dense = isinstance(self.feedforward, DenseFeedForwardSpec)
        require(dense, self, "feedforward", "a feed-forward without experts")

    def build(self, width: int) -> Resampler:
        return PerceiverResampler(self, width)


class PerceiverResampler(Resampler):
    def __init__(self, spec: PerceiverResamplerSpec, width: int) -> None:
        super().__init__(spec, width)
        own = spec.width_of(width)
        self.content = spec.content
        self.project = nn.Identity() if own == width else nn.Linear(width, own, bias=False)
        self.layers = nn.ModuleList(PerceiverLayer(spec, own) for _ in range(spec.depth))
        self.norm = spec.norm.build(own)

    def read(self, tokens: Tokens) -> Tensor:
        features = self.project(tokens.x)
        x = self.query.to(features.dtype).expand(len(features), -1, -1)  # B Q W
        view = View(Mask(valid=self._seen(tokens)))
        for layer in self.layers:
            x = layer(x, features, view)
        made: Tensor = self.norm(x)
        return made

    def _seen(self, tokens: Tokens) -> Tensor | None:
        """Which of the tokens, and after them of the queries, are read: B (L + Q); None: all."""
        if tokens.valid is None and not self.content:
            return None
        seen = torch.ones_like(tokens.pos[..., 0], dtype=torch.bool) if tokens.valid is None else tokens.valid
        seen = seen & ~is_special(tokens.pos) if self.content else seen
        return torch.cat((seen, seen.new_ones(len(seen), len(self.query))), dim=1)


class PerceiverLayer(nn.Module):
    def __init__(self, spec: PerceiverResamplerSpec, width: int) -> None:
        super().__init__()
        self.query_norm, self.memory_norm = spec.norm.build(width), spec.norm.build(width)
        self.attention = spec.attention.build(width, memory_width=width)
        self.feedforward_norm = spec.norm.build(width)
        self.feedforward = spec.feedforward.build(width)

    def forward(self, x: Tensor, features: Tensor, view: View) -> Tensor:
        """B Q W, which read B L W and themselves."""
        query = self.query_norm(x)
        read = torch.cat((self.memory_norm(features), query), dim=1)
        x = x + self.attention(query, view._replace(memory=read), None, False)[0]
        made: Tensor = x + self.feedforward(self.feedforward_norm(x))[0]
        return made
