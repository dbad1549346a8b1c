"""Errors that a user, not a developer, has to act on, and how they are worded."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path


class InputError(ValueError):
    """Something that was handed in cannot be used.

    The message names what was asked, what was found, where, and the fix. The command line prints it alone and exits
    with code 2; from Python it is an ordinary ``ValueError``.
    """


class OtherProcessError(RuntimeError):
    """Another process of the same run failed, and says why itself.

    Attributes:
        code: the exit code that belongs to its reason.
    """

    def __init__(self, code: int) -> None:
        super().__init__("another process of this run failed")
        self.code = code


@contextmanager
def foreign(where: object) -> Iterator[None]:
    """Inside, what others wrote is taken apart, and what it makes Python raise is its own fault.

    For data whose every value cannot be looked at one by one: a config of another library, a bundle's spec. What is
    refused inside with reasons keeps them.

    Raises:
        InputError: something in it is not what it should be.
    """
    try:
        yield
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{where} is damaged, or not what it says it is: {type(error).__name__}: {reason:.200}."
        ) from error


class CutWarning(UserWarning):
    """Texts were longer than the model reads, and were cut. The command line prints it alone."""


def nearest(wrong: str, known: Iterable[str]) -> str:
    """``" Did you mean 'right'?"`` when a known name is close to the wrong one, otherwise ``""``."""
    close = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def nearest_file(path: str | os.PathLike[str]) -> str:
    """The same for a file or folder that is not there, of those beside it."""
    absent = Path(path)
    try:
        return nearest(absent.name, [other.name for other in islice(absent.parent.iterdir(), 1000)])
    except (OSError, ValueError):  # nothing is beside it, or it is no name that a file may have
        return ""


def describe_bytes(data: bytes | bytearray) -> str:
    """What to say of bytes that are not what they should be: how many, and how they begin."""
    return f"{len(data)} bytes, beginning with {data[:8].hex(' ')}" if data else "empty"
