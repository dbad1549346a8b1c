"""SigLIP's vocabulary as transformers has it: SentencePiece over texts in lower case without punctuation."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from mmformer.tokenizers.archive import Archive
from mmformer.tokenizers.marian import processor_of
from mmformer.tokenizers.published import PublishedVocabulary
from mmformer.tokenizers.special import SpecialIds

_SPACE = "\u2581"
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class SiglipVocabulary(PublishedVocabulary):
    """A ``spiece.model``, and what transformers' class does to a text before it."""

    def __init__(self, archive: Archive, ids: SpecialIds, origin: str = "the vocabulary") -> None:
        super().__init__(archive, ids, origin)
        self._processor = processor_of(archive.published, "spiece.model", origin)
        self._unknown = self.options.special[0]
        # The class encodes every text behind this piece, and leaves as many pieces out as it takes by itself.
        self._before = len(self._processor.EncodeAsPieces(self._unknown))
        spelt = "|".join(map(re.escape, self.options.special))
        self._special = re.compile(rf"\s*({spelt})\s*")

    def __len__(self) -> int:
        return len(self._processor)

    def _encode(self, text: str) -> list[int]:
        pieces: list[str] = []
        for part in filter(None, self._special.split(_SPACE + text.replace(_SPACE, " "))):
            pieces += [part] if part in self.options.special else self._cut(part)
        if len(pieces) > 1 and pieces[0] == _SPACE and pieces[1] in self.options.special:
            pieces = pieces[1:]
        return [self._processor.PieceToId(piece) for piece in pieces]

    def _cut(self, text: str) -> list[str]:
        plain = re.sub(r"\s+", " ", text.lower().translate(_NO_PUNCTUATION)).strip()
        found: list[str] = self._processor.EncodeAsPieces(self._unknown + plain)
        return found[self._before :] if len(found) >= self._before else found

    def _decode(self, ids: Sequence[int]) -> str:
        pieces: list[str] = [self._processor.IdToPiece(index) for index in ids if index < len(self)]
        text: str = self._processor.DecodePieces([piece for piece in pieces if piece not in self.options.special])
        return text.strip()

    def _piece(self, index: int) -> str | None:
        piece: str | None = self._processor.IdToPiece(index) if index < len(self) else None
        return piece
