"""What a user hands in, of any modality, as batches that a model reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch

from mmformer.bundle import Transforms
from mmformer.data.collate import pad_sounds
from mmformer.data.native import join_pictures
from mmformer.data.picture import listed, read_picture
from mmformer.data.waveform import listed_sounds, read_sound
from mmformer.errors import InputError
from mmformer.models.model import ModelSpec
from mmformer.tokenizers.text import TextEncoder
from mmformer.types import Batch

WORDS = {"image": "pictures", "text": "texts", "audio": "sounds"}

_WINDOW = 4
"""Batches whose sounds, or pictures of different sizes, are sorted by length together: they are held decoded."""

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
        listing: dict[str, Callable[[Any], tuple[bool, list[Any]]]]
        listing = {"image": listed, "text": _listed_texts, "audio": listed_sounds}
        single, values = listing[modality](value)
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
            raise InputError("transforms.yaml of the bundle has no image: it does not say what pictures are made into.")
        for window in _cut(range(len(pictures)), self.batch_size * (1 if transform.patch is None else _WINDOW)):
            seen = {i: transform(read_picture(pictures[i], f"picture {i}")) for i in window}
            for places in _cut(sorted(window, key=lambda i: seen[i].size, reverse=True), self.batch_size):
                images = [torch.from_numpy(seen[i]).permute(2, 0, 1) for i in places]
                yield places, Batch((), {}, image=join_pictures(images, transform.patch))

    def _texts(self, texts: Sequence[str]) -> Iterator[Numbered]:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True)
        for places in _cut(order, self.batch_size):
            yield places, Batch((), {}, text=self.text_encoders["text"].encode([texts[i] for i in places]))

    def _sounds(self, sounds: Sequence[Any]) -> Iterator[Numbered]:
        transform = self.transforms.audio
        if transform is None:
            raise InputError("transforms.yaml of the bundle has no audio: it does not say what sounds are made into.")
        for window in _cut(range(len(sounds)), _WINDOW * self.batch_size):
            heard = {i: transform(read_sound(sounds[i], f"sound {i}", transform.seconds)) for i in window}
            for places in _cut(sorted(window, key=lambda i: len(heard[i]), reverse=True), self.batch_size):
                yield places, Batch((), {}, audio=pad_sounds([heard[i] for i in places], transform.rate))


def given(what: str, number: int, **values: Any) -> dict[str, Any]:
    """The values that are there.

    Raises:
        InputError: more or fewer of them than a method takes.
    """
    there = {name: value for name, value in values.items() if value is not None}
    if len(there) != number:
        raise InputError(
            f"{what} takes {'exactly one' if number == 1 else 'two'} of {', '.join(f'{name}=...' for name in values)}, "
            f"but was handed {' and '.join(there) or 'none'}."
        )
    return there


def checked_labels(labels: Sequence[str]) -> list[str]:
    """The labels to choose from.

    Raises:
        InputError: there are none, one is empty, one is there twice, or they are one string.
    """
    if isinstance(labels, str):
        split = [part.strip() for part in labels.split(",") if part.strip()]
        raise InputError(
            f"Labels are a list of strings, but are the string {labels!r}: write {split or ['cat', 'dog']}."
        )
    names = list(labels)
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise InputError("The list of labels is empty, or a label in it is: name at least one to choose from.")
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise InputError(f"The label '{twice[0]}' is there more than once.")
    return names


def _listed_texts(value: Any) -> tuple[bool, list[str]]:
    if isinstance(value, str):
        return True, [value]
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        raise InputError(f"A text must be a string, or a list of them, but is {type(value).__name__}.")
    texts = list(value)
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None:
        raise InputError(f"A text must be a string, but is {type(wrong).__name__}.")
    return False, texts


def _cut(places: Sequence[int], size: int) -> Iterator[list[int]]:
    for first in range(0, len(places), size):
        yield list(places[first : first + size])
