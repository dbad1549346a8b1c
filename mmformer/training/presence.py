"""Whether the other processes of a run are there: one that is killed tells nobody, and others would wait for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

import pytorch_lightning as pl
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed import DistError
from torch.distributed.distributed_c10d import _get_default_store

from mmformer import collectives
from mmformer.training.processes import leave

BEAT = 2.0
"""Seconds between two signs of life."""

PATIENCE = 14.0
"""Seconds without one after which a process is lost."""

_LOOK = 0.5
"""Seconds between two looks at processes that this one has started."""


class Watch:
    """A thread that gives signs of life in a store that all processes share, and watches the process before this one.

    Each has one other to watch, so that the store is asked as often as there are processes. What one finds all are told
    by the store, of which this has a connection of its own: another thread may wait in the run's.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world: int,
        lost: Callable[[int, str], None],
        started: Sequence[subprocess.Popen[Any]] = (),
        beat: float = BEAT,
        patience: float = PATIENCE,
    ) -> None:
        """``lost`` is called, in the thread, with the number of a process and what is known of its end.

        Args:
            started: processes that this one has started, numbered from 1: of their end it is told at once.
        """
        self.store, self.rank, self.before = store, rank, (rank - 1) % world
        self.beat, self.patience, self.started = beat, patience, started
        self._lost = lost
        self._ended = threading.Event()
        self._seen, self._when = b"", monotonic()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Leave in order: nobody is to miss this process."""
        self._ended.set()
        self._thread.join(self.beat)
        with suppress(DistError):  # the process that keeps the store has left before
            self.store.set(f"alive/{self.rank}", "left")

    def _run(self) -> None:
        beats, next_beat = 0, 0.0
        while not self._ended.wait(_LOOK if self.started else self.beat):
            found = self._look_at_started()
            if found is None and monotonic() >= next_beat:
                beats, next_beat = beats + 1, monotonic() + self.beat
                found = self._ask(beats)
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

    def _ask(self, beats: int) -> tuple[int, str] | None:
        """Say that this process is there, and look whether others are."""
        try:
            self.store.set(f"alive/{self.rank}", str(beats))
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
    """Watches while training. Where a process is lost, the others say which, and end.

    Attributes:
        lost: the number of a process that was lost, and how; None: none is known to be.
    """

    def __init__(self) -> None:
        self.lost: tuple[int, str] | None = None
        self._watch: Watch | None = None
        self._found = threading.Event()
        self._asked = False  # the main thread has failed, waits for what is found, and ends the process itself

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if collectives.world_size() == 1:
            return
        started = getattr(trainer.strategy.launcher, "procs", ())
        self._watch = Watch(_own_store(), collectives.rank(), collectives.world_size(), self._lose, started)
        self._watch.start()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """However training in here ends, this process is not missed after it."""
        try:
            yield
        finally:
            if self._watch is not None:
                self._watch.end()
                self._watch = None

    def wait(self, explained: Callable[[], bool]) -> bool:
        """After a connection failed: whether it was because a process was lost, which is told then.

        Args:
            explained: whether there is another reason by now.
        """
        if self._watch is None:
            return False
        self._asked = True
        deadline = monotonic() + self._watch.patience + 3 * self._watch.beat
        while not self._found.wait(_LOOK / 2):
            with suppress(DistError):  # the store is gone, which the thread finds, too
                if monotonic() > deadline or explained():
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
        if not self._asked:  # the main thread waits for the lost one, for ever
            leave(1)


def _own_store() -> Store:
    """Another connection to the store that the processes met by, under names that another start does not have."""
    store = _get_default_store()
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    if isinstance(store, TCPStore):
        store = TCPStore(store.host, store.port, is_master=False, wait_for_workers=False)
    return PrefixStore(f"mmformer/presence/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
