"""What every vocabulary is: strings to ids and back (no torch here)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from mmformer.errors import InputError
from mmformer.tokenizers.special import SpecialIds


class AnyVocabulary(ABC):
    """Strings to ids and back; ids are 0 to below its length."""

    @property
    @abstractmethod
    def ids(self) -> SpecialIds:
        """Its special tokens."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Equal where two vocabularies give equal texts equal ids."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def encode_many(self, texts: Iterable[str]) -> list[list[int]]:
        """The ids of each text, without those that begin and end it.

        Raises:
            InputError: one cannot be encoded.
        """

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; special tokens have none."""

    @abstractmethod
    def pieces(self, ids: Iterable[int]) -> list[str]:
        """How each id is written in the vocabulary, for people to read."""

    def padded_size(self, multiple: int = 64) -> int:
        """The rows to give an embedding table: the next multiple, so that ranks and matrix units divide it evenly."""
        if multiple < 1:
            raise InputError(f"The vocabulary was to be padded to a multiple of {multiple}, but that must be positive.")
        return -(-len(self) // multiple) * multiple


class NoVocabulary(AnyVocabulary):
    """Of a model that came without one: it reads ids, and no strings.

    Args:
        size: how many ids there are.
        ids: which of them are special.
    """

    fingerprint = ""

    def __init__(self, size: int, ids: SpecialIds) -> None:
        self.size, self._ids = size, ids

    @property
    def ids(self) -> SpecialIds:
        return self._ids

    def __len__(self) -> int:
        return self.size

    def encode_many(self, texts: Iterable[str]) -> list[list[int]]:
        raise InputError(f"The model takes ids only, not texts: {_CAUSE}")

    def decode(self, ids: Iterable[int]) -> str:
        raise InputError(f"The model gives ids only, no texts: {_CAUSE}")

    def pieces(self, ids: Iterable[int]) -> list[str]:
        return [str(index) for index in ids]


_CAUSE = "it has no vocabulary. Import it from a folder that has its tokenizer's files, or hand in ids."


def surrogate(text: str) -> str | None:
    """What is wrong with a text that holds half a surrogate pair, which no encoding of Unicode has; None: nothing."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return (
            f"A text to encode is not valid Unicode: character {error.start} is {text[error.start]!r}, half of a "
            "surrogate pair. Replace it: text.encode('utf-8', 'replace').decode()"
        )
    return None
