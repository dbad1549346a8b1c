"""Applies a filter to a split of a set, and writes what stays as a set of its own over the same shards.

The new folder holds a manifest whose shards are the old tars, indexes that list the samples that stay, ``removed.tsv``
with what was removed and why, by this filter and those before it, and ``scores.tsv`` where the filter measures a score.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmformer.curation.candidates import Candidates, Progress
from mmformer.curation.filter import Filter, Verdict, removed
from mmformer.data.manifest import FilterRecord, Manifest, ShardIndex
from mmformer.data.remote import is_remote, open_manifest
from mmformer.data.scores import SCORES_COLUMNS, SCORES_NAME, read_table, write_table
from mmformer.errors import InputError
from mmformer.files import whole_folder

REMOVED_NAME = "removed.tsv"
REMOVED_COLUMNS = ("key", "split", "filter", "reason", "detail")


@dataclass(frozen=True)
class Curated:
    """What a filter made of a split.

    Attributes:
        keys: of the samples, in order.
        verdicts: on each of them.
    """

    keys: tuple[str, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def kept(self) -> int:
        """Samples that stay."""
        return sum(verdict.copies > 0 for verdict in self.verdicts)

    @property
    def rows(self) -> int:
        """What the filtered split counts: those that stay, each as often as it is repeated."""
        return sum(verdict.copies for verdict in self.verdicts)

    @property
    def reasons(self) -> dict[str, int]:
        """Reason -> samples that were removed for it, the commonest first."""
        return dict(Counter(verdict.reason for verdict in self.verdicts if not verdict.copies).most_common())

    @property
    def removed(self) -> Iterator[tuple[str, Verdict]]:
        """Key and verdict of what does not stay."""
        return ((key, verdict) for key, verdict in zip(self.keys, self.verdicts, strict=True) if not verdict.copies)


def curate(
    shards: str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    filter: Filter,  # noqa: A002
    split: str = "train",
    progress: Progress | None = None,
    workers: int | None = None,
) -> Curated:
    """Judge the samples of a split, and write the set without those that the filter removes.

    Args:
        shards: the set's folder or manifest, or a URL of one.
        out: the folder to write, which is not there yet; None: nothing is written.
        filter: which samples stay.
        split: whose samples are judged; the other splits are carried over as they are.
        progress: called as samples are read.
        workers: processes that compare pictures and texts; None: as many as there are cores.

    Raises:
        InputError: the folder is there, the set or its samples cannot be judged, or no sample would be left.
    """
    manifest = open_manifest(shards)
    target = None if out is None else Path(out)
    if target is not None and target.exists():
        raise InputError(f"{target} is there already: name a new folder, or remove it.")
    samples = Candidates(manifest, split, progress, workers)
    verdicts = list(filter.judge(samples))
    for row, problem in samples.damaged.items():
        verdicts[row] = removed("damaged", problem)
    done = Curated(samples.keys, tuple(verdicts))
    if target is not None:
        if not done.kept:
            why = ", ".join(f"{number:,} for '{reason}'" for reason, number in done.reasons.items())
            first = next(iter(done.removed))
            raise InputError(
                f"{filter.name} would leave none of the {len(done.keys):,} samples of the split '{split}': it removes "
                f"{why}. The first is '{first[0]}': {first[1].detail or first[1].reason}"
            )
        with whole_folder(target) as folder:
            _write(folder, manifest, split, filter, done)
    return done


def _write(folder: Path, manifest: Manifest, split: str, filter: Filter, done: Curated) -> None:  # noqa: A002
    shards, rows = [], iter(done.verdicts)
    for number, shard in enumerate(manifest.shards):
        index = manifest.index(shard)
        if shard.split == split:
            index = _repeated(index, [next(rows).copies for _ in range(len(index))])
        if len(index):  # a shard of which nothing stays is none of this set
            name = f"{shard.split}-{number:06d}.index.json"
            index.save(folder / name)
            place = manifest.address(shard)
            path = place if is_remote(place) else _relative(Path(place), folder)
            shards.append(replace(shard, path=path, samples=len(index), index=name))
    record = FilterRecord(filter.name, {"split": split, **filter.arguments()}, done.kept, len(done.keys) - done.kept)
    write_table(folder / REMOVED_NAME, REMOVED_COLUMNS, _removed_rows(manifest, split, filter.name, done))
    scored = [(key, verdict.score) for key, verdict in zip(done.keys, done.verdicts, strict=True)]
    if any(score is not None for _, score in scored):
        rows_of_scores = ((key, split, f"{score:.9g}") for key, score in scored if score is not None)
        write_table(folder / SCORES_NAME, SCORES_COLUMNS, rows_of_scores)
    Manifest(folder, tuple(shards), (*manifest.history, record)).save()


def _repeated(index: ShardIndex, copies: Sequence[int]) -> ShardIndex:
    """The index of a shard in which each sample stands so many times."""
    rows = [row for row, times in enumerate(copies) for _ in range(times)]
    keys, members = tuple(index.keys[row] for row in rows), tuple(index.members[row] for row in rows)
    checksums = tuple(index.checksums[row] for row in rows) if index.checksums else ()
    return replace(index, keys=keys, members=members, checksums=checksums)


def _relative(tar: Path, folder: Path) -> str:
    """Where a tar is, seen from a folder, with / between folders."""
    return Path(os.path.relpath(tar.resolve(), folder.resolve())).as_posix()


def _removed_rows(old: Manifest, split: str, name: str, done: Curated) -> Iterator[Sequence[str]]:
    """What the filters before removed, and then what this one did."""
    if old.history and (table := old.beside(REMOVED_NAME)).is_file():
        for row in read_table(table, REMOVED_COLUMNS):
            yield row[:-1]
    for key, verdict in done.removed:
        yield key, split, name, verdict.reason, verdict.detail
