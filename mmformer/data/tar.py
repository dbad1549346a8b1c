"""Tar files as shards: webdataset's rules for names, and where the members lie."""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from mmformer.data.manifest import ShardIndex
from mmformer.errors import InputError

MEMBER = re.compile(r"((?:.*/)?[^.]+)[.]([^/]*)")
"""A member's name: its sample's key, a dot, its extension. This is webdataset's own rule."""

META = re.compile(r"__[^/]*__($|/)")
"""What the names that webdataset passes over begin with."""

RESTORE = "It was cut short, or replaced: copy or download it again, or build the set again."


def index_shard(path: str | os.PathLike[str]) -> ShardIndex:
    """Scan a tar file once and say where its samples lie.

    Folders, links, names without a dot and webdataset's ``__meta__`` members are passed over, as webdataset does.

    Raises:
        InputError: the file is missing, compressed, no tar, cut short or damaged between members, or a sample has two
            members of one extension or comes twice.
    """
    file = Path(path)
    rows: dict[str, dict[str, tuple[int, int]]] = {}
    last = None
    for name, offset, length in _tar_members(file):
        match = MEMBER.fullmatch(name)
        if match is None or META.match(name):
            continue
        key, extension = match[1], match[2].lower()
        if key != last and key in rows:
            raise InputError(
                f"{file}: the sample '{key}' comes twice. The members of a sample must stand together, and its key "
                "must be its own."
            )
        row = rows.setdefault(key, {})
        if extension in row:
            raise InputError(f"{file}: the sample '{key}' has two members with the extension '{extension}'.")
        row[extension] = (offset, length)
        last = key
    extensions = sorted({extension for row in rows.values() for extension in row})
    numbers = {extension: number for number, extension in enumerate(extensions)}
    members = tuple(tuple(n for ext, span in row.items() for n in (numbers[ext], *span)) for row in rows.values())
    return ShardIndex(file.name, file.stat().st_size, tuple(extensions), tuple(rows), members)


def _tar_members(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, payload offset and length of every regular file in a tar, and the certainty that nothing is missing."""
    try:
        with tarfile.open(path, "r:") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every header that it has seen
                if info.issparse():
                    raise InputError(f"{path}: '{info.name}' is a sparse file. Pack it again without --sparse.")
                if info.isreg():
                    yield info.name, info.offset_data, info.size
            end = tar.offset
    except FileNotFoundError:
        raise InputError(f"There is no shard {path}.") from None
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} is not a whole, uncompressed tar: {error}. Decompress it if it is compressed, or restore it."
        ) from error
    with path.open("rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
    if block != bytes(tarfile.BLOCKSIZE):  # tarfile takes a cut at a member's edge, or a broken header, for the end
        what = "a damaged header" if block else "no end-of-archive mark"
        raise InputError(f"{path} has {what} at byte {end} of {path.stat().st_size}. {RESTORE}")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
