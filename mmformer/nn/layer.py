"""A layer: residual branches around a mixer, an optional reader of memory, and a feed-forward.

Where the norms stand is decided here and nowhere else: ``pre`` normalises what enters a branch (GPT-2, ViT), ``post``
normalises the sum that leaves it (the original Transformer, BERT).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mmformer.nn.attention import AttentionSpec
from mmformer.nn.feedforward import FeedForwardSpec, GELUFeedForwardSpec
from mmformer.nn.mixer import Aux, MixerSpec, State, View
from mmformer.nn.norm import LayerNormSpec, NormSpec
from mmformer.spec import require, require_probability


@dataclass(frozen=True)
class LayerSpec:
    """One layer of a stack.

    Attributes:
        mixer: between the tokens.
        feedforward: on each token; None: the layer has none.
        cross: reads memory, between mixer and feed-forward; None: the layer reads none.
        norm: of each branch.
        placement: of the norms, before a branch or after its residual sum.
        dropout: on what a branch adds.
        layer_scale: where a learned gain on each channel of what a branch adds starts (CaiT, Touvron et al. 2021,
            §2.1): small values let a deep or young stack begin near the identity; None: there is no such gain.
    """

    mixer: MixerSpec = AttentionSpec()
    feedforward: FeedForwardSpec | None = GELUFeedForwardSpec()
    cross: MixerSpec | None = None
    norm: NormSpec = LayerNormSpec()
    placement: Literal["pre", "post"] = "pre"
    dropout: float = 0.0
    layer_scale: float | None = None

    def __post_init__(self) -> None:
        require(self.layer_scale is None or self.layer_scale > 0, self, "layer_scale", "None or positive")
        require(self.placement in ("pre", "post"), self, "placement", "'pre' or 'post'")
        require_probability(self, "dropout")

    def build(self, width: int, memory_width: int | None = None) -> Layer:
        return Layer(self, width, memory_width)


class LayerState(NamedTuple):
    """What a layer's mixers carry from call to call."""

    mixer: State | None = None
    cross: State | None = None


class Residual(nn.Module):
    """The norm, the gain, the dropout and the sum of one branch; the branch itself is the layer's."""

    def __init__(self, spec: LayerSpec, width: int) -> None:
        super().__init__()
        self.start = spec.layer_scale
        self.gain = None if spec.layer_scale is None else nn.Parameter(torch.empty(width))
        self.pre = spec.placement == "pre"
        self.norm = spec.norm.build(width)
        self.dropout = nn.Dropout(spec.dropout)

        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.gain is not None and self.start is not None:
            nn.init.constant_(self.gain, self.start)

    def enter(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.pre else x

    def leave(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.dropout(y if self.gain is None else y * self.gain)
        return x if self.pre else self.norm(x)


class Layer(nn.Module):
    def __init__(self, spec: LayerSpec, width: int, memory_width: int | None) -> None:
        super().__init__()
        self.mixer = spec.mixer.build(width)
        self.mixer_residual = Residual(spec, width)
        self.cross = None if spec.cross is None else spec.cross.build(width, memory_width or width)
        self.cross_residual = None if spec.cross is None else Residual(spec, width)
        self.feedforward = None if spec.feedforward is None else spec.feedforward.build(width)
        self.feedforward_residual = None if spec.feedforward is None else Residual(spec, width)

    def forward(
        self, x: Tensor, view: View, memory: View | None, state: LayerState | None
    ) -> tuple[Tensor, LayerState | None, Aux]:
        """Apply the branches in turn.

        Args:
            x: B L D.
            view: what the mixer may look at.
            memory: what the cross mixer may look at; ignored only when the layer has no cross mixer.
            state: to go on from (empty at first), or None to carry nothing.
        """
        keep = state is not None
        past = state or LayerState()
        y, mixer_state, aux = self.mixer(self.mixer_residual.enter(x), view, past.mixer, keep)
        x = self.mixer_residual.leave(x, y)
        cross_state = None
        if self.cross is not None and self.cross_residual is not None and memory is not None:
            y, cross_state, more = self.cross(self.cross_residual.enter(x), memory, past.cross, keep)
            x = self.cross_residual.leave(x, y)
            aux = {**aux, **{f"cross_{name}": term for name, term in more.items()}}
        if self.feedforward is not None and self.feedforward_residual is not None:
            y = self.feedforward(self.feedforward_residual.enter(x))
            x = self.feedforward_residual.leave(x, y)
        return x, (LayerState(mixer_state, cross_state) if keep else None), aux
