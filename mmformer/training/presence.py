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
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from time import monotonic, sleep
from typing import Any, TypeVar

from pytorch_lightning.strategies import Strategy
from torch._C._distributed_c10d import Store
from torch.distributed import DistError

from mmformer import collectives
from mmformer.errors import InputError, OtherProcessError
from mmformer.training.before_meeting import BeforeMeeting, Launcher
from mmformer.training.processes import MeshStrategy, leave

T = TypeVar("T")

BEAT = 2.0
"""Seconds between two signs of life."""

PATIENCE = 14.0
"""Seconds without one after which a process is lost."""

_LOOK = 0.5
"""Seconds between two looks at processes that this one has started, or waits for."""

_DISCONNECTED = re.compile("connect|reset by peer|broken pipe|NCCL|gloo", re.IGNORECASE)
"""What errors say where another process is gone."""

_NO_STORE = (DistError, TimeoutError)
"""What is raised where the process that keeps the store is gone, or its machine is silent."""


def within(seconds: float, ask: Callable[[], T]) -> T:
    """What is answered, which another thread waits for: no call of a store's ends while its machine is silent.

    Raises:
        TimeoutError: it takes longer.
    """
    answer: Future[T] = Future()

    def wait() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:  # noqa: BLE001  # raised where the answer is waited for
            answer.set_exception(error)

    threading.Thread(target=wait, name="presence-ask", daemon=True).start()
    return answer.result(seconds)


INTERRUPTED = 130
"""The exit code of a run that was told to end."""


class LeftAloneError(KeyboardInterrupt):
    """This process was told to end, and the others do not know of it."""


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
        self.beat, self.patience, self.started = beat, patience, dict(enumerate(started, start=1))
        self._lost, self._failed = lost, failed
        self._ended = threading.Event()
        self._seen, self._missed = b"", 0  # the last sign of life, and how often there was no newer one
        self._present = world  # processes that are not lost
        self._left = self._first_left = False
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Leave in order: nobody is to miss this process."""
        self._ended.set()
        self._thread.join(self.beat)
        self.say_left()

    def say_left(self) -> None:
        """Have nobody miss this process. The first one, which may keep the store, goes last: others are yet to read in
        it how the run ended.
        """
        with suppress(*_NO_STORE):
            if not self._left:
                self._left = True
                self._asked(lambda: self.store.set(f"alive/{self.rank}", "left"))
                self._asked(lambda: self.store.add("left", 1))
            if self.rank == 0:
                self._let_others_leave()

    def fail(self, code: int) -> int | None:
        """Have all processes end with an exit code; where one has failed before, with that one's, which is returned.

        Raises:
            DistError, TimeoutError: there is no store any more.
        """

        def tell() -> int | None:
            if self.store.add("failures", 1) > 1:
                return int(self.store.get("code"))
            self.store.set("code", str(code))
            return None

        return self._asked(tell)

    def has_failed(self) -> bool:
        """Whether a process has said that it fails.

        Raises:
            DistError, TimeoutError: there is no store any more.
        """
        return self._asked(lambda: self.store.check(["code"]))

    def _let_others_leave(self) -> None:
        """Wait for them; those that have not left after some beats will not."""
        deadline = monotonic() + 3 * self.beat
        while self._asked(lambda: self.store.add("left", 0)) < self._present and monotonic() < deadline:
            if self.started and all(process.poll() is not None for process in list(self.started.values())):
                return
            sleep(_LOOK / 10)

    def _run(self) -> None:
        beats, next_beat = 0, 0.0
        while not self._ended.wait(_LOOK if self.started else self.beat):
            if monotonic() < next_beat and not self._ended_early():
                continue
            beats, next_beat = beats + 1, monotonic() + self.beat
            found = self._ask(beats)
            if isinstance(found, int):
                if not self._ended.wait(self.beat / 2):  # the main thread has not found it, too
                    self._failed(found)
                return
            if found is not None and not self._ended.is_set():
                self._present -= 1
                self._lost(*found)
                return

    def _ended_early(self) -> list[tuple[int, str]]:
        """The numbers of started processes that ended with an error's code or a signal, and how each did."""
        ended = []
        for number, process in self.started.items():
            if code := process.poll():
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
                ended.append((number, how))
        return ended

    def _ask(self, beats: int) -> tuple[int, str] | int | None:
        """Say that this process is there, and look for others' ends: the number of one that is lost, or one's code."""
        try:
            return self._asked(lambda: self._look(beats))
        except DistError:
            if self._first_left:  # it waited for a while, and then took the store with it
                self._ended.set()
                return None
            return 0, "is gone, with what the processes share"
        except TimeoutError:
            return 0, f"gave no sign of life for {self.patience:g} s"

    def _look(self, beats: int) -> tuple[int, str] | int | None:
        self.store.set(f"alive/{self.rank}", str(beats))
        self._first_left = self._read("alive/0") == b"left"  # before the code, which it says first
        if code := self._read("code"):
            return int(code)
        for ended in self._ended_early():
            if self._read(f"alive/{ended[0]}") != b"left":
                return ended
            del self.started[ended[0]]  # interrupted, say, as this one is
        if known := self._read("lost"):
            number, _, how = known.decode().partition(" ")
            return int(number), how
        seen = self._read(f"alive/{self.before}")
        # Counted, not timed: a process that was itself stopped for a while misses nobody.
        self._missed = 0 if seen != self._seen or seen == b"left" else self._missed + 1
        self._seen = seen
        if self._missed * self.beat < self.patience:
            return None
        how = f"gave no sign of life for {self.patience:g} s"
        self.store.compare_set("lost", "", f"{self.before} {how}")
        return self.before, how

    def _read(self, key: str) -> bytes:
        """What the store has; nothing: b""."""
        return self.store.get(key) if self.store.check([key]) else b""

    def _asked(self, ask: Callable[[], T]) -> T:
        return within(self.patience, ask)


