"""What a user hands in, of any modality, as batches that a model reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from mmformer.bundle import Transforms
from mmformer.data.collate import pad_sounds
from mmformer.data.image_transform import ImageTransformSpec
from mmformer.data.native import join_pictures
from mmformer.data.picture import listed, read_picture
from mmformer.data.sound import AudioTransformSpec
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

    def together(self, what: str, **values: Any) -> tuple[bool, dict[str, list[Any]]]:
        """Whether one value of each modality was given, and as many of each; one of a modality goes with all others'.

        Raises:
            InputError: there are none, or not as many of one modality as of another.
        """
        there = {modality: value for modality, value in values.items() if value is not None}
        if not there:
            raise InputError(f"{what} takes {', '.join(f'{name}=...' for name in values)}, or several of them.")
        read = {modality: self.listed(modality, value) for modality, value in there.items()}
        several = {modality: len(found) for modality, (single, found) in read.items() if not single}
        if len(set(several.values())) > 1:
            numbers = " and ".join(f"{number} {WORDS[modality]}" for modality, number in several.items())
            raise InputError(f"There are {numbers}: give as many of each, or one for all.")
        number = max(several.values(), default=1)
        return not several, {m: found * number if single else found for m, (single, found) in read.items()}

    def batches(self, values: Mapping[str, Sequence[Any]]) -> Iterator[Numbered]:
        """Batches of the values; those that differ in length with others of about theirs, for less padding.

        Args:
            values: modality -> as many as of the others: those at one place belong together.

        Raises:
            InputError: the model does not read a modality, or a value cannot be read.

        Warns:
            CutWarning: at the end, where texts were longer than the model reads.
        """
        readings = {modality: self._reading(modality) for modality in values}
        number = len(next(iter(values.values())))
        for window in _cut(range(number), min(reading.window or number for reading in readings.values())):
            held = {i: {name: reading.read(values[name][i], i) for name, reading in readings.items()} for i in window}
            lengths = {i: [reading.length(held[i][name]) for name, reading in readings.items()] for i in window}
            for places in _cut(sorted(window, key=lengths.__getitem__, reverse=True), self.batch_size):
                fields = {name: reading.join([held[i][name] for i in places]) for name, reading in readings.items()}
                yield places, Batch((), {}, **fields)
        texts = readings.get("text")
        if isinstance(texts, _Texts):
            texts.encoder.warn_of_cut(number, texts.cut)

    def _reading(self, modality: str) -> _Reading:
        if modality == "text":
            return _Texts(self.text_encoders["text"])
        transform = self.transforms.image if modality == "image" else self.transforms.audio
        if transform is None:
            what = WORDS[modality]
            raise InputError(
                f"transforms.yaml of the bundle has no {modality}: it does not say what {what} are made into. Import "
                f"the model from a folder that has its preprocessor's config, or hand in what it reads as a Batch."
            )
        window = _WINDOW * self.batch_size
        if isinstance(transform, ImageTransformSpec):
            return _Pictures(transform, self.batch_size if transform.patch is None else window)
        return _Sounds(transform, window)


class _Reading(ABC):
    """How values of one modality become a field of batches; ``window``: of how many some are chosen, None: of all."""

    window: int | None = None

    @abstractmethod
    def read(self, value: Any, place: int) -> Any:
        """What is held of a value."""

    @abstractmethod
    def length(self, held: Any) -> int:
        """Batches are of what is about equally long."""

    @abstractmethod
    def join(self, held: list[Any]) -> Any:
        """The field of a batch."""


class _Pictures(_Reading):
    def __init__(self, transform: ImageTransformSpec, window: int) -> None:
        self.transform, self.window = transform, window

    def read(self, value: Any, place: int) -> np.ndarray:
        return self.transform(read_picture(value, f"picture {place}", self.transform.transparency))

    def length(self, held: np.ndarray) -> int:
        return held.size

    def join(self, held: list[np.ndarray]) -> Any:
        return join_pictures([torch.from_numpy(pixels).permute(2, 0, 1) for pixels in held], self.transform.patch)


class _Sounds(_Reading):
    def __init__(self, transform: AudioTransformSpec, window: int) -> None:
        self.transform, self.window = transform, window

    def read(self, value: Any, place: int) -> np.ndarray:
        return self.transform(read_sound(value, f"sound {place}", self.transform.seconds))

    def length(self, held: np.ndarray) -> int:
        return len(held)

    def join(self, held: list[np.ndarray]) -> Any:
        return pad_sounds(held, self.transform.rate)


class _Texts(_Reading):
    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder, self.cut = encoder, 0

    def read(self, value: str, place: int) -> str:
        return value

    def length(self, held: str) -> int:
        return len(held)

    def join(self, held: list[str]) -> Any:
        text, cut = self.encoder.encode_counting(held)
        self.cut += cut
        return text


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
