"""Norms of gradients and activations, part by part: where a run that goes wrong begins to."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmformer import collectives
from mmformer.parallel.clipping import total_norm


def gradient_norms(model: nn.Module) -> dict[str, Tensor]:
    """The norm of the gradient of each part, as "gradient_norm/stacks.image" and its like.

    The squares of all parts' add up to the square of the whole norm. Where processes share parameters, all have to ask.
    """
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None or (parameter.is_meta and parameter.requires_grad):  # another stage has it
            own = parts.setdefault(".".join(name.split(".")[:2]), [])
            own += [] if parameter.grad is None else [parameter.grad]
    return {f"gradient_norm/{part}": total_norm(each) for part, each in parts.items()}


class ActivationNorms:
    """Within it, what leaves each layer of a model's stacks is measured: its root mean square over real tokens, and of
    a last layer whose others nobody reads, over those that its pool reads.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = {
            name: module
            for name, module in model.named_modules()
            if re.fullmatch(r"stacks\.\w+\.layers\.\d+", name) is not None
        }
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}  # layer -> the sum of the squares, and how many there were
        self._handles: list[Any] = []

    def __enter__(self) -> ActivationNorms:
        for name, layer in self._layers.items():
            self._handles.append(layer.register_forward_hook(partial(self._add, name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _add(self, name: str, layer: nn.Module, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        """A layer's hook: it was handed tokens and a view, and returns tokens first."""
        x, valid = output[0], inputs[1].mask.valid  # B L D, B L
        x = x[valid] if valid is not None and x.shape[:2] == valid.shape else x  # of the last, those that are read
        square, number = x.detach().float().square().sum(), x.new_tensor(float(x.numel()), dtype=torch.float32)
        before = self._sums.get(name)
        self._sums[name] = (square, number) if before is None else (before[0] + square, before[1] + number)

    def read(self) -> dict[str, Tensor]:
        """What was measured, over all processes, as "activation_rms/stacks.image.layers.0" and its like.

        A layer that an update does not reach is left out.
        """
        squares = collectives.sum_over_tokens({name: square for name, (square, _) in self._sums.items()})
        numbers = collectives.sum_over_tokens({name: number for name, (_, number) in self._sums.items()})
        own = {f"activation_rms/{name}": float((squares[name] / numbers[name]).sqrt()) for name in squares}
        return {name: torch.tensor(value) for part in collectives.of_stages(own) for name, value in part.items()}
