"""Mixture of experts: many feed-forwards, of which each token goes through a few."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmformer.nn.ability import Ability, require_abilities
from mmformer.nn.dropout import Dropout
from mmformer.nn.feedforward import DenseFeedForwardSpec, FeedForward, FeedForwardSpec, GELUFeedForwardSpec
from mmformer.nn.grouped import GroupedLinear
from mmformer.nn.initialisation import Roles, Rows
from mmformer.nn.router import RouterSpec, TokenChoiceSpec
from mmformer.spec import require
from mmformer.types import Aux


@dataclass(frozen=True)
class MixtureOfExpertsSpec(FeedForwardSpec):
    """Feed-forwards by the side of one another; a router says which tokens go through which.

    A token's output is the sum of what its experts make of it, each times its gate; tokens that are not valid, or go
    through none, get zero.

    Attributes:
        experts: how many there are.
        expert: what each of them is; ``ratio`` is one expert's.
        router: which tokens go through which, and what it asks to be minimised so that all are made use of.
        shared: one that all tokens go through besides (DeepSeekMoE, Dai et al. 2024, §3.2); None: none.
    """

    cost: ClassVar[str] = "L·top·ratio·D²"
    source: ClassVar[str] = (
        "Shazeer et al. 2017, Outrageously large neural networks, §2; shared: DeepSeekMoE, Dai et al. 2024, §3.2"
    )

    experts: int = 8
    expert: FeedForwardSpec = GELUFeedForwardSpec()
    router: RouterSpec = TokenChoiceSpec()
    shared: FeedForwardSpec | None = None

    def __post_init__(self) -> None:
        require(self.experts >= 2, self, "experts", "at least 2")
        require(isinstance(self.expert, DenseFeedForwardSpec), self, "expert", "a feed-forward without experts")
        dense = self.shared is None or isinstance(self.shared, DenseFeedForwardSpec)
        require(dense, self, "shared", "None or a feed-forward without experts")
        self.router.check(self.experts)

    @property
    def abilities(self) -> frozenset[Ability]:
        return self.router.abilities

    def require_able(self, where: str, needed: Iterable[Ability], why: str) -> None:
        require_abilities(f"{where}.router", self.router, needed, why)

    def build(self, width: int) -> MixtureOfExperts:
        return MixtureOfExperts(self, width)


class Experts(nn.Module):
    """Feed-forwards of one kind, each of which gets rows of its own; weights are stacked, experts first."""

    def __init__(self, spec: DenseFeedForwardSpec, experts: int, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.up = GroupedLinear(experts, width, spec.features(width), spec.bias)
        self.dropout = Dropout(spec.dropout)
        self.down = GroupedLinear(experts, spec.hidden(width), width, spec.bias)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """N D, sorted by expert, and where each expert's rows end -> N D; zero in rows past the last end."""
        y: Tensor = self.down(self.dropout(self.spec.units(self.up(x, ends))), ends)
        return y


class MixtureOfExperts(FeedForward):
    def __init__(self, spec: MixtureOfExpertsSpec, width: int) -> None:
        super().__init__()
        assert isinstance(spec.expert, DenseFeedForwardSpec), "the spec refuses others"
        self.router = spec.router.build(width, spec.experts)
        self.experts = Experts(spec.expert, spec.experts, width)
        self.shared = None if spec.shared is None else spec.shared.build(width)

    def roles(self) -> Roles:
        gated, hidden = self.experts.spec.gated, Rows("inner", self.experts.down.weight.shape[2])
        return {"experts.up": (hidden,) * (2 if gated else 1), "experts.down": (Rows("output"),)}

    def forward(self, x: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Aux]:
        token, gate, ends, aux = self.router(x, valid)
        made = self.experts(x.flatten(0, 1).index_select(0, token), ends)  # N D
        y = torch.zeros(x.shape, dtype=made.dtype, device=x.device).flatten(0, 1)
        y = y.index_add(0, token, made * gate[:, None].to(made.dtype)).view(x.shape)
        return (y if self.shared is None else y + self.shared(x, valid)[0]), aux
