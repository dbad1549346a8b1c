"""Keys and values of the tokens that an attention has seen, which grow by a few at each call."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

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
        self.taken = False

    def holds(self, key: Tensor, tokens: int) -> bool:
        """Whether these are its own keys, all of them, and so many more fit in."""
        own = key.data_ptr() == self.key.data_ptr() and key.shape[:2] == self.key.shape[:2]
        return own and key.shape[2] == self.filled and self.filled + tokens <= self.key.shape[2]

    def put(self, key: Tensor, value: Tensor) -> None:
        place = slice(self.filled, self.filled + key.shape[2])
        self.key[:, :, place], self.value[:, :, place] = key, value
        self.filled = place.stop

    def take(self, rows: Tensor) -> Room:
        """The same memory, with some of its rows where they are to be; who held it before may not go on in it."""
        taken = object.__new__(Room)
        taken.key, taken.value = self.key[: len(rows)], self.value[: len(rows)]
        taken.filled, taken.taken, self.taken = 0, False, True
        held = slice(self.filled)
        taken.put(self.key[:, :, held].index_select(0, rows), self.value[:, :, held].index_select(0, rows))
        return taken


class KeyValue(NamedTuple):
    """The keys and values of the tokens that a layer has seen, rotated already."""

    key: Tensor  # B H L width of a head
    value: Tensor  # B H L width of a head
    room: Room | None = None
    at: Tensor | None = None  # 1, int64: see fixed

    def fixed(self, places: int, at: Tensor) -> KeyValue:
        """The same, with places for so many tokens in all, each put where ``at`` says by then (1, int64, shared): each
        call reads and writes the same memory, so that a device can do it again as it was recorded. What stands from
        there on is to be hidden.
        """
        free = places - self.key.shape[2]
        key, value = (F.pad(x, (0, 0, 0, free)) for x in (self.key, self.value))  # B H places width of a head
        return KeyValue(key, value, at=at)

    def followed_by(self, key: Tensor, value: Tensor) -> KeyValue:
        """With those of more tokens behind; this one is not changed, but where it is fixed: then it has one more.

        Where no gradient is wanted, tokens are put where there is room for them: to copy all that is there at each id
        takes longer than to attend to it.
        """
        self._require_whole()
        if self.at is not None:
            self.key.index_copy_(2, self.at, key)
            self.value.index_copy_(2, self.at, value)
            return self
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or key.is_meta:
            return KeyValue(torch.cat((self.key, key), dim=2), torch.cat((self.value, value), dim=2))
        room, tokens = self.room, key.shape[2]
        if room is None or not self._may_go_on(tokens):
            room = Room(self.key, self.value, tokens)
            room.put(self.key, self.value)
        room.put(key, value)
        return KeyValue._in(room)

    def take(self, rows: Tensor) -> KeyValue:
        """Some rows, N: those of these texts, which may be there several times. This one may be used up.

        Where they fit, they stay in its memory: to have new memory at each id takes longer than to move what is there.
        """
        self._require_whole()
        if self.room is None or len(rows) > len(self.room.key) or not self._may_go_on(0):
            return KeyValue(self.key.index_select(0, rows), self.value.index_select(0, rows))
        return KeyValue._in(self.room.take(rows))

    @staticmethod
    def _in(room: Room) -> KeyValue:
        return KeyValue(room.key[:, :, : room.filled], room.value[:, :, : room.filled], room)

    def _may_go_on(self, tokens: int) -> bool:
        """Whether its room may be written into, and has place for so many more."""
        if self.room is None or torch.is_grad_enabled():
            return False
        same_mode = self.room.key.is_inference() == torch.is_inference_mode_enabled()
        return same_mode and self.room.holds(self.key, tokens)

    def _require_whole(self) -> None:
        if self.room is not None and self.room.taken:
            raise RuntimeError("Of these keys, rows were taken before: they are no longer what they were.")
