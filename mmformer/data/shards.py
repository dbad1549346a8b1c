"""Shards: ordinary webdataset tars, written whole, read by position.

A sample is a run of tar members with one key: ``KEY.png``, ``KEY.json``, ``KEY.en-0.ogg``. Any tool that reads tar, or
webdataset itself, reads them front to back; with the manifest beside them (``mmformer.data.manifest``) a reader goes
straight to any sample, and a damaged shard is noticed instead of silently ending early.
"""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from mmformer.data.damage import DamageError, ShardError
from mmformer.data.decode import most_bytes
from mmformer.data.manifest import MANIFEST_NAME, Manifest, Shard, ShardIndex
from mmformer.data.recent import Recent
from mmformer.data.samples import RawSample, Samples
from mmformer.data.shard_table import ShardTable, sample_counts
from mmformer.data.tar import RESTORE, add_sample, check_names, file_sha256, finish_shard, index_shard
from mmformer.errors import InputError, nearest

__all__ = ["RawSample", "ShardReader", "ShardWriter", "index_shard", "verify", "verify_shard"]


@dataclass
class _OpenShard:
    """A shard that is being written."""

    split: str
    path: Path
    tar: tarfile.TarFile
    samples: int = 0


class ShardWriter:
    """Writes samples into numbered shards, ``NAME-SPLIT-000000.tar``, with their indexes and the manifest.

    Everything is written into a hidden folder beside its place and renamed into place at the end, the manifest last.
    An exception leaves the folder as it was. The same samples give the same bytes.

    Args:
        folder: where the shards go; made if it is missing.
        name: what the files' names begin with.
        samples_per_shard: at most so many in one shard.
        overwrite: take the place of the set that is in the folder; its shards are removed.

    Raises:
        InputError: an argument cannot be used, or the folder holds a set already.
    """

    def __init__(
        self, folder: str | os.PathLike[str], name: str, samples_per_shard: int = 1000, overwrite: bool = False
    ) -> None:
        self.folder = Path(folder)
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise InputError(f"The shards' name must be of letters, digits, - and _, but is {name!r}.")
        if samples_per_shard < 1:
            raise InputError(f"samples_per_shard must be at least 1, but is {samples_per_shard}.")
        if (self.folder / MANIFEST_NAME).exists() and not overwrite:
            raise InputError(f"{self.folder} holds a set of shards already. Choose another folder, or overwrite=True.")
        self.name, self.samples_per_shard = name, samples_per_shard
        self.manifest = Manifest(self.folder, ())  # complete when the with block has ended
        self._open: dict[str, _OpenShard] = {}
        self._done: dict[str, list[Shard]] = {}
        self._keys: set[str] = set()
        self._work: Path | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._work = Path(tempfile.mkdtemp(prefix=f".{self.name}-", dir=self.folder))
        return self

    def write(self, sample: RawSample, split: str = "train") -> None:
        """Add a sample to a split.

        Raises:
            InputError: the key was used before, or webdataset would not read back the key or the extensions.
        """
        check_names(sample.key, sample.members)
        if sample.key in self._keys:
            raise InputError(f"The key '{sample.key}' comes twice. Every sample of a set needs its own.")
        shard = self._open.get(split) or self._start(split)
        add_sample(shard.tar, sample.key, sample.members)
        self._keys.add(sample.key)
        shard.samples += 1
        if shard.samples == self.samples_per_shard:
            self._finish(split)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        work = self._work
        if work is None:
            raise RuntimeError("ShardWriter was not entered")
        try:
            if kind is None:
                for split in list(self._open):
                    self._finish(split)
                self._commit(work)
        finally:
            for shard in self._open.values():
                shard.tar.close()
            shutil.rmtree(work)

    def _start(self, split: str) -> _OpenShard:
        if self._work is None:
            raise RuntimeError("use ShardWriter in a with statement")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", split):
            raise InputError(f"A split's name must be of letters, digits, - and _, but is {split!r}.")
        path = self._work / f"{self.name}-{split}-{len(self._done.setdefault(split, [])):06d}.tar"
        self._open[split] = _OpenShard(split, path, tarfile.open(path, "w", format=tarfile.PAX_FORMAT))  # noqa: SIM115
        return self._open[split]

    def _finish(self, split: str) -> None:
        """Close a shard and index it."""
        shard = self._open.pop(split)
        shard.tar.close()
        self._done[split].append(finish_shard(shard.path, split))

    def _commit(self, work: Path) -> None:
        shards = tuple(shard for rows in self._done.values() for shard in rows)
        if not shards:
            raise InputError(f"No sample was written to {self.folder}: a set of shards needs at least one.")
        old: set[str] = set()
        if (self.folder / MANIFEST_NAME).exists():
            old = {name for shard in Manifest.load(self.folder).shards for name in (shard.path, shard.index)}
        new = [name for shard in shards for name in (shard.path, shard.index)]
        for name in new:
            with (work / name).open("rb") as file:
                os.fsync(file.fileno())
            (work / name).replace(self.folder / name)
        self.manifest = Manifest(self.folder, shards)
        self.manifest.save()
        for name in old.difference(new):
            (self.folder / name).unlink(missing_ok=True)


