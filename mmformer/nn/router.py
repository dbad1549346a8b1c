"""Routers: which tokens go through which experts, counted for each row of a batch by itself.

A router says it as a list of places (``Routing``), sorted by expert, and knows nothing of what an expert is. It works
in float32 at least, whatever the tokens are (Fedus et al. 2021, Switch Transformer, §2.4).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mmformer.nn.ability import MEANINGS, Ability
from mmformer.nn.precision import exact_dtype, without_autocast
from mmformer.spec import Catalogued, family, require, require_probability
from mmformer.types import Aux, LossTerm


class Routing(NamedTuple):
    """Places in experts, all of the first expert's first. Tokens are numbered through all rows of the batch."""

    token: Tensor  # N, int64: the token in each place
    gate: Tensor  # N: the factor on what the expert makes of it
    ends: Tensor  # experts, int64: where each expert's places end; those past the last are not used
    aux: Aux  # in training only


@family
@dataclass(frozen=True)
class RouterSpec(Catalogued, ABC):
    """Which tokens go through which experts.

    Attributes:
        jitter: in training, what the router reads is multiplied by values between 1 - jitter and 1 + jitter (Switch
            Transformer, §2.4).
        z_loss: weight of the mean over tokens and layers of the squared log-sum-exp of a token's logits, which keeps
            them small (ST-MoE, Zoph et al. 2022, §3.2); 0: it is not asked for.
    """

    jitter: float = 0.0
    z_loss: float = 0.001

    def __post_init__(self) -> None:
        require_probability(self, "jitter")
        require(self.z_loss >= 0, self, "z_loss", "at least 0")

    @property
    @abstractmethod
    def abilities(self) -> frozenset[Ability]:
        """What a stack can with it."""

    @abstractmethod
    def check(self, experts: int) -> None:
        """Refuse a number of experts that it does not fit.

        Raises:
            InputError: with the field that is too large.
        """

    @abstractmethod
    def build(self, width: int, experts: int) -> Router:
        """The module for a stack's width."""


class Router(nn.Module, ABC):
    """What all routers have: a logit for each expert."""

    def __init__(self, spec: RouterSpec, width: int, experts: int) -> None:
        super().__init__()
        self.jitter, self.z_loss, self.experts = spec.jitter, spec.z_loss, experts
        self.weight = nn.Parameter(torch.empty(experts, width))

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.weight, std=0.02)

    @abstractmethod
    def forward(self, x: Tensor, valid: Tensor | None) -> Routing:
        """Route.

        Args:
            x: B L D.
            valid: B L; tokens that are not get no place.
        """

    def logits(self, x: Tensor) -> Tensor:
        """B L D -> B L experts, float32 at least."""
        x = x.to(exact_dtype(x))
        if self.training and self.jitter:
            x = x * torch.empty_like(x).uniform_(1 - self.jitter, 1 + self.jitter)
        with without_autocast(x):
            return x @ self.weight.to(x.dtype).t()

    def losses(self, logits: Tensor, real: Tensor) -> Aux:
        """What every router asks for; ``real`` is B L."""
        if not self.z_loss:
            return {}
        squares = logits.logsumexp(-1).masked_fill(~real, 0.0).square()
        return {"router_z": LossTerm(self.z_loss * squares.sum().float(), real.sum().float())}


