"""The gradient of one batch, cut into micro-batches when it does not fit at once.

The gradient is the whole batch's in either case. Where every sample's loss is its own, micro-batches are weighed by
their share of the items and added. A contrastive loss couples all samples: the micro-batches run once without a graph
to gather the embeddings, the objective gives the gradient with respect to those, and each micro-batch runs once more,
with the same dropout, to carry it on to the parameters (GradCache, Gao et al. 2021). Objectives that do not couple
samples are weighed in that second run: what they read is never gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mmformer import collectives
from mmformer.models.model import Model
from mmformer.objectives.objective import Objective
from mmformer.parallel.sharding import pipeline_of, synchronise_gradients
from mmformer.types import Batch, LossTerm, Outputs

if TYPE_CHECKING:
    from mmformer.parallel.pipeline import Pipeline

Backward = Callable[..., Any]
Key = tuple[str, str]
"""A field of Outputs, and a name in it."""

AUX = "aux"
"""The name, in place of an objective's, of what layers ask for."""

_SHARED = ("scale", "bias")
"""Fields whose values belong to no sample."""


def accumulate(
    model: Model,
    objectives: Mapping[str, Objective],
    weights: Mapping[str, float],
    batch: Batch,
    parts: int,
    backward: Backward,
) -> dict[str, Tensor]:
    """Add a batch's gradient to the parameters' ``.grad``.

    Over several processes the batch is this one's part of it, and gradients and losses are those of the whole.

    Args:
        weights: objective -> weight of its mean losses.
        parts: micro-batches; the batch divides evenly.
        backward: called with a scalar to run the backward pass from.

    Returns:
        "loss", the weighted sum, and "objective/name", each mean loss; detached.
    """
    assert AUX not in objectives, f"the name {AUX} is that of what layers ask for"
    # Gradients are averaged over the parts of the batch, whose losses are parts of one sum.
    processes = collectives.data_world_size()
    if (pipeline := pipeline_of(model)) is not None:
        return _through_stages(pipeline, objectives, weights, batch, parts)
    tokens = any(objective.reads_tokens for objective in objectives.values())
    if parts == 1:
        outputs = model(batch, tokens=tokens)
        terms = _asked(outputs) | _terms(outputs, objectives, batch)
        total, means = _total(_over_ranks(terms), weights)
        assert total is not None, "RunSpec refuses sources that no objective reads"
        backward(total * processes)
        return collectives.sum_over_ranks({"loss": total.detach(), **means})
    micro = split(batch, parts)
    coupled = {name: objective for name, objective in objectives.items() if objective.couples_samples}
    single = {name: objective for name, objective in objectives.items() if not objective.couples_samples}
    gathered = _gather(model, coupled, weights, batch, micro, backward, tokens) if coupled else None
    items = _items(single, batch)
    sums: dict[str, LossTerm] = {}
    loss = None if gathered is None else gathered.loss
    for index, part in enumerate(micro):
        synchronise_gradients(model, index == parts - 1)
        with nullcontext() if gathered is None else _dropout(gathered.seeds[index]):
            outputs = model(part, tokens=tokens)
        asked, terms = _asked(outputs), _terms(outputs, single, part)
        # Weighed by the whole batch's items; what layers ask for knows no items beforehand, and counts by parts.
        shares = {name: term._replace(items=term.items * parts) for name, term in _over_ranks(asked).items()}
        shares |= {name: LossTerm(term.total, items[name]) for name, term in terms.items()}
        pieces = [] if gathered is None else gathered.carry(outputs, index)
        weighed = _total(shares, weights)[0]
        if weighed is not None:
            loss = weighed.detach() if loss is None else loss + weighed.detach()
            pieces.append(weighed)
        if pieces:  # all of what this part would carry on may be frozen
            backward(torch.stack([piece.float() for piece in pieces]).sum() * processes)
        _add(sums, asked | terms)
    assert loss is not None, "a run has at least one objective"
    means = _total(_over_ranks(sums), weights)[1]
    return collectives.sum_over_ranks({"loss": loss, **({} if gathered is None else gathered.means), **means})


def split(batch: Batch, parts: int, cut: bool = True) -> list[Batch]:
    """A batch cut evenly, in order; each part's texts are no longer than they must be, or, without ``cut``, as long as
    the batch's.
    """
    size = len(batch.keys) // parts
    return [batch.rows(slice(part * size, (part + 1) * size), cut) for part in range(parts)]


def _through_stages(
    pipeline: Pipeline, objectives: Mapping[str, Objective], weights: Mapping[str, float], batch: Batch, parts: int
) -> dict[str, Tensor]:
    """The same where the model is cut into stages, which hand on tensors of one shape; the last one has the losses."""
    items, micro = _items(objectives, batch), split(batch, parts, cut=False)
    texts = [part.written for part in micro if part.written is not None]
    (decoder,) = pipeline.model.decoders
    sums: dict[str, LossTerm] = {}

    def ending(number: int, x: Tensor) -> Tensor:
        outputs = Outputs.empty()
        outputs.losses[decoder] = pipeline.decoder.loss_of(texts[number], x)
        terms = _terms(outputs, objectives, micro[number])
        _add(sums, terms)
        total, _ = _total({name: LossTerm(term.total, items[name]) for name, term in terms.items()}, weights)
        assert total is not None, "each objective reads the decoder"
        return total * collectives.data_world_size()

    pipeline.train(texts, ending)
    total, means = _total({name: LossTerm(term.total, items[name]) for name, term in sums.items()}, weights)
    own = [] if total is None else [total, *(means[name] for name in items)]
    told = pipeline.told(torch.stack(own) if own else torch.empty(len(items) + 1, device="meta"), pipeline.stages - 1)
    return collectives.sum_over_ranks(dict(zip(("loss", *items), told.unbind(), strict=True)))


