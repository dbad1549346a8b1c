"""Work beside the training loop: copies that it goes on from at once, and a thread that writes them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from mmformer.parallel.sharding import local_part


class Background:
    """One job at a time, in a thread. Its error is raised where it is next asked for."""

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Begin a job, after the one before has ended.

        Raises:
            whatever that one failed with.
        """
        self.wait()
        # Where a process is told to end at once, it does not wait for it.
        self._thread = Thread(target=self._run, args=(job,), name="background", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Go on, unless a job has failed.

        Raises:
            whatever it failed with, once.
        """
        if self._thread is None or not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """The same, when the job has ended."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001  # whatever it is: it is raised in the thread that asks
            self._error = error


class HostCopy:
    """Copies nested states into main memory, into the same tensors each time; of sharded ones, this process's parts.

    The first time the memory is found, which takes longer than to fill it. On a GPU's way it is pinned.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Tensor] = {}

    def take(self, state: Any) -> Any:
        """A copy that later updates do not change; it holds until the next is taken. Tied tensors stay tied."""
        devices: set[torch.device] = set()
        taken = self._copy(state, (), {}, devices)
        for device in devices:
            torch.cuda.synchronize(device)
        return taken

    def _copy(self, value: Any, path: tuple[Any, ...], seen: dict[Any, Tensor], devices: set[torch.device]) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value.detach(), path, seen, devices)
        if isinstance(value, Mapping):
            return {key: self._copy(each, (*path, key), seen, devices) for key, each in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self._copy(each, (*path, place), seen, devices) for place, each in enumerate(value))
        return copy.deepcopy(value)

    def _tensor(
        self, value: Tensor, path: tuple[Any, ...], seen: dict[Any, Tensor], devices: set[torch.device]
    ) -> Tensor:
        own = local_part(value)
        where = (own.device, own.data_ptr(), own.dtype, own.shape, own.stride())
        if own.numel() and where in seen:
            return seen[where]
        kept = self._kept.get(path)
        if kept is None or kept.shape != value.shape or kept.dtype != value.dtype:
            whole = torch.contiguous_format  # a part of a tensor, too
            kept = torch.empty_like(value, device="cpu", pin_memory=own.is_cuda, memory_format=whole)
            self._kept[path] = kept
        local_part(kept).copy_(own, non_blocking=own.is_cuda)
        if own.is_cuda:
            devices.add(own.device)
        seen[where] = kept
        return kept
