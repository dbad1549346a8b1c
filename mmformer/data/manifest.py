"""The table of shards that stands beside them, and the index of one shard.

``manifest.json``, read whole when a set is opened::

    {"format": "mmformer-shards", "version": 1, "shards": [
     {"path": "emoji-train-000000.tar", "split": "train", "samples": 256, "bytes": 2897920,
      "sha256": "9f…", "index": "emoji-train-000000.index.json"}, …]}

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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from mmformer.errors import InputError, nearest
from mmformer.files import write_whole
from mmformer.resources import where_to_get

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = "mmformer-shards"
INDEX_FORMAT = "mmformer-shard-index"
VERSION = 1
"""Of both files; a reader refuses newer ones."""


class NoSplitError(InputError):
    """A set has no split of a name."""


@dataclass(frozen=True)
class Shard:
    """One row of the manifest.

    Args:
        path: the tar file, relative to the manifest, or its URL.
        split: the part of the set that it belongs to, such as "train".
        samples: how many samples it holds.
        bytes: its size.
        sha256: of the whole file, in hexadecimal.
        index: its index file, relative to the manifest.
    """

    path: str
    split: str
    samples: int
    bytes: int
    sha256: str
    index: str


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
    keys: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]
    checksums: tuple[str, ...] = ()

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
        header = {"format": INDEX_FORMAT, "version": VERSION}
        own = {name: value for name, value in asdict(self).items() if value or name != "checksums"}
        write_whole(path, json.dumps(header | own, separators=(",", ":")) + "\n")

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
        except (KeyError, TypeError, ValueError) as error:
            problem = f"a field is missing or of the wrong type ({type(error).__name__}: {error})"
        if problem:
            raise InputError(f"{path}: {problem}. {fix}")
        return index


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
    shards: tuple[Shard, ...]
    history: tuple[FilterRecord, ...] = ()

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, in the table's order."""
        return tuple(dict.fromkeys(shard.split for shard in self.shards))

    def split(self, name: str) -> tuple[Shard, ...]:
        """The shards of one split, in the table's order.

        Raises:
            NoSplitError: there is no such split; the known ones are listed.
        """
        chosen = tuple(shard for shard in self.shards if shard.split == name)
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
    def load(cls, path: str | os.PathLike[str]) -> Manifest:
        """Read the manifest of a folder of shards; the file itself may be named as well.

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
        rows = content.get("shards")
        if not isinstance(rows, list) or not rows:
            raise InputError(f"{file}: 'shards' must be a table of at least one shard. {fix}")
        shards = tuple(_parse_shard(row, f"{file}: shards[{number}]") for number, row in enumerate(rows))
        _refuse_repeats(shards, file)
        steps = content.get("history", [])
        if not isinstance(steps, list):
            raise InputError(f"{file}: 'history' must be a list of what filters did, but is {steps!r:.60}.")
        history = tuple(_parse_record(step, f"{file}: history[{number}]") for number, step in enumerate(steps))
        return cls(file.parent, shards, history)

    def save(self) -> Path:
        """Write ``manifest.json`` into the root, whole or not at all, and return its path."""
        path = self.root / MANIFEST_NAME
        rows = ",\n ".join(json.dumps(asdict(shard), ensure_ascii=False) for shard in self.shards)
        head = f'{{"format": "{MANIFEST_FORMAT}", "version": {VERSION}, "shards": ['
        steps = ",\n ".join(json.dumps(asdict(record), ensure_ascii=False) for record in self.history)
        tail = f'], "history": [\n {steps}\n]}}' if steps else "]}"
        write_whole(path, f"{head}\n {rows}\n{tail}\n")
        return path


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
    version = content.get("version")
    if type(version) is not int or version < 1:
        raise InputError(f"The {what} must have a version from 1 to {VERSION}, but has {version!r}. {fix}")
    if version > VERSION:
        raise InputError(
            f"The {what} has version {version}, but this mmformer reads up to version {VERSION}. Update mmformer."
        )
    return content


def _parse_shard(row: object, where: str) -> Shard:
    """One row of the table, with every field checked."""
    shard = Shard(**_checked_fields(row, Shard, where))
    if PurePosixPath(shard.path).is_absolute():
        raise InputError(f"{where}.path must be relative to the manifest's folder, but is '{shard.path}'.")
    index = PurePosixPath(shard.index)
    if index.is_absolute() or ".." in index.parts:
        raise InputError(f"{where}.index must lie below the manifest's folder, but is '{index}'.")
    if len(shard.sha256) != 64 or set(shard.sha256) - set("0123456789abcdef"):
        raise InputError(f"{where}.sha256 must be 64 hexadecimal digits, but is {shard.sha256!r}.")
    return shard


def _parse_record(step: object, where: str) -> FilterRecord:
    """One entry of the history, with every field checked."""
    return FilterRecord(**_checked_fields(step, FilterRecord, where))


_MUST: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "str": ("text", lambda value: isinstance(value, str) and value != ""),
    "int": ("a whole number", lambda value: type(value) is int and value >= 0),
    "Mapping[str, Any]": ("an object", lambda value: isinstance(value, dict)),
}
"""What a value must be, by the type of its field."""


def _checked_fields(row: object, kind: type[Shard | FilterRecord], where: str) -> dict[str, Any]:
    """An object with exactly the fields of a class, each of its type."""
    if not isinstance(row, dict):
        raise InputError(f"{where} must be an object with the fields of a {kind.__name__}, but is {row!r}.")
    types = {field.name: str(field.type) for field in fields(kind)}
    for name in row:
        if name not in types:
            raise InputError(f"{where} has an unknown field '{name}'.{nearest(name, types)}")
    for name, declared in types.items():
        if name not in row:
            raise InputError(f"{where} lacks the field '{name}'.")
        must, holds = _MUST[declared]
        if not holds(row[name]):
            raise InputError(f"{where}.{name} must be {must}, but is {row[name]!r}.")
    return row


def _refuse_repeats(shards: Iterable[Shard], file: Path) -> None:
    """Refuse a shard twice in one split, and an index of two rows."""
    seen: set[tuple[str, ...]] = set()
    for shard in shards:
        for what, own in (("shard", (shard.path, shard.split)), ("index", (shard.index,))):
            if own in seen:
                raise InputError(f"{file} lists the {what} {own[0]} twice. Remove one of the rows.")
            seen.add(own)