class Presence:
    """Watches from when the processes have met; before that ``BeforeMeeting`` does. Where one is lost, the others say
    which, and end; where one fails, they leave it to that one to say why.
    """

    def __init__(self, strategy: Strategy) -> None:
        """
        Args:
            strategy: of the run; where it is one of several processes, it says when they have met.
        """
        self._launcher = strategy.launcher
        self._before = BeforeMeeting(self._launcher)
        self._watch: Watch | None = None
        self._found = threading.Event()
        self._settling = False  # the main thread has failed, waits for what is found, and ends the process itself
        if isinstance(strategy, MeshStrategy):
            strategy.met = self._begin

    def _begin(self, store: Store) -> None:
        self._before.end()
        started = self._launcher.started if isinstance(self._launcher, Launcher) else ()
        ranks = (collectives.rank(), collectives.world_size())
        self._watch = Watch(store, *ranks, self._lose, self._fail, started)
        self._watch.start()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The process that fails first in here raises its own error, and all others OtherProcessError: left alone, they
        would fail at the connection to it, which says nothing about the cause, or wait.

        However it ends, this process is not missed after it.
        """
        self._before.begin()
        try:
            yield
        except BaseException as error:
            code = self._settle(error) if isinstance(error, Exception) else None
            if isinstance(error, LeftAloneError) and self._watch is not None:
                with suppress(*_NO_STORE):
                    self._watch.fail(INTERRUPTED)
            self._end()
            self._kill_started()
            if code is None:
                raise
            raise OtherProcessError(code) from error
        self._end()

    def _end(self) -> None:
        self._before.end()
        if self._watch is not None:
            self._watch.end()
            self._watch = None

    def _kill_started(self) -> None:
        """End the processes that this one has started, and that know of no reason to."""
        if isinstance(self._launcher, Launcher):
            self._launcher.kill(signal.SIGKILL)

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
            return self._watch.fail(code)
        except _NO_STORE:
            return code

    def _is_lost(self, watch: Watch) -> bool:
        """After a connection failed: whether it was because a process was lost, which is told then, not because one
        failed.
        """
        deadline = monotonic() + watch.patience + 3 * watch.beat
        while not self._found.wait(_LOOK / 2):
            with suppress(*_NO_STORE):  # which the thread finds, too
                if monotonic() > deadline or watch.has_failed():
                    return False
        return True

    def _lose(self, number: int, how: str) -> None:
        """In the watching thread."""
        if collectives.rank() == (1 if number == 0 else 0):  # said once
            print(
                f"\nmmformer: process {number} of this run {how}: all others end. Start it again with --resume.",
                file=sys.stderr,
                flush=True,
            )
        self._kill_started()  # before they miss this one
        self._found.set()
        if self._watch is not None and not self._settling:  # the main thread waits for the lost one, for ever
            if number != 0:  # with which the store may be gone
                self._watch.say_left()
            leave(1)

    def _fail(self, code: int) -> None:
        """In the watching thread: another process has failed, and the main thread may wait for it, for ever."""
        if self._watch is not None and not self._settling:
            self._watch.say_left()
            self._kill_started()
            leave(code)
