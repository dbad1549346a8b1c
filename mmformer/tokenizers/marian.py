"""Marian's vocabularies as transformers has them: SentencePiece cuts, a list of pieces of its own numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

import sentencepiece

from mmformer.errors import InputError
from mmformer.tokenizers.archive import Archive
from mmformer.tokenizers.published import PublishedVocabulary
from mmformer.tokenizers.special import SpecialIds

_SPACE = "\u2581"


class MarianVocabulary(PublishedVocabulary):
    """One side of a pair of languages: its SentencePiece model, and the numbers of pieces, which both may share.

    Its files are ``source.spm``, ``target.spm``, ``vocab.json`` and, where the sides share no numbers,
    ``target_vocab.json``. A language code at a text's beginning, such as ``>>fr<<``, is a piece.
    """

    def __init__(self, archive: Archive, ids: SpecialIds, origin: str = "the vocabulary") -> None:
        super().__init__(archive, ids, origin)
        files, side = archive.published, self.options.cutter
        separate = "target_vocab.json" in files
        self._numbers = _numbers(files, "target_vocab.json" if separate and side == "target" else "vocab.json", origin)
        self._cutter = processor_of(files, f"{side}.spm", origin)
        # Where the numbers are shared, the reference puts pieces together by the source's model on both sides.
        self._joiner = processor_of(files, "target.spm" if separate else "source.spm", origin)
        self._pieces = {number: piece for piece, number in self._numbers.items()}
        if self.options.special[0] not in self._numbers:
            raise InputError(f"{origin} has no piece {self.options.special[0]} for what is unknown.")
        self._unknown = self._numbers[self.options.special[0]]
        spelt = "|".join(map(re.escape, sorted(self.options.special, key=len, reverse=True)))
        self._special = re.compile(f"({spelt})")

    def __len__(self) -> int:
        return 1 + max(self._numbers.values())

    def _encode(self, text: str) -> list[int]:
        pieces: list[str] = []
        for part in filter(None, self._special.split(text)):
            pieces += [part] if part in self.options.special else self._cut(part)
        return [self._numbers.get(piece, self._unknown) for piece in pieces]

    def _cut(self, text: str) -> list[str]:
        code = re.match(r">>.*?<<", text, re.DOTALL)
        rest = text if code is None else text[code.end() :]
        found: list[str] = self._cutter.EncodeAsPieces(rest)
        return found if code is None else [code[0], *found]

    def _decode(self, ids: Sequence[int]) -> str:
        pieces = [self._pieces[index] for index in ids if index in self._pieces]
        text: str = self._joiner.DecodePieces([piece for piece in pieces if piece not in self.options.special])
        return text.replace(_SPACE, " ").strip()

    def _piece(self, index: int) -> str | None:
        return self._pieces.get(index)


def processor_of(files: Mapping[str, bytes], name: str, origin: str) -> sentencepiece.SentencePieceProcessor:
    """The SentencePiece model in one of a vocabulary's files.

    Raises:
        InputError: it is absent or damaged.
    """
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(files[name])
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{origin}: its {name} is missing, or is no SentencePiece model.") from error
    return processor


def _numbers(files: Mapping[str, bytes], name: str, origin: str) -> dict[str, int]:
    try:
        found = json.loads(files[name])
        return {str(piece): int(number) for piece, number in found.items()}
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{origin}: its {name} is missing, or has no pieces and their numbers.") from error
