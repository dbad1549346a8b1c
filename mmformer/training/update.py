"""The gradient of one update: of a training step, and of those that are tried or planned outside Lightning's loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mmformer.data.seeding import derive
from mmformer.models.model import Model
from mmformer.objectives.objective import Objective
from mmformer.training.accumulate import accumulate
from mmformer.training.run import RunSpec
from mmformer.types import Batch


def add_gradient(
    run: RunSpec,
    model: Model,
    objectives: Mapping[str, Objective],
    batch: Batch,
    backward: Callable[[Tensor], Any],
) -> dict[str, Tensor]:
    """Prepare a batch, and add its gradient: see ``accumulate``, which says what is returned.

    Args:
        objectives: the run's, built.
        batch: as the loader hands it out.
        backward: called with each scalar to run the backward pass from.
    """
    for name, objective in objectives.items():
        batch = objective.prepare(batch, derive(run.seed, f"prepare.{name}"))
    weights = {name: spec.weight for name, spec in run.objectives.items()}
    return accumulate(model, objectives, weights, batch, run.trainer.accumulate_grad_batches, backward)


def in_precision(run: RunSpec, device: str) -> torch.autocast:
    """Inside, a run's products are made in its precision, where Lightning does not see to that.

    Args:
        device: the type of the one that computes.
    """
    return torch.autocast(device, run.trainer.dtype, enabled=run.trainer.dtype != torch.float32)
