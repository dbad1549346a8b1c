"""The rows of a manifest of very many shards, in a file of columns.

As JSON, a million shards would take many seconds to be parsed and a gigabyte to be held. Their table is a file beside
the manifest instead, ``manifest-DIGEST.table``, mapped into memory, of which a reader touches the counts and the rows
that it asks for. Columns follow each other, little-endian, without anything between them: samples and bytes (8 bytes
each), SHA-256 (32), the number of the split (2), path and index (UTF-8, filled up with NUL). The manifest has the
rest::

    {"format": "mmformer-shards", "version": 2, "table": {"file": "manifest-9f….table", "shards": 1000000,
     "splits": ["train", "val"], "path": 31, "index": 38, "urls": false}}
"""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from mmformer.data.shard_row import Shard, checked_fields, checked_shard
from mmformer.errors import InputError

RESTORE_TABLE = "Restore it, or write the manifest again."


@dataclass(frozen=True)
class Layout:
    """What a manifest says of a table in a file of its own.

    Args:
        file: its name, beside the manifest; it has the first digits of the file's SHA-256.
        shards: rows.
        splits: names of the splits, by their numbers.
        path: bytes of a path.
        index: bytes of the path of an index.
        urls: whether some path is a URL.
    """

    file: str
    shards: int
    splits: list[str]
    path: int
    index: int
    urls: bool

    @property
    def columns(self) -> dict[str, str]:
        """Name -> NumPy's type of an item."""
        names = {"path": f"S{self.path}", "index": f"S{self.index}"}
        return {"samples": "<i8", "bytes": "<i8", "sha256": "V32", "split": "<u2"} | names

    @property
    def bytes(self) -> int:
        """The size of the file."""
        return self.shards * sum(np.dtype(kind).itemsize for kind in self.columns.values())


