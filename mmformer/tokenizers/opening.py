"""Which vocabulary a file holds (no torch here)."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from mmformer import resources
from mmformer.errors import InputError, foreign, nearest_file
from mmformer.tokenizers.any_vocabulary import AnyVocabulary
from mmformer.tokenizers.archive import unpack
from mmformer.tokenizers.marian import MarianVocabulary
from mmformer.tokenizers.published import PublishedVocabulary, TokenizersVocabulary
from mmformer.tokenizers.siglip import SiglipVocabulary
from mmformer.tokenizers.special import SpecialIds
from mmformer.tokenizers.vocabulary import Vocabulary

_CUTTERS: dict[str, type[PublishedVocabulary]] = {
    "tokenizers": TokenizersVocabulary,
    "siglip": SiglipVocabulary,
    "source": MarianVocabulary,
    "target": MarianVocabulary,
}


def open_vocabulary(path: str | os.PathLike[str], ids: SpecialIds | None = None) -> AnyVocabulary:
    """Reads a vocabulary's file: our own, or one that came with a model from elsewhere (.zip, .json).

    Args:
        ids: the special tokens of one from elsewhere, which it does not say; None: it has none.

    Raises:
        InputError: it cannot be read, is none, or says other special tokens.
    """
    if Path(path).suffix not in (".zip", ".json"):
        own = Vocabulary.load(path)
        if ids is not None and ids != own.ids:
            raise InputError(f"TextTokensSpec.ids is {ids}, but {path} says its own: {own.ids}. Set ids to null.")
        return own
    try:
        content = resources.find(path).read_bytes()
    except OSError as error:
        near = nearest_file(path) if isinstance(error, FileNotFoundError) else ""
        raise InputError(f"The vocabulary {path} cannot be read: {error.strerror}.{near}") from error
    return from_content(content, ids or SpecialIds(), str(path))


@functools.lru_cache(maxsize=4)  # a large one takes a second, and every part that reads texts asks for it
def from_content(content: bytes, ids: SpecialIds, origin: str = "the vocabulary") -> PublishedVocabulary:
    """One that came with a model from elsewhere, from what its file holds.

    Raises:
        InputError: it holds none.
    """
    archive = unpack(content, origin)
    with foreign(origin):
        return _CUTTERS[archive.options.cutter](archive, ids, origin)
