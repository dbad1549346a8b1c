"""The manifest and indexes of tars that others wrote, here or elsewhere, which stay where and as they are."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from mmformer.data.building.splits import split_of
from mmformer.data.manifest import MANIFEST_NAME, Manifest, Shard, ShardIndex
from mmformer.data.remote import CacheSpec, index_remote, is_remote
from mmformer.data.tar import file_sha256, index_shard
from mmformer.data.workers import spread
from mmformer.errors import InputError


def index_tars(
    places: Sequence[str | os.PathLike[str]],
    splits: Mapping[str, str],
    output: Path | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    progress: Callable[[int], object] = lambda tars: None,
    cache: CacheSpec | None = None,
) -> Manifest:
    """Index some tars and write the manifest, last of all.

    Args:
        places: paths and URLs of uncompressed tars.
        splits: split -> a pattern that the names of its tars match; the first one that does counts.
        output: the folder of the manifest and the indexes, made if it is missing; None: the folder that has all of
            the tars, with each index beside its tar.
        overwrite: replace the manifest that is there.
        workers: processes; None: as many as there are cores.
        progress: called with 1 after every tar.
        cache: where copies of tars that are elsewhere are kept; None: where they usually are.

    Raises:
        InputError: a tar is damaged or of no split, or a manifest is there already.
    """
    addresses = [str(place) if is_remote(place) else str(Path(place).absolute()) for place in places]
    root = (_folder_of(addresses) if output is None else output).absolute()
    if (root / MANIFEST_NAME).exists() and not overwrite:
        raise InputError(
            f"{root / MANIFEST_NAME} is there already: replace it (--overwrite), or name another --output."
        )
    owners = [split_of(Path(place), splits) for place in addresses]
    shards: list[Shard] = []
    found = spread(partial(_index, cache or CacheSpec()), addresses, workers)
    with _staged(root) as stage:  # written as they come: many are too large to be held
        for place, split, (index, digest) in zip(addresses, owners, found, strict=True):
            path = place if is_remote(place) else Path(os.path.relpath(place, root)).as_posix()
            stem = (path if output is None else f"{len(shards):06d}-{index.shard}").removesuffix(".tar")
            index.save(stage / f"{len(shards)}.json")
            shards.append(Shard(path, split, len(index), index.bytes, digest, f"{stem}.index.json"))
            progress(1)
        for number, shard in enumerate(shards):
            (stage / f"{number}.json").replace(root / shard.index)
    manifest = Manifest(root, tuple(shards))
    manifest.save()
    return manifest


@contextmanager
def _staged(root: Path) -> Iterator[Path]:
    """A folder in another one, which is made for it; after an error neither is there that was not before."""
    made = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=root, prefix=".indexing-") as stage:
            yield Path(stage)
    except BaseException:
        if made:
            root.rmdir()
        raise


def _folder_of(places: Sequence[str]) -> Path:
    """The folder that has all of some tars."""
    far = next(filter(is_remote, places), None)
    if far is not None:
        raise InputError(f"{far} is elsewhere, where no index can be written beside it: name a folder here, --output.")
    return Path(os.path.commonpath([Path(place).parent for place in places]))


def _index(cache: CacheSpec, place: str) -> tuple[ShardIndex, str]:
    if is_remote(place):
        return index_remote(place, cache)
    return index_shard(place), file_sha256(Path(place))
