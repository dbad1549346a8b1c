"""The optimizers as their papers write them: one parameter in double precision, every quantity by its name there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mmformer.training.optimizers.adafactor import AdafactorSpec
from mmformer.training.optimizers.adamw import AdamWSpec
from mmformer.training.optimizers.lamb import LAMBSpec
from mmformer.training.optimizers.lion import LionSpec
from mmformer.training.optimizers.muon import MuonSpec
from mmformer.training.optimizers.optimizer import OptimizerSpec
from mmformer.training.optimizers.schedule_free import ScheduleFreeAdamWSpec

Array = np.ndarray
Steps = list[tuple[float, Array]]
"""The learning rate and the gradient of each update."""


class Result(NamedTuple):
    trained: Array
    kept: Array  # the average, where there is one


def adamw(spec: Any, x: Array, steps: Steps, decay: float) -> Result:
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t, (lr, g) in enumerate(steps, 1):
        m = spec.betas[0] * m + (1 - spec.betas[0]) * g
        v = spec.betas[1] * v + (1 - spec.betas[1]) * g**2
        m_hat, v_hat = m / (1 - spec.betas[0] ** t), v / (1 - spec.betas[1] ** t)
        x = x - lr * (m_hat / (np.sqrt(v_hat) + spec.eps) + decay * x)
    return Result(x, x)


def lion(spec: LionSpec, x: Array, steps: Steps, decay: float) -> Result:
    m = np.zeros_like(x)
    for lr, g in steps:
        c = spec.betas[0] * m + (1 - spec.betas[0]) * g
        x = x - lr * (np.sign(c) + decay * x)
        m = spec.betas[1] * m + (1 - spec.betas[1]) * g
    return Result(x, x)


def lamb(spec: LAMBSpec, x: Array, steps: Steps, decay: float) -> Result:
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t, (lr, g) in enumerate(steps, 1):
        m = spec.betas[0] * m + (1 - spec.betas[0]) * g
        v = spec.betas[1] * v + (1 - spec.betas[1]) * g**2
        r = (m / (1 - spec.betas[0] ** t)) / (np.sqrt(v / (1 - spec.betas[1] ** t)) + spec.eps)
        u = r + decay * x
        trust = np.linalg.norm(x) / np.linalg.norm(u) if decay else 1.0
        x = x - lr * trust * u
    return Result(x, x)


def adafactor(spec: AdafactorSpec, x: Array, steps: Steps, decay: float) -> Result:
    factored = x.ndim == 2 and min(x.shape) >= spec.least_factored
    rows, columns, v = np.zeros((len(x), 1)), np.zeros((1, x.shape[-1])), np.zeros_like(x)
    mean = np.zeros_like(x)
    for t, (lr, g) in enumerate(steps, 1):
        beta2 = min(spec.most, 1 - t**-spec.decay)
        square = g**2 + 1e-30
        if factored:
            rows = beta2 * rows + (1 - beta2) * square.sum(1, keepdims=True)
            columns = beta2 * columns + (1 - beta2) * square.sum(0, keepdims=True)
            v = rows * columns / rows.sum()
        else:
            v = beta2 * v + (1 - beta2) * square
        u = g / np.sqrt(v)
        if spec.clip is not None:
            u = u / max(1.0, np.sqrt((u**2).mean()) / spec.clip)
        if spec.momentum is not None:
            u = mean = spec.momentum * mean + (1 - spec.momentum) * u
        x = x - lr * u - lr * decay * x
    return Result(x, x)


def muon(spec: MuonSpec, x: Array, steps: Steps, decay: float) -> Result:
    if x.ndim < 2:
        return adamw(spec, x, steps, decay)
    m = np.zeros_like(x)
    for lr, g in steps:
        m = spec.momentum * m + (1 - spec.momentum) * g
        update = spec.momentum * m + (1 - spec.momentum) * g
        # The iteration is a polynomial of the singular values, and leaves the singular vectors alone.
        left, values, right = np.linalg.svd(update, full_matrices=False)
        values = values / np.sqrt((values**2).sum())
        for _ in range(spec.iterations):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        x = x - lr * (0.2 * np.sqrt(max(x.shape)) * (left * values) @ right + decay * x)
    return Result(x, x)


def schedule_free(spec: ScheduleFreeAdamWSpec, x: Array, steps: Steps, decay: float) -> Result:
    """Algorithm 1; its learning rate with the warm-up is each update's own."""
    z, v, total = x.copy(), np.zeros_like(x), 0.0
    beta1, beta2 = spec.betas
    for t, (lr, g) in enumerate(steps, 1):
        y = (1 - beta1) * z + beta1 * x
        v = beta2 * v + (1 - beta2) * g**2
        gamma = lr * np.sqrt(1 - beta2**t)
        z = z - gamma * g / (np.sqrt(v) + spec.eps) - gamma * decay * y
        total += gamma**2
        c = gamma**2 / total
        x = (1 - c) * x + c * z
    return Result((1 - beta1) * z + beta1 * x, x)


REFERENCES: dict[type[OptimizerSpec], Callable[[Any, Array, Steps, float], Result]] = {
    AdamWSpec: adamw,
    LionSpec: lion,
    LAMBSpec: lamb,
    AdafactorSpec: adafactor,
    MuonSpec: muon,
    ScheduleFreeAdamWSpec: schedule_free,
}
