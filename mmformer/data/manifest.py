"""The table of shards that stands beside them, and the index of one shard.

``manifest.json``, read whole when a set is opened::

    {"format": "mmformer-shards", "version": 1, "shards": [
     {"path": "emoji-train-000000.tar", "split": "train", "samples": 256, "bytes": 2897920,
      "sha256": "9f…", "index": "emoji-train-000000.index.json"}, …]}

Beyond ``MOST_ROWS`` shards, the table is a file of its own (``mmformer.data.shard_table``).

``path`` and ``index`` are relative to the manifest, with ``/`` between folders; a tar may lie elsewhere (``../``, or at
a URL), an index may not. The index of a shard is a file of its own, read only when the shard is::

    {"format": "mmformer-shard-index", "version": 1, "shard": "emoji-train-000000.tar", "bytes": 2897920,
     "extensions": ["json", "png"], "keys": ["1f600", …], "members": [[0, 512, 1380, 1, 2560, 3071], …], "checksums":
     ["27c0c88e9d03a4f1", …]}

``members`` has one row a sample, in the shard's order: extension (a number into ``extensions``), offset of the first
payload byte in the tar, length in bytes, three numbers for every member of the sample. Keys and extensions are
webdataset's: the name up to the first dot of its last part, and the rest in lower case. ``checksums`` has the members'
CRC-32, eight hexadecimal digits each: changed bytes are noticed where they are read. Older indexes have none.

The index says which samples a shard has. A filter therefore leaves the tars alone: it writes a manifest with indexes of
its own that list some samples of the same tars, or some of them several times, and what it did, last of all::

    "history": [{"filter": "duplicates", "arguments": {"distance": 4}, "kept": 2485, "removed": 301}]
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from mmformer.data.packed import PackedRows, PackedTexts
from mmformer.data.shard_row import Shard, checked_fields, parse_shard, refuse_repeats
from mmformer.data.shard_table import Layout, ShardTable, name_urls, parse_layout, rows_of, split_names, write_table
from mmformer.errors import InputError, nearest
from mmformer.files import write_whole
from mmformer.resources import where_to_get

__all__ = ["FilterRecord", "Manifest", "NoSplitError", "Shard", "ShardIndex"]

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = "mmformer-shards"
INDEX_FORMAT = "mmformer-shard-index"
VERSIONS = {MANIFEST_FORMAT: 2, INDEX_FORMAT: 1}
"""The newest of each that this program reads. A manifest of version 1 has its rows in itself."""

MOST_ROWS = 10_000
"""Shards whose rows are written into the manifest itself, to be read by people."""


class NoSplitError(InputError):
    """A set has no split of a name."""


@dataclass(frozen=True)
class FilterRecord:
    """What a filter did to a set, as its manifest remembers it.

    Args:
        filter: its name.
        arguments: what it was told, as JSON has it.
        kept: samples that it left in.
        removed: samples that it took out.
    """

    filter: str
    arguments: Mapping[str, Any]
    kept: int
    removed: int


@dataclass(frozen=True)
class ShardIndex:
    """Where the samples of one shard lie in it.

    Args:
        shard: the name of the tar file, without folders.
        bytes: the size of the tar file that was indexed.
        extensions: every member extension that occurs in it, sorted.
        keys: the samples' keys, in the shard's order.
        members: for each sample (extension number, offset, length), flat, for each member in the shard's order.
        checksums: for each sample the CRC-32 of each of its members, in hexadecimal; () where they are not known.
    """

    shard: str
    bytes: int
    extensions: tuple[str, ...]
    keys: Sequence[str]
    members: Sequence[tuple[int, ...]]
    checksums: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def spans(self, row: int) -> dict[str, tuple[int, int]]:
        """The members of a sample: extension -> (offset of its first byte in the tar, length in bytes)."""
        flat = self.members[row]
        return {self.extensions[flat[i]]: (flat[i + 1], flat[i + 2]) for i in range(0, len(flat), 3)}

    def checksum(self, row: int, extension: str) -> int | None:
        """The CRC-32 of a sample's member; None: it is not known."""
        if not self.checksums:
            return None
        place = 8 * self.members[row][::3].index(self.extensions.index(extension))
        return int(self.checksums[row][place : place + 8], 16)

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        header = {"format": INDEX_FORMAT, "version": VERSIONS[INDEX_FORMAT]}
        own = {"shard": self.shard, "bytes": self.bytes, "extensions": self.extensions}
        rows = {"keys": self.keys, "members": self.members} | ({"checksums": self.checksums} if self.checksums else {})
        content = {**header, **own, **{name: list(value) for name, value in rows.items()}}
        write_whole(path, json.dumps(content, separators=(",", ":")) + "\n")

    @classmethod
    def load(cls, path: Path) -> ShardIndex:
        """Read and check an index file.

        Raises:
            InputError: it is missing, broken, newer than this program, or its numbers cannot be right.
        """
        fix = "Make the index again from the shard (mmformer.data.shards.index_shard)."
        content = _read_json(path, INDEX_FORMAT, f"index of a shard, {path}", fix)
        try:
            index = cls(
                shard=str(content["shard"]),
                bytes=int(content["bytes"]),
                extensions=tuple(content["extensions"]),
                keys=tuple(content["keys"]),
                members=tuple(tuple(row) for row in content["members"]),
                checksums=tuple(content.get("checksums", ())),
            )
            problem = _index_problem(index)
            if not problem:
                keys, checksums = PackedTexts(index.keys), PackedTexts(index.checksums)
                return replace(index, keys=keys, members=PackedRows(index.members), checksums=checksums)
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            problem = f"a field is missing or of the wrong type ({type(error).__name__}: {error})"
        raise InputError(f"{path}: {problem}. {fix}")


