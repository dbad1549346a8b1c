"""What a sample will be, before its bytes are read: a plan that is divided among processes."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mmformer.data.decode import DECODERS, decode_image
from mmformer.data.sound import decode_sound
from mmformer.data.tar import META

KINDS = {decode_image: "image", decode_sound: "sound"}

KIND = {extension: KINDS[decoder] for extension, decoder in DECODERS.items() if decoder in KINDS}
"""Extension -> image or sound."""

_SAME = {"jpeg": "jpg"}
"""One name for one format: a run asks for a member by its extension."""


class Span(NamedTuple):
    """Bytes in a file."""

    path: str
    offset: int
    length: int

    def read(self) -> bytes:
        """The bytes.

        Raises:
            Unusable: the file is not what it was when the span was made.
        """
        try:
            with Path(self.path).open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.length)
        except OSError as error:
            raise Unusable("file that cannot be read", f"{self.path}: {error.strerror}") from error
        if len(data) < self.length:
            raise Unusable("file that cannot be read", f"{self.path} became shorter while the set was built")
        return data


class Draft(NamedTuple):
    """One sample to be."""

    key: str
    split: str  # "": its key says
    members: dict[str, Span | bytes]  # extension -> where its bytes are


class LeftOut(NamedTuple):
    """What did not become a sample, and why."""

    name: str  # of a file, a row of a table, or a key
    cause: str  # one of few, to be counted
    detail: str


class Found(NamedTuple):
    """What an input holds."""

    drafts: list[Draft]
    left_out: list[LeftOut]
    classes: tuple[str, ...] = ()


class Unusable(Exception):  # noqa: N818 - it is a finding, which is counted
    """Something cannot become a sample."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(cause, detail)  # both, so that it survives pickling
        self.cause, self.detail = cause, detail

    def of(self, name: str) -> LeftOut:
        return LeftOut(name, self.cause, self.detail)


def extension_of(name: str, kinds: Sequence[str] = ("image", "sound")) -> str | None:
    """The member's extension for a file of some kinds; None: its name ends otherwise."""
    suffix = PurePosixPath(name).suffix.lower().removeprefix(".")
    return _SAME.get(suffix, suffix) if KIND.get(suffix) in kinds else None


def file_span(folder: Path, name: str) -> Span:
    """All of a file, by its name in a folder or its whole path.

    Raises:
        Unusable: there is no such file, it lies outside the folder, or it is empty.
    """
    path = Path(os.path.normpath(folder / name))
    if not path.is_relative_to(os.path.normpath(folder)):
        raise Unusable("file outside the folder", f"{path} does not lie in {folder}")
    try:
        size = path.stat().st_size if path.is_file() else -1
    except (OSError, ValueError):  # a name that is too long, or holds a null character
        size = -1
    if size < 0:
        raise Unusable("missing file", f"there is no file {path}")
    if not size:
        raise Unusable("empty file", f"{path} has no bytes")
    return Span(str(path), 0, size)


def files_below(folder: Path) -> Iterator[Path]:
    """The files in a folder and below it, sorted, without hidden ones."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def unique_keys(names: Sequence[str]) -> list[str]:
    """A key for each of some file names: without its suffix where that tells no two apart, in characters that a tar and
    webdataset give back.
    """
    stems = [_clean(PurePosixPath(name).with_suffix("") if name else PurePosixPath()) for name in names]
    twice = {stem for stem, count in Counter(stems).items() if count > 1}
    keys, taken = [], set(stems) - twice
    for stem, name in zip(stems, names, strict=True):
        key = stem
        if stem in twice:
            wished = _clean(PurePosixPath(f"{name}")) if PurePosixPath(name).suffix else stem
            number, key = 1, wished
            while key in taken:
                number += 1
                key = f"{wished}_{number}"
            taken.add(key)
        keys.append(key)
    return keys


def _clean(path: PurePosixPath) -> str:
    parts = [part for part in path.parts if part not in ("/", "..", ".")] or ["unnamed"]
    parts[-1] = parts[-1].replace(".", "_")
    key = "/".join("".join(letter if letter.isprintable() else "_" for letter in part) for part in parts)
    return re.sub(r"^_+", "", key) or "unnamed" if META.match(f"{key}.x") else key
