"""Shards that lie elsewhere: anything that fsspec opens (s3://, gs://, https://, …), kept in a bounded folder here.

The manifest is read at start, the index of a shard and the shard itself when a sample of it is first asked for. What
is kept is whole: it is written under another name, compared with the manifest's SHA-256, and renamed.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mmformer.data.manifest import MANIFEST_NAME, Manifest, Shard, ShardIndex
from mmformer.errors import InputError
from mmformer.spec import require

_BLOCK = 2**22


def is_remote(source: str | os.PathLike[str]) -> bool:
    """Whether it is a URL rather than a path."""
    return "://" in str(source)


@dataclass(frozen=True)
class CacheSpec:
    """Where copies of remote shards are kept.

    Attributes:
        folder: may be shared by runs and by processes.
        gib: room for shards, in GiB; those that were not read for the longest time make room for others.
    """

    folder: str = "~/.cache/mmformer"
    gib: float = 50.0

    def __post_init__(self) -> None:
        require(self.gib > 0, self, "gib", "positive")


@dataclass(frozen=True)
class RemoteManifest(Manifest):
    """A manifest at a URL; ``root`` is the folder here that what is fetched goes to."""

    url: str = ""
    cache: CacheSpec = CacheSpec()

    @classmethod
    def open(cls, url: str, cache: CacheSpec) -> RemoteManifest:
        """Fetch and read the manifest of a remote folder of shards.

        Raises:
            InputError: there is none, it cannot be reached, or it is broken.
        """
        url = url.removesuffix(f"/{MANIFEST_NAME}").rstrip("/")
        root = Path(cache.folder).expanduser() / hashlib.sha256(url.encode()).hexdigest()[:16]
        _fetch(f"{url}/{MANIFEST_NAME}", root / MANIFEST_NAME)  # anew in every run: it may have changed
        read = Manifest.load(root)
        return cls(root, read.shards, read.history, url, cache)

    def path(self, shard: Shard) -> Path:
        # By content, so that a shard that was replaced there is not mistaken for the one that is here.
        return self.root / f"{shard.sha256[:32]}.tar"

    def fetch(self, shard: Shard) -> Path:
        path = self.path(shard)
        if path.exists():
            os.utime(path)
        else:
            _make_room(self.root.parent, int(self.cache.gib * 2**30) - shard.bytes, keep=path)
            _fetch(self._at(shard.path), path, shard)
        return path

    def index(self, shard: Shard) -> ShardIndex:
        path = self.root / f"{shard.sha256[:32]}-{hashlib.sha256(shard.index.encode()).hexdigest()[:8]}.index.json"
        if not path.exists():
            _fetch(self._at(shard.index), path)
        try:
            return self._checked(ShardIndex.load(path), shard, path)
        except InputError:
            path.unlink(missing_ok=True)  # it may be that of an older set: fetched again, it may be right
            _fetch(self._at(shard.index), path)
            return self._checked(ShardIndex.load(path), shard, path)

    def _at(self, path: str) -> str:
        """The URL of what the manifest names; derived sets name tars that lie in other folders."""
        scheme, _, rest = self.url.partition("://")
        return f"{scheme}://{posixpath.normpath(posixpath.join(rest, path))}"


def _fetch(url: str, target: Path, shard: Shard | None = None) -> None:
    """Copy a file from elsewhere, whole or not at all.

    Raises:
        InputError: it cannot be read, or is not what the manifest says.
    """
    import fsspec

    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".fetching-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            try:
                with fsspec.open(url, "rb") as remote:
                    while block := remote.read(_BLOCK):
                        digest.update(block)
                        file.write(block)
            except (FileNotFoundError, ImportError, ValueError, OSError) as error:
                if isinstance(error, OSError) and error.filename == name:
                    raise  # our own disk is full
                raise InputError(f"{url} cannot be read: {_reason(error)}") from error
        if shard is not None and digest.hexdigest() != shard.sha256:
            raise InputError(
                f"{url} has {Path(name).stat().st_size} bytes and the SHA-256 {digest.hexdigest()[:12]}…, but the "
                f"manifest says {shard.bytes} and {shard.sha256[:12]}…: it was changed or cut. Restore it there."
            )
        Path(name).replace(target)
    finally:
        Path(name).unlink(missing_ok=True)


def _make_room(folder: Path, room: int, keep: Path) -> None:
    """Remove the shards that were not read for the longest time, until the rest fit; open ones stay readable."""
    shards = sorted(folder.glob("*/*.tar"), key=lambda path: path.stat().st_mtime)
    size = sum(path.stat().st_size for path in shards)
    for path in shards:
        if size <= room or path == keep:
            break
        size -= path.stat().st_size
        path.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file. Check the address."
    if isinstance(error, ImportError):
        return f"{error} (fsspec needs a package for this kind of address.)"
    return f"{' '.join(str(error).split()) or type(error).__name__}."
