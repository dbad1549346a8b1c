"""Shards from samples to be: divided among processes, taken up again where it was stopped, whole or not there.

What goes into which shard is decided before anything is read, so that the shards are the same whatever the number of
processes, and each is written by one of them. Where samples are left out, theirs are fewer.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tarfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from mmformer.data.building.draft import Draft, Found, LeftOut, Unusable
from mmformer.data.building.members import FORMATS, Treatment, make_members
from mmformer.data.building.splits import assign, hashed
from mmformer.data.manifest import Manifest, Shard
from mmformer.data.tar import add_sample, finish_shard
from mmformer.data.workers import spread
from mmformer.errors import InputError
from mmformer.files import partial_of, sync, write_whole
from mmformer.spec import require

LEFT_OUT_NAME = "left_out.tsv"
CLASSES_NAME = "classes.txt"
_PLAN = "plan.json"
_DONE = ".done.json"


@dataclass(frozen=True)
class BuildSpec:
    """How a set is built.

    Attributes:
        name: what the files' names begin with.
        shard_size: samples in one shard at most.
        split: of the samples that are not held out.
        validation: share that is held out as ``val``.
        test: share that is held out as ``test``.
        seed: of the order of the samples, and of what is held out.
        keep_order: as the samples come, instead of shuffled.
        decode: everything once, so that what cannot be is left out now and not found in training.
        image_format: png, jpg or webp, which pictures in other formats are converted to; None: they stay as they are.
        sound_format: wav, flac or ogg, likewise.
        workers: processes; None: as many as there are cores.
    """

    name: str = "set"
    shard_size: int = 1000
    split: str = "train"
    validation: float = 0.0
    test: float = 0.0
    seed: int = 0
    keep_order: bool = False
    decode: bool = True
    image_format: str | None = None
    sound_format: str | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        for field in ("name", "split"):
            usable = re.fullmatch(r"[A-Za-z0-9_-]+", getattr(self, field)) is not None
            require(usable, self, field, "of letters, digits, - and _")
        require(self.shard_size >= 1, self, "shard_size", "at least 1")
        require(0 <= self.validation < 1, self, "validation", "at least 0 and below 1")
        require(0 <= self.test < 1 - self.validation, self, "test", "at least 0 and, with validation, below 1")
        require(self.split not in self.shares, self, "split", "another one than those that are held out")
        for kind, formats in FORMATS.items():
            chosen = getattr(self, f"{kind}_format")
            require(chosen is None or chosen in formats, self, f"{kind}_format", f"one of {', '.join(formats)}")
        require(self.workers is None or self.workers >= 1, self, "workers", "at least 1")

    @property
    def shares(self) -> dict[str, float]:
        """Split -> the share that is held out for it."""
        return {name: share for name, share in (("val", self.validation), ("test", self.test)) if share}


class Built(NamedTuple):
    """What came of it."""

    manifest: Manifest
    left_out: list[LeftOut]


class _Work(NamedTuple):
    """One shard to write."""

    folder: str
    stem: str
    split: str
    drafts: tuple[Draft, ...]
    treatment: Treatment


class _Done(NamedTuple):
    """One shard that is written; None: nothing was left to put into it."""

    shard: Shard | None
    left_out: list[LeftOut]


def build(
    found: Found,
    output: Path,
    spec: BuildSpec,
    resume: bool = False,
    progress: Callable[[int], object] = lambda samples: None,
) -> Built:
    """Write a set of shards, ``left_out.tsv`` and, where there are classes, ``classes.txt`` into a new folder.

    Until all of it is there, the folder is called ``OUTPUT.partial``.

    Args:
        found: the samples to be.
        output: the folder; absent, or empty.
        spec: how.
        resume: keep the shards that an interrupted build of the same samples has finished.
        progress: called with the number of samples after every shard.

    Raises:
        InputError: the folder holds something, an interrupted build is there, it was of other samples, or nothing is
            left to write.
    """
    check_output(output, resume)
    if not found.drafts:
        raise _nothing(found.left_out)
    partial = partial_of(output)
    drafts = assign(found.drafts, spec.shares, spec.seed, spec.split, spec.workers)
    works = _divide(drafts, partial, spec)
    _begin(partial, hashlib.sha256(repr(works).encode("utf-8", "backslashreplace")).hexdigest())
    done = []
    for work, one in zip(works, spread(_write, works, spec.workers), strict=True):
        done.append(one)
        progress(len(work.drafts))
    left_out = [*found.left_out, *(item for one in done for item in one.left_out)]
    shards = tuple(one.shard for one in done if one.shard is not None)
    if not shards:
        shutil.rmtree(partial)
        raise _nothing(left_out)
    write_left_out(partial / LEFT_OUT_NAME, left_out)
    if found.classes:
        write_whole(partial / CLASSES_NAME, "".join(f"{name}\n" for name in found.classes))
    Manifest(partial, shards).save()
    _commit(partial, output)
    return Built(Manifest(output, shards), left_out)


def check_output(output: Path, resume: bool) -> None:
    """Refuse a place for a set that something else has.

    Raises:
        InputError: the folder holds something, or an interrupted build is there that is not to be resumed.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} is there already, and not empty. Name another folder, or remove it.")
    partial = partial_of(output)
    if partial.exists() and not resume:
        raise InputError(
            f"An interrupted build of {output} is there: continue it with --resume, or remove {partial} to begin again."
        )


