"""Parameters that train as they are, beside adapters or in their place: a new head, say, or all biases."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from mmformer.adapters.adapter import AdapterSpec
from mmformer.names import matching
from mmformer.spec import require


@dataclass(frozen=True)
class WholeSpec(AdapterSpec):
    """Nothing is added: what is named trains whole, such as a head that the model did not have.

    Attributes:
        parameters: patterns of names, as in ``freeze``.
    """

    parameters: tuple[str, ...] = ("heads.*",)

    def __post_init__(self) -> None:
        require(len(self.parameters) >= 1, self, "parameters", "at least one pattern")

    def attach(self, model: nn.Module, seed: int) -> None:
        named = dict(model.named_parameters(remove_duplicate=False))
        for pattern in self.parameters:
            for name in matching("parameters", named, pattern):
                named[name].requires_grad_(True)


@dataclass(frozen=True)
class BitFitSpec(WholeSpec):
    """The biases alone (Ben-Zaken et al. 2021)."""

    parameters: tuple[str, ...] = ("*.bias",)
