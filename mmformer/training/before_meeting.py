"""Until the processes of a run have met: whether those are there that the first one has started, and that one itself.

Nothing that they share tells of it yet, and who is left would wait for the others for half an hour. Where torchrun or
SLURM have started the processes, those see to it.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher

_STARTED_BY = "MMFORMER_STARTED_BY"
"""What the first process is to the system, in the environment of those that it starts."""

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

_LOOK = 0.5
"""Seconds between two looks."""


class Launcher(_SubprocessScriptLauncher):
    """Lightning's, but that no thread of its own looks at what it has started, which would kill all without a word.

    Attributes:
        started: the processes, numbered from 1.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.started: list[subprocess.Popen[Any]] = []

    def _call_children_scripts(self) -> None:
        os.environ[_STARTED_BY] = str(os.getpid())
        try:
            super()._call_children_scripts()
        finally:
            del os.environ[_STARTED_BY]
        self.started, self.procs = self.procs, []

    def kill(self, signum: Any) -> None:
        for process in [*self.started, *self.procs]:
            process.send_signal(signum)


class BeforeMeeting:
    """A thread that ends this process where it would wait for one that is gone, or is told to end while it waits.

    Python hears of a signal when what it calls returns, but the system writes it to a pipe at once, which the thread
    reads. The first process ends the others, with the exit code that it would have by itself.
    """

    def __init__(self, launcher: object) -> None:
        """
        Args:
            launcher: of the first process, where it starts the others.
        """
        self._launcher = launcher if isinstance(launcher, Launcher) else None
        self._starter = int(os.environ.get(_STARTED_BY, "0"))
        self._over = threading.Event()
        self._before: dict[signal.Signals, Any] = {}
        self._pipe: tuple[int, int] | None = None

    def begin(self) -> None:
        """To be called by the main thread, or signals end this process alone."""
        if self._launcher is None and not self._starter:
            return
        if self._launcher is not None and threading.current_thread() is threading.main_thread():
            self._pipe = os.pipe()
            for end in self._pipe:
                os.set_blocking(end, False)
            signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            self._before = {number: signal.signal(number, _heard) for number in _SIGNALS}
        threading.Thread(target=self._run, name="before-meeting", daemon=True).start()

    def end(self) -> None:
        """All have met, or this process ends by itself."""
        if self._over.is_set():
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._pipe is not None:
            signal.set_wakeup_fd(-1)
            for unread in self._read():  # by the thread: what they mean from here on
                signal.raise_signal(unread)
        self._over.set()

    def _run(self) -> None:
        while not self._over.is_set():
            self._look()
        for end in self._pipe or ():
            os.close(end)

    def _look(self) -> None:
        for number in self._signalled():
            name = signal.Signals(number).name
            self._leave(128 + number, f"told to end ({name}) before the processes of this run had met: all end.")
        if self._starter and os.getppid() != self._starter:
            first = os.environ.get("LOCAL_RANK") == "1"  # said once
            self._leave(1, "process 0 of this run is gone before all had met: all others end." if first else "")
        for number, code in self._ended():
            if self._over.wait(_LOOK):  # interrupted, as this process is, which says so
                return
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else "ended"
            told = f"process {number} of this run {how} before all had met: all others end."
            self._leave(128 - code if code < 0 else code or 1, told if code <= 0 else "")  # else it has said why

    def _signalled(self) -> list[int]:
        """The signals that have come within a moment."""
        if self._pipe is None:
            self._over.wait(_LOOK)
            return []
        select.select([self._pipe[0]], [], [], _LOOK)
        return self._read()

    def _read(self) -> list[int]:
        assert self._pipe is not None, "there is one"
        with suppress(BlockingIOError):  # nothing has come
            return [number for number in os.read(self._pipe[0], 64) if number in _SIGNALS]
        return []

    def _ended(self) -> list[tuple[int, int]]:
        """The numbers of started processes that are gone, and what they ended with."""
        started = [] if self._launcher is None else self._launcher.started
        codes = [(number, process.poll()) for number, process in enumerate(started, start=1)]
        return [(number, code) for number, code in codes if code is not None]

    def _leave(self, code: int, told: str) -> None:
        if self._over.is_set():
            return
        if told:
            print(f"\nmmformer: {told}", file=sys.stderr, flush=True)
        if self._launcher is not None:
            self._launcher.kill(signal.SIGKILL)
        os._exit(code)


def _heard(number: int, frame: FrameType | None) -> None:
    """Nothing: the thread has heard of it already."""
