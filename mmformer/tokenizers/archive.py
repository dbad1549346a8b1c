"""The file of a vocabulary that came with somebody else's model (no torch here): a zip archive of

options.json        its format's version, and what is done to texts around the vocabulary itself
vocabulary.json     the vocabulary as the ``tokenizers`` library reads it, where it does: normalisation, splitting,
                    pieces, decoding
published/          the files that it came in, unchanged: what goes back out when the model is exported

or a ``tokenizer.json`` of that library by itself.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from mmformer.errors import InputError
from mmformer.spec import require
from mmformer.tokenizers.cleaning import Cleaning

VERSION = 1
_PUBLISHED = "published/"
_MOST = 256 * 2**20  # bytes, unpacked: the largest published vocabularies take a fifth
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others may ask for gigabytes before they unpack anything
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, LookupError, ValueError, RuntimeError, OSError)

Side = Literal["source", "target"]
Cutter = Literal["tokenizers", "siglip", Side]
"""Whose way of cutting texts: the ``tokenizers`` library's, that of SigLIP's class, one side's of Marian's."""


@dataclass(frozen=True)
class Options:
    """What is done around the vocabulary itself.

    Attributes:
        clean: what a text is made into first, as open_clip does; None: nothing.
        tidy: take out spaces that decoding leaves before punctuation and contractions (English WordPiece's).
        word_end: what ends the last piece of a word and is decoded as a space (CLIP's "</w>"); None: nothing does.
        timed: take out timestamps, "<|1.28|>" and the like, from what is decoded (Whisper's).
        cutter: whose way of cutting texts into pieces.
        special: pieces that stand for themselves where they are words of a text, and are no text when decoded; of
            Marian's and SigLIP's, the first is the unknown one.
    """

    clean: Cleaning | None = None
    tidy: bool = False
    word_end: str | None = None
    timed: bool = False
    cutter: Cutter = "tokenizers"
    special: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = ", ".join(get_args(Cleaning))
        require(self.clean in (None, *get_args(Cleaning)), self, "clean", f"None or one of {known}")
        require(self.cutter in get_args(Cutter), self, "cutter", f"one of {', '.join(get_args(Cutter))}")
        special = bool(self.special) or self.cutter == "tokenizers"
        require(special, self, "special", "at least the unknown piece")


class Archive(NamedTuple):
    """A vocabulary's file, read."""

    content: bytes  # of the file
    options: Options
    vocabulary: bytes | None  # what ``tokenizers`` reads; None: it reads none of it
    published: Mapping[str, bytes]  # the files that it came in, by name


def pack(options: Options, published: Mapping[str, bytes], vocabulary: str = "") -> bytes:
    """A vocabulary's file: the same bytes for the same content.

    Args:
        published: the files that it came in, by name.
        vocabulary: what ``tokenizers`` reads; "" where it reads none of it.
    """
    members = {"options.json": json.dumps({"version": VERSION, **asdict(options)}, indent=1).encode()}
    members |= {"vocabulary.json": vocabulary.encode()} if vocabulary else {}
    members |= {_PUBLISHED + name: content for name, content in sorted(published.items())}
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    return made.getvalue()


def unpack(content: bytes, origin: str = "the vocabulary") -> Archive:
    """What a vocabulary's file holds.

    Args:
        origin: what to call it in an error, such as its path.

    Raises:
        InputError: it is no such file.
    """
    if not content.startswith(b"PK"):
        return Archive(content, Options(), content, {"tokenizer.json": content})
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            found = archive.infolist()
            if sum(member.file_size for member in found) > _MOST:
                raise InputError(f"it would have more than {_MOST // 2**20} MiB")
            if any(member.compress_type not in _PACKED for member in found):
                raise InputError("a file in it is packed in a way that no vocabulary is")
            members = {member.filename: archive.read(member) for member in found}
    except _DAMAGE as error:
        raise InputError(f"{origin} is damaged, it cannot be unpacked: {error}.") from error
    options = _options(members.get("options.json", b"null"), origin)
    if options.cutter == "tokenizers" and "vocabulary.json" not in members:
        raise InputError(f"{origin} has no vocabulary.json: it is no vocabulary, or was damaged.")
    published = {name: file for name, file in members.items() if name.startswith(_PUBLISHED)}
    published = {name.removeprefix(_PUBLISHED): file for name, file in published.items()}
    for name in published:  # an export writes them into a folder: anything else could reach out of it
        if Path(name).name != name or name == "..":
            raise InputError(f"{origin} has a file named {name!r}, which is no plain name: it is no vocabulary.")
    return Archive(content, options, members.get("vocabulary.json"), published)


def _options(content: bytes, origin: str) -> Options:
    try:
        data: Any = json.loads(content)
        version = data.pop("version")
        if isinstance(version, int) and version > VERSION:
            raise InputError(f"{origin} has format version {version}, but this mmformer reads up to {VERSION}.")
        return Options(**{**data, "special": tuple(data.get("special", ()))})
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{origin} has no options.json of a vocabulary: it is none, or was damaged.") from error
