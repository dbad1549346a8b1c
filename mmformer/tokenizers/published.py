"""Vocabularies that came with somebody else's model, as its authors published them (no torch here).

A vocabulary's file is a zip archive of

options.json        its format's version, and what is done to texts around the vocabulary itself
vocabulary.json     the vocabulary as the ``tokenizers`` library reads it: normalisation, splitting, pieces, decoding
published/          the files that it came in, unchanged: what goes back out when the model is exported

or a ``tokenizer.json`` of that library by itself. Special tokens that a text spells out become those tokens, as they
do in the libraries that such vocabularies are from.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from mmformer import resources
from mmformer.errors import InputError, nearest_file
from mmformer.spec import require
from mmformer.tokenizers.any_vocabulary import AnyVocabulary, surrogate
from mmformer.tokenizers.cleaning import Cleaning, clean
from mmformer.tokenizers.special import SpecialIds
from tokenizers import Tokenizer

VERSION = 1
PUBLISHED = "published/"
_MOST = 512 * 2**20  # bytes, unpacked: the largest published vocabularies take a tenth

Side = Literal["source", "target"]


@dataclass(frozen=True)
class Options:
    """What is done around the vocabulary itself.

    Attributes:
        clean: what a text is made into first, as open_clip does; None: nothing.
        tidy: take out spaces that decoding leaves before punctuation and contractions (English WordPiece's).
        word_end: what ends the last piece of a word and is decoded as a space (CLIP's "</w>"); None: nothing does.
        timed: take out timestamps, "<|1.28|>" and the like, from what is decoded (Whisper's).
        marian: which side's SentencePiece model cuts texts, where there are two beside a list of pieces; None: the
            vocabulary is one of the ``tokenizers`` library.
        special: pieces that stand for themselves where they are words of a text, and are no text when decoded; of
            Marian's, the first is the unknown one.
    """

    clean: Cleaning | None = None
    tidy: bool = False
    word_end: str | None = None
    timed: bool = False
    marian: Side | None = None
    special: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = ", ".join(get_args(Cleaning))
        require(self.clean in (None, *get_args(Cleaning)), self, "clean", f"None or one of {known}")
        require(self.marian in (None, *get_args(Side)), self, "marian", f"None or one of {', '.join(get_args(Side))}")


def pack(options: Options, published: Mapping[str, bytes], vocabulary: str = "") -> bytes:
    """A vocabulary's file: the same bytes for the same content.

    Args:
        published: the names of the files that it came in, and what they hold.
        vocabulary: what ``tokenizers`` reads; "" where it reads none of it.
    """
    members = {"options.json": json.dumps({"version": VERSION, **asdict(options)}, indent=1).encode()}
    members |= {"vocabulary.json": vocabulary.encode()} if vocabulary else {}
    members |= {PUBLISHED + name: content for name, content in sorted(published.items())}
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    return made.getvalue()


def unpack(content: bytes, origin: str) -> dict[str, bytes]:
    """The members of a vocabulary's file, by name.

    Raises:
        InputError: it is no such archive.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > _MOST:
                raise InputError(f"{origin} unpacks to more than {_MOST // 2**20} MiB: that is no vocabulary.")
            return {member.filename: archive.read(member) for member in members}
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as error:
        raise InputError(f"{origin} is damaged, it cannot be unpacked: {error}.") from error


def published_files(content: bytes, origin: str = "the vocabulary") -> dict[str, bytes]:
    """The files that a vocabulary came in, unchanged, by name."""
    members = unpack(content, origin)
    return {name.removeprefix(PUBLISHED): found for name, found in members.items() if name.startswith(PUBLISHED)}


def is_published(path: str | os.PathLike[str]) -> bool:
    """Whether a file is named as such vocabularies are."""
    return Path(path).suffix in (".zip", ".json")


def load_published(path: str | os.PathLike[str], ids: SpecialIds) -> AnyVocabulary:
    """Reads a vocabulary's file.

    Args:
        ids: its special tokens, which it does not say.

    Raises:
        InputError: it cannot be read, or is none.
    """
    try:
        content = resources.find(path).read_bytes()
    except OSError as error:
        near = nearest_file(path) if isinstance(error, FileNotFoundError) else ""
        raise InputError(f"The vocabulary {path} cannot be read: {error.strerror}.{near}") from error
    return from_content(content, ids, str(path))


def from_content(content: bytes, ids: SpecialIds, origin: str = "the vocabulary") -> AnyVocabulary:
    """The same from what a file holds."""
    if not content.startswith(b"PK"):
        return PublishedVocabulary(content, ids, Options(), content, origin)
    members = unpack(content, origin)
    options = _options(members.get("options.json", b"null"), origin)
    if options.marian is not None:
        from mmformer.tokenizers.marian import MarianVocabulary

        return MarianVocabulary(content, ids, options, published_files(content, origin), origin)
    if "vocabulary.json" not in members:
        raise InputError(f"{origin} has no vocabulary.json: it is no vocabulary, or was damaged.")
    return PublishedVocabulary(members["vocabulary.json"], ids, options, content, origin)


def _options(content: bytes, origin: str) -> Options:
    try:
        data: Any = json.loads(content)
        version = data.pop("version")
        if isinstance(version, int) and version > VERSION:
            raise InputError(f"{origin} has format version {version}, but this mmformer reads up to {VERSION}.")
        return Options(**{**data, "special": tuple(data.get("special", ()))})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{origin} has no options.json of a vocabulary: it is none, or was damaged.") from error


class PublishedVocabulary(AnyVocabulary):
    """What the ``tokenizers`` library makes of a ``tokenizer.json``, its post-processor left out.

    Args:
        vocabulary: the ``tokenizer.json``.
        ids: its special tokens.
        options: what is done around it.
        content: of the file that it is from.
        origin: what to call it in an error, such as its path.

    Raises:
        InputError: the library cannot read it.
    """

    def __init__(self, vocabulary: bytes, ids: SpecialIds, options: Options, content: bytes, origin: str) -> None:
        self._ids, self.options, self.content, self._vocabulary = ids, options, content, vocabulary
        try:
            self._tokenizer = Tokenizer.from_str(vocabulary.decode())
        except Exception as error:  # the library raises no narrower one
            if isinstance(error, MemoryError):
                raise
            raise InputError(f"{origin} is no tokenizer.json that tokenizers can read: {error}.") from error
        numbers: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self._special = {token: numbers[token] for token in options.special}
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._size = 1 + max(numbers.values(), default=-1)

    def __reduce__(self) -> tuple[Any, ...]:
        return from_content, (self.content, self._ids)

    @property
    def ids(self) -> SpecialIds:
        return self._ids

    @cached_property
    def fingerprint(self) -> str:
        told = json.dumps([asdict(self.options), asdict(self._ids)], sort_keys=True)
        return hashlib.sha256(self._vocabulary + told.encode()).hexdigest()

    def __len__(self) -> int:
        return self._size

    def encode(self, text: str) -> list[int]:
        """The ids of a text.

        Raises:
            InputError: it is not a string, or not valid Unicode (it holds half a surrogate pair).
        """
        if not isinstance(text, str):
            raise InputError(f"A text to encode must be a string, not {type(text).__name__}: {text!r:.80}.")
        cleaned = text if self.options.clean is None else clean(text, self.options.clean)
        if (half := surrogate(cleaned)) is not None:
            raise InputError(half)
        if not any(token in cleaned for token in self._special):
            return self._encoded(cleaned)
        ids, begin = [], 0
        for word, (start, end) in self._tokenizer.pre_tokenizer.pre_tokenize_str(cleaned):
            if word in self._special:
                ids += [*self._encoded(cleaned[begin:start]), self._special[word]]
                begin = end
        return ids + self._encoded(cleaned[begin:])

    def _encoded(self, text: str) -> list[int]:
        # One by one: the library's own threads do not survive the forks of data loaders.
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_many(self, texts: Iterable[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        numbers = [int(index) for index in ids]
        if any(index < 0 for index in numbers):
            raise InputError(f"Id {min(numbers)} is not in the vocabulary: ids are 0 or more.")
        numbers = [index for index in numbers if index not in self._special.values()]
        text: str = self._tokenizer.decode(numbers, skip_special_tokens=True)
        if self.options.word_end is not None:
            text = text.replace(self.options.word_end, " ").strip()
        if self.options.timed:
            text = re.sub(r"<\|\d+\.\d+\|>", "", text)
        return tidied(text) if self.options.tidy else text


def tidied(text: str) -> str:
    """Without the spaces that stand before punctuation and English contractions where words were cut apart."""
    for end in (".", "?", "!", ",", "'", "n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {end} ", end) if end == "'" else text.replace(f" {end}", end)
    return text