@dataclass(frozen=True)
class TokenChoiceSpec(RouterSpec):
    """Each token chooses the experts that its logits say most of.

    With ``top: 1, renormalise: false, capacity: 1.25`` it is Switch Transformer's, with ``top: 2`` and a capacity
    GShard's, without one Mixtral's; with sigmoid scores, a balance rate and no balance loss, DeepSeek-V3's.

    Attributes:
        top: how many a token chooses.
        renormalise: a token's gates are made to add up to 1; one gate alone would be 1 and teach the router nothing.
        scores: what makes scores of logits: ``softmax`` over all experts, or ``sigmoid`` of each (DeepSeek-V3, §2.1.2).
        capacity: in training, the most choices of a row that an expert takes, over an even share: in the order of the
            tokens, so that none is dropped for a later one; those past it are dropped, and counted as ``dropped``, the
            share of all choices. A row's real tokens alone are counted, those of all its segments together: what is
            dropped of a sample depends on which ones it shares a row with. In evaluation nothing is dropped, so that a
            text is worth the same in any row. None: nothing is dropped at all.
        places: the same as a number of choices, and in evaluation, too (transformers' Switch): what a token gets then
            depends on those before it in its row, so that rows are neither packed nor gone on with. None: no such
            limit.
        balance_loss: weight of experts × Σ (share of choices × mean score), the mean over rows and layers, which is
            smallest, 1, where experts are chosen evenly (Switch Transformer, §2.2); 0: it is not asked for.
        balance_rate: after every update, an expert that was chosen more than the mean has its scores lowered by this in
            the choice (not in the gate), the others raised: balance without a loss. 0: none. Wang et al. take 0.001.
    """

    cost: ClassVar[str] = "L·experts·D"
    source: ClassVar[str] = (
        "Switch Transformer, Fedus et al. 2021, §2; GShard, Lepikhin et al. 2020, §2.2; Mixtral, Jiang et al. 2024, "
        "§2.1; balance_rate: Wang et al. 2024, Auxiliary-loss-free load balancing, §3"
    )

    top: int = 2
    renormalise: bool = True
    scores: Literal["softmax", "sigmoid"] = "softmax"
    capacity: float | None = None
    balance_loss: float = 0.01
    balance_rate: float = 0.0
    places: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.top >= 1, self, "top", "at least 1")
        require(self.top > 1 or not self.renormalise, self, "renormalise", "false where top is 1: the gate would be 1")
        require(self.scores in ("softmax", "sigmoid"), self, "scores", "'softmax' or 'sigmoid'")
        require(self.capacity is None or self.capacity > 0, self, "capacity", "None or positive")
        require(self.places is None or self.places >= 1, self, "places", "None or at least 1")
        require(self.places is None or self.capacity is None, self, "capacity", "None where there are places")
        require(self.balance_loss >= 0, self, "balance_loss", "at least 0")
        require(self.balance_rate >= 0, self, "balance_rate", "at least 0")

    @property
    def abilities(self) -> frozenset[Ability]:
        return frozenset(MEANINGS) - ({"cache", "packing"} if self.places is not None else set())

    def check(self, experts: int) -> None:
        require(self.top <= experts, self, "top", f"at most the number of experts, {experts}")

    def build(self, width: int, experts: int) -> TokenChoice:
        return TokenChoice(self, width, experts)


