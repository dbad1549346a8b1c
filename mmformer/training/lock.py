"""One run at a time in a folder: two would remove each other's checkpoints."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import IO, Self

from mmformer.errors import InputError

LOCK = ".lock"
"""The file by which a run says that it writes to a folder. That it is there says nothing: it may be left."""

PATIENCE = 120.0
"""Seconds that a resumed run waits for the one before: of a machine that is lost, file servers notice so late."""

_LOOK = 1.0


class FolderLock:
    """What the process that writes to a folder holds; the system takes it from one that is killed.

    A lock of POSIX (``lockf``), which forked processes do not hold, too. Where a file system has none, nobody is kept
    apart.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / LOCK
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go of it, if it was taken."""
        if self._file is not None:
            with suppress(OSError):  # the folder may be gone
                self.path.unlink()  # while it is held: who opens it from here on makes another
            self._file.close()
            self._file = None

    def take(self, patience: float = 0.0) -> None:
        """Take it, in a folder that is there; wait for so many seconds where another run has it.

        Raises:
            InputError: another has it still.
            OSError: the folder cannot be written to.
        """
        deadline, told = monotonic() + patience, False
        while not self._try():
            if monotonic() >= deadline:
                raise InputError(
                    f"{self.folder}: another run writes to this folder{self._holder()}: let it end, or name another "
                    f"folder (--output DIR)."
                )
            if not told:
                told = True
                print(f"mmformer: {self.folder}: waiting for the run that writes to it to end.", file=sys.stderr)
            sleep(min(_LOOK, patience))

    def _try(self) -> bool:
        file = self.path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.close()
            return False
        except OSError:  # this file system has no locks
            file.close()
            self.path.unlink(missing_ok=True)
            return True
        if not self.path.exists() or not os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
            file.close()  # whoever had it has removed it in between
            return self._try()
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file
        return True

    def _holder(self) -> str:
        try:
            return f" ({self.path.read_text(encoding='utf-8').strip()})"
        except (OSError, ValueError):
            return ""
