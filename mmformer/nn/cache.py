"""Keys and values of the tokens that an attention has seen, which grow by a few at each call."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

AHEAD = 64
"""Tokens at least that there is room for when there was none; a long row gets half of its length."""


class Room:
    """Memory for more than is there. The state that was made last may go on in it; an earlier one finds its own."""

    def __init__(self, key: Tensor, value: Tensor, tokens: int) -> None:
        self.key, self.value = (
            x.new_empty(*x.shape[:2], x.shape[2] + tokens + max(AHEAD, x.shape[2] // 2), x.shape[3])
            for x in (key, value)
        )
        self.filled = 0

    def holds(self, key: Tensor, tokens: int) -> bool:
        """Whether these are its own keys, all of them, and so many more fit in."""
        own = key.data_ptr() == self.key.data_ptr() and key.shape[:2] == self.key.shape[:2]
        return own and key.shape[2] == self.filled and self.filled + tokens <= self.key.shape[2]

    def put(self, key: Tensor, value: Tensor) -> None:
        place = slice(self.filled, self.filled + key.shape[2])
        self.key[:, :, place], self.value[:, :, place] = key, value
        self.filled = place.stop


class KeyValue(NamedTuple):
    """The keys and values of the tokens that a layer has seen, rotated already."""

    key: Tensor  # B H L width of a head
    value: Tensor  # B H L width of a head
    room: Room | None = None

    def followed_by(self, key: Tensor, value: Tensor) -> KeyValue:
        """With those of more tokens behind; this one is not changed.

        Where no gradient is wanted, tokens are put where there is room for them: to copy all that is there at each id
        takes longer than to attend to it.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or key.is_meta:
            return KeyValue(torch.cat((self.key, key), dim=2), torch.cat((self.value, value), dim=2))
        room, tokens = self.room, key.shape[2]
        if (
            room is None
            or room.key.is_inference() != torch.is_inference_mode_enabled()
            or not room.holds(self.key, tokens)
        ):
            room = Room(self.key, self.value, tokens)
            room.put(self.key, self.value)
        room.put(key, value)
        return KeyValue(room.key[:, :, : room.filled], room.value[:, :, : room.filled], room)
