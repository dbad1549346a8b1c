"""Which split a sample belongs to: a function of its key and a seed, with copies of a file kept together; or of the
name of the tar that it is in.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mmformer.data.building.draft import Draft, Span, Unusable
from mmformer.data.workers import spread
from mmformer.errors import InputError

_CHUNK = 256


def assign(
    drafts: Sequence[Draft], shares: Mapping[str, float], seed: int, otherwise: str, workers: int | None = None
) -> list[Draft]:
    """The drafts, with the splits of those that had none.

    A key's place in [0, 1) is a hash; the splits that are held out have the first parts of it. A sample that is added
    later moves no other. Samples that have a file in common, byte for byte, go where the first of their keys goes.

    Args:
        drafts: the samples to be.
        shares: split -> the share that is held out for it.
        seed: another one draws other samples.
        otherwise: the split of the rest.
        workers: processes that read files of equal size, to see which are equal; None: as many as there are cores.
    """
    leaders = _leaders(drafts, workers) if shares else {}

    def place(key: str) -> str:
        return _place(leaders.get(key, key), shares, seed, otherwise)

    return [draft if draft.split else draft._replace(split=place(draft.key)) for draft in drafts]


def split_of(path: Path, splits: Mapping[str, str]) -> str:
    """The first split whose pattern a tar's name matches.

    Raises:
        InputError: it matches none of them.
    """
    for split, pattern in splits.items():
        if fnmatch.fnmatchcase(path.name, pattern):
            return split
    said = ", ".join(f"{split}={pattern}" for split, pattern in splits.items())
    raise InputError(f"{path} is of no split: its name matches none of {said}. Add a --split NAME='PATTERN'.")


def hashed(seed: int, purpose: str, key: str) -> int:
    """A number of 64 bits."""
    return int.from_bytes(hashlib.blake2b(f"{purpose}:{seed}:{key}".encode(), digest_size=8).digest(), "big")


def _place(key: str, shares: Mapping[str, float], seed: int, otherwise: str) -> str:
    place, end = hashed(seed, "split", key) / 2**64, 0.0
    for split, share in shares.items():
        end += share
        if place < end:
            return split
    return otherwise


def _leaders(drafts: Sequence[Draft], workers: int | None) -> dict[str, str]:
    """Key -> the first key among the samples that it is tied to by equal files, where there are others."""
    owners: dict[Span, list[str]] = defaultdict(list)
    for draft in drafts:
        for member in draft.members.values():
            if isinstance(member, Span):
                owners[member].append(draft.key)
    sizes: dict[int, list[Span]] = defaultdict(list)
    for span in owners:
        sizes[span.length].append(span)
    suspects = [span for spans in sizes.values() if len(spans) > 1 for span in spans]
    chunks = [suspects[start : start + _CHUNK] for start in range(0, len(suspects), _CHUNK)]
    hashes = (one for part in spread(_hashes, chunks, workers) for one in part)
    alike: dict[bytes, list[str]] = defaultdict(list)
    for span, digest in zip(suspects, hashes, strict=True):
        if digest is not None:
            alike[digest] += owners[span]
    return _first_of_each([*owners.values(), *alike.values()])


def _first_of_each(groups: Iterable[Sequence[str]]) -> dict[str, str]:
    """The smallest of what is tied together, for each that is tied to another."""
    above: dict[str, str] = {}

    def top(key: str) -> str:
        while (up := above.get(key, key)) != key:
            above[key] = above.get(up, up)  # shorter for the next one
            key = up
        return key

    for group in groups:
        for other in group[1:]:
            first, second = sorted((top(group[0]), top(other)))
            if first != second:
                above[second] = first
                above.setdefault(first, first)
    return {key: top(key) for key in above}


def _hashes(spans: Sequence[Span]) -> list[bytes | None]:
    """The hash of each; None: it cannot be read, which is told where it is left out."""
    found: list[bytes | None] = []
    for span in spans:
        try:
            found.append(hashlib.sha256(span.read()).digest())
        except Unusable:
            found.append(None)
    return found
