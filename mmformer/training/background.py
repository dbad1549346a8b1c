"""Work beside the training loop: copies that it goes on from at once, and a thread that writes them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Thread
from typing import Any, NamedTuple

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


class Pending(NamedTuple):
    """A copy that is still to be made."""

    copy: Tensor
    own: Tensor
    version: int  # of ``own``, which changes with it


class HostCopy:
    """Copies nested states into main memory, into the same tensors each time; of sharded ones, this process's parts.

    The first time the memory is found, which takes longer than to fill it. On a GPU's way it is pinned.

    What stays as it is for some time is copied by a thread, beside the next update's gradient (CheckFreq, Mohan et al.
    2021, §4.1, does so with checkpoints of GPUs): ``finish`` waits for it, before anything of it may be changed.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Tensor] = {}
        self._pending: list[Pending] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="copy")
        self._copying: Future[None] | None = None

    def take(self, state: Any, still: Iterable[Tensor] = ()) -> Any:
        """A copy that later updates do not change; it holds until the next is taken. Tied tensors stay tied.

        Args:
            still: of the state's tensors, those that nothing changes until ``finish`` is called; the copy of those in
                main memory is whole only after it.
        """
        self.finish()
        self._copying = None
        own = (local_part(each.detach()) for each in still)
        places = {each.data_ptr() for each in own if each.device.type == "cpu" and each.numel()}
        devices: set[torch.device] = set()
        taken = self._copy(state, (), _Seen({}, places), devices)
        for device in devices:
            torch.cuda.synchronize(device)
        pending, self._pending = self._pending, []
        if pending:
            self._copying = self._thread.submit(_fill, pending)
        return taken

    def finish(self) -> None:
        """Wait until the last copy is whole.

        Raises:
            RuntimeError: something was changed before.
        """
        if self._copying is not None:
            self._copying.result()

    def _copy(self, value: Any, path: tuple[Any, ...], seen: _Seen, devices: set[torch.device]) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value.detach(), path, seen, devices)
        if isinstance(value, Mapping):
            return {key: self._copy(each, (*path, key), seen, devices) for key, each in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self._copy(each, (*path, place), seen, devices) for place, each in enumerate(value))
        return copy.deepcopy(value)

    def _tensor(self, value: Tensor, path: tuple[Any, ...], seen: _Seen, devices: set[torch.device]) -> Tensor:
        own = local_part(value)
        where = (own.device, own.data_ptr(), own.dtype, own.shape, own.stride())
        if own.numel() and where in seen.copies:
            return seen.copies[where]
        kept = self._kept.get(path)
        if kept is None or kept.shape != value.shape or kept.dtype != value.dtype:
            whole = torch.contiguous_format  # a part of a tensor, too
            kept = torch.empty_like(value, device="cpu", pin_memory=own.is_cuda, memory_format=whole)
            self._kept[path] = kept
        if own.device.type == "cpu" and own.data_ptr() in seen.still:
            self._pending.append(Pending(local_part(kept), own, own._version))
        else:
            local_part(kept).copy_(own, non_blocking=own.is_cuda)
        if own.is_cuda:
            devices.add(own.device)
        seen.copies[where] = kept
        return kept


class _Seen(NamedTuple):
    """While a state is copied."""

    copies: dict[Any, Tensor]  # by what they are of
    still: set[int]  # where tensors lie that may be copied later


def _fill(pending: list[Pending]) -> None:
    for each in pending:
        each.copy.copy_(each.own)
        if each.own._version != each.version:
            raise RuntimeError("a checkpoint was not written: what it is of was changed before it was copied")