class _Descriptor:
    """An open file that closes itself when the last reader has let go of it."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # bound early: os may be gone at exit
        close(self.number)


def _open_shard(manifest: Manifest, shard: Shard) -> _Descriptor:
    """Open a shard whose size is the manifest's."""
    expected = shard.bytes
    for last in (False, False, True):
        path = manifest.fetch(shard)
        try:
            descriptor = _Descriptor(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            break
        except FileNotFoundError:
            if manifest.elsewhere and not last:  # another process has made room for its own copy
                continue
            raise ShardError(
                f"The shard {path} is missing: the manifest lists it with {expected} bytes. {RESTORE}", "missing shard"
            ) from None
        except OSError as error:
            raise ShardError(f"The shard {path} cannot be opened: {error}.", "unreachable shard") from error
    found = os.fstat(descriptor.number).st_size
    if found != expected:
        told = f"The shard {path} has {found} bytes, but the manifest says {expected}. {RESTORE}"
        raise ShardError(told, "changed shard")
    return descriptor


_QUESTIONS = 2048
"""An index is kept for as many reads of other shards: two shards take turns while a lane goes from one to the next."""


class ShardReader(Samples):
    """Reads the samples of a split at any position.

    Indexes and files are opened when first needed and kept in bounded numbers. Reads are ``pread``: they share no file
    position, so one reader may be used by forked workers and by threads. Pickling leaves what is open behind.

    Args:
        manifest: the set.
        split: the split to read.
        max_open: shards kept open at once.
        max_indexes: indexes kept in memory at once; those of shards that are read no more are dropped before.

    Raises:
        InputError: there is no such split.
    """

    def __init__(self, manifest: Manifest, split: str, max_open: int = 32, max_indexes: int = 256) -> None:
        self.manifest, self.split = manifest, split
        self.max_open, self.max_indexes = max_open, max_indexes
        self.elsewhere = manifest.elsewhere
        self.shards = manifest.split(split)
        self.counts = sample_counts(self.shards)  # from the manifest alone
        self._descriptor = lru_cache(max_open)(partial(_open_shard, manifest))
        shards = self.shards
        self._index = Recent(lambda part: manifest.index(shards[part]), _QUESTIONS, max_indexes)
        self._unusable: dict[int, tuple[str, str]] = {}  # part -> what was told of it, and the cause

    def __reduce__(self) -> tuple[type[ShardReader], tuple[Manifest, str, int, int]]:
        return type(self), (self.manifest, self.split, self.max_open, self.max_indexes)

    def extensions(self, part: int) -> tuple[str, ...]:
        """Those of the members of some sample of a shard."""
        return self._index(part).extensions

    @property
    def names(self) -> Iterable[str]:
        return () if isinstance(self.shards, ShardTable) else (shard.path for shard in self.shards)

    def part_keys(self, part: int) -> Sequence[str]:
        return self._index(part).keys

    def read(self, part: int, row: int, extensions: Collection[str] | None = None) -> RawSample:
        if part in self._unusable:  # it stays so, and is not asked for again for each of its samples
            raise ShardError(*self._unusable[part])
        try:
            return self._read(part, row, extensions)
        except ShardError as error:
            self._unusable[part] = str(error), error.cause
            raise

    def _read(self, part: int, row: int, extensions: Collection[str] | None) -> RawSample:
        entry = self.shards[part]
        index = self._index(part)
        spans = index.spans(row)
        path = self.manifest.path(entry)
        if extensions is not None:
            for name in extensions:
                if name not in index.extensions:
                    known, hint = ", ".join(index.extensions), nearest(name, index.extensions)
                    raise InputError(f"No sample in {path} has a member '{name}': there are {known}.{hint}")
            spans = {name: spans[name] for name in extensions if name in spans}
        key, members = index.keys[row], {}
        for name, (offset, length) in spans.items():
            if length > (most := most_bytes(name)):
                told = f"{path}: {key}.{name} has {length:,} bytes, but at most {most:,} are read. Leave it out."
                raise DamageError(told, key, "member that is too long")
            members[name] = _pread(self._descriptor(entry), offset, length, path)
            expected = index.checksum(row, name)
            if expected is not None and zlib.crc32(members[name]) != expected:
                told = f"{path}: the bytes of {key}.{name} are not those that were indexed. {RESTORE}"
                raise DamageError(told, key, "changed bytes")
        return RawSample(key, members)


def _pread(descriptor: _Descriptor, offset: int, length: int, path: Path) -> bytes:
    """Exactly so many bytes from an offset."""
    try:
        data = os.pread(descriptor.number, length, offset)
        while len(data) < length and (more := os.pread(descriptor.number, length - len(data), offset + len(data))):
            data += more  # one call returns at most 2 GiB
    except OSError as error:
        raise ShardError(f"The shard {path} cannot be read at byte {offset}: {error}.", "unreachable shard") from error
    if len(data) < length:
        told = f"The shard {path} ends {length - len(data)} bytes early, while it was open. {RESTORE}"
        raise ShardError(told, "changed shard")
    return data


def verify(manifest: Manifest) -> list[str]:
    """What is wrong with a set: one sentence a problem, none if its shards and indexes are as the manifest says."""
    return [problem for shard in manifest.shards for problem in verify_shard(manifest, shard)]


def verify_shard(manifest: Manifest, shard: Shard) -> list[str]:
    """What is wrong with one shard: its size, its hash, its count of samples, its index.

    In a set that went through filters, an index lists some of the shard's samples.
    """
    try:
        path = manifest.fetch(shard)
    except InputError as error:
        return [str(error)]
    if not path.is_file():
        return [f"{path} is missing"]
    problems = []
    size = path.stat().st_size
    if size != shard.bytes:
        problems.append(f"{path} has {size} bytes, the manifest says {shard.bytes}")
    elif (digest := file_sha256(path)) != shard.sha256:
        problems.append(f"{path} has the SHA-256 {digest}, the manifest says {shard.sha256}: its content changed")
    try:
        actual = replace(index_shard(path), shard=PurePosixPath(shard.path).name)  # a copy is called otherwise
        if not manifest.history and len(actual) != shard.samples:
            problems.append(f"{path} has {len(actual)} samples, the manifest says {shard.samples}")
        index = manifest.index(shard)
        if problems or not index.checksums:  # that the content changed is told, and of older indexes nothing is known
            index, actual = (replace(each, checksums=()) for each in (index, actual))
        if not (_is_part(index, actual) if manifest.history else index == actual):
            problems.append(f"{manifest.root / shard.index} does not agree with {path}")
    except InputError as error:
        problems.append(str(error))
    return problems


def _is_part(index: ShardIndex, whole: ShardIndex) -> bool:
    """Whether each row of an index, as a filter writes it, is a sample of its tar."""
    rows = {key: row for row, key in enumerate(whole.keys)}
    return (index.shard, index.bytes) == (whole.shard, whole.bytes) and all(
        key in rows and _facts(index, row) == _facts(whole, rows[key]) for row, key in enumerate(index.keys)
    )


def _facts(index: ShardIndex, row: int) -> dict[str, tuple[int, int, int | None]]:
    """Where the members of a sample lie, and their checksums."""
    return {name: (*span, index.checksum(row, name)) for name, span in index.spans(row).items()}
