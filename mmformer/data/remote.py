"""Shards that lie elsewhere: anything that fsspec opens (s3://, gs://, https://, …), kept in a bounded folder here.

A whole set may be there, or its manifest here and its tars there, which the manifest then names by their URLs. The
manifest is read at start, the index of a shard and the shard itself when a sample of it is first asked for. What is
kept is whole: it is written under another name, compared with the manifest's SHA-256, and renamed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import posixpath
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from mmformer.data.manifest import MANIFEST_NAME, Manifest, Shard, ShardIndex
from mmformer.data.shard_table import Layout
from mmformer.data.tar import index_shard
from mmformer.data.transfer import FETCHING, AtMost, Expected, Patience, ask, copy, is_missing, reason, remove_left
from mmformer.errors import InputError
from mmformer.spec import require

MOST_MANIFEST = AtMost(
    2**25,
    "a manifest",
    "Check the address. Where it is right, have mmformer write the manifest: of more than 10,000 shards it has a table "
    "beside it.",
)
"""10,000 rows of 3,300 bytes: the longest keys of stores have 1,024. Parsed, the worst that it may be takes 1.2 GiB."""

MOST_TABLE = AtMost(2**32, "a table beside a manifest", "Check the address, or divide the set into several.")
"""Ten million rows of 400 bytes."""

_MOST_INDEX = 2**25
"""Bytes of an index: half a million members of 64."""


def most_index(shard: Shard) -> AtMost:
    """How long a shard's index may be.

    A member takes 512 bytes of the tar, and of the index at most six for each byte of its name and some eighty more:
    less than eight times the tar. Filters list samples several times.
    """
    return AtMost(
        min(_MOST_INDEX, 2**16 + 8 * shard.bytes + 2**12 * shard.samples),
        f"the index of {shard.samples} samples in {shard.bytes} bytes",
        "Restore it there, or index the tar again: mmformer shards index. Very many samples need several tars.",
    )


def is_remote(source: str | os.PathLike[str]) -> bool:
    """Whether it is a URL rather than a path."""
    return "://" in str(source)


@dataclass(frozen=True)
class CacheSpec:
    """Where copies of remote shards are kept.

    Attributes:
        folder: may be shared by runs and by processes.
        gib: room for shards, in GiB; those that were not read for the longest time make room for others.
        attempts: how often something is asked for, as long as less than 4 MiB come, before it counts as unreachable;
            waits of 1, 2, 4 … seconds lie between, of 60 at most.
        timeout: seconds that the next 4 MiB may take before they are asked for again.
    """

    folder: str = "~/.cache/mmformer"
    gib: float = 50.0
    attempts: int = 5
    timeout: float = 60.0

    def __post_init__(self) -> None:
        require(self.gib > 0, self, "gib", "positive")
        require(self.attempts >= 1, self, "attempts", "at least 1")
        require(self.timeout > 0, self, "timeout", "positive")

    @property
    def patience(self) -> Patience:
        """With what is elsewhere."""
        return Patience(self.attempts, self.timeout)

    @property
    def shards(self) -> Path:
        """The copies, each by its content, so that one that was replaced there is not mistaken for the one here."""
        return Path(self.folder).expanduser() / "shards"


def open_manifest(source: str | os.PathLike[str], cache: CacheSpec | None = None) -> Manifest:
    """The manifest of a set, wherever it and its tars are.

    Args:
        source: a folder of shards or its manifest, or a URL of one.
        cache: where copies of remote shards are kept; None: where they usually are.

    Raises:
        InputError: there is none, it cannot be reached, or it is broken.
    """
    cache = cache or CacheSpec()
    if not is_remote(source):
        manifest = Manifest.load(source)
        if not manifest.names_urls:
            return manifest
        return RemoteManifest(manifest.root, manifest.shards, manifest.history, "", cache)
    url = _moved(str(source), lambda place: place.removesuffix(MANIFEST_NAME).rstrip("/"))
    root = Path(cache.folder).expanduser() / hashlib.sha256(url.encode()).hexdigest()[:16]

    def table(layout: Layout) -> Path:
        """That of very many shards, whose name has the first digits of its hash."""
        name, place = layout.file, join_url(url, layout.file)
        if layout.bytes > MOST_TABLE.bytes:
            raise MOST_TABLE.refused(place, f"{layout.bytes} bytes by its manifest")
        with _alone(root / ".table.lock"):  # a run's processes come to a new one at about one time
            if not (root / name).exists():
                digits = name.removeprefix("manifest-").removesuffix(".table")
                copy(place, root / name, cache.patience, Expected(digits, layout.bytes))
        return root / name

    # Anew in every run: it may have changed.
    copy(join_url(url, MANIFEST_NAME), root / MANIFEST_NAME, cache.patience, MOST_MANIFEST)
    manifest = Manifest.load(root, table)
    return RemoteManifest(root, manifest.shards, manifest.history, url, cache)


@dataclass(frozen=True)
class RemoteManifest(Manifest):
    """A manifest that is at a URL, or names tars that are; ``root`` is its folder here, or that of its copy.

    Args:
        url: of its folder; "": it is here.
        cache: where copies are kept.
    """

    elsewhere: ClassVar[bool] = True
    url: str = ""
    cache: CacheSpec = CacheSpec()

    def address(self, shard: Shard) -> str:
        return self._at(shard.path)

    def path(self, shard: Shard) -> Path:
        place = self.address(shard)
        return self.cache.shards / f"{shard.sha256[:32]}.tar" if is_remote(place) else Path(place)

    def fetch(self, shard: Shard) -> Path:
        path = self.path(shard)
        if not is_remote(self.address(shard)):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.with_name(f".{path.stem}.lock")):  # all workers come to a new shard at about one time
            if not _is_kept(path, shard.bytes):
                _make_room(self.cache, shard.bytes, keep=path)
                copy(self.address(shard), path, self.cache.patience, Expected(shard.sha256, shard.bytes))
        return path

    def beside(self, name: str) -> Path:
        if self.url:
            copy(self._at(name), self.root / name, self.cache.patience, MOST_TABLE)
        return self.root / name

    def index(self, shard: Shard) -> ShardIndex:
        if not self.url:
            return super().index(shard)
        path = self.root / f"{shard.sha256[:32]}-{hashlib.sha256(shard.index.encode()).hexdigest()[:8]}.index.json"
        if path.exists():
            with suppress(InputError):  # it may be that of an older set: fetched again, it may be right
                return self._checked(ShardIndex.load(path), shard, path)
        copy(self._at(shard.index), path, self.cache.patience, most_index(shard))
        return self._checked(ShardIndex.load(path), shard, path)

    def _at(self, path: str) -> str:
        """Where what the manifest names is; derived sets name tars that lie in other folders."""
        if is_remote(path):
            return path
        return join_url(self.url, path) if self.url else str(self.root / path)


def join_url(url: str, path: str) -> str:
    """The URL of what is in a folder, by its path from there.

    In a chain, such as ``zip://set::s3://bucket/sets.zip``, the first link that has a place is the folder's.
    """
    return _moved(url, lambda folder: posixpath.normpath(posixpath.join(folder, path)))


def _moved(url: str, change: Callable[[str], str]) -> str:
    """The URL of another place, by that of the first link that has one."""
    links = url.split("::")
    own = next(number for number, link in enumerate(links) if is_remote(link))
    scheme, _, place = links[own].partition("://")
    links[own] = f"{scheme}://{change(place)}"
    return "::".join(links)


def is_pattern(url: str) -> bool:
    """Whether a URL has wildcards; a question mark begins its query."""
    return not set("*[").isdisjoint(url)


def find_urls(pattern: str, patience: Patience = Patience()) -> list[str]:
    """The URLs that one with wildcards stands for, sorted; one without stands for itself.

    Raises:
        InputError: they cannot be listed.
    """
    from fsspec.core import url_to_fs

    if not is_pattern(pattern):
        return [pattern]
    try:
        files, place = url_to_fs(pattern)
        found = sorted(_matches(files, place, patience))
    except Exception as error:
        raise InputError(f"{pattern} cannot be listed: {reason(error)}") from error
    return [each if is_remote(each) else _moved(pattern, partial(_rooted_like, each)) for each in found]


def _matches(files: Any, pattern: str, patience: Patience) -> set[str]:
    """What a pattern names, one folder after the other. (fsspec's ``glob`` passes over folders that cannot be listed.)

    A part ``**`` is any number of folders.
    """
    parts = pattern.split("/")
    first = next(number for number, part in enumerate(parts) if is_pattern(part))
    found = {"/".join(parts[:first])}
    *between, last = [*parts[first:], *(["*"] if parts[-1] == "**" else [])]
    for part in between:
        if part == "**":
            new = found
            while new := {folder for each in new for folder in _inside(files, each, patience, True)}:
                found = found | new
        else:
            found = {each for folder in found for each in _inside(files, folder, patience, True) if _fits(each, part)}
    return {each for folder in found for each in _inside(files, folder, patience) if _fits(each, last)}


def _inside(files: Any, folder: str, patience: Patience, folders: bool = False) -> list[str]:
    """What is in a folder, or the folders alone; nothing where there is no such folder."""
    try:
        entries = ask(lambda: files.ls(f"{folder}/", detail=True), patience)
    except Exception as error:
        if is_missing(error):
            return []
        raise
    found = [entry["name"].rstrip("/") for entry in entries if not folders or entry["type"] == "directory"]
    return [name for name in found if name != folder]  # some stores list it in itself


def _fits(place: str, part: str) -> bool:
    return fnmatchcase(posixpath.basename(place), part)


def _rooted_like(place: str, pattern: str) -> str:
    """A place as its pattern has it: with or without a first slash."""
    return place if pattern.startswith("/") else place.lstrip("/")


def index_remote(url: str, cache: CacheSpec) -> tuple[ShardIndex, str]:
    """Copy a tar from elsewhere, and index it: the index, and the tar's SHA-256.

    Raises:
        InputError: it cannot be read, or is no whole tar.
    """
    cache.shards.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.shards, prefix=".indexing-") as folder:
        copied = Path(folder, "copy.tar")
        digest = copy(url, copied, cache.patience)
        try:
            index = replace(index_shard(copied), shard=posixpath.basename(url))
        except InputError as error:
            raise InputError(str(error).replace(str(copied), url)) from error
        kept = cache.shards / f"{digest[:32]}.tar"
        _make_room(cache, index.bytes, keep=kept)
        copied.replace(kept)
    return index, digest


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Inside, no other process holds the same lock."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_room(cache: CacheSpec, wanted: int, keep: Path) -> None:
    """Remove the shards that were not read for the longest time, until one of so many bytes fits besides the rest; open
    ones stay readable. What processes left that were killed while they copied goes first.
    """
    remove_left(cache.shards)
    shards = []
    for path in [*cache.shards.glob("*.tar"), *cache.shards.glob(f"{FETCHING}*")]:
        with suppress(FileNotFoundError):  # others make room, too
            found = path.stat()
            shards.append((found.st_mtime, found.st_size, path))
    size = sum(each for _, each, _ in shards)
    for _, each, path in sorted(shards):
        if size + wanted <= cache.gib * 2**30 or path == keep:
            break
        if path.suffix == ".tar":
            size -= each
            path.unlink(missing_ok=True)


def _is_kept(path: Path, size: int) -> bool:
    """Whether a whole copy is here; it counts as read now."""
    try:
        os.utime(path)
        return path.stat().st_size == size
    except FileNotFoundError:
        return False
