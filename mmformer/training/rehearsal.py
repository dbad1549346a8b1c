"""A few samples through everything that a run will do, before its folder is touched and before hours of training."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from torch.utils.data import DataLoader

from mmformer.adapters.merge import used_adapters
from mmformer.data.classes import read_classes
from mmformer.data.loading import evaluation_loader, training_loader
from mmformer.errors import InputError, nearest
from mmformer.evaluation.metric import evaluate
from mmformer.evaluation.zero_shot import ZeroShotSpec
from mmformer.models.model import Model
from mmformer.objectives.objective import Objective
from mmformer.tokenizers.text import TextEncoder
from mmformer.training.bundling import class_names
from mmformer.training.run import RunSpec
from mmformer.types import MODALITIES, Batch, LossTerm

SAMPLES = 8


def rehearse(run: RunSpec, model: Model) -> None:
    """Read, encode, weigh and measure a few samples of every split that the run uses, without training.

    Raises:
        InputError: whatever would have stopped the run later.
    """
    class_names(run)
    _check_prompts(run)
    encoders = run.model.text_encoders()
    model.eval()
    with used_adapters(model):
        _rehearse_objectives(run, model, encoders)
    model.train()
    splits = [run.data.validation] if run.evaluation.every_steps is not None else []
    splits += [run.data.test] if run.evaluation.metrics else []
    # Those that learn would need the whole training split.
    metrics = {name: spec for name, spec in run.evaluation.metrics.items() if not spec.learns}
    for split in dict.fromkeys(split for split in splits if split is not None):
        held_out = _first(evaluation_loader(run.data, split, encoders))
        scores = evaluate(model, [held_out], metrics, encoders)
        for field, score in run.watched_scores.items():
            if score.partition("/")[0] in metrics and score not in scores:
                raise InputError(
                    f"{field} is '{score}', but the evaluation's scores are {', '.join(scores)}."
                    f"{nearest(score, scores)}"
                )


def _rehearse_objectives(run: RunSpec, model: Model, encoders: Mapping[str, TextEncoder]) -> None:
    """Every objective on a batch of every kind that sources make."""
    found = dict.fromkeys(run.objectives, False)
    for update in run.data.mixture().first_updates():
        batch = _first(training_loader(run.data, encoders, run.seed, update, update + 1))
        terms = 0
        for name, spec in run.objectives.items():
            objective = spec.build()
            prepared = objective.prepare(batch, seed=0)
            losses = _losses(name, objective, model, prepared)
            if losses and not any(loss.total.requires_grad for loss in losses.values()):
                group, fix = ("adapters", "name more") if run.adapters else ("freeze", "freeze less")
                raise InputError(
                    f"{group}: objectives.{name} reaches no parameter that trains: {fix}, or leave the objective out."
                )
            terms += len(losses)
            found[name] |= bool(losses)
        if not terms:
            held = [name for name in (*MODALITIES, "target") if getattr(batch, name) is not None]
            raise InputError(
                f"Batches with {' and '.join(held)} alone are nothing that any of the objectives "
                f"({', '.join(run.objectives)}) reads: add an objective, or leave out the source that makes them."
            )
    for name, ever in found.items():
        if not ever:
            raise InputError(
                f"objectives.{name} finds what it reads in no batch: the data lacks a modality or a label of it, or "
                f"its parts lie in different sources. Add what it reads, or leave it out."
            )


def _losses(name: str, objective: Objective, model: Model, batch: Batch) -> dict[str, LossTerm]:
    """Of one objective alone, so that it does not find what is there for another."""
    outputs = model(batch, tokens=objective.reads_tokens)
    try:
        return objective.losses(outputs, batch)
    except KeyError as error:
        asked, whole = error.args[0] if len(error.args) == 1 else None, model(batch)
        if asked not in whole.tokens.keys() - outputs.tokens.keys():
            raise
        objective.losses(whole, batch)  # it was not another dictionary's key, then
        raise InputError(
            f"objectives.{name} asks for the tokens of '{asked}', which are not made for objectives that do not say "
            f"that they read tokens: set reads_tokens = True in {type(objective).__name__}."
        ) from error


def _first(loader: DataLoader[Any]) -> Batch:
    """The first samples of a loader, read in this process."""
    positions = next(iter(loader.batch_sampler or ()), [])
    batch: Batch = loader.collate_fn([loader.dataset[position] for position in itertools.islice(positions, SAMPLES)])
    return batch


def _check_prompts(run: RunSpec) -> None:
    for name, metric in run.evaluation.metrics.items():
        if isinstance(metric, ZeroShotSpec):
            file = run.data.all_labels[metric.label].classes
            prompted, labelled = len(read_classes(metric.classes)), len(read_classes(file))
            if prompted != labelled:
                raise InputError(
                    f"evaluation.metrics.{name}: {metric.classes} names {prompted} classes, but the label "
                    f"'{metric.label}' has {labelled} ({file}): there must be as many, in the same order."
                )
