"""Vocabularies as we have them and as their own library does, made once for all tests."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from vocabulary_folders import FOLDERS

from mmformer.interop.vocabularies import FoundVocabulary, from_folder
from mmformer.tokenizers.any_vocabulary import AnyVocabulary
from mmformer.tokenizers.opening import from_content
from mmformer.tokenizers.text import TextTokensSpec

_FOLDER = tempfile.TemporaryDirectory()


class Pair(NamedTuple):
    """A vocabulary as we have it, and as its own library does."""

    folder: Path
    found: FoundVocabulary
    ours: AnyVocabulary
    theirs: Any


@functools.cache
def pair_of(name: str) -> Pair:
    """One of ``FOLDERS``, read by both."""
    transformers = pytest.importorskip("transformers", reason="its tokenizers are what these are compared with")
    folder = FOLDERS[name](Path(_FOLDER.name) / name.replace(" ", "_"))
    found = from_folder(folder)
    assert found is not None
    ours = from_content(found.content, found.ids)
    return Pair(folder, found, ours, transformers.AutoTokenizer.from_pretrained(folder))


def spec_of(found: FoundVocabulary, folder: Path, **changes: Any) -> TextTokensSpec:
    """What reads texts by a vocabulary whose file is put into a folder."""
    path = folder / "words.zip"
    path.write_bytes(found.content)
    said = {"begin": found.begin, "end": found.end, "prefix_space": False, "ids": found.ids, **changes}
    return TextTokensSpec(str(path), **{"context_length": 16, **said})


def open_clip_merges() -> bytes:
    """The real ones, which open_clip's wheel brings."""
    tokenizer = pytest.importorskip("open_clip.tokenizer", reason="its wheel has CLIP's merges, its code the reference")
    return Path(tokenizer.default_bpe()).read_bytes()
