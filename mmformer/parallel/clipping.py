"""Norms of gradients, and clipping by them, where parameters may be spread over meshes of different dimensions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from mmformer.parallel.sharding import by_mesh, whole


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all of them as one vector, the same in every process; all have to ask, of the same parameters.

    A norm over tensors of several meshes is not defined: each mesh's is made whole, and they are put together. What all
    processes hold alike counts once.
    """
    norms = [whole(torch.nn.utils.get_total_norm(each)) for each in by_mesh(gradients)]
    if not norms:
        return torch.zeros(())
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float | None) -> Tensor:
    """Scale gradients down to a norm, where theirs is larger; None: leave them. Returns the norm that they had."""
    held = [parameter for parameter in parameters if parameter.grad is not None]
    norm = total_norm([parameter.grad for parameter in held if parameter.grad is not None])
    if limit is not None:
        for each in by_mesh(held):
            torch.nn.utils.clip_grads_with_norm_(each, limit, norm)
    return norm
