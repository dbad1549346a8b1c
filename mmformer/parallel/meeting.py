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


def open_own_store(patience: float) -> TCPStore | None:
    """Where torchrun's store would be used, have this start's first process keep one, and name it in its place in the
    environment, where torch looks (MASTER_PORT).

    Args:
        patience: seconds within which the first process has to be found, which may have checkpoints to look at first.

    Returns:
        The store, which is there as long as the first process keeps this; None: torchrun has not started this process,
        or shares no store.

    Raises:
        InputError: torchrun's store, or the first process, is not found.
    """
    environment = os.environ
    if environment.get(_SHARED) != str(True):
        return None
    host, rank = environment["MASTER_ADDR"], int(environment["RANK"])
    try:
        shared = _connect(host, int(environment["MASTER_PORT"]), _ONE_TRY)
        store = _found(shared, host, patience) if rank else _kept(shared, host)
    except (DistError, TimeoutError) as error:
        raise InputError(
            f"Process {rank} cannot reach {host}, where torchrun keeps what its processes share: {error} Let all "
            f"machines reach all of its ports, by that name."
        ) from error
    environment |= {"MASTER_PORT": str(store.port), _SHARED: str(False)}
    return store


def let_no_more_in(store: TCPStore) -> None:
    """To be said by the first process when all have met: one that is started again before this one has noticed waits
    for the next start, and does not meet what is left of this.
    """
    store.delete_key(_KEY)


def _kept(shared: TCPStore, host: str) -> TCPStore:
    """One that this process keeps. torch takes it, too: it opens none at a port that this process listens at."""
    patience = timedelta(seconds=_ONE_TRY)
    store = TCPStore(host, 0, is_master=True, timeout=patience, wait_for_workers=False, multi_tenant=True)
    name = uuid4().hex
    store.set(_KEY, name)
    shared.set(_KEY, f"{store.port} {name}")
    return store


def _found(shared: TCPStore, host: str, patience: float) -> TCPStore:
    """The first process's. What torchrun's store names may be an earlier start's, until that process has come."""
    deadline = monotonic() + patience
    while True:
        named = shared.get(_KEY).decode() if shared.check([_KEY]) else ""
        with suppress(OSError, DistError, TimeoutError):
            if named:
                port, name = named.split()
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
