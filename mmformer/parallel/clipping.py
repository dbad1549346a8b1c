"""Norms of gradients, and clipping by them, where parameters may be spread over meshes of different dimensions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmformer import collectives
from mmformer.parallel.sharding import by_mesh, local_part, mesh_of

ROW = 4096
"""Numbers whose squares are added up one by one in float32; sums of so many are added up in pairs."""


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all of them as one vector, the same in every process; all have to ask, of the same parameters.

    Each process adds up the squares that it has, and those of the processes are added up over the dimensions of the
    mesh that a gradient is sharded over, and over the stages of a pipeline: what several processes hold alike counts
    once. Of a gradient that several stages have, all but the first say that it is lent to them.
    """
    own: dict[Any, list[Tensor]] = {}
    for gradient in gradients:
        if getattr(gradient, "lent", False):
            continue
        # Not is_shard(), which what FSDP2 makes of a tensor that is shared out already does not say of itself.
        sharded = tuple(not placement.is_replicate() for placement in getattr(gradient, "placements", ()))
        own.setdefault((mesh_of(gradient), sharded), []).append(local_part(gradient))
    squares = [_over_mesh(_square(parts), *spread) for spread, parts in own.items()]
    return collectives.sum_over_stages(torch.stack(squares).sum() if squares else torch.zeros(())).sqrt()


def _square(parts: list[Tensor]) -> Tensor:
    """The sum of the squares of all that tensors of one device hold.

    On a CPU, PyTorch's norm adds up the squares one by one, and is wrong by 1e-4 of itself for a large matrix: two
    halves of it would not have the norm of the whole.
    """
    rows = [part for part in parts if part.device.type == "cpu" and part.numel() > ROW]
    rest = [part for part in parts if part.device.type != "cpu" or part.numel() <= ROW]
    norms = []
    for flat in (part.flatten() for part in rows):
        even = len(flat) // ROW * ROW
        norms.append(torch.linalg.vector_norm(flat[:even].view(-1, ROW), dim=1))
        rest.append(flat[even:])
    norms += [norm[None] for norm in torch._foreach_norm(rest)]
    return torch.cat(norms).square().sum()


def _over_mesh(square: Tensor, mesh: Any, sharded: tuple[bool, ...]) -> Tensor:
    if not any(sharded):
        return square
    from torch.distributed.tensor import DTensor, Partial, Replicate

    parts = [Partial() if each else Replicate() for each in sharded]
    square = square.to(mesh.device_type)  # from which processes send, wherever gradients are
    return DTensor.from_local(square, mesh, parts, run_check=False).full_tensor()


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float | None) -> Tensor:
    """Scale gradients down to a norm, where theirs is larger; None: leave them. Returns the norm that they had."""
    held = [parameter for parameter in parameters if parameter.grad is not None]
    norm = total_norm([parameter.grad for parameter in held if parameter.grad is not None])
    if limit is not None:
        for each in by_mesh(held):
            torch.nn.utils.clip_grads_with_norm_(each, limit, norm)
    return norm