class ShardTable(Sequence[Shard]):
    """The rows of a file of columns, or those of one split; each is made when it is asked for.

    Args:
        path: the file.
        layout: of it.
        split: whose rows; None: all.

    Raises:
        InputError: the file is missing, or cannot be that of the layout.
    """

    def __init__(self, path: Path, layout: Layout, split: str | None = None) -> None:
        self.path, self.layout, self.split = path, layout, split
        self._columns = _mapped(path, layout)
        self._rows: NDArray[np.int64] | range = range(layout.shards)
        if split is not None:
            own = np.flatnonzero(self._columns["split"] == layout.splits.index(split))
            whole = len(own) and own[-1] - own[0] + 1 == len(own)
            self._rows = range(int(own[0]), int(own[-1]) + 1) if whole else own
        self._row = lru_cache(1024)(self._make)

    def __reduce__(self) -> tuple[type[ShardTable], tuple[Path, Layout, str | None]]:
        return type(self), (self.path, self.layout, self.split)

    def __len__(self) -> int:
        return len(self._rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(Shard.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    @overload
    def __getitem__(self, number: int) -> Shard: ...

    @overload
    def __getitem__(self, number: slice) -> tuple[Shard, ...]: ...

    def __getitem__(self, number: int | slice) -> Shard | tuple[Shard, ...]:
        if isinstance(number, slice):
            return tuple(self._row(int(row)) for row in self._rows[number])
        return self._row(int(self._rows[number]))

    @property
    def counts(self) -> memoryview[int]:
        """The samples of each shard; of a split whose rows follow each other, in the file's own pages."""
        rows = slice(self._rows.start, self._rows.stop) if isinstance(self._rows, range) else self._rows
        return self._columns["samples"][rows].data

    def _make(self, row: int) -> Shard:
        columns, where = self._columns, f"{self.path}: shards[{row}]"
        try:
            path, index = (bytes(columns[name][row]).decode() for name in ("path", "index"))
        except UnicodeDecodeError as error:
            raise InputError(f"{where} is not UTF-8: {error}. {RESTORE_TABLE}") from error
        split, sha256 = self.layout.splits[columns["split"][row]], columns["sha256"][row].tobytes().hex()
        samples, size = (int(columns[name][row]) for name in ("samples", "bytes"))
        if size < 0:
            raise InputError(f"{where}.bytes cannot be {size}. {RESTORE_TABLE}")
        return checked_shard(Shard(path, split, samples, size, sha256, index), where)


def _mapped(path: Path, layout: Layout) -> dict[str, NDArray[Any]]:
    """The columns of a file, whose numbers can be right."""
    size = layout.bytes
    try:
        with path.open("rb") as file:
            if (found := os.fstat(file.fileno()).st_size) != size or not size:
                raise InputError(f"{path} has {found} bytes, but its manifest says {size}. {RESTORE_TABLE}")
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise InputError(f"The table of shards {path} cannot be read: {error.strerror}. {RESTORE_TABLE}") from error
    columns: dict[str, NDArray[Any]] = {}
    start = 0
    for name, kind in layout.columns.items():
        columns[name] = np.frombuffer(content, kind, layout.shards, start)
        start += columns[name].nbytes
    # What all readers need of all rows is looked at now, the rest of a row when it is asked for.
    for name, wrong in (("samples", columns["samples"] < 0), ("split", columns["split"] >= len(layout.splits))):
        if wrong.any():
            row = int(wrong.argmax())
            raise InputError(f"{path}: shards[{row}].{name} cannot be {columns[name][row]}. {RESTORE_TABLE}")
    return columns


def write_table(folder: Path, shards: Sequence[Shard]) -> Layout:
    """Write a file of columns, whole or not at all."""
    splits = list(dict.fromkeys(shard.split for shard in shards))
    numbers = {name: number for number, name in enumerate(splits)}
    paths, indexes = (np.array([getattr(shard, name).encode() for shard in shards], "S") for name in ("path", "index"))
    urls = any("://" in shard.path for shard in shards)
    layout = Layout("", len(shards), splits, paths.itemsize, indexes.itemsize, urls)
    values: dict[str, Callable[[], NDArray[Any]]] = {
        "samples": lambda: np.array([shard.samples for shard in shards]),
        "bytes": lambda: np.array([shard.bytes for shard in shards]),
        "sha256": lambda: np.array([bytes.fromhex(shard.sha256) for shard in shards], "V32"),
        "split": lambda: np.array([numbers[shard.split] for shard in shards]),
        "path": lambda: paths,
        "index": lambda: indexes,
    }
    digest = hashlib.sha256()
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".table-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            for column, kind in layout.columns.items():
                data = np.ascontiguousarray(values[column](), kind).tobytes()
                digest.update(data)
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)  # mkstemp's files are for their owner alone
        layout = replace(layout, file=f"manifest-{digest.hexdigest()[:16]}.table")
        Path(name).replace(folder / layout.file)
    finally:
        Path(name).unlink(missing_ok=True)
    return layout


def split_names(shards: Sequence[Shard]) -> tuple[str, ...]:
    """The names of the splits, in the table's order."""
    if isinstance(shards, ShardTable):
        return tuple(shards.layout.splits)
    return tuple(dict.fromkeys(shard.split for shard in shards))


def rows_of(shards: Sequence[Shard], split: str) -> Sequence[Shard]:
    """The shards of one split, in the table's order."""
    if isinstance(shards, ShardTable):
        return ShardTable(shards.path, shards.layout, split) if split in shards.layout.splits else ()
    return tuple(shard for shard in shards if shard.split == split)


def sample_counts(shards: Sequence[Shard]) -> Sequence[int]:
    """The samples of each shard."""
    return shards.counts if isinstance(shards, ShardTable) else tuple(shard.samples for shard in shards)


def name_urls(shards: Sequence[Shard]) -> bool:
    """Whether some shard is at a URL."""
    return shards.layout.urls if isinstance(shards, ShardTable) else any("://" in shard.path for shard in shards)


def parse_layout(row: object, where: str) -> Layout:
    """What a manifest says of its file of columns, with every field checked."""
    layout = Layout(**checked_fields(row, Layout, where))
    if PurePosixPath(layout.file).name != layout.file:
        raise InputError(f"{where}.file must be the name of a file beside the manifest, but is {layout.file!r}.")
    if not (layout.shards and layout.splits and 0 < layout.path < 2**16 and 0 < layout.index < 2**16):
        raise InputError(f"{where} must be a table of at least one shard, with paths of 1 to 65,535 bytes: {layout}.")
    return layout
