"""Samples that cannot be used, though others of the same set can."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mmformer.errors import InputError

MOST = 64
"""Samples that may be skipped for one: so many in a row are no accident, but a set that is asked for what it lacks."""


class DamageError(InputError):
    """One sample cannot be used: it refuses the run, or another sample stands in.

    Attributes:
        key: of the sample.
        cause: one of few, to be counted.
        shard: the number of its shard, where none of that can be used; None: others can.
    """

    def __init__(self, message: str, key: str, cause: str, shard: int | None = None) -> None:
        super().__init__(message)
        self.key, self.cause, self.shard = key, cause, shard


class ShardError(InputError):
    """A shard, or what belongs to it, cannot be used: it refuses the run, or others stand in for all of its samples.

    Attributes:
        cause: one of few, to be counted.
    """

    def __init__(self, message: str, cause: str) -> None:
        super().__init__(message)
        self.cause = cause


@contextmanager
def damage(key: str, cause: str) -> Iterator[None]:
    """Inside, what cannot be used is a sample's own fault."""
    try:
        yield
    except InputError as error:
        raise DamageError(str(error), key, cause) from error
