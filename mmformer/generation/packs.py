"""What is packed of a decoder's weights, so that each id goes through them fastest (``nn/prepacked.py``)."""

from __future__ import annotations

from typing import NamedTuple

import torch

from mmformer.models.decoder import Decoder
from mmformer.nn.precision import product_dtype
from mmformer.nn.prepacked import PackedLinear, can_pack, packed_for, prepacked, weights_to_pack
from mmformer.nn.stack import Stack


class Packed(NamedTuple):
    """What each id goes through."""

    stack: Stack
    pieces: PackedLinear  # the vocabulary's

    @staticmethod
    def of(decoder: Decoder, stack: Stack, rows: int) -> Packed | None:
        """None: that would not be faster, or cannot be done."""
        weights = weights_to_pack(stack)
        if weights is None or not can_pack([*weights, decoder.pieces], rows):
            return None
        return Packed(prepacked(stack, rows), PackedLinear.of(decoder.pieces, decoder.logit_bias, rows))


class Packs:
    """Holds what was packed last, for those who write several batches with one decoder.

    It does not see what becomes of weights: while it is used, they are to stay as they are.
    """

    def __init__(self) -> None:
        self._held: tuple[Decoder, tuple[torch.dtype, int], Packed] | None = None

    def held(self, decoder: Decoder, rows: int) -> Packed | None:
        """What an earlier batch of so many rows had packed of it; None: nothing."""
        if self._held is None or torch.is_grad_enabled():
            return None
        owner, order, packed = self._held
        return packed if owner is decoder and order == _order(decoder, rows) else None

    def pack(self, decoder: Decoder, stack: Stack, rows: int) -> Packed | None:
        """It packed for so many rows; None: as it is, it is as fast."""
        self._held = None  # not two at once
        packed = Packed.of(decoder, stack, rows)
        if packed is not None:
            self._held = decoder, _order(decoder, rows), packed
        return packed


def _order(decoder: Decoder, rows: int) -> tuple[torch.dtype, int]:
    """What the order of packed weights depends on."""
    dtype = product_dtype(decoder.pieces)
    return dtype, packed_for(dtype, rows)
