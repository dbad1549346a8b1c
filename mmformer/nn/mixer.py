"""What every mixer is: it moves information between the tokens that a view lets it look at.

``Mixer: (x, view, state) -> (y, state, aux)``. ``view`` is what a layer may look at, ``state`` what decoding carries
from call to call (a key–value cache, a recurrent state; batch first, so that beams can reorder it), and ``aux`` the
losses a mixer asks for (a router's balance). They are returned, never stored: activation checkpointing would run the
layer again and count them twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from mmformer.nn.mask import Mask
from mmformer.nn.position import Rotary
from mmformer.spec import family
from mmformer.types import LossTerm


class View(NamedTuple):
    """What a layer may look at. Made once a pass by the stack."""

    mask: Mask
    rotary: Rotary | None = None
    bias: Tensor | None = None  # (B or 1) (H or 1) queries keys, added to scores
    memory: Tensor | None = None  # B M D': attend to these instead of to x


class KeyValue(NamedTuple):
    """The keys and values of the tokens that a layer has seen, rotated already."""

    key: Tensor  # B Hk L width of a head
    value: Tensor  # B Hk L width of a head


State = KeyValue
"""What a mixer carries from one call to the next when decoding."""

Aux = dict[str, LossTerm]


@family
@dataclass(frozen=True)
class MixerSpec(ABC):
    """A way to move information between tokens."""

    def head_width(self, width: int) -> int | None:
        """The width of a head that rotary positions can rotate; None: this mixer has no such heads."""
        return None

    @abstractmethod
    def build(self, width: int, memory_width: int | None = None) -> Mixer:
        """The module for a stack's width; with ``memory_width``, one that reads memory (cross-attention).

        Raises:
            InputError: the mixer does not support what it is asked for.
        """


class Mixer(nn.Module, ABC):
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
