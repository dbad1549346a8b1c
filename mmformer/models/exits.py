"""Early exit: a classifier after some of a stack's layers, and samples that go no further than to the first sure one.

At an exit, a sample's embedding is what its encoder would make of it if the stack ended there, by the same final norm,
pool and projection; each exit has a linear map of its own from that to class logits. All of them are trained at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmformer.errors import InputError
from mmformer.models.head import ClassificationHead, ClassificationHeadSpec, HeadOutput, Shared, Source
from mmformer.nn.stack import Stack, StackSpec
from mmformer.spec import require
from mmformer.types import Aux, Batch, Early, Outputs, Tokens

Embed = Callable[[Tokens], Tensor]
"""Tokens that left a stack, normalised -> their embedding, B E."""


@dataclass(frozen=True)
class EarlyExitHeadSpec(ClassificationHeadSpec):
    """A classification head with further classifiers after layers before the last (BranchyNet, Teerapittayanon et al.
    2016, §III; DeeBERT, Xin et al. 2020, §3). A classification objective weighs the mean of all their losses.

    Attributes:
        exits: after which layers of the encoder's stack, 0 the first, in ascending order; the last layer has the head.
        threshold: in evaluation, a sample leaves the stack at the first exit that gives a class at least this
            probability, and no more is computed of it; its embedding is the exit's. None: all go to the end. It may be
            set on the head later, ``model.heads["name"].threshold = 0.9``.
    """

    exits: tuple[int, ...] = ()
    threshold: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        ascending = bool(self.exits) and all(a < b for a, b in pairwise((-1, *self.exits)))
        require(ascending, self, "exits", "one layer or several, in ascending order, 0 the first")
        require(self.threshold is None or 0 < self.threshold <= 1, self, "threshold", "None, or above 0 and at most 1")
        for field in ("pool", "norm", "hidden"):
            plain = getattr(self, field) is None
            require(plain, self, field, "None: each exit is a linear map of what would be the embedding there")

    def build(self, sources: Mapping[str, Source], shared: Shared) -> EarlyExitHead:
        return EarlyExitHead(self, sources[self.encoder])

    def check_stack(self, where: str, stack: StackSpec) -> None:
        """Refuse a stack that has no such layers, or whose layers cannot be run in spans.

        Raises:
            InputError: ``where`` is the key of the head.
        """
        if self.exits[-1] >= stack.depth - 1:
            raise InputError(
                f"{where}.exits has {self.exits[-1]}, but exits come before the last layer, which is {stack.depth - 1}."
            )
        for field in ("halting", "reversible"):
            if getattr(stack, field):
                raise InputError(f"{where} lets samples leave a stack that runs as a whole: leave out its {field}.")


class EarlyExitHead(ClassificationHead):
    """Attributes: threshold: see the spec."""

    def __init__(self, spec: EarlyExitHeadSpec, source: Source) -> None:
        super().__init__(spec, source)
        self.layers, self.threshold = spec.exits, spec.threshold
        self.exits = nn.ModuleList(nn.Linear(source.embedding, spec.classes, bias=spec.bias) for _ in spec.exits)

    def forward(self, outputs: Outputs, batch: Batch) -> HeadOutput | None:
        made, early = super().forward(outputs, batch), outputs.early.get(self.encoder)
        if made is None or early is None or made.logits is None:
            return made
        if early.left is None:
            made_early = [self.exit(layer, self.dropout(early.embedding[layer])) for layer in self.layers]
            return HeadOutput(logits=made.logits, exits=torch.stack(made_early, dim=1))
        logits = made.logits
        for layer in self.layers:
            here = self.exit(layer, outputs.embedding[self.encoder])
            logits = torch.where((early.left == layer)[:, None], here, logits)
        return HeadOutput(logits=logits)

    def exit(self, layer: int, embedding: Tensor) -> Tensor:
        """The logits after a layer, of what the samples are there: B E -> B classes."""
        logits: Tensor = self.exits[self.layers.index(layer)](embedding)
        return logits

    def sure(self, layer: int, embedding: Tensor) -> Tensor:
        """Which samples leave after a layer, by their embedding there: B E -> B."""
        assert self.threshold is not None, "exits_of hands this out only where one is set"
        return self.exit(layer, embedding).float().softmax(-1).amax(-1) >= self.threshold


class Exits(NamedTuple):
    """Where samples may leave a stack."""

    layers: tuple[int, ...]  # after which, in ascending order
    sure: Callable[[int, Tensor], Tensor] | None = None  # layer, B E -> B: which samples leave; None: none does


class Exited(NamedTuple):
    """What an encoder's samples were when they left its stack, wherever that was."""

    tokens: Tokens  # normalised
    embedding: Tensor  # B E
    early: Early


