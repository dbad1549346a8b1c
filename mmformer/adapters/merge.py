"""Models with adapters, as models without: what bundles hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmformer.adapters.adapter import Adapted, adapt, begun
from mmformer.errors import InputError
from mmformer.models.model import Model


def adapted(model: nn.Module) -> Iterator[tuple[str, Adapted]]:
    """The adapted linear maps of a model, by name."""
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Adapted):
            yield name, module


def adapt_alike(copy: nn.Module, model: nn.Module, seed: int = 0) -> None:
    """Give a model of the same spec the adapters that another one has, with first weights instead of theirs.

    Args:
        seed: of what is drawn; nothing is where the copy has no data.
    """
    for name, module in adapted(model):
        twin = copy.get_submodule(name)
        assert isinstance(twin, nn.Linear)
        if not isinstance(twin, Adapted):
            adapt(twin, begun(name, twin, module.adapter.spec, module.adapter.blocks, seed))


@contextmanager
def used_adapters(model: nn.Module) -> Iterator[None]:
    """Refuse adapters that nothing runs inside: they would not train.

    Raises:
        InputError: the linear map's weight is read by another module, or its part of the model is not used.
    """
    waiting = dict(adapted(model))
    hooks = [
        module.register_forward_hook(lambda *_, name=name: waiting.pop(name, None) and None)
        for name, module in waiting.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    if waiting:
        raise InputError(
            f"adapters: {next(iter(waiting))} is adapted, but nothing that the objectives read goes through it as a "
            f"layer of its own: name other modules (parameters that train whole are named by a WholeSpec)."
        )


@torch.no_grad()
def merged(model: Model) -> Model:
    """A model without adapters that computes what one with them does in evaluation, but for rounding.

    Weights that were not adapted are those of the model itself, and a model without adapters is returned itself.
    """
    state = model.state_dict()
    for name, module in adapted(model):
        for key in [key for key in state if key.startswith(f"{name}.adapter.")]:
            del state[key]
        # Detached: a parameter that is assigned to another module would train there as that one's own.
        bias: Tensor | None = None if module.bias is None else module.bias.detach()
        state[f"{name}.weight"], bias = module.adapter.merged(module.weight.detach(), bias)
        if bias is not None:
            state[f"{name}.bias"] = bias
    if not any(adapted(model)):
        return model
    with torch.device("meta"):
        plain = model.spec.build()
    plain.load_state_dict(state, assign=True)
    return plain.train(model.training)
