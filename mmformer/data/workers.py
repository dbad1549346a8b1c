"""Worker processes: work that is divided among them, and how those of a loader end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from mmformer.errors import InputError

T = TypeVar("T")
R = TypeVar("R")


def spread(function: Callable[[T], R], items: Sequence[T], workers: int | None = None) -> Iterator[R]:
    """The results of a function for each of some items, in their order, whatever the number of processes.

    An exception, or closing the iterator, lets the items in work end and drops the others.

    Args:
        function: of one item; it can be pickled, as its results can.
        items: what it is called with.
        workers: processes; 1: none besides this one; None: as many as there are cores to run on.

    Raises:
        InputError: a process died.
    """
    number = min(available_cores() if workers is None else workers, len(items))
    if number <= 1:
        yield from map(function, items)
        return
    # Not forked: the libraries that decode may hold threads and locks.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(number, context, initializer=_leave_interrupts_to_the_first) as pool:
        try:
            yield from pool.map(function, items)
        except BrokenProcessPool as error:
            raise InputError("A worker process died, perhaps for want of memory: try with fewer --workers.") from error


def available_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _leave_interrupts_to_the_first() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def read_on(worker: int) -> None:
    """Have a loader's worker end when its loader ends it, and at no signal from elsewhere.

    Schedulers and terminals signal every process of a job. The one that trains then ends in order, and needs batches
    until it has. Of the sender, only who waits for a signal is told.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(os.getppid(),), name="ending", daemon=True).start()


def _end_with(loader: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != loader:
        pass
    os._exit(0)
