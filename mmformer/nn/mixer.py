"""What every mixer is: it moves information between the tokens that a view lets it look at.

``Mixer: (x, view, state) -> (y, state, aux)``. ``view`` is what a layer may look at, ``state`` what decoding carries
from call to call (a key–value cache, a recurrent state; batch first, so that beams can reorder it), and ``aux`` the
losses a mixer asks for (a router's balance). They are returned, never stored: activation checkpointing would run the
layer again and count them twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from mmformer.errors import InputError
from mmformer.nn.ability import Ability
from mmformer.nn.canvas import Canvas
from mmformer.nn.initialisation import Part
from mmformer.nn.kernel import lower
from mmformer.nn.mask import Mask
from mmformer.nn.pattern import PatternSpec
from mmformer.nn.plan import Plan, Sparse
from mmformer.nn.position import Heads, Rotary
from mmformer.spec import Catalogued, family
from mmformer.types import Aux


class View(NamedTuple):
    """What a layer may look at. Made once a pass by the stack."""

    mask: Mask
    rotary: Rotary | None = None
    bias: Tensor | None = None  # (B or 1) (H or 1) queries keys, added to scores
    lowered: Tensor | None = None  # mask and bias as a kernel takes them, once for all layers; None: each makes its own
    memory: Tensor | None = None  # B M D': attend to these instead of to x; see merged
    plans: Mapping[PatternSpec | None, Plan] = MappingProxyType({})  # of what is computed by plans; None: no pattern
    canvases: Mapping[tuple[int, ...], Canvas] = MappingProxyType({})  # by the axes that they are laid out over
    read: Tensor | None = None  # B K: the tokens that ask, counted through all rows (``Mixer.asks_alone``); None: all

    def merged(self, x: Tensor) -> Tensor:
        """Rows that read one row of the memory as one row: n·B L D -> B n·L D. They follow one another, as beams do. A
        cross mixer treats each query by itself, and does not see whose it is.
        """
        return x if self.memory is None or len(x) == len(self.memory) else x.reshape(len(self.memory), -1, x.shape[2])

    def with_lowered_mask(self, x: Tensor, keys: int) -> View:
        """The same for mixers that take ``lowered``, where there is anything to hide or to add.

        Args:
            x: B Q D, what is to look.
        """
        mask, _ = self.mask.sdpa(x.shape[1], keys, self.bias, x.device)
        return self if mask is None else self._replace(lowered=lower(mask, x, keys))


State = tuple[Any, ...]
"""What a mixer carries from one call to the next when decoding: tensors, batch first, so that beams can reorder them,
and what is none, which goes along as it is. Mixers name its members in a NamedTuple of their own."""


@family
@dataclass(frozen=True)
class MixerSpec(Catalogued, ABC):
    """A way to move information between tokens."""

    @property
    @abstractmethod
    def abilities(self) -> frozenset[Ability]:
        """What it can, with these settings."""

    @property
    def sparse(self) -> Sparse | None:
        """What it computes in blocks, of which it wants a plan; None: nothing."""
        return None

    @property
    def asks_order(self) -> bool:
        """Whether it asks how many real tokens of its segment stand before each (``Mask.order``)."""
        return self.sparse is not None

    @property
    def takes_lowered_mask(self) -> bool:
        """Whether it weighs all pairs of a view by what is in ``View.lowered``."""
        return False

    @property
    def lays_out(self) -> tuple[int, ...] | None:
        """The coordinate axes over which it wants tokens laid out, none for their order in the row; None: it does not
        (``nn/canvas.py``).
        """
        return None

    @property
    def longest(self) -> int | None:
        """How many tokens a row may have; None: any number."""
        return None

    def heads_of(self, width: int) -> Heads | None:
        """The heads that positions rotate or bias, in a stack of a width; None: it has none."""
        return None

    @abstractmethod
    def build(self, width: int, memory_width: int | None = None) -> Mixer:
        """The module for a stack's width; with ``memory_width``, one that reads memory (cross-attention).

        Raises:
            InputError: the mixer does not fit the width.
        """


def even_heads(spec: MixerSpec, width: int, heads: int) -> Heads:
    """Heads that share a width out evenly.

    Raises:
        InputError: they cannot, and what could.
    """
    if width % heads:
        around = (n for step in range(min(heads, 4096)) for n in (heads - step, heads + step))
        nearest = next((n for n in around if width % n == 0), 1)
        raise InputError(
            f"{type(spec).__name__}.heads must divide the stack's width, but {heads} heads do not divide {width}: "
            f"take {nearest} heads, or a width that is a multiple of {heads}."
        )
    return Heads(heads, width // heads)


class Mixer(Part, ABC):
    """The module that a MixerSpec builds."""

    @abstractmethod
    def forward(self, x: Tensor, view: View, state: State | None, keep: bool) -> tuple[Tensor, State | None, Aux]:
        """Mix.

        Args:
            x: B L D.
            view: what x may look at.
            state: what the last call returned, when decoding goes on from there.
            keep: return a state; otherwise None is returned, and nothing is held.
        """

    def asks_alone(self, view: View) -> bool:
        """Whether it can mix for some tokens of each row alone, those that ``View.read`` would say: B K D."""
        return False


def picked(x: Tensor, read: Tensor) -> Tensor:
    """Some of the tokens of all rows, as many for each sample: B L D at N K -> N K D."""
    return x.flatten(0, 1).index_select(0, read.flatten()).view(*read.shape, x.shape[2])
