"""What a user hands in, of any modality, as batches that a model reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from mmformer.bundle import Transforms
from mmformer.data.dataset import pad_sounds
from mmformer.data.picture import listed, read_picture
from mmformer.data.waveform import listed_sounds, read_sound
from mmformer.errors import InputError
from mmformer.models.model import ModelSpec
from mmformer.tokenizers.text import TextEncoder
from mmformer.types import Batch

WORDS = {"image": "pictures", "text": "texts", "audio": "sounds"}

_WINDOW = 16
"""Batches whose sounds are sorted by length together: they are held decoded."""

Numbered = tuple[list[int], Batch]
"""The places of values in the user's list, and the batch of them."""


class Reader:
    """Reads values as a bundle's transforms say."""

    def __init__(self, spec: ModelSpec, transforms: Transforms, batch_size: int) -> None:
        self.spec, self.transforms, self.batch_size = spec, transforms, batch_size

    @cached_property
    def text_encoders(self) -> dict[str, TextEncoder]:
        return self.spec.text_encoders()

    def listed(self, modality: str, value: Any) -> tuple[bool, list[Any]]:
        """Whether one value was given, and the values as a list.

        Raises:
            InputError: there are none, or what was given is no value of the modality.
        """
        if modality == "text":
            single, values = (True, [value]) if isinstance(value, str) else (False, list(value))
            wrong = next((text for text in values if not isinstance(text, str)), None)
            if wrong is not None:
                raise InputError(f"A text must be a string, but is {type(wrong).__name__}.")
        else:
            single, values = (listed if modality == "image" else listed_sounds)(value)
        if not values:
            raise InputError(f"There are no {WORDS[modality]}: the list is empty.")
        return single, values

    def batches(self, modality: str, values: Sequence[Any]) -> Iterator[Numbered]:
        """Batches of the values; those that differ in length with others of about theirs, for less padding.

        Raises:
            InputError: the model does not read the modality, or a value cannot be read.
        """
        made = {"image": self._images, "text": self._texts, "audio": self._sounds}
        return made[modality](values)

    def _images(self, pictures: Sequence[Any]) -> Iterator[Numbered]:
        transform = self.transforms.image
        if transform is None:
            raise InputError("This model reads no images.")
        for places in _cut(range(len(pictures)), self.batch_size):
            images = np.stack([transform(read_picture(pictures[i], f"picture {i}")) for i in places])
            yield places, Batch((), {}, image=torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())

    def _texts(self, texts: Sequence[str]) -> Iterator[Numbered]:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True)
        for places in _cut(order, self.batch_size):
            yield places, Batch((), {}, text=self.text_encoders["text"].encode([texts[i] for i in places]))

    def _sounds(self, sounds: Sequence[Any]) -> Iterator[Numbered]:
        transform = self.transforms.audio
        if transform is None:
            raise InputError("This model reads no sounds.")
        for window in _cut(range(len(sounds)), _WINDOW * self.batch_size):
            heard = {i: transform(read_sound(sounds[i], f"sound {i}")) for i in window}
            for places in _cut(sorted(window, key=lambda i: len(heard[i]), reverse=True), self.batch_size):
                yield places, Batch((), {}, audio=pad_sounds([heard[i] for i in places], transform.rate))


def _cut(places: Sequence[int], size: int) -> Iterator[list[int]]:
    for first in range(0, len(places), size):
        yield list(places[first : first + size])
