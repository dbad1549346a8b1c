"""Whether a set is as its manifest says, and whether all of it can be decoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from mmformer.data.building.draft import Unusable
from mmformer.data.building.members import check_member
from mmformer.data.damage import DamageError
from mmformer.data.decode import DECODERS
from mmformer.data.manifest import Manifest, Shard
from mmformer.data.shards import ShardReader, verify_shard
from mmformer.data.workers import spread
from mmformer.errors import InputError


def check(manifest: Manifest, decode: bool = True, workers: int | None = None) -> Iterator[tuple[Shard, list[str]]]:
    """Each shard, in the table's order, with its problems: one sentence a problem.

    Args:
        manifest: the set.
        decode: every member too; members that there is no decoder for are passed over, as reading does.
        workers: processes; None: as many as there are cores.
    """
    problems = spread(partial(_check_shard, manifest, decode), range(len(manifest.shards)), workers)
    yield from zip(manifest.shards, problems, strict=True)


def _check_shard(manifest: Manifest, decode: bool, number: int) -> list[str]:
    shard = manifest.shards[number]
    problems = verify_shard(manifest, shard)
    path = manifest.path(shard)
    if not decode or not path.is_file() or path.stat().st_size != shard.bytes:  # which is told
        return problems
    reader = ShardReader(replace(manifest, shards=(shard,)), shard.split)
    try:
        for row in range(shard.samples):
            try:
                raw = reader.read(0, row)
            except DamageError as problem:
                problems.append(str(problem))
                continue
            for extension, data in raw.members.items():
                if extension.rsplit(".", 1)[-1] in DECODERS:
                    try:
                        check_member(extension, data, f"{manifest.address(shard)}: {raw.key}.{extension}")
                    except Unusable as problem:
                        problems.append(problem.detail)
    except InputError as error:  # the index, or the tar as a whole
        if str(error) not in problems:
            problems.append(str(error))
    return problems
