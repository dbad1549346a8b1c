"""Vocabularies that came with somebody else's model, as its authors published them (no torch here).

Special tokens that a text spells out become those tokens, as they do in the libraries that such vocabularies are from.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

from mmformer.errors import InputError
from mmformer.tokenizers.any_vocabulary import AnyVocabulary, surrogate
from mmformer.tokenizers.archive import Archive
from mmformer.tokenizers.cleaning import clean
from mmformer.tokenizers.special import SpecialIds
from mmformer.tokenizers.words import KnownWords, words_stand_apart
from tokenizers import Tokenizer


class PublishedVocabulary(AnyVocabulary):
    """A vocabulary of such a file; it pickles as what the file holds.

    Args:
        archive: the file.
        ids: its special tokens, which it does not say.
        origin: what to call it in an error, such as its path.

    Raises:
        InputError: it is no vocabulary.
    """

    def __init__(self, archive: Archive, ids: SpecialIds, origin: str = "the vocabulary") -> None:
        self.archive, self._ids, self.options = archive, ids, archive.options

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.archive, self._ids)

    @property
    def ids(self) -> SpecialIds:
        return self._ids

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps([asdict(self.options), asdict(self._ids)], sort_keys=True).encode())
        for content in [self.archive.vocabulary] if self.archive.vocabulary else self.archive.published.values():
            digest.update(hashlib.sha256(content).digest())
        return digest.hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of a text.

        Raises:
            InputError: it is not a string, or not valid Unicode (it holds half a surrogate pair).
        """
        if not isinstance(text, str):
            raise InputError(f"A text to encode must be a string, not {type(text).__name__}: {text!r:.80}.")
        cleaned = text if self.options.clean is None else clean(text, self.options.clean)
        if not cleaned.isascii() and (half := surrogate(cleaned)) is not None:
            raise InputError(half)
        return self._encode(cleaned)

    def encode_many(self, texts: Iterable[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        text = self._decode(_checked(ids))
        return tidied(text) if self.options.tidy else text

    def pieces(self, ids: Iterable[int]) -> list[str]:
        return [self._piece(index) or f"<{index}>" for index in _checked(ids)]

    @abstractmethod
    def _encode(self, text: str) -> list[int]:
        """The ids of a text that is valid."""

    @abstractmethod
    def _decode(self, ids: Sequence[int]) -> str:
        """The text of ids that are 0 or more; those beyond the vocabulary have none."""

    @abstractmethod
    def _piece(self, index: int) -> str | None:
        """How an id is written; None: it is beyond the vocabulary."""


class TokenizersVocabulary(PublishedVocabulary):
    """What the ``tokenizers`` library makes of a ``tokenizer.json``, its post-processor left out."""

    def __init__(self, archive: Archive, ids: SpecialIds, origin: str = "the vocabulary") -> None:
        super().__init__(archive, ids, origin)
        assert archive.vocabulary is not None, "others have none"
        self._tokenizer = read_tokenizer(archive.vocabulary, origin)
        numbers: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self._size = 1 + max(numbers.values(), default=-1)
        self._special = {token: numbers[token] for token in self.options.special}
        self._words = KnownWords(self._whole) if words_stand_apart(self._tokenizer) else None

    def __len__(self) -> int:
        return self._size

    def _encode(self, text: str) -> list[int]:
        return self._whole(text) if self._words is None else self._words.encode(text)

    def _whole(self, text: str) -> list[int]:
        if not any(token in text for token in self._special):
            return self._cut(text)
        ids, begin = [], 0
        for word, (start, end) in self._tokenizer.pre_tokenizer.pre_tokenize_str(text):
            if word in self._special:
                ids += [*self._cut(text[begin:start]), self._special[word]]
                begin = end
        return ids + self._cut(text[begin:])

    def _cut(self, text: str) -> list[int]:
        # One by one: the library's own threads do not survive the forks of data loaders.
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _decode(self, ids: Sequence[int]) -> str:
        shown = [index for index in ids if index not in self._special.values()]
        text: str = self._tokenizer.decode(shown, skip_special_tokens=True)
        if self.options.word_end is not None:
            text = text.replace(self.options.word_end, " ").strip()
        if self.options.timed:
            text = re.sub(r"<\|\d+\.\d+\|>", "", text)
        return text

    def _piece(self, index: int) -> str | None:
        piece: str | None = self._tokenizer.id_to_token(index)
        return piece


def read_tokenizer(content: bytes, origin: str) -> Tokenizer:
    """A tokenizer.json, which neither pads nor cuts whatever it says.

    Raises:
        InputError: the library cannot read it.
    """
    try:
        tokenizer = Tokenizer.from_str(content.decode())
    except BaseException as error:  # the library's errors are bare Exceptions, and its panics are not even those
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{origin} is no tokenizer.json that tokenizers can read: {error}.") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _checked(ids: Iterable[int]) -> list[int]:
    numbers = [int(index) for index in ids]
    wrong = next((index for index in numbers if index < 0), None)
    if wrong is not None:
        raise InputError(f"Id {wrong} is not in the vocabulary: ids are 0 or more.")
    return numbers


def tidied(text: str) -> str:
    """Without the spaces that stand before punctuation and English contractions where words were cut apart."""
    for end in (".", "?", "!", ",", "'", "n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {end} ", end) if end == "'" else text.replace(f" {end}", end)
    return text
