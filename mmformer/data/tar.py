"""Tar files as shards: webdataset's rules for names, how samples are put in, and where the members lie."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, cast

from mmformer.data.manifest import Shard, ShardIndex
from mmformer.errors import InputError

MEMBER = re.compile(r"((?:.*/)?[^.]+)[.]([^/]*)")
"""A member's name: its sample's key, a dot, its extension. This is webdataset's own rule."""

META = re.compile(r"__[^/]*__($|/)")
"""What the names that webdataset passes over begin with."""

_MAX_HEADER = 2**16
"""Bytes of one header: a name has 4,096 at most. tarfile would make room for as many as the header declares."""

_DIGITS = re.compile(rb"\d{256}")  # in a row: tarfile would take a time that grows with the square of their number

_DAMAGE = (tarfile.TarError, OSError, ValueError, EOFError, LookupError, OverflowError, RecursionError)
"""What tarfile raises on damaged files (found by fuzzing them: tests/hostile)."""

RESTORE = "It was cut short, or replaced: copy or download it again, or build the set again."


def add_sample(tar: tarfile.TarFile, key: str, members: Mapping[str, bytes]) -> None:
    """Append a sample to a shard; the same samples give the same bytes.

    Raises:
        InputError: webdataset would not read back the key or the extensions.
    """
    check_names(key, members)
    for extension, data in members.items():
        info = tarfile.TarInfo(f"{key}.{extension}")  # owner 0, time 0
        info.size, info.mode = len(data), 0o644
        tar.addfile(info, io.BytesIO(data))


def check_names(key: str, extensions: Collection[str]) -> None:
    """Refuse what webdataset, or a tar, would not give back as it was.

    Raises:
        InputError: the key or an extension cannot be used, or there is no extension.
    """
    parts = key.split("/")
    if not key.isprintable() or any(part in ("", ".", "..") for part in parts) or "." in parts[-1]:
        raise InputError(
            f"The key {key!r} cannot be used: it is a relative path in printable characters, without a dot in "
            "its last part (the extension begins at the first dot)."
        )
    if not extensions:
        raise InputError(f"The sample '{key}' has no members.")
    for extension in extensions:
        usable = extension.isprintable() and extension == extension.lower() and "/" not in extension
        if not usable or not extension or extension.startswith("__") or META.match(f"{key}.{extension}"):
            raise InputError(
                f"The member '{key}.{extension}' cannot be used: an extension is in lower case, printable, "
                "without a slash, and neither it nor the whole name looks like __this__."
            )


def finish_shard(path: Path, split: str) -> Shard:
    """Index a written shard, as anybody else would: from the file. Returns its row of the manifest.

    Raises:
        InputError: it is no whole tar.
    """
    index = index_shard(path)
    index_path = path.with_suffix(".index.json")
    index.save(index_path)
    return Shard(path.name, split, len(index), index.bytes, file_sha256(path), index_path.name)


def index_shard(path: str | os.PathLike[str], checksums: bool = True) -> ShardIndex:
    """Scan a tar file once and say where its samples lie.

    Folders, links, names without a dot and webdataset's ``__meta__`` members are passed over, as webdataset does.

    Args:
        checksums: of all members too, by which readers tell whether their bytes are these; False: only headers are
            read.

    Raises:
        InputError: the file is missing, compressed, no tar, cut short or damaged between members; a name reaches out of
            its folder; or a sample has two members of one extension or comes twice.
    """
    file = Path(path)
    rows: dict[str, dict[str, tuple[int, int]]] = {}
    last = None
    for name, offset, length in _tar_members(file):
        match = MEMBER.fullmatch(name)
        if match is None or META.match(name):
            continue
        key, extension = match[1], match[2].lower()
        if name.startswith("/") or ".." in key.split("/"):
            raise InputError(f"{file}: the name '{name}' reaches out of its folder. Pack it again with relative names.")
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
    sums = _checksums(file, rows.values()) if checksums else ()
    return ShardIndex(file.name, file.stat().st_size, tuple(extensions), tuple(rows), members, sums)


def _checksums(path: Path, rows: Collection[Mapping[str, tuple[int, int]]]) -> tuple[str, ...]:
    """For each sample, the CRC-32 of its members, as an index has them."""
    try:
        with path.open("rb") as file:
            return tuple("".join(f"{_crc32(file, *span):08x}" for span in row.values()) for row in rows)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}.") from error


def _crc32(file: BinaryIO, offset: int, length: int) -> int:
    file.seek(offset)
    found = 0
    while length and (block := file.read(min(length, 2**20))):
        found, length = zlib.crc32(block, found), length - len(block)
    return found


class _Headers:
    """A tar as ``tarfile`` reads it for its headers alone, none of them longer than one has to be."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header declares {size:,} bytes")
        data = self.file.read(size)
        if size > tarfile.BLOCKSIZE and _DIGITS.search(data):
            raise tarfile.ReadError("a header has a number of hundreds of digits")
        return data


def _tar_members(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, payload offset and length of every regular file in a tar, and the certainty that nothing is missing."""
    try:
        with path.open("rb") as file, tarfile.open(fileobj=cast(BinaryIO, _Headers(file)), mode="r:") as tar:
            end = 0
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every header that it has seen
                if tar.offset <= end:  # a negative size, which tarfile would follow back for ever
                    raise InputError(f"{path} has a damaged header before byte {end}: it leads back. {RESTORE}")
                end = tar.offset
                if info.issparse():
                    raise InputError(f"{path}: '{info.name}' is a sparse file. Pack it again without --sparse.")
                stored = os.pread(file.fileno(), 8, info.offset_data - tarfile.BLOCKSIZE + 148)
                if not stored.strip(b" \0"):  # tarfile takes none for zero, and sums of signed bytes may be zero
                    raise tarfile.ReadError("a header has no checksum")
                if info.isreg():
                    yield info.name, info.offset_data, info.size
            end = tar.offset
    except FileNotFoundError:
        raise InputError(f"There is no shard {path}.") from None
    except _DAMAGE as error:
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
