"""The gradient of one update, outside Lightning's loop: to be measured, or planned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmformer.data.seeding import derive
from mmformer.models.model import Model
from mmformer.training.accumulate import accumulate
from mmformer.training.run import RunSpec
from mmformer.types import Batch


def add_gradient(run: RunSpec, model: Model, batch: Batch, backward: Callable[[Tensor], Any]) -> dict[str, Tensor]:
    """Add a batch's gradient as a training step does, in the run's precision: see ``accumulate``.

    Args:
        backward: called with each scalar to run the backward pass from.
    """
    objectives = {name: spec.build() for name, spec in run.objectives.items()}
    for name, objective in objectives.items():
        batch = objective.prepare(batch, derive(run.seed, f"prepare.{name}"))
    weights = {name: spec.weight for name, spec in run.objectives.items()}
    device = next(model.parameters()).device.type
    with torch.autocast(device, torch.bfloat16, enabled=run.trainer.precision == "bf16-mixed"):
        return accumulate(model, objectives, weights, batch, run.trainer.accumulate_grad_batches, backward)
