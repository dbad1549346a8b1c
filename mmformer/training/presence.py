"""Whether the other processes of a run are there, and go on: one that is killed tells nobody, one that fails leaves in
the middle of what all do together, and others would wait for it.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from time import monotonic, sleep
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from torch._C._distributed_c10d import Store
from torch.distributed import DistError

from mmformer import collectives
from mmformer.errors import InputError, OtherProcessError
from mmformer.training.processes import MeshStrategy, is_first, leave

BEAT = 2.0
"""Seconds between two signs of life."""

PATIENCE = 14.0
"""Seconds without one after which a process is lost."""

_LOOK = 0.5
"""Seconds between two looks at processes that this one has started, or waits for."""

_DISCONNECTED = re.compile("connect|reset by peer|broken pipe|NCCL|gloo", re.IGNORECASE)
"""What errors say where another process is gone."""


class Watch:
    """A thread that gives signs of life in a store that all processes share, and watches the process before this one.

    Each has one other to watch, so that the store is asked as often as there are processes. What one finds all are told
    by the store, and so they are where one fails.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world: int,
        lost: Callable[[int, str], None],
        failed: Callable[[int], None],
        started: Sequence[subprocess.Popen[Any]] = (),
        beat: float = BEAT,
        patience: float = PATIENCE,
    ) -> None:
        """
        Args:
            lost: called, in the thread, with the number of a process and what is known of its end.
            failed: called, in the thread, with the exit code that is to be that of all.
            started: processes that this one has started, numbered from 1: of their end it is told at once.
        """
        self.store, self.rank, self.world, self.before = store, rank, world, (rank - 1) % world
        self.beat, self.patience, self.started = beat, patience, started
        self._lost, self._failed = lost, failed
        self._ended = threading.Event()
        self._seen, self._when = b"", monotonic()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Leave in order: nobody is to miss this process."""
        self._ended.set()
        self._thread.join(self.beat)
        self.say_left()

    def say_left(self) -> None:
        with suppress(DistError):  # the process that keeps the store has left before
            self.store.set(f"alive/{self.rank}", "left")
            self.store.add("left", 1)

    def fail(self, code: int) -> int | None:
        """Have all processes end with an exit code; where one has failed before, with that one's, which is returned."""
        if self.store.add("failures", 1) > 1:
            return int(self.store.get("code"))
        self.store.set("code", str(code))
        return None

    def let_others_leave(self) -> None:
        """Wait until they know how the run ended; those that do not by then will not."""
        deadline = monotonic() + 3 * self.beat
        while self.store.add("left", 0) < self.world - 1 and monotonic() < deadline:
            sleep(_LOOK / 10)

    def _run(self) -> None:
        beats, next_beat = 0, 0.0
        while not self._ended.wait(_LOOK if self.started else self.beat):
            found: tuple[int, str] | int | None = self._look_at_started()
            if found is None and monotonic() >= next_beat:
                beats, next_beat = beats + 1, monotonic() + self.beat
                found = self._ask(beats)
            if isinstance(found, int):
                if not self._ended.wait(self.beat / 2):  # the main thread has not found it, too
                    self._failed(found)
                return
            if found is not None and not self._ended.is_set():
                self._lost(*found)
                return

    def _look_at_started(self) -> tuple[int, str] | None:
        for number, process in enumerate(self.started, start=1):
            code = process.poll()
            if code:
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
                return number, how
        return None

    def _ask(self, beats: int) -> tuple[int, str] | int | None:
        """Say that this process is there, and look for others' ends: the number of one that is lost, or one's code."""
        try:
            self.store.set(f"alive/{self.rank}", str(beats))
            if self.store.check(["code"]):
                return int(self.store.get("code"))
            known = self.store.get("lost") if self.store.check(["lost"]) else b""
            key = f"alive/{self.before}"
            seen = self.store.get(key) if self.store.check([key]) else b""
            if known:
                number, _, how = known.decode().partition(" ")
                return int(number), how
            if seen != self._seen or seen == b"left":
                self._seen, self._when = seen, monotonic()
            if monotonic() - self._when < self.patience:
                return None
            how = f"gave no sign of life for {self.patience:g} s"
            self.store.compare_set("lost", "", f"{self.before} {how}")
        except DistError:
            return 0, "is gone, with what the processes share"
        return self.before, how


class Presence(pl.Callback):
    """Watches from when the processes have met. Where one is lost, the others say which, and end; where one fails, they
    leave it to that one to say why.

    Attributes:
        lost: the number of a process that was lost, and how; None: none is known to be.
    """

    def __init__(self) -> None:
        self.lost: tuple[int, str] | None = None
        self._watch: Watch | None = None
        self._found = threading.Event()
        self._settling = False  # the main thread has failed, waits for what is found, and ends the process itself

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not isinstance(trainer.strategy, MeshStrategy):
            return
        assert trainer.strategy.store is not None, "they have met"
        started: list[subprocess.Popen[Any]] = []
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            started = [*launcher.procs]
            launcher.procs.clear()  # a thread of Lightning's looks at these, which would kill all without a word
            launcher.procs = started
        ranks = (collectives.rank(), collectives.world_size())
        self._watch = Watch(trainer.strategy.store, *ranks, self._lose, self._fail, started)
        self._watch.start()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The process that fails first in here raises its own error, and all others OtherProcessError: left alone, they
        would fail at the connection to it, which says nothing about the cause, or wait.

        However it ends, this process is not missed after it.
        """
        try:
            yield
        except Exception as error:
            code = self._settle(error)
            if code is None:
                raise
            raise OtherProcessError(code) from error
        finally:
            if self._watch is not None:
                self._watch.end()
                self._watch = None

    def _settle(self, error: Exception) -> int | None:
        """The exit code of another process's reason; None: this one failed by itself, and says why."""
        if self._watch is None:
            return None
        self._settling = True
        refused = isinstance(error, InputError) or (isinstance(error, OSError) and error.errno is not None)
        code = 2 if refused else 1  # what a disk refused is no defect
        try:
            if not refused and _DISCONNECTED.search(str(error)) and self._is_lost(self._watch):
                return code
            first = self._watch.fail(code)
            if first is None and is_first():  # it may be the one that keeps the store
                self._watch.let_others_leave()
            return first
        except DistError:  # it has gone
            return code

    def _is_lost(self, watch: Watch) -> bool:
        """After a connection failed: whether it was because a process was lost, which is told then, not because one
        failed.
        """
        deadline = monotonic() + watch.patience + 3 * watch.beat
        while not self._found.wait(_LOOK / 2):
            with suppress(DistError):  # the store is gone, which the thread finds, too
                if monotonic() > deadline or watch.store.check(["code"]):
                    return False
        return True

    def _lose(self, number: int, how: str) -> None:
        """In the watching thread."""
        self.lost = (number, how)
        if collectives.rank() == (1 if number == 0 else 0):  # said once
            print(
                f"\nmmformer: process {number} of this run {how}: all others end. Start it again with --resume.",
                file=sys.stderr,
                flush=True,
            )
        if self._watch is not None:
            for process in self._watch.started:  # before they miss this one
                process.kill()
        self._found.set()
        if not self._settling:  # the main thread waits for the lost one, for ever
            leave(1)

    def _fail(self, code: int) -> None:
        """In the watching thread: another process has failed, and the main thread may wait for it, for ever."""
        if self._watch is not None and not self._settling:
            self._watch.say_left()
            leave(code)
