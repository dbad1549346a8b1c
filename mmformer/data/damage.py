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
    """

    def __init__(self, message: str, key: str, cause: str) -> None:
        super().__init__(message)
        self.key, self.cause = key, cause


@contextmanager
def damage(key: str, cause: str) -> Iterator[None]:
    """Inside, what cannot be used is a sample's own fault."""
    try:
        yield
    except InputError as error:
        raise DamageError(str(error), key, cause) from error
