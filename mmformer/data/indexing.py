"""The manifest and indexes of tars that others wrote, which stay where and as they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mmformer.data.building.splits import split_of
from mmformer.data.manifest import MANIFEST_NAME, Manifest, Shard, ShardIndex
from mmformer.data.processes import spread
from mmformer.data.tar import file_sha256, index_shard
from mmformer.errors import InputError


def index_tars(
    paths: Sequence[Path],
    splits: Mapping[str, str],
    output: Path | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    progress: Callable[[int], object] = lambda tars: None,
) -> Manifest:
    """Index some tars and write the manifest, last of all.

    Args:
        paths: uncompressed tars.
        splits: split -> a pattern that the names of its tars match; the first one that does counts.
        output: the folder of the manifest and the indexes, made if it is missing; None: the folder that has all of
            the tars, with each index beside its tar.
        overwrite: replace the manifest that is there.
        workers: processes; None: as many as there are cores.
        progress: called with 1 after every tar.

    Raises:
        InputError: a tar is damaged or of no split, or a manifest is there already.
    """
    paths = [path.absolute() for path in paths]
    root = (Path(os.path.commonpath([path.parent for path in paths])) if output is None else output).absolute()
    if (root / MANIFEST_NAME).exists() and not overwrite:
        raise InputError(
            f"{root / MANIFEST_NAME} is there already: replace it (--overwrite), or name another --output."
        )
    owners = [split_of(path, splits) for path in paths]
    shards: list[Shard] = []
    indexes = []
    for path, split, (index, digest) in zip(paths, owners, spread(_index, paths, workers), strict=True):
        relative = Path(os.path.relpath(path, root)).as_posix()
        beside = relative if output is None else f"{len(shards):06d}-{path.name}"
        name = f"{beside.removesuffix('.tar')}.index.json"
        shards.append(Shard(relative, split, len(index), index.bytes, digest, name))
        indexes.append(index)
        progress(1)
    root.mkdir(parents=True, exist_ok=True)
    for shard, index in zip(shards, indexes, strict=True):
        index.save(root / shard.index)
    manifest = Manifest(root, tuple(shards))
    manifest.save()
    return manifest


def _index(path: Path) -> tuple[ShardIndex, str]:
    return index_shard(path), file_sha256(path)
