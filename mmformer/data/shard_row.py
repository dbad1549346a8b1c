"""One row of a manifest, and what cannot be right about one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from mmformer.errors import InputError, nearest

STORES = (
    *("http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "hf", "hdfs", "webhdfs"),
    *("ftp", "sftp", "memory", "file", "zip", "tar"),
)
"""What a manifest, which others may have written, may name files of. fsspec opens more, such as what renders templates
that a file brings."""


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


MOST = {"samples": 2**40, "bytes": 2**63 - 1}
"""Of a shard. Samples are counted over millions of shards, in 64 bits; bytes are only held in as many."""


def parse_shard(row: object, where: str) -> Shard:
    """One row of the table, with every field checked."""
    return checked_shard(Shard(**checked_fields(row, Shard, where)), where)


def checked_shard(shard: Shard, where: str) -> Shard:
    """A shard whose places and hash can be right."""
    if PurePosixPath(shard.path).is_absolute() or not shard.path:
        raise InputError(f"{where}.path must be relative to the manifest's folder, but is '{shard.path}'.")
    schemes = [link.partition("://")[0] for link in shard.path.split("::")] if "://" in shard.path else []
    if other := next((scheme for scheme in schemes if scheme not in STORES), None):
        raise InputError(
            f"{where}.path is '{shard.path}', but of {', '.join(STORES)} alone a manifest may name files, not of "
            f"'{other}'. Copy the tar, and index it where it is then: mmformer shards index."
        )
    index = PurePosixPath(shard.index)
    if index.is_absolute() or ".." in index.parts:
        raise InputError(f"{where}.index must lie below the manifest's folder, but is '{index}'.")
    for name, most in MOST.items():
        if not 0 <= getattr(shard, name) <= most:
            raise InputError(f"{where}.{name} must be 0 to {most}, but is {getattr(shard, name)}.")
    if len(shard.sha256) != 64 or set(shard.sha256) - set("0123456789abcdef"):
        raise InputError(f"{where}.sha256 must be 64 hexadecimal digits, but is {shard.sha256!r}.")
    return shard


_MUST: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "str": ("text", lambda value: isinstance(value, str) and value != ""),
    "int": ("a whole number", lambda value: type(value) is int and value >= 0),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "list[str]": ("a list of texts", lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value)),
    "Mapping[str, Any]": ("an object", lambda value: isinstance(value, Mapping)),
}
"""What a value must be, by the type of its field."""


def checked_fields(row: object, kind: type[Any], where: str) -> dict[str, Any]:
    """An object with exactly the fields of a dataclass, each of its type."""
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


def refuse_repeats(shards: Iterable[Shard], file: Path) -> None:
    """Refuse a shard twice in one split, and an index of two rows."""
    seen: set[tuple[str, ...]] = set()
    for shard in shards:
        for what, own in (("shard", (shard.path, shard.split)), ("index", (shard.index,))):
            if own in seen:
                raise InputError(f"{file} lists the {what} {own[0]} twice. Remove one of the rows.")
            seen.add(own)
