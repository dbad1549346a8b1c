"""Marian's vocabularies as transformers has them: SentencePiece cuts, a list of pieces of its own numbers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any

import sentencepiece

from mmformer.errors import InputError
from mmformer.tokenizers.any_vocabulary import AnyVocabulary, surrogate
from mmformer.tokenizers.published import Options, from_content
from mmformer.tokenizers.special import SpecialIds

_SPACE = "\u2581"


class MarianVocabulary(AnyVocabulary):
    """One side of a pair of languages: its SentencePiece model, and the numbers of pieces, which both may share.

    Args:
        content: of the file that it is from.
        options: which side, and the special pieces, of which the first stands for what is unknown.
        files: ``vocab.json``, ``source.spm``, ``target.spm`` and, where the sides share no numbers,
            ``target_vocab.json``.

    Raises:
        InputError: one of them is absent or damaged.
    """

    def __init__(
        self, content: bytes, ids: SpecialIds, options: Options, files: Mapping[str, bytes], origin: str
    ) -> None:
        assert options.marian is not None, "it says which side"
        self.content, self._ids, self.options = content, ids, options
        separate = "target_vocab.json" in files
        self._numbers = _numbers(
            files, "target_vocab.json" if separate and options.marian == "target" else "vocab.json"
        )
        self._cutter = _processor(files, f"{options.marian}.spm", origin)
        # Where the numbers are shared, the reference puts pieces together by the source's model on both sides.
        self._joiner = _processor(files, "target.spm" if separate else "source.spm", origin)
        self._pieces = {number: piece for piece, number in self._numbers.items()}
        if not options.special or options.special[0] not in self._numbers:
            raise InputError(f"{origin}: vocab.json has no piece {options.special[:1]} for what is unknown.")
        self._unknown = self._numbers[options.special[0]]
        spelt = "|".join(map(re.escape, sorted(options.special, key=len, reverse=True)))
        self._special = re.compile(f"({spelt})")

    def __reduce__(self) -> tuple[Any, ...]:
        return from_content, (self.content, self._ids)

    @property
    def ids(self) -> SpecialIds:
        return self._ids

    @cached_property
    def fingerprint(self) -> str:
        told = json.dumps([asdict(self.options), asdict(self._ids), self._numbers], sort_keys=True)
        return hashlib.sha256(self._cutter.serialized_model_proto() + told.encode()).hexdigest()

    def __len__(self) -> int:
        return 1 + max(self._numbers.values())

    def encode(self, text: str) -> list[int]:
        """The ids of a text; a language code at its beginning, such as ``>>fr<<``, is a piece.

        Raises:
            InputError: it is not a string, or not valid Unicode (it holds half a surrogate pair).
        """
        if not isinstance(text, str):
            raise InputError(f"A text to encode must be a string, not {type(text).__name__}: {text!r:.80}.")
        if (half := surrogate(text)) is not None:
            raise InputError(half)
        pieces: list[str] = []
        for part in filter(None, self._special.split(text)):
            pieces += [part] if part in self.options.special else self._cut(part)
        return [self._numbers.get(piece, self._unknown) for piece in pieces]

    def _cut(self, text: str) -> list[str]:
        code = re.match(r">>.*?<<", text, re.DOTALL)
        rest = text if code is None else text[code.end() :]
        found: list[str] = self._cutter.EncodeAsPieces(rest)
        return found if code is None else [code[0], *found]

    def encode_many(self, texts: Iterable[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        numbers = [int(index) for index in ids]
        wrong = next((index for index in numbers if index not in self._pieces), None)
        if wrong is not None:
            raise InputError(f"Id {wrong} is not in the vocabulary, whose ids are 0 to {len(self) - 1}.")
        pieces = [self._pieces[index] for index in numbers]
        text: str = self._joiner.DecodePieces([piece for piece in pieces if piece not in self.options.special])
        return text.replace(_SPACE, " ").strip()


def _numbers(files: Mapping[str, bytes], name: str) -> dict[str, int]:
    try:
        found = json.loads(files[name])
        return {str(piece): int(number) for piece, number in found.items()}
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"The vocabulary has no {name} of pieces and their numbers.") from error


def _processor(files: Mapping[str, bytes], name: str, origin: str) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(files[name])
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{origin}: its {name} is missing, or is no SentencePiece model.") from error
    return processor
