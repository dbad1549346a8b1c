"""Adaptive computation time: each token is worked on until it is done, and says when that is.

After each application of a layer, a unit gives the chance that a token halts there. It halts where its chances add up
to the threshold, or at the last application. What leaves the stack is the mean of the token's states, each weighed by
its chance, the last one by what the others left of 1; this is where the unit's gradient comes from. A token that has
halted is there for others as it then was: its state is copied from application to application.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.nn.precision import exact_dtype, without_autocast
from mmformer.spec import Catalogued, require
from mmformer.types import Aux, LossTerm


@dataclass(frozen=True)
class HaltingSpec(Catalogued):
    """Each token goes through as many applications of the layers as it needs; the stack's depth is the most.

    In evaluation, the stack stops where no token of a batch goes on, unless it carries a state.

    Attributes:
        threshold: a token halts where its chances add up to it (Graves: 1 - ε, with ε = 0.01).
        ponder_cost: what an application costs a token, as a loss (Graves's τ): the mean over tokens of the number of
            applications and of the last one's weight, times this, is asked to be minimised, as ``ponder``; the mean
            number of applications is told, as ``applications``.
    """

    cost: ClassVar[str] = "L·D"
    source: ClassVar[str] = "Graves 2016, §2; for each token: Universal Transformers, Dehghani et al. 2019, §2.2"

    threshold: float = 0.99
    ponder_cost: float = 0.01

    def __post_init__(self) -> None:
        require(0 < self.threshold < 1, self, "threshold", "above 0 and below 1")
        require(self.ponder_cost > 0, self, "ponder_cost", "positive: nothing else makes tokens halt early")

    def build(self, width: int) -> Halting:
        """The unit for a stack's width."""
        return Halting(self, width)


class Pondering(NamedTuple):
    """How far each token has come."""

    mean: Tensor  # B L D: the states so far, weighed
    spent: Tensor  # B L, float32 at least: of its chances, which add up to 1
    applications: Tensor  # B L, as spent
    remainder: Tensor  # B L, as spent: the last application's weight, where it has halted
    running: Tensor  # B L, bool: it has not halted
    real: Tensor  # B L, bool


class Halting(nn.Module):
    undecayed = ("weight",)

    def __init__(self, spec: HaltingSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(1, width))
        self.bias = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.ones_(self.bias)  # tokens halt soon at first (Graves, §3)

    def begin(self, x: Tensor, valid: Tensor | None) -> Pondering:
        """Before the first application. Padding does not run; its mean is zero."""
        real = x.new_ones(x.shape[:2], dtype=torch.bool) if valid is None else valid
        zero = x.new_zeros(x.shape[:2], dtype=exact_dtype(x))
        return Pondering(torch.zeros_like(x), zero, zero, zero, real, real)

    def forward(self, before: Tensor, after: Tensor, past: Pondering, last: bool) -> tuple[Tensor, Pondering]:
        """Weigh the states that left an application.

        Args:
            before: B L D, what entered it.
            after: B L D, what left it.
            past: how far tokens had come.
            last: it is the last application there is.

        Returns:
            What enters the next one, and how far tokens have come.
        """
        with without_autocast(after):
            exact = exact_dtype(after)
            chance = F.linear(after.to(exact), self.weight.to(exact), self.bias.to(exact)).sigmoid()[..., 0]  # B L
        enough = past.spent + chance >= self.spec.threshold
        halts = past.running & (torch.ones_like(enough) if last else enough)
        left = 1 - past.spent
        share = torch.where(halts, left, chance) * past.running
        mean = past.mean + share[..., None].to(after.dtype) * after
        x = torch.where(past.running[..., None], after, before)
        spent, running = past.spent + past.running * chance, past.running & ~halts
        applications, remainder = past.applications + past.running, past.remainder + halts * left
        return x, Pondering(mean, spent, applications, remainder, running, past.real)

    def asked(self, pondered: Pondering) -> Aux:
        """The ponder cost, to be minimised, and how many applications there were, both over real tokens."""
        tokens, applications = pondered.real.sum().float(), pondered.applications.sum().float()
        cost = self.spec.ponder_cost * (applications + pondered.remainder.sum().float())
        return {"ponder": LossTerm(cost, tokens), "applications": LossTerm(applications, tokens, minimised=False)}
