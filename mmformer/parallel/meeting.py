"""Where processes meet that torchrun has started: in a store of this start alone.

torchrun has one store for all of its starts, and gives it to the processes (pytorch/pytorch issue 135712). Those that
are started again read in it where the ones before them had listened, and are refused there; how often torchrun has
started them, by which starts could be told apart, it counts on each machine by itself.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from datetime import timedelta
from time import monotonic, sleep
from uuid import uuid4

from torch._C._distributed_c10d import TCPStore
from torch.distributed import DistError

from mmformer.errors import InputError

_SHARED = "TORCHELASTIC_USE_AGENT_STORE"
_KEY = "mmformer/meeting"
_ONE_TRY = 5.0
"""Seconds that one connection may take."""


def open_own_store(patience: float = 300.0) -> TCPStore | None:
    """Where torchrun's store would be used, have this start's first process keep one, and name it in its place in the
    environment, where torch looks (MASTER_PORT).

    Args:
        patience: seconds within which the first process has to be found.

    Returns:
        The store, which is there as long as the first process keeps this; None: torchrun has not started this process,
        or shares no store.

    Raises:
        InputError: the first process is not found.
    """
    environment = os.environ
    if environment.get(_SHARED) != str(True):
        return None
    host, rank = environment["MASTER_ADDR"], int(environment["RANK"])
    shared = _connect(host, int(environment["MASTER_PORT"]), patience)
    store = _found(shared, host, patience) if rank else _kept(shared, host)
    environment |= {"MASTER_PORT": str(store.port), _SHARED: str(False)}
    return store


def _kept(shared: TCPStore, host: str) -> TCPStore:
    """One that this process keeps. torch takes it, too: it opens none at a port that this process listens at."""
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False, multi_tenant=True)
    name = uuid4().hex
    store.set(_KEY, name)
    shared.set(_KEY, f"{store.port} {name}")
    return store


def _found(shared: TCPStore, host: str, patience: float) -> TCPStore:
    """The first process's. What torchrun's store names may be an earlier start's, until that process has come."""
    deadline = monotonic() + patience
    while True:
        with suppress(OSError, DistError, TimeoutError):
            if shared.check([_KEY]):
                port, name = shared.get(_KEY).decode().split()
                socket.create_connection((host, int(port)), _ONE_TRY).close()  # torch would try on where all is refused
                store = _connect(host, int(port), _ONE_TRY)
                if store.check([_KEY]) and store.get(_KEY).decode() == name:
                    return store
        if monotonic() > deadline:
            raise InputError(
                f"The first process, on {host}, was not found within {patience:g} seconds: look at what it said, and "
                "whether this machine reaches all of that one's ports."
            )
        sleep(0.1)


def _connect(host: str, port: int, patience: float) -> TCPStore:
    return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=patience))
