"""A layer: residual branches around a mixer, an optional reader of memory, and a feed-forward.

Where the norms stand is decided here and nowhere else: ``pre`` normalises what enters a branch (GPT-2, ViT), ``post``
normalises the sum that leaves it (the original Transformer, BERT), ``sandwich`` normalises what enters a branch and
what leaves it, before the sum (CogView, Ding et al. 2021, §2.4; Gemma 2). ``deep`` is DeepNorm (Wang et al. 2022,
§3): ``post``, with what passes a branch by made larger, and some of the first weights smaller, by the stack's depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mmformer.nn.ability import MEANINGS, Ability, require_abilities
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.dropout import Dropout
from mmformer.nn.feedforward import FeedForwardSpec, GELUFeedForwardSpec
from mmformer.nn.initialisation import Part
from mmformer.nn.mixer import MixerSpec, State, View, picked
from mmformer.nn.norm import LayerNormSpec, NormSpec
from mmformer.nn.recomputed import normed
from mmformer.spec import require, require_probability
from mmformer.types import Aux


@dataclass(frozen=True)
class LayerSpec:
    """One layer of a stack.

    Attributes:
        mixer: between the tokens; None: the layer only reads memory (every other one of CoCa's).
        feedforward: on each token; None: the layer has none.
        cross: reads memory, between mixer and feed-forward; None: the layer reads none.
        memory_norm: normalise what is read, too, in each layer anew (open_clip's CoCa).
        norm: of each branch.
        placement: of the norms: before a branch (``pre``), after its residual sum (``post``; ``deep``, DeepNorm, whose
            constants follow from the stack's depth), or on both sides of a branch (``sandwich``).
        parallel: mixer and feed-forward read one norm of the same tokens, and are summed (PaLM, Chowdhery et al. 2022,
            §2; ViT-22B): their products can be fused, at a little less quality a parameter.
        skip_scale: a factor on what passes each branch by; 1: none.
        dropout: on what a branch adds.
        mixer_dropout: in its place, on what the mixers' branches add; None: as on the feed-forward's.
        gated: what each branch adds is multiplied by the tanh of a learned number, 0 at first, so that the layer begins
            as if it were not there: what reads pictures is put between the layers of a language model that is trained
            already (Flamingo, Alayrac et al. 2022, §2.2).
        layer_scale: where a learned gain on each channel of what a branch adds starts (CaiT, Touvron et al. 2021,
            §2.1): small values let a deep or young stack begin near the identity; None: there is no such gain.
        branch_scale: a factor on what each branch adds (Granite's residual multiplier, 0.22, say); 1: none.
    """

    mixer: MixerSpec | None = AttentionSpec()
    feedforward: FeedForwardSpec | None = GELUFeedForwardSpec()
    cross: MixerSpec | None = None
    norm: NormSpec = LayerNormSpec()
    placement: Literal["pre", "post", "sandwich", "deep"] = "pre"
    parallel: bool = False
    skip_scale: float = 1.0
    dropout: float = 0.0
    layer_scale: float | None = None
    branch_scale: float = 1.0
    memory_norm: bool = False
    mixer_dropout: float | None = None
    gated: bool = False

    def __post_init__(self) -> None:
        require(self.layer_scale is None or self.layer_scale > 0, self, "layer_scale", "None or positive")
        placements = ("pre", "post", "sandwich", "deep")
        require(self.placement in placements, self, "placement", "'pre', 'post', 'sandwich' or 'deep'")
        for name in ("skip_scale", "branch_scale"):
            require(getattr(self, name) > 0, self, name, "positive")
            free = self.placement != "deep" or getattr(self, name) == 1
            require(free, self, name, "1 where placement is 'deep', which follows from the stack's depth")
        require_probability(self, "dropout")
        if self.mixer_dropout is not None:
            require_probability(self, "mixer_dropout")
        require(self.mixer is not None or self.cross is not None, self, "mixer", "a mixer, or None beside a cross")
        require(self.cross is not None or not self.memory_norm, self, "memory_norm", "false where there is no cross")
        whole = self.mixer is not None and self.feedforward is not None and self.cross is None
        fits = whole and self.placement == "pre" and self.skip_scale == 1
        allowed = "false, unless placement is 'pre' and skip_scale 1, with mixer and feedforward and without cross"
        require(fits or not self.parallel, self, "parallel", allowed)
        alone = self.layer_scale is None and not self.parallel and self.placement != "deep"
        only = "false beside layer_scale or parallel, or where placement is 'deep'"
        require(alone or not self.gated, self, "gated", only)
        if self.cross is not None:
            require_abilities("LayerSpec.cross", self.cross, ["cross"], "A reader of memory")

    @property
    def abilities(self) -> frozenset[Ability]:
        """What its mixer and its feed-forward can."""
        parts = [part.abilities for part in (self.mixer, self.feedforward) if part is not None]
        return frozenset(MEANINGS).intersection(*parts)

    @property
    def branches(self) -> int:
        """How many residual branches it has."""
        return sum(part is not None for part in (self.mixer, self.cross, self.feedforward))

    def build(self, width: int, memory_width: int | None = None, branches: int | None = None) -> Layer:
        """The module; ``branches`` is the number of residual branches of the whole stack, None: the layer's own."""
        return Layer(self, width, memory_width, branches or self.branches)


class LayerState(NamedTuple):
    """What a layer's mixers carry from call to call."""

    mixer: State | None = None
    cross: State | None = None


class Residual(nn.Module):
    """The norms, the gain or the gate, the dropout and the sum of one branch; the branch itself is the layer's."""

    def __init__(
        self, spec: LayerSpec, width: int, branches: int, normed: bool = True, dropout: float | None = None
    ) -> None:
        super().__init__()
        self.spec, self.post = spec, spec.placement in ("post", "deep")
        # DeepNorm's α, (2 × depth)^¼, or (3 × depth)^¼ where layers read memory: each layer has so many branches.
        self.skip_scale = branches**0.25 if spec.placement == "deep" else spec.skip_scale
        self.gain = None if spec.layer_scale is None else nn.Parameter(torch.empty(width))
        self.gate = nn.Parameter(torch.empty(1)) if spec.gated else None
        self.norm = spec.norm.build(width) if normed else nn.Identity()
        self.inner_norm = spec.norm.build(width) if spec.placement == "sandwich" else nn.Identity()
        self.dropout = Dropout(spec.dropout if dropout is None else dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.gain is not None and self.spec.layer_scale is not None:
            nn.init.constant_(self.gain, self.spec.layer_scale)
        if self.gate is not None:
            nn.init.zeros_(self.gate)

    def enter(self, x: Tensor, *readers: Part) -> Tensor:
        """What the branch reads; where all of its readers see to that, it is not kept for the gradient."""
        if self.post:
            return x
        entered: Tensor = normed(x, self.norm) if all(each.makes_input_again for each in readers) else self.norm(x)
        return entered

    def leave(self, x: Tensor, y: Tensor, drop_path: float = 0.0) -> Tensor:
        """The sum of what came in and what the branch made of it, which some samples go without by chance."""
        if self.spec.placement == "sandwich":
            y = self.inner_norm(y.to(x.dtype))  # autocast leaves a branch's end in half the precision
        y = y if self.gain is None else y * self.gain
        y = y if self.gate is None else y * self.gate.tanh()
        y = self._dropped(self.dropout(y), drop_path)
        y = y if self.spec.branch_scale == 1 else y * self.spec.branch_scale
        x = (x if self.skip_scale == 1 else x * self.skip_scale) + y
        return self.norm(x) if self.post else x

    def _dropped(self, y: Tensor, chance: float) -> Tensor:
        """Nothing for some samples, by chance; more for the others, so that the mean is the same."""
        if not self.training or not chance:
            return y
        kept = torch.rand(len(y), 1, 1, device=y.device) >= chance
        return y * (kept / (1 - chance)).to(y.dtype)


class Layer(nn.Module):
    def __init__(self, spec: LayerSpec, width: int, memory_width: int | None, branches: int) -> None:
        super().__init__()
        self.mixer = None if spec.mixer is None else spec.mixer.build(width)
        mixed = spec.mixer_dropout
        self.mixer_residual = None if spec.mixer is None else Residual(spec, width, branches, dropout=mixed)
        self.cross = None if spec.cross is None else spec.cross.build(width, memory_width or width)
        self.cross_residual = None if spec.cross is None else Residual(spec, width, branches, dropout=mixed)
        self.memory_norm = spec.norm.build(memory_width or width) if spec.memory_norm else None
        self.parallel = spec.parallel
        self.feedforward = None if spec.feedforward is None else spec.feedforward.build(width)
        self.feedforward_residual = None
        if spec.feedforward is not None:
            self.feedforward_residual = Residual(spec, width, branches, normed=not spec.parallel)
        self.is_by_token = self.feedforward is None or self.feedforward.by_token  # after its mixers
        self._ends_by_token = self.is_by_token and spec.cross is None and not spec.parallel  # after the first

    def forward(
        self,
        x: Tensor,
        view: View,
        memory: View | None,
        state: LayerState | None,
        drop_path: float = 0.0,
        read: Tensor | None = None,
    ) -> tuple[Tensor, LayerState | None, Aux]:
        """Apply the branches in turn.

        Args:
            x: B L D.
            view: what the mixer may look at.
            memory: what the cross mixer may look at; ignored only when the layer has no cross mixer.
            state: to go on from (empty at first), or None to carry nothing.
            drop_path: the chance that a sample skips a branch, in training.
            read: N K, int64: which of the tokens, counted through all rows, are returned (N K D); None: all. What is
                made of each token by itself is not made of others.
        """
        keep = state is not None
        past = state or LayerState()
        entered, mixer_state, cross_state = x, None, None
        aux: Aux = {}  # not Aux(), which a compiled graph cannot call
        if self.mixer is not None and self.mixer_residual is not None:
            beside = (self.feedforward,) if self.parallel and self.feedforward is not None else ()
            entered = self.mixer_residual.enter(x, self.mixer, *beside)
            if read is not None and self._ends_by_token and self.mixer.asks_alone(view) and not keep:
                view, x, read = view._replace(read=read), picked(x, read), None
            y, mixer_state, aux = self.mixer(entered, view, past.mixer, keep)
            x = self.mixer_residual.leave(x, y, drop_path)
        if self.cross is not None and self.cross_residual is not None and memory is not None:
            if self.memory_norm is not None and past.cross is None and memory.memory is not None:
                memory = memory._replace(memory=self.memory_norm(memory.memory))
            asked = memory.merged(self.cross_residual.enter(x, self.cross))
            y, cross_state, more = self.cross(asked, memory, past.cross, keep)
            y = y.reshape(x.shape)
            x = self.cross_residual.leave(x, y, drop_path)
            aux = {**aux, **{f"cross_{name}": term for name, term in more.items()}}
        if read is not None and self.is_by_token:
            x, entered, read = picked(x, read), picked(entered, read) if self.parallel else entered, None
        if self.feedforward is not None and self.feedforward_residual is not None:
            valid = None if view.mask.valid is None else view.mask.valid[:, -x.shape[1] :]  # of x's own tokens
            y, more = self.feedforward(
                entered if self.parallel else self.feedforward_residual.enter(x, self.feedforward), valid
            )
            x = self.feedforward_residual.leave(x, y, drop_path)
            aux = {**aux, **more}
        x = x if read is None else picked(x, read)
        return x, (LayerState(mixer_state, cross_state) if keep else None), aux