def _index_problem(index: ShardIndex) -> str:
    """What cannot be right about an index, or ``""``."""
    if not all(isinstance(name, str) for name in (*index.keys, *index.extensions)):
        return "keys and extensions must be strings"
    for name, rows in (("members", index.members), ("checksums", index.checksums or index.keys)):
        if len(rows) != len(index.keys):
            return f"{len(index.keys)} keys, but {len(rows)} rows of {name}"
    known = range(len(index.extensions))
    for key, flat in zip(index.keys, index.members, strict=True):
        if len(flat) % 3 or any(type(number) is not int for number in flat):
            return f"the members of sample {key!r} are not (extension, offset, length) in whole numbers"
        for extension, offset, length in zip(flat[::3], flat[1::3], flat[2::3], strict=True):
            if extension not in known or offset < 0 or length < 0 or offset + length > index.bytes:
                return f"a member of sample {key!r} lies outside the shard's {index.bytes} bytes"
    for key, flat, sums in zip(index.keys, index.members, index.checksums, strict=False):
        if 3 * len(sums) != 8 * len(flat) or set(sums) - set("0123456789abcdef"):
            return f"the checksums of sample {key!r} are not eight hexadecimal digits for each of its members"
    return ""


@dataclass(frozen=True)
class Manifest:
    """A set of shards.

    ``elsewhere`` says whether shards are copied from elsewhere.

    Args:
        root: the folder that paths in the table are relative to.
        shards: the table, in the order that samples are counted in.
        history: the filters that it went through, the first one first. Where there is none, every sample of the tars is
            in their indexes.
    """

    elsewhere: ClassVar[bool] = False
    root: Path
    shards: Sequence[Shard]
    history: tuple[FilterRecord, ...] = ()

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, in the table's order."""
        return split_names(self.shards)

    @property
    def names_urls(self) -> bool:
        """Whether some tar is elsewhere, by its URL."""
        return name_urls(self.shards)

    def split(self, name: str) -> Sequence[Shard]:
        """The shards of one split, in the table's order.

        Raises:
            NoSplitError: there is no such split; the known ones are listed.
        """
        chosen = rows_of(self.shards, name)
        if not chosen:
            known = ", ".join(self.splits)
            hint = nearest(name, self.splits)
            raise NoSplitError(f"There is no split '{name}' in {self.root / MANIFEST_NAME}: it has {known}.{hint}")
        return chosen

    def address(self, shard: Shard) -> str:
        """Where a shard's tar file is: a path or a URL."""
        return str(self.root / shard.path)

    def path(self, shard: Shard) -> Path:
        """Where a shard's tar file is, or where its copy is to be."""
        return self.root / shard.path

    def fetch(self, shard: Shard) -> Path:
        """Where its tar file can be opened, copied from elsewhere if need be."""
        return self.path(shard)

    def beside(self, name: str) -> Path:
        """Where a file that stands beside the manifest can be opened, if there is one."""
        return self.root / name

    def index(self, shard: Shard) -> ShardIndex:
        """Read the index of a shard.

        Raises:
            InputError: it is missing or broken, or disagrees with the manifest.
        """
        path = self.root / shard.index
        return self._checked(ShardIndex.load(path), shard, path)

    def _checked(self, index: ShardIndex, shard: Shard, path: Path) -> ShardIndex:
        """An index that was read from a file, if it is that of a shard."""
        found = (len(index), index.bytes)
        if found != (shard.samples, shard.bytes):
            raise InputError(
                f"{path} indexes {found[0]} samples in {found[1]} bytes, but {self.root / MANIFEST_NAME} says that "
                f"{shard.path} has {shard.samples} samples in {shard.bytes} bytes: they were not made together. "
                "Restore the one that is out of date."
            )
        return index

    @classmethod
    def load(cls, path: str | os.PathLike[str], table: Callable[[Layout], Path] | None = None) -> Manifest:
        """Read the manifest of a folder of shards; the file itself may be named as well.

        Args:
            path: of the folder, or of the file.
            table: where the file of its rows can be opened, where it has one; None: beside it.

        Raises:
            InputError: the folder or the manifest is missing, broken, or newer than this program.
        """
        given = Path(path)
        if not given.exists():
            known = [entry.name for entry in given.parent.iterdir()] if given.parent.is_dir() else []
            raise InputError(
                f"There is no folder of shards {given}.{where_to_get(given) or nearest(given.name, known)}"
            )
        file = given / MANIFEST_NAME if given.is_dir() else given
        fix = (
            f"A folder of shards has a {MANIFEST_NAME}: mmformer shards build makes one of your files, and mmformer "
            "shards index one for tars that are there."
        )
        content = _read_json(file, MANIFEST_FORMAT, f"manifest {file}", fix)
        shards: Sequence[Shard]
        if content["version"] == 1:
            shards = _parse_rows(content.get("shards"), file, fix)
        else:
            layout = parse_layout(content.get("table"), f"{file}: table")
            shards = ShardTable(file.with_name(layout.file) if table is None else table(layout), layout)
        steps = content.get("history", [])
        if not isinstance(steps, list):
            raise InputError(f"{file}: 'history' must be a list of what filters did, but is {steps!r:.60}.")
        history = tuple(_parse_record(step, f"{file}: history[{number}]") for number, step in enumerate(steps))
        return cls(file.parent, shards, history)

    def save(self) -> Path:
        """Write ``manifest.json`` into the root, whole or not at all, and return its path.

        Raises:
            InputError: a shard is in it twice.
        """
        path = self.root / MANIFEST_NAME
        if len(self.shards) <= MOST_ROWS:
            version, own = 1, set[str]()
            rows = ",\n ".join(json.dumps(asdict(shard), ensure_ascii=False) for shard in self.shards)
            table = f'"shards": [\n {rows}\n]'
        else:
            refuse_repeats(self.shards, path)  # those who read it do not look at all rows
            layout = write_table(self.root, self.shards)
            version, own = 2, {layout.file}
            table = f'"table": {json.dumps(asdict(layout), ensure_ascii=False)}'
        head = f'{{"format": "{MANIFEST_FORMAT}", "version": {version}, '
        steps = ",\n ".join(json.dumps(asdict(record), ensure_ascii=False) for record in self.history)
        tail = f', "history": [\n {steps}\n]}}' if steps else "}"
        write_whole(path, f"{head}{table}{tail}\n")
        for old in self.root.glob("manifest-*.table"):
            if old.name not in own:
                old.unlink(missing_ok=True)
        return path