def _items(objectives: Mapping[str, Objective], batch: Batch) -> dict[str, Tensor]:
    """How many items each loss of the whole batch is a mean over, by "objective/name"."""
    own = {f"{o}/{name}": n for o, objective in objectives.items() for name, n in objective.items(batch).items()}
    return collectives.sum_over_ranks(own)


class _Gathered(NamedTuple):
    """What the objectives that couple samples said of the whole batch."""

    leaves: dict[Key, Tensor]  # their gradients are what the second runs carry on
    seeds: list[int]  # micro-batch -> of its dropout
    loss: Tensor  # weighted, detached
    means: dict[str, Tensor]

    def carry(self, outputs: Outputs, index: int) -> list[Tensor]:
        """Scalars whose gradients are those of the leaves, for one micro-batch's outputs."""
        carried = []
        for key, value in _coupled_fields(outputs).items():
            gradient = self.leaves[key].grad
            # A scale is the same in every micro-batch: its gradient goes back through the last of them, with which
            # sharded gradients are sent.
            early = key[0] in _SHARED and index < len(self.seeds) - 1
            if gradient is None or not value.requires_grad or early:
                continue
            size = len(value)
            rows = gradient if key[0] in _SHARED else gradient[index * size : (index + 1) * size]
            carried.append((value * rows.to(value.dtype)).sum())
        return carried


def _gather(
    model: Model,
    objectives: Mapping[str, Objective],
    weights: Mapping[str, float],
    batch: Batch,
    micro: list[Batch],
    backward: Backward,
    tokens: bool,
) -> _Gathered | None:
    """Run the micro-batches without a graph, and the objectives on the whole of them; None: the batch has nothing for
    them. ``tokens`` is as in the second run, whose dropout is the same.
    """
    seeds = torch.randint(2**62, (len(micro),)).tolist()
    parts = []
    with torch.no_grad():
        for seed, part in zip(seeds, micro, strict=True):
            with _dropout(seed):
                outputs = model(part, decode=False, tokens=tokens)
            if not any(objective.finds(outputs) for objective in objectives.values()):
                return None
            parts.append(_coupled_fields(outputs))
    torch.clear_autocast_cache()  # casts made without a graph would cut the second pass's gradient off
    leaves = {}
    for key, value in parts[0].items():
        whole = value.clone() if key[0] in _SHARED else torch.cat([part[key] for part in parts])
        # Detached: a head may hand out a parameter itself, which has a gradient even where no graph is made.
        leaves[key] = whole.detach().requires_grad_()
    gathered = Outputs.empty()
    for (field, name), leaf in leaves.items():
        getattr(gathered, field)[name] = leaf
    total, means = _total(_over_ranks(_terms(gathered, objectives, batch)), weights)
    assert total is not None, "one of the objectives finds what it reads"
    backward(total)
    return _Gathered(leaves, seeds, total.detach(), means)


_COUPLED = ("embedding", *_SHARED)
"""What an objective that couples samples may read, and all that is gathered for it: logits may be large."""


def _coupled(outputs: Outputs) -> Outputs:
    return Outputs.empty()._replace(**{kind: getattr(outputs, kind) for kind in _COUPLED})


def _coupled_fields(outputs: Outputs) -> dict[Key, Tensor]:
    return {(kind, name): value for kind in _COUPLED for name, value in getattr(outputs, kind).items()}


def _add(sums: dict[str, LossTerm], terms: Mapping[str, LossTerm]) -> None:
    """Add terms to sums, detached."""
    for name, term in terms.items():
        before = sums.get(name)
        now = term._replace(total=term.total.detach())
        sums[name] = now if before is None else before.plus(now)


def _asked(outputs: Outputs) -> dict[str, LossTerm]:
    """What layers ask for, by "aux/encoder/name"."""
    return {f"{AUX}/{name}": term for name, term in outputs.aux.items()}


def _terms(outputs: Outputs, objectives: Mapping[str, Objective], batch: Batch) -> dict[str, LossTerm]:
    """Every loss by "objective/name"."""
    terms: dict[str, LossTerm] = {}
    for objective_name, objective in objectives.items():
        # The same with one part as with several, where nothing else is gathered.
        seen = _coupled(outputs) if objective.couples_samples else outputs
        terms |= {f"{objective_name}/{name}": term for name, term in objective.losses(seen, batch).items()}
    return terms


def _over_ranks(terms: Mapping[str, LossTerm]) -> dict[str, LossTerm]:
    """The terms of this process, with the items of all: its parts of the whole batch's means."""
    items = collectives.sum_over_ranks({name: term.items for name, term in terms.items()})
    return {name: term._replace(items=items[name]) for name, term in terms.items()}


def _total(terms: Mapping[str, LossTerm], weights: Mapping[str, float]) -> tuple[Tensor | None, dict[str, Tensor]]:
    """The weighted sum of the means, None where there are none to minimise, and all means, detached.

    What layers ask for carries its own weight.
    """
    total: Tensor | None = None
    means: dict[str, Tensor] = {}
    for name, term in terms.items():
        mean = term.total / term.items.to(term.total.device).clamp(min=1)
        means[name] = mean.detach()
        if not term.minimised:
            continue
        owner = name.partition("/")[0]
        weighted = mean if owner == AUX else weights[owner] * mean
        total = weighted if total is None else total + weighted
    return total, means


@contextmanager
def _dropout(seed: int) -> Any:
    """The same random stream inside, whenever the seed is the same."""
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
