"""Samples to be, from tars that others wrote: webdataset's, or img2dataset's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmformer.data.building.draft import Draft, Found, LeftOut, Span
from mmformer.data.building.splits import split_of
from mmformer.data.decode import DECODERS
from mmformer.data.manifest import ShardIndex
from mmformer.data.tar import check_names, index_shard
from mmformer.data.workers import spread
from mmformer.errors import InputError


def from_tars(paths: Sequence[Path], workers: int | None = None, splits: Mapping[str, str] | None = None) -> Found:
    """A sample for each of the tars' samples, with those of its members that there are decoders for.

    Where a key comes in several tars, the tars' names are put before all keys.

    Args:
        paths: uncompressed tars.
        workers: processes that look for the samples; None: as many as there are cores.
        splits: split -> a pattern that the names of its tars match; None: the samples' keys say.

    Raises:
        InputError: a tar is of no split, or two could not be told apart.
    """
    owners = {path: "" if splits is None else split_of(path, splits) for path in paths}
    left_out, indexes = [], []
    for path, index in zip(paths, spread(_index, paths, workers), strict=True):
        if isinstance(index, ShardIndex):
            indexes.append((path, index))
        else:
            left_out.append(LeftOut(str(path), "damaged tar", index))
    keys = [key for _, index in indexes for key in index.keys]
    alike = len(set(keys)) < len(keys)
    if alike and len({path.stem for path, _ in indexes}) < len(indexes):
        raise InputError(
            "Some tars have the same name and samples with the same keys: build sets of them one at a time, or rename "
            "them."
        )
    drafts: list[Draft] = []
    for path, index in indexes:
        for row, key in enumerate(index.keys):
            own = f"{path.stem}/{key}" if alike else key
            members: dict[str, Span | bytes] = {}
            for extension, (offset, length) in index.spans(row).items():
                if extension.rsplit(".", 1)[-1] in DECODERS:
                    members[extension] = Span(str(path), offset, length)
                else:
                    detail = f"there is no decoder for .{extension}; the other members are kept"
                    left_out.append(LeftOut(f"{path.name}: {key}.{extension}", "member without a decoder", detail))
            try:
                check_names(own, members)
            except InputError as error:
                left_out.append(LeftOut(f"{path.name}: {key}", "sample that cannot be named", str(error)))
                continue
            drafts.append(Draft(own, owners[path], members))
    return Found(drafts, left_out)


def _index(path: Path) -> ShardIndex | str:
    try:
        return index_shard(path, checksums=False)  # building reads all of it, and indexes what it writes
    except InputError as error:
        return str(error)
