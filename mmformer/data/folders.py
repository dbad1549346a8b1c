"""A tree of files as it is, without shards: a folder for each class, as torchvision's ImageFolder reads it.

``FOLDER/SPLIT/CLASS/…/NAME.png``, or ``FOLDER/CLASS/…/NAME.png`` where there are no splits and the split ``train`` is
all of it. Each file is a sample of three members: the file by its extension, its class's number in ``cls``, and the
class's name in ``txt``. Classes are numbered in the order of their names, those of all splits together, so that a class
which some split lacks leaves the others' numbers alone; ``read_classes`` reads a folder the same way.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from mmformer.data.decode import DECODERS
from mmformer.data.manifest import NoSplitError
from mmformer.data.samples import RawSample, Samples
from mmformer.errors import InputError, nearest

_CLASS, _NAME = "cls", "txt"
READ = tuple(sorted(set(DECODERS) - {_CLASS, _NAME, "json"}))
"""The extensions of files that are samples."""

_SPLITS = ("train", "val", "valid", "validation", "test")
"""Folders of these names are splits, not classes."""

_PARTS = 64
"""As many, at least, as lanes are likely to be."""


def class_folders(folder: Path) -> list[str]:
    """The names of the classes in a folder that has a folder for each, sorted."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def split_folders(folder: Path, split: str = "") -> list[str]:
    """The splits in a folder, sorted: its folders that have a split's usual name, or the name that is asked for."""
    return [name for name in class_folders(folder) if name in _SPLITS or name == split]


def tree_classes(folder: Path, split: str = "") -> list[str]:
    """The names of the classes in a tree, sorted: those of all its splits, where it has some."""
    splits = split_folders(folder, split)
    return (
        sorted({name for each in splits for name in class_folders(folder / each)}) if splits else class_folders(folder)
    )


class FolderSamples(Samples):
    """The files below one folder for each class, mixed, so that every part has all classes.

    Args:
        folder: that of the set.
        split: a folder in it; or ``train``, where its folders are classes.

    Raises:
        NoSplitError: no such split.
        InputError: no files that can be read.
    """

    def __init__(self, folder: Path, split: str) -> None:
        splits = split_folders(folder, split)
        self.classes = tree_classes(folder, split)
        if split in splits:
            folder = folder / split
        elif split != "train" or splits:
            raise NoSplitError(
                f"There is no split '{split}' in {folder}: it has {', '.join(splits or ['train'])}."
                f"{nearest(split, splits)}"
            )
        self.folder = folder
        files = [(number, file) for number, name in enumerate(self.classes) for file in self._of(name)]
        self.files = sorted(files, key=lambda numbered: _scattered(numbered[1]))
        if not self.files:
            raise InputError(
                f"{folder}: there is no file in it that can be read: a folder for each class is expected, with files "
                f"that end in one of {', '.join(READ)}."
            )
        self.extensions = sorted({_extension(file) for _, file in self.files} | {_CLASS, _NAME})
        number = min(len(self.files), max(_PARTS, len(self.files) // 1024))
        self._starts = [len(self.files) * part // number for part in range(number + 1)]
        self.counts = tuple(end - start for start, end in pairwise(self._starts))

    @property
    def names(self) -> Iterable[str]:
        return (file.as_posix() for _, file in self.files)

    def part_keys(self, part: int) -> Sequence[str]:
        files = self.files[self._starts[part] : self._starts[part + 1]]
        return [file.as_posix() for _, file in files]

    def read(self, part: int, row: int, extensions: Collection[str] | None = None) -> RawSample:
        number, file = self.files[self._starts[part] + row]
        own = _extension(file)
        made = {_CLASS: str(number), _NAME: self.classes[number].replace("_", " ")}
        members: dict[str, bytes] = {}
        for name in (own, *made) if extensions is None else extensions:
            if name not in self.extensions:
                raise InputError(
                    f"No file in {self.folder} is a '.{name}': there are {', '.join(self.extensions)}."
                    f"{nearest(name, self.extensions)}"
                )
            if name == own:
                members[name] = _content(self.folder / file)
            elif name in made:
                members[name] = made[name].encode()
        return RawSample(file.as_posix(), members)

    def _of(self, name: str) -> list[Path]:
        """The files of a class, relative to the folder."""
        return [file.relative_to(self.folder) for file in _files(self.folder / name)]


def _scattered(file: Path) -> bytes:
    """Where a file stands: anywhere, but always there."""
    return hashlib.blake2b(file.as_posix().encode(), digest_size=8).digest()


def _files(folder: Path) -> list[Path]:
    """The files below a folder that can be decoded, sorted; hidden ones are left out, and folders that links lead to a
    second time.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(root, name) for name in names if not name.startswith(".")]
    return sorted(file for file in found if _extension(file) in READ)


def _extension(file: Path) -> str:
    return file.suffix[1:].lower()


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: it cannot be read: {error.strerror}.") from error
