"""What ``data.source`` may be: a folder of shards, several by a pattern, an address elsewhere, or a plain tree."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from mmformer.data.folders import FolderSamples, class_folders
from mmformer.data.manifest import MANIFEST_NAME, NoSplitError
from mmformer.data.remote import CacheSpec, find_urls, is_pattern, is_remote, join_url, open_manifest
from mmformer.data.samples import JoinedSamples, Samples
from mmformer.data.shards import ShardReader
from mmformer.errors import InputError

_MOST = 10_000
"""Alternatives that a pattern may have; more is a mistake in it."""


def open_samples(source: str, split: str, cache: CacheSpec | None = None) -> Samples:
    """The samples of a split.

    Args:
        source: a folder of shards or its manifest; a pattern (``data/{a,b}``, ``data/part-{000..015}``, ``data/*``) for
            several; a URL of a folder of shards, or a pattern for several; a folder of folders, one for each class.
        split: where several sets are named, those that lack it are left out, but one must have it.
        cache: where copies of remote shards are kept.

    Raises:
        NoSplitError: no such split.
        InputError: nothing is there, or it is broken.
    """
    if source.endswith(".tar"):
        raise InputError(
            f"{source}: tars are read by a manifest, which has their indexes: make it, mmformer shards index "
            f"'{source}' --output DIR, and name DIR."
        )
    found = [place for pattern in expand(source) for place in _matches(pattern, cache or CacheSpec())]
    if not found:
        raise InputError(f"There is no folder of shards {source}: nothing matches this pattern.")
    if len(found) == 1:
        return _open(found[0], split, cache)
    several, reasons = [], []
    for place in found:
        try:
            several.append(_open(place, split, cache))
        except NoSplitError as error:
            reasons.append(error)
    if not several:
        raise reasons[0]
    return JoinedSamples(several)


def expand(pattern: str) -> list[str]:
    """What braces stand for, as in a shell: ``{a,b}`` and ``{000..015}``, from left to right.

    Raises:
        InputError: a range that is none, or too many of them.
    """
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    before, after = pattern[: match.start()], pattern[match.end() :]
    found = [each for choice in _choices(match[1], pattern) for each in expand(f"{before}{choice}{after}")]
    if len(found) > _MOST:
        raise InputError(f"{pattern} stands for {len(found)} sources, but at most {_MOST} are read.")
    return found


def _choices(inside: str, pattern: str) -> list[str]:
    if "," in inside:
        return inside.split(",")
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if ends is None or int(ends[1]) > int(ends[2]) or int(ends[2]) - int(ends[1]) >= _MOST:
        raise InputError(f"{pattern}: {{{inside}}} must be {{a,b,…}} or {{000..015}}, from a number to a larger one.")
    return [str(number).zfill(len(ends[1])) for number in range(int(ends[1]), int(ends[2]) + 1)]


def _matches(pattern: str, cache: CacheSpec) -> list[str]:
    """The places that a pattern names, sorted; one without a wildcard is itself."""
    if is_remote(pattern):
        return find_urls(join_url(pattern, MANIFEST_NAME), cache.patience) if is_pattern(pattern) else [pattern]
    if not glob.has_magic(pattern):
        return [pattern]
    root = Path(Path(pattern).anchor)
    found = root.glob(str(Path(pattern).relative_to(root)))
    return sorted(str(path) for path in found if _is_source(path))


def _is_source(path: Path) -> bool:
    return (path / MANIFEST_NAME).exists() or path.name == MANIFEST_NAME


def _open(source: str, split: str, cache: CacheSpec | None) -> Samples:
    path = Path(source)
    if not is_remote(source) and path.is_dir() and not _is_source(path) and class_folders(path):
        return FolderSamples(path, split)
    return ShardReader(open_manifest(source, cache), split)