def exits_of(encoder: str, heads: Iterable[nn.Module], training: bool) -> Exits | None:
    """Where the samples of an encoder may leave its stack; None: at the end alone."""
    exiting = [head for head in heads if isinstance(head, EarlyExitHead) and head.encoder == encoder]
    leaving = [head for head in exiting if head.threshold is not None and not training]
    if leaving:
        return Exits(leaving[0].layers, leaving[0].sure)
    layers = sorted({layer for head in exiting for layer in head.layers})
    return Exits(tuple(layers)) if layers else None


def run_and_leave(stack: Stack, tokens: Tokens, causal: bool, embed: Embed, exits: Exits) -> tuple[Exited, Aux]:
    """Run a stack over ever fewer samples: those that an exit is sure of leave."""
    assert exits.sure is not None, "some may leave"
    last, aux = stack.spec.depth - 1, Aux()
    row, going = torch.arange(len(tokens.x), device=tokens.x.device), tokens
    made: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # which samples left, as what, after which layer
    for before, layer in pairwise((-1, *exits.layers, last)):
        output = stack(going, causal=causal, span=range(before + 1, layer + 1))
        aux = aux | {name: aux[name].plus(term) if name in aux else term for name, term in output.aux.items()}
        x = output.tokens.x if layer == last else stack.norm(output.tokens.x)
        embedding = embed(output.tokens._replace(x=x))
        leaves = torch.ones_like(row, dtype=torch.bool) if layer == last else exits.sure(layer, embedding)
        made.append((row[leaves], x[leaves], embedding[leaves], torch.full_like(row[leaves], layer)))
        row, going = row[~leaves], _some(output.tokens, ~leaves)
        if not len(row):
            break
    rows, x, embedding, left = (torch.cat(parts) for parts in zip(*made, strict=True))
    order = rows.argsort()
    return Exited(Tokens(x[order], tokens.pos, tokens.valid), embedding[order], Early({}, left[order])), aux


def weigh_exits(stack: Stack, tokens: Tokens, hidden: Mapping[int, Tensor], embed: Embed, exits: Exits) -> Exited:
    """What each exit makes of samples that all went to the end; where some are to leave, those count that did first.

    Args:
        tokens: what left the stack.
        hidden: layer -> B L D, what left it, for all exits.
    """
    at = {layer: tokens._replace(x=stack.norm(hidden[layer])) for layer in exits.layers}
    early = {layer: embed(found) for layer, found in at.items()}
    x, embedding = tokens.x, embed(tokens)
    if exits.sure is None:
        return Exited(tokens, embedding, Early(early, None))
    left = torch.full((len(x),), stack.spec.depth - 1, device=x.device)
    for layer in reversed(exits.layers):
        leaves = exits.sure(layer, early[layer])
        left = left.masked_fill(leaves, layer)
        embedding = torch.where(leaves[:, None], early[layer], embedding)
        x = torch.where(leaves[:, None, None], at[layer].x, x)
    return Exited(tokens._replace(x=x), embedding, Early({}, left))


def _some(tokens: Tokens, keep: Tensor) -> Tokens:
    """Some of the samples; coordinates that all of them share stay shared."""
    number = int(keep.sum())
    pos = tokens.pos[:1].expand(number, -1, -1) if tokens.pos.stride(0) == 0 else tokens.pos[keep]
    return Tokens(tokens.x[keep], pos, None if tokens.valid is None else tokens.valid[keep])
