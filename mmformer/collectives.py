"""What processes tell each other. Where there is one process, each of these means the obvious: nothing is sent.

Of all processes, several may compute the same part of a batch together (tensor and context parallel). What is said of
parts of a batch, sums, gathered rows and values, goes between processes with different parts alone; decisions go to
all. Others may have a stage of the model each (pipeline parallel), and say to each other what only one of them knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

_readers: dist.ProcessGroup | None = None
"""Processes that have different parts of a batch, this one among them; None: all."""

_holders: dist.ProcessGroup | None = None
"""Processes that have different tokens, of other parts of a batch or of the same rows; None: all."""

_stages: dist.ProcessGroup | None = None
"""Processes that have the stages of a model; None: there are none."""

_device: torch.device | str = "cpu"
"""Where stages tell each other something."""


def divide_batches(readers: dist.ProcessGroup | None, holders: dist.ProcessGroup | None = None) -> None:
    """Say, once, when the processes have met, with which of them this one shares out the batches; None: with all.

    Args:
        readers: those that have different parts of a batch.
        holders: those that have different tokens: parts of a batch, or of its rows.
    """
    global _readers, _holders
    _readers, _holders = readers, holders


def divide_model(stages: dist.ProcessGroup | None, device: torch.device | str = "cpu") -> None:
    """Say, once, which processes have the parts of a model that this one's goes through (pipeline parallel), in turn;
    None: this one has all of it.

    Args:
        device: where they tell each other something.
    """
    global _stages, _device
    _stages, _device = stages, device


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def data_world_size() -> int:
    """The number of parts that a batch has."""
    return dist.get_world_size(_readers) if world_size() > 1 else 1


def data_rank() -> int:
    """The number of this process's part of a batch, from 0."""
    return dist.get_rank(_readers) if world_size() > 1 else 0


def token_rank() -> int:
    """The number of this process's tokens, from 0: of its part of a batch, where it has all of that."""
    return dist.get_rank(_holders) if world_size() > 1 else 0


def barrier() -> None:
    """Wait for all."""
    if world_size() > 1:
        dist.barrier()


def of_first(x: Tensor) -> Tensor:
    """The first process's value, everywhere: for what all must decide alike."""
    if world_size() == 1:
        return x
    value = x.detach().clone()
    dist.broadcast(value, src=0)
    return value


def of_first_number(value: float, device: torch.device | str = "cpu") -> float:
    """The first process's number, everywhere, to the bit."""
    if world_size() == 1:  # its device may know no such numbers, as Apple's do not
        return value
    return float(of_first(torch.tensor(value, dtype=torch.float64, device=device)))


def any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether the flag is set in any process."""
    if world_size() == 1:
        return flag
    seen = torch.tensor(float(flag), device=device)
    dist.all_reduce(seen, op=dist.ReduceOp.MAX)
    return bool(seen)


def largest(x: Tensor) -> Tensor:
    """Each element's largest value over all processes; no gradient flows."""
    if world_size() == 1:
        return x
    value = x.detach().clone()
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value


def sum_over_ranks(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sum of each scalar over all parts of a batch, which have the same names; no gradient flows."""
    return _summed(values, _readers)


def sum_over_tokens(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sum of each scalar over all tokens, of which each process says what it has of its own; no gradient flows."""
    return _summed(values, _holders)


def _summed(values: Mapping[str, Tensor], group: dist.ProcessGroup | None) -> dict[str, Tensor]:
    if world_size() == 1 or dist.get_world_size(group) == 1 or not values:
        return dict(values)
    total = torch.stack([value.detach().float().reshape(()) for value in values.values()])
    dist.all_reduce(total, group=group)
    return dict(zip(values, total.unbind(), strict=True))


def stage() -> int:
    """The number of this process's stage of the model, from 0."""
    return 0 if _stages is None else dist.get_rank(_stages)


def sum_over_stages(x: Tensor) -> Tensor:
    """The sum over the stages of a model; no gradient flows."""
    if _stages is None:
        return x
    total = x.detach().to(_device, copy=True)
    dist.all_reduce(total, group=_stages)
    return total


def of_stages(value: T) -> list[T]:
    """What each stage of a model has to say, whatever can be pickled, in their order."""
    if _stages is None:
        return [value]
    told: list[Any] = [None] * dist.get_world_size(_stages)
    dist.all_gather_object(told, value, group=_stages)
    return told


def gather_rows(x: Tensor) -> Tensor:
    """The rows of all parts of a batch, in the order of their numbers: n ... -> (parts n) ...; all have as many.

    The gradient of a part's rows is the sum of what all processes say of them: with a loss whose parts the processes
    hold, that is the gradient of the sum of the parts.
    """
    if data_world_size() == 1:
        return x
    if not x.is_floating_point():
        return _gather(x)
    gathered: Tensor = _GatherRows.apply(x)  # type: ignore[no-untyped-call]
    return gathered


def gather_values(value: T) -> list[T]:
    """What each part of a batch has to say, whatever can be pickled, in the order of their numbers."""
    if data_world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * data_world_size()
    dist.all_gather_object(gathered, value, group=_readers)
    return gathered


def of_all(value: T) -> list[T]:
    """What every process has to say, whatever can be pickled, in the order of their numbers."""
    if world_size() == 1:
        return [value]
    told: list[Any] = [None] * world_size()
    dist.all_gather_object(told, value)
    return told


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _gather(x)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        (gradient,) = upstream
        own = gradient.new_empty(len(gradient) // data_world_size(), *gradient.shape[1:])
        dist.reduce_scatter_tensor(own, gradient.contiguous(), group=_readers)
        return own


def _gather(x: Tensor) -> Tensor:
    gathered = x.new_empty(data_world_size() * len(x), *x.shape[1:])
    dist.all_gather_into_tensor(gathered, x.contiguous(), group=_readers)
    return gathered


def pass_on(*values: Tensor) -> tuple[Tensor, ...]:
    """Hand tensors to the next part of a batch and take those of the one before, round a ring; no gradient flows."""
    size, own = data_world_size(), data_rank()
    if size == 1:
        return values
    sent, received = [value.contiguous() for value in values], [torch.empty_like(value) for value in values]
    after, before = (own + 1) % size, (own - 1) % size
    operations = [dist.P2POp(dist.isend, value, group=_readers, group_peer=after) for value in sent]
    operations += [dist.P2POp(dist.irecv, value, group=_readers, group_peer=before) for value in received]
    for request in dist.batch_isend_irecv(operations):
        request.wait()
    return tuple(received)
