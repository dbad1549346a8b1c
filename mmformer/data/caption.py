"""Which words stand for a sample: captions drawn from the fields of its json member, seeded by position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmformer.errors import InputError, nearest
from mmformer.spec import family, require, require_probability


@family
@dataclass(frozen=True)
class CaptionSpec(ABC):
    """A way to make a caption."""

    @abstractmethod
    def choose(self, fields: Any, random: np.random.Generator, name: str) -> str:
        """The caption of a sample.

        Args:
            fields: the decoded member: a mapping (json), or a string (txt).
            random: the only source of randomness.
            name: of the sample, for messages.

        Raises:
            InputError: the field is absent, or is not what this caption needs.
        """


@dataclass(frozen=True)
class FieldCaptionSpec(CaptionSpec):
    """The text of one field.

    Attributes:
        field: dotted path of keys, such as ``names.en``; "" when the member is the text itself.
    """

    field: str = ""

    def choose(self, fields: Any, random: np.random.Generator, name: str) -> str:
        value = lookup(fields, self.field, name)
        if not isinstance(value, str):
            raise InputError(
                f"{name}: FieldCaptionSpec.field '{self.field}' must be a text, but is {type(value).__name__}: "
                f"for a list, use SampledCaptionSpec."
            )
        return value


@dataclass(frozen=True)
class SampledCaptionSpec(CaptionSpec):
    """Some items of a list, in random order.

    Attributes:
        field: dotted path of keys to a list of texts, such as ``keywords.en``.
        least: items at least (all, where the list has fewer).
        most: items at most.
        separator: between them.
        otherwise: dotted path to a text that stands in where the list is empty or absent; "": such a sample is refused.
    """

    field: str
    least: int = 1
    most: int = 3
    separator: str = ", "
    otherwise: str = ""

    def __post_init__(self) -> None:
        require(self.least >= 1, self, "least", "at least 1")
        require(self.most >= self.least, self, "most", f"at least the least ({self.least})")

    def choose(self, fields: Any, random: np.random.Generator, name: str) -> str:
        try:
            items = lookup(fields, self.field, name)
        except InputError:
            items = []
            if not self.otherwise:
                raise
        if items == [] and self.otherwise:
            return FieldCaptionSpec(self.otherwise).choose(fields, random, name)
        if not isinstance(items, list) or not items or not all(isinstance(item, str) for item in items):
            raise InputError(
                f"{name}: SampledCaptionSpec.field '{self.field}' must be a list of texts, but is {items!r:.60}: "
                f"for samples whose list is empty, name a text with SampledCaptionSpec.otherwise."
            )
        number = min(int(random.integers(self.least, self.most, endpoint=True)), len(items))
        return self.separator.join(items[i] for i in random.permutation(len(items))[:number])


@dataclass(frozen=True)
class JoinedCaptionSpec(CaptionSpec):
    """Several captions, one after the other.

    Attributes:
        parts: in this order.
        separator: between them.
    """

    parts: tuple[CaptionSpec, ...]
    separator: str = ", "

    def __post_init__(self) -> None:
        require(len(self.parts) >= 1, self, "parts", "at least one caption")

    def choose(self, fields: Any, random: np.random.Generator, name: str) -> str:
        return self.separator.join(part.choose(fields, random, name) for part in self.parts)


@dataclass(frozen=True)
class MixedCaptionSpec(CaptionSpec):
    """One of several captions, at random.

    Attributes:
        choices: to choose from.
        weights: how often each is chosen, in proportion; empty: all alike.
    """

    choices: tuple[CaptionSpec, ...]
    weights: tuple[float, ...] = field(default=())

    def __post_init__(self) -> None:
        require(len(self.choices) >= 1, self, "choices", "at least one caption")
        fits = not self.weights or len(self.weights) == len(self.choices)
        require(fits, self, "weights", f"one for each of the {len(self.choices)} choices")
        good = not self.weights or (min(self.weights) >= 0 and sum(self.weights) > 0)
        require(good, self, "weights", "at least 0 each, and more than 0 together")

    def choose(self, fields: Any, random: np.random.Generator, name: str) -> str:
        bounds = np.cumsum(self.weights or (1.0,) * len(self.choices))
        index = int(np.searchsorted(bounds, random.random() * bounds[-1], side="right"))
        return self.choices[index].choose(fields, random, name)


@dataclass(frozen=True)
class WordDropoutCaptionSpec(CaptionSpec):
    """A caption that loses words at random; one word at least is kept.

    Attributes:
        caption: what words are dropped from.
        probability: of dropping each.
    """

    caption: CaptionSpec
    probability: float = 0.1

    def __post_init__(self) -> None:
        require_probability(self, "probability")

    def choose(self, fields: Any, random: np.random.Generator, name: str) -> str:
        words = self.caption.choose(fields, random, name).split(" ")
        draws = random.random(len(words))
        kept = [word for word, draw in zip(words, draws, strict=True) if draw >= self.probability]
        return " ".join(kept or [words[int(draws.argmax())]])


def lookup(fields: Any, path: str, name: str, optional: bool = False) -> Any:
    """The value at a dotted path of keys.

    Args:
        fields: a decoded member.
        path: "" for the whole of it.
        name: of the sample, for messages.
        optional: None where a key on the way is absent, or leads to null.

    Raises:
        InputError: a key on the way is absent; the message has those that are there.
    """
    value = fields
    for depth, key in enumerate(path.split(".") if path else ()):
        if optional and (value is None or (isinstance(value, dict) and key not in value)):
            return None
        if not isinstance(value, dict) or key not in value:
            known = list(value) if isinstance(value, dict) else []
            above = ".".join(path.split(".")[:depth])
            raise InputError(
                f"{name}: there is no field '{path}'; {f'{above!r}' if above else 'the sample'} has "
                f"{', '.join(known) or 'no fields'}.{nearest(key, known)}"
            )
        value = value[key]
    return value