class TokenChoice(Router):
    undecayed = unoptimised = ("balance",)

    def __init__(self, spec: TokenChoiceSpec, width: int, experts: int) -> None:
        super().__init__(spec, width, experts)
        self.spec = spec
        # Its gradient is what the experts were chosen too often, times their number: a whole number, so that its sums
        # are exact. It is added up over micro-batches and processes as all gradients are, once for each, however often
        # a layer is run again to save memory.
        self.balance = nn.Parameter(torch.empty(experts)) if spec.balance_rate else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.balance is not None:
            nn.init.zeros_(self.balance)

    def forward(self, x: Tensor, valid: Tensor | None) -> Routing:
        real = x.new_ones(x.shape[:2], dtype=torch.bool) if valid is None else valid
        logits = self.logits(x)
        scores = logits.softmax(-1) if self.spec.scores == "softmax" else logits.sigmoid()
        preferred = scores if self.balance is None else scores + self.balance
        choice = preferred.topk(self.spec.top, dim=-1).indices  # B L top
        gate = scores.gather(-1, choice)
        if self.spec.renormalise:
            gate = gate / gate.sum(-1, keepdim=True).clamp(min=torch.finfo(gate.dtype).tiny)
        # B L top experts: whether a choice is of an expert; those of tokens that are not real are of none.
        chosen = (choice[..., None] == torch.arange(self.experts, device=x.device)) & real[..., None, None]
        load = chosen.sum((1, 2))  # B experts
        if self.balance is not None and torch.is_grad_enabled():
            total = load.sum(0)
            excess = (self.experts * total - total.sum()).to(self.balance.dtype)
            gate = _Loaded.apply(gate, self.balance, excess)  # type: ignore[no-untyped-call]
        aux, taken, room = {}, real[..., None].expand_as(choice), self._room(real)
        if room is not None:
            count = chosen.flatten(1, 2).cumsum(1).view_as(chosen)  # of an expert's choices, up to each
            taken = (chosen & (count <= room)).any(-1)  # B L top
        if self.training:
            aux = self.losses(logits, real) | self._balance(scores, load, real)
            if room is not None:
                dropped = load.sum() - taken.sum()
                aux["dropped"] = LossTerm(dropped.float(), load.sum().float(), minimised=False)
        expert = choice.masked_fill(~taken, self.experts).flatten()
        token = torch.arange(real.numel(), device=x.device).repeat_interleave(self.spec.top)
        return _sorted(expert, token, gate.flatten(), self.experts, aux)

    def _room(self, real: Tensor) -> Tensor | int | None:
        """How many choices of each row an expert takes, for B L top experts of them; None: all."""
        if self.spec.capacity is None or not self.training:
            return self.spec.places
        even = real.sum(1).double() * self.spec.top / self.experts  # B
        return (even * self.spec.capacity).ceil()[:, None, None, None]

    def _balance(self, scores: Tensor, load: Tensor, real: Tensor) -> Aux:
        if not self.spec.balance_loss:
            return {}
        number = real.sum(1, keepdim=True).clamp(min=1)  # B 1
        parts = scores / scores.sum(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
        mean = parts.masked_fill(~real[..., None], 0.0).sum(1) / number  # B experts
        uneven = self.experts * (load / (number * self.spec.top) * mean).sum(-1)  # B; 0 in rows without tokens
        return {"balance": LossTerm(self.spec.balance_loss * uneven.sum().float(), real.any(1).sum().float())}


def take_excess(model: nn.Module) -> list[tuple[TokenChoice, Tensor]]:
    """By how much an update's batch chose each expert too often, times their number, of every router with a balance,
    which forgets it.

    To be called after the gradients of each update, before they are measured or clipped: it is not one of them.
    """
    taken = []
    for router in model.modules():
        if isinstance(router, TokenChoice) and router.balance is not None and router.balance.grad is not None:
            taken.append((router, router.balance.grad))
            router.balance.grad = None
    return taken


@torch.no_grad()
def rebalance(taken: list[tuple[TokenChoice, Tensor]], parts: int = 1) -> None:
    """Move every balance by it.

    Args:
        parts: of the batch, over which gradients were averaged. An expert that was chosen just as often as the mean
            stays where it is, whatever a division by so many rounds.
    """
    for router, excess in taken:
        assert router.balance is not None
        router.balance.sub_((excess * parts).round().sign(), alpha=router.spec.balance_rate)


class _Loaded(torch.autograd.Function):
    """Gates as they are, which give the balance a gradient that is known already."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, balance: Tensor, excess: Tensor) -> Tensor:
        ctx.save_for_backward(excess)
        return gate.view_as(gate)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        return upstream[0], ctx.saved_tensors[0], None


@dataclass(frozen=True)
class ExpertChoiceSpec(RouterSpec):
    """Each expert chooses the tokens of a row that score highest with it: evenly loaded by design.

    Whether a token is chosen depends on all tokens of its row, on later ones and on those of other segments.

    Attributes:
        capacity: how many experts choose a token, on average. A token may be chosen by none: it is counted as
            ``dropped``, the share of all tokens.
    """

    cost: ClassVar[str] = "L·experts·D"
    source: ClassVar[str] = "Zhou et al. 2022, Expert choice routing, §3.2"

    capacity: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.capacity > 0, self, "capacity", "positive")

    @property
    def abilities(self) -> frozenset[Ability]:
        return frozenset(MEANINGS) - {"causal", "prefix", "cache", "packing"}

    def check(self, experts: int) -> None:
        require(self.capacity <= experts, self, "capacity", f"at most the number of experts, {experts}")

    def build(self, width: int, experts: int) -> ExpertChoice:
        return ExpertChoice(self, width, experts)


class ExpertChoice(Router):
    def __init__(self, spec: ExpertChoiceSpec, width: int, experts: int) -> None:
        super().__init__(spec, width, experts)
        self.capacity = spec.capacity
        self.reset_parameters()

    def forward(self, x: Tensor, valid: Tensor | None) -> Routing:
        batch, length, _ = x.shape
        real = x.new_ones(batch, length, dtype=torch.bool) if valid is None else valid
        logits = self.logits(x)
        scores = logits.softmax(-1).masked_fill(~real[..., None], -1.0)  # B L experts
        most = math.ceil(length * self.capacity / self.experts)
        gate, place = scores.topk(most, dim=1)  # B most experts
        room = (real.sum(1).double() * self.capacity / self.experts).ceil()  # B
        taken = (torch.arange(most, device=x.device) < room[:, None])[..., None].expand_as(place)
        aux: Aux = {}
        if self.training:
            aux = self.losses(logits, real)
            times = torch.zeros_like(real, dtype=torch.int64).scatter_add(1, place.flatten(1), taken.flatten(1).long())
            number = real.sum()
            aux["dropped"] = LossTerm((number - (times > 0).sum()).float(), number.float(), minimised=False)
        token = place + length * torch.arange(batch, device=x.device)[:, None, None]
        expert = torch.arange(self.experts, device=x.device).expand_as(place).masked_fill(~taken, self.experts)
        return _sorted(expert.flatten(), token.flatten(), gate.flatten(), self.experts, aux)


def _sorted(expert: Tensor, token: Tensor, gate: Tensor, experts: int, aux: Aux) -> Routing:
    """Pairs of a token and an expert, N each, in any order; expert number ``experts`` is none."""
    expert, order = expert.sort(stable=True)
    ends = torch.searchsorted(expert, torch.arange(experts, device=expert.device), right=True)
    return Routing(token[order], gate[order], ends, aux)
