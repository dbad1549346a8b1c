"""A few samples through everything that a run will do, before its folder is touched and before hours of training."""

from __future__ import annotations

import itertools
from typing import Any

from torch.utils.data import DataLoader

from mmformer.data.dataset import evaluation_loader, read_classes, training_loader
from mmformer.errors import InputError, nearest
from mmformer.evaluation.classification import ZeroShotSpec
from mmformer.evaluation.metric import evaluate
from mmformer.models.model import Model
from mmformer.training.bundling import class_names
from mmformer.training.run import RunSpec
from mmformer.types import Batch

SAMPLES = 8


def rehearse(run: RunSpec, model: Model) -> None:
    """Read, encode, weigh and measure a few samples of every split that the run uses, without training.

    Raises:
        InputError: whatever would have stopped the run later.
    """
    class_names(run)
    _check_prompts(run)
    encoders = run.model.text_encoders()
    batch = _first(training_loader(run.data, encoders, run.seed, 0, 1))
    model.eval()
    for name, spec in run.objectives.items():
        objective = spec.build()
        prepared = objective.prepare(batch, seed=0)
        losses = objective.losses(model(prepared), prepared)
        if run.freeze and not any(loss.total.requires_grad for loss in losses.values()):
            raise InputError(
                f"freeze: objectives.{name} reaches no parameter that trains: freeze less, or leave the objective out."
            )
    model.train()
    splits = [run.data.validation] if run.evaluation.every_steps is not None else []
    splits += [run.data.test] if run.evaluation.metrics else []
    for split in dict.fromkeys(split for split in splits if split is not None):
        held_out = _first(evaluation_loader(run.data, split, encoders))
        scores = evaluate(model, [held_out], run.evaluation.metrics, encoders)
        best = run.checkpoint.best
        if best is not None and best not in scores:
            raise InputError(
                f"checkpoint.best is '{best}', but the evaluation's scores are {', '.join(scores)}."
                f"{nearest(best, scores)}"
            )


def _first(loader: DataLoader[Any]) -> Batch:
    """The first samples of a loader, read in this process."""
    positions = next(iter(loader.batch_sampler or ()), [])
    batch: Batch = loader.collate_fn([loader.dataset[position] for position in itertools.islice(positions, SAMPLES)])
    return batch


def _check_prompts(run: RunSpec) -> None:
    for name, metric in run.evaluation.metrics.items():
        if isinstance(metric, ZeroShotSpec):
            file = run.data.labels[metric.label].classes
            prompted, labelled = len(read_classes(metric.classes)), len(read_classes(file))
            if prompted != labelled:
                raise InputError(
                    f"evaluation.metrics.{name}: {metric.classes} names {prompted} classes, but the label "
                    f"'{metric.label}' has {labelled} ({file}): there must be as many, in the same order."
                )
