"""The gradient of one batch, cut into micro-batches when it does not fit at once.

The gradient is the whole batch's in either case. Where every sample's loss is its own, micro-batches are weighed by
their share of the items and added. A contrastive loss couples all samples: its micro-batches run once without a graph
to gather what the objectives read, the objectives give the gradient with respect to that, and each micro-batch runs
once more, with the same dropout, to carry it on to the parameters (GradCache, Gao et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mmformer.models.model import Model
from mmformer.objectives.objective import Objective
from mmformer.tokenizers.text import trim
from mmformer.types import Batch, LossTerm, Outputs

Backward = Callable[..., Any]


def accumulate(
    model: Model,
    objectives: Mapping[str, Objective],
    weights: Mapping[str, float],
    batch: Batch,
    parts: int,
    backward: Backward,
) -> dict[str, Tensor]:
    """Add a batch's gradient to the parameters' ``.grad``.

    Args:
        weights: objective -> weight of its mean losses.
        parts: micro-batches; the batch divides evenly.
        backward: called with a scalar to run the backward pass from.

    Returns:
        "loss", the weighted sum, and "objective/name", each mean loss; detached.
    """
    if parts == 1:
        terms = _terms(model(batch), objectives, batch)
        total, means = _total(terms, weights)
        backward(total)
        return {"loss": total.detach(), **means}
    micro = split(batch, parts)
    if any(objective.couples_samples for objective in objectives.values()):
        return _coupled(model, objectives, weights, batch, micro, backward)
    return _uncoupled(model, objectives, weights, batch, micro, backward)


def split(batch: Batch, parts: int) -> list[Batch]:
    """A batch cut evenly, in order; each part's texts are no longer than they must be."""
    size = len(batch.keys) // parts
    cut = []
    for part in range(parts):
        rows = slice(part * size, (part + 1) * size)
        cut.append(
            Batch(
                batch.keys[rows],
                {name: label[rows] for name, label in batch.labels.items()},
                None if batch.image is None else batch.image[rows],
                None if batch.text is None else trim(batch.text, rows),
            )
        )
    return cut


def _uncoupled(
    model: Model,
    objectives: Mapping[str, Objective],
    weights: Mapping[str, float],
    batch: Batch,
    micro: list[Batch],
    backward: Backward,
) -> dict[str, Tensor]:
    items = {f"{o}/{name}": n for o, objective in objectives.items() for name, n in objective.items(batch).items()}
    sums: dict[str, LossTerm] = {}
    loss: Tensor | None = None
    for part in micro:
        terms = _terms(model(part), objectives, part)
        # Weighed by the whole batch's items; what layers ask for knows no items beforehand, and counts by parts.
        shares = {
            name: LossTerm(term.total, items[name] if name in items else term.items * len(micro))
            for name, term in terms.items()
        }
        total, _ = _total(shares, weights)
        backward(total)
        loss = total.detach() if loss is None else loss + total.detach()
        _add(sums, terms)
    assert loss is not None
    return {"loss": loss, **_total(sums, weights)[1]}


def _coupled(
    model: Model,
    objectives: Mapping[str, Objective],
    weights: Mapping[str, float],
    batch: Batch,
    micro: list[Batch],
    backward: Backward,
) -> dict[str, Tensor]:
    seeds = torch.randint(2**62, (len(micro),)).tolist()
    with torch.no_grad():
        parts = []
        for seed, part in zip(seeds, micro, strict=True):
            with _dropout(seed):
                parts.append(_read_by_objectives(model(part)))
    leaves = {
        key: torch.cat([part[key] for part in parts]).requires_grad_()
        for key in parts[0]
        if key[0] in ("embedding", "logits")
    }
    # A scale is the same in every micro-batch: one leaf, and its gradient goes back through the first of them.
    leaves |= {key: parts[0][key].clone().requires_grad_() for key in parts[0] if key[0] == "scale"}
    torch.clear_autocast_cache()  # casts made without a graph would cut the second pass's gradient off
    gathered = Outputs({}, {}, {}, {}, {}, {})
    for (field, name), leaf in leaves.items():
        getattr(gathered, field)[name] = leaf
    total, means = _total(_terms(gathered, objectives, batch), weights)
    backward(total)
    size = len(micro[0].keys)
    asked: dict[str, LossTerm] = {}
    for index, (seed, part) in enumerate(zip(seeds, micro, strict=True)):
        with _dropout(seed):
            outputs = model(part)
        carried = [term.total / term.items / len(micro) for term in outputs.losses.values()]
        for key, value in _read_by_objectives(outputs).items():
            gradient = leaves[key].grad
            if gradient is None or (key[0] == "scale" and index):
                continue
            rows = gradient if key[0] == "scale" else gradient[index * size : (index + 1) * size]
            carried.append((value * rows.to(value.dtype)).sum())
        _add(asked, {f"aux/{name}": term for name, term in outputs.losses.items()})
        backward(torch.stack([value.float() for value in carried]).sum())
    if asked:
        more, also = _total(asked, {})
        total, means = total + more, means | also
    return {"loss": total.detach(), **means}


def _add(sums: dict[str, LossTerm], terms: Mapping[str, LossTerm]) -> None:
    """Add terms to sums, detached."""
    for name, term in terms.items():
        before = sums.get(name)
        now = LossTerm(term.total.detach(), term.items)
        sums[name] = now if before is None else LossTerm(before.total + now.total, before.items + now.items)


def _read_by_objectives(outputs: Outputs) -> dict[tuple[str, str], Tensor]:
    fields = {"embedding": outputs.embedding, "logits": outputs.logits, "scale": outputs.scale}
    return {(field, name): value for field, values in fields.items() for name, value in values.items()}


def _terms(outputs: Outputs, objectives: Mapping[str, Objective], batch: Batch) -> dict[str, LossTerm]:
    """Every loss by "objective/name"; those that layers ask for by "aux/encoder/name"."""
    terms = {f"aux/{name}": term for name, term in outputs.losses.items()}
    for objective_name, objective in objectives.items():
        terms |= {f"{objective_name}/{name}": term for name, term in objective.losses(outputs, batch).items()}
    return terms


def _total(terms: Mapping[str, LossTerm], weights: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of the means, and the means, detached. What layers ask for carries its own weight."""
    total: Tensor | None = None
    means: dict[str, Tensor] = {}
    for name, term in terms.items():
        mean = term.total / term.items.to(term.total.device).clamp(min=1)
        means[name] = mean.detach()
        weighted = weights.get(name.partition("/")[0], 1.0) * mean
        total = weighted if total is None else total + weighted
    assert total is not None, "a run has at least one objective"
    return total, means


@contextmanager
def _dropout(seed: int) -> Any:
    """The same random stream inside, whenever the seed is the same."""
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
