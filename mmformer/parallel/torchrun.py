"""torchrun with patience: ``python -m mmformer.parallel.torchrun [--grace SECONDS]``, and then torchrun's own words.

When torchrun is told to end, it passes the signal on to the processes that it started, and kills them 30 seconds later;
none of its options says otherwise. To write a large checkpoint takes longer.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import PContext

from mmformer.errors import InputError

GRACE = 600
"""Seconds that processes have to end."""


def main(words: Sequence[str]) -> None:
    """Do what torchrun does with these words, but for the first two, where they are ``--grace SECONDS``.

    Raises:
        InputError: the seconds are no whole number above 0.
    """
    grace, rest = GRACE, list(words)
    if rest[:1] and rest[0].startswith("--grace="):
        rest[:1] = rest[0].split("=", 1)
    if rest[:1] == ["--grace"]:
        told = "".join(rest[1:2])
        if not told.isdecimal() or int(told) == 0:
            raise InputError(f"--grace is '{told}': give the seconds that processes have to end, such as {GRACE}.")
        grace, rest = int(told), rest[2:]
    wait_for_the_end(grace)
    run.main(rest)


def wait_for_the_end(grace: int) -> None:
    """Have torchrun wait so many seconds before it kills what it started."""
    close = PContext.close

    def patient(self: PContext, death_sig: signal.Signals | None = None, timeout: int = 30) -> None:
        close(self, death_sig, timeout=grace)

    PContext.close = patient  # type: ignore[method-assign]


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"mmformer.parallel.torchrun: {error}")
