"""Whether a module is computed as its class says, so that something else may compute it in its place."""

from __future__ import annotations

from torch import nn
from torch.distributed.tensor import DTensor


def is_unaltered(module: nn.Module) -> bool:
    """Whether nobody has hooks on it, made a program of it, or spread its parameters."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    # Where parallel/compiling.py puts its programs, which are of the module that they were made of.
    compiled = module._compiled_call_impl is not None or bool({"forward", "computed"} & module.__dict__.keys())
    spread = any(isinstance(value, DTensor) for value in module.parameters(recurse=False))
    return not (compiled or spread or any(hooks))