def write_left_out(path: Path, left_out: Sequence[LeftOut]) -> None:
    """A table of what was left out, with a line each."""
    rows = [LeftOut._fields, *left_out]
    lines = ["\t".join(re.sub(r"[\t\r\n]+", " ", cell) for cell in row) for row in rows]
    text = "".join(f"{line}\n" for line in lines)
    write_whole(path, text.encode("utf-8", "backslashreplace").decode())


def _divide(drafts: Sequence[Draft], folder: Path, spec: BuildSpec) -> list[_Work]:
    """The shards, in the order of the manifest: split by split, as they first come."""
    splits: dict[str, list[Draft]] = defaultdict(list)
    for draft in drafts:
        splits[draft.split].append(draft)
    treatment = Treatment(spec.decode, spec.image_format, spec.sound_format)
    works = []
    for split in sorted(splits, key=lambda name: (name != spec.split, name)):
        members = splits[split]
        if not spec.keep_order:
            members = sorted(members, key=lambda draft: hashed(spec.seed, "order", draft.key))
        for number, start in enumerate(range(0, len(members), spec.shard_size)):
            part = tuple(members[start : start + spec.shard_size])
            works.append(_Work(str(folder), f"{spec.name}-{split}-{number:06d}", split, part, treatment))
    return works


def _begin(partial: Path, plan: str) -> None:
    """Make the folder, or see that what is in it belongs to the same plan."""
    file = partial / _PLAN
    if file.exists():
        if json.loads(file.read_text()) != {"plan": plan}:
            raise InputError(
                f"{partial} holds an interrupted build of other samples, or with other options: build with those, or "
                "remove it to begin again."
            )
        return
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_whole(file, json.dumps({"plan": plan}))


def _write(work: _Work) -> _Done:
    """Write one shard and its index, and then, as the sign that they are whole, what came of it."""
    path = Path(work.folder) / f"{work.stem}.tar"
    sign = path.with_suffix(_DONE)
    if sign.exists():
        shard, left = json.loads(sign.read_text(encoding="utf-8"))
        return _Done(None if shard is None else Shard(**shard), [LeftOut(*one) for one in left])
    left_out = []
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for draft in work.drafts:
            try:
                add_sample(tar, draft.key, make_members(draft, work.treatment))
            except Unusable as problem:
                left_out.append(problem.of(draft.key))
    done = _Done(None, left_out)
    if len(left_out) < len(work.drafts):
        done = _Done(finish_shard(path, work.split), left_out)
        sync(path)
    else:
        path.unlink()
    write_whole(sign, json.dumps((done.shard and asdict(done.shard), done.left_out)))
    return done


def _commit(partial: Path, output: Path) -> None:
    for file in [partial / _PLAN, *partial.glob(f"*{_DONE}")]:
        file.unlink()
    sync(partial)
    if output.exists():
        output.rmdir()  # it is empty
    partial.rename(output)
    sync(output.parent)


def _nothing(left_out: Sequence[LeftOut]) -> InputError:
    if not left_out:
        return InputError("There is nothing to build a set of.")
    causes: dict[str, list[LeftOut]] = defaultdict(list)
    for one in left_out:
        causes[one.cause].append(one)
    said = "; ".join(
        f"{len(some)} × {cause}, such as {some[0].name} ({some[0].detail})" for cause, some in causes.items()
    )
    return InputError(f"No sample is left to write: {said}")