def _parse_rows(rows: object, file: Path, fix: str) -> tuple[Shard, ...]:
    """The table that a manifest has in itself."""
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{file}: 'shards' must be a table of at least one shard. {fix}")
    shards = tuple(parse_shard(row, f"{file}: shards[{number}]") for number, row in enumerate(rows))
    refuse_repeats(shards, file)
    return shards


def _read_json(path: Path, expected: str, what: str, fix: str) -> Mapping[str, Any]:
    """The object in a JSON file of a known format and a version that this program reads."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"There is no {what}. {fix}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"The {what} cannot be read: {error}. {fix}") from error
    if not isinstance(content, dict) or content.get("format") != expected:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise InputError(f"The {what} must have the format '{expected}', but has {found!r}. {fix}")
    version, newest = content.get("version"), VERSIONS[expected]
    if type(version) is not int or version < 1:
        raise InputError(f"The {what} must have a version from 1 to {newest}, but has {version!r}. {fix}")
    if version > newest:
        raise InputError(
            f"The {what} has version {version}, but this mmformer reads up to version {newest}. Update mmformer."
        )
    return content


def _parse_record(step: object, where: str) -> FilterRecord:
    """One entry of the history, with every field checked."""
    return FilterRecord(**checked_fields(step, FilterRecord, where))
