"""What the feed-forwards mean, written as loops over tokens and experts, in float64; for ``nn_reference.py``.

It shares nothing with mmformer.nn but the parameters and the specs. A new feed-forward enters its meaning into the
table at the end.
"""

from __future__ import annotations

import math

import numpy as np
from position_reference import array
from torch import nn

from mmformer.nn.feedforward import (
    DenseFeedForwardSpec,
    FeedForwardSpec,
    GELUFeedForwardSpec,
    GLUFeedForwardSpec,
    ReLUFeedForwardSpec,
    SiLUFeedForwardSpec,
    SwiGLUFeedForwardSpec,
)
from mmformer.nn.moe import MixtureOfExpertsSpec
from mmformer.nn.router import ExpertChoiceSpec, RouterSpec, TokenChoiceSpec

Array = np.ndarray


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


ACTIVATIONS = {
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: x * 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "relu": lambda x: max(x, 0.0),
    "relu_squared": lambda x: max(x, 0.0) ** 2,
    "silu": lambda x: x * sigmoid(x),
    "sigmoid": sigmoid,
    "identity": lambda x: x,
}


def activation_of(spec: DenseFeedForwardSpec) -> str:
    match spec:
        case GELUFeedForwardSpec():
            return {"none": "gelu", "tanh": "gelu_tanh", "sigmoid": "quick_gelu"}[spec.approximate]
        case ReLUFeedForwardSpec():
            return "relu_squared" if spec.squared else "relu"
        case SwiGLUFeedForwardSpec() | SiLUFeedForwardSpec():
            return "silu"
        case GLUFeedForwardSpec():
            return spec.gate
    raise AssertionError(f"Write the meaning of {type(spec).__name__} here.")


def two_layers(spec: DenseFeedForwardSpec, x: Array, up: list[Array], down: list[Array]) -> Array:
    """One token through two affine maps, each a matrix and perhaps a bias."""
    activation = ACTIVATIONS[activation_of(spec)]
    made = up[0] @ x + (up[1] if spec.bias else 0.0)
    if isinstance(spec, SwiGLUFeedForwardSpec | GLUFeedForwardSpec):
        half = len(made) // 2
        hidden = np.array([activation(gate) * value for gate, value in zip(made[:half], made[half:], strict=True)])
    else:
        hidden = np.array([activation(value) for value in made])
    return down[0] @ hidden + (down[1] if spec.bias else 0.0)


def dense(spec: DenseFeedForwardSpec, module: nn.Module, x: Array, valid: Array | None = None) -> Array:
    up = module.gate_up if hasattr(module, "gate_up") else module.up
    maps = [[array(p) for p in linear.parameters()] for linear in (up, module.down)]
    return np.array([[two_layers(spec, token, *maps) for token in row] for row in x])


def gates_of(spec: RouterSpec, module: nn.Module, row: Array, real: list[bool], experts: int) -> Array:
    """Tokens, experts: the gate of each token in each expert of evaluation, where nothing is dropped; 0: not chosen."""
    logits = row @ array(module.weight).T
    gates = np.zeros((len(row), experts))
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    match spec:
        case TokenChoiceSpec():
            scores = softmax if spec.scores == "softmax" else 1 / (1 + np.exp(-logits))
            balance = array(module.balance) if spec.balance_rate else np.zeros(experts)
            for t in range(len(row)):
                chosen = sorted(range(experts), key=lambda e: -(scores[t, e] + balance[e]))[: spec.top]
                total = sum(scores[t, e] for e in chosen) if spec.renormalise else 1.0
                for e in chosen:
                    gates[t, e] = scores[t, e] / total if real[t] else 0.0
        case ExpertChoiceSpec():
            tokens = [t for t in range(len(row)) if real[t]]
            number = math.ceil(len(tokens) * spec.capacity / experts)
            for e in range(experts):
                for t in sorted(tokens, key=lambda t: -softmax[t, e])[:number]:
                    gates[t, e] = softmax[t, e]
        case _:
            raise AssertionError(f"Write the meaning of {type(spec).__name__} here.")
    return gates


def mixture(spec: MixtureOfExpertsSpec, module: nn.Module, x: Array, valid: Array | None = None) -> Array:
    y = np.zeros_like(x) if spec.shared is None else dense(spec.shared, module.shared, x)
    up = [array(p) for p in module.experts.up.parameters()]  # of all experts
    down = [array(p) for p in module.experts.down.parameters()]
    for b, row in enumerate(x):
        real = [True] * len(row) if valid is None else list(valid[b])
        gates = gates_of(spec.router, module.router, row, real, spec.experts)
        for t, e in np.argwhere(gates):
            y[b, t] += gates[t, e] * two_layers(spec.expert, row[t], [p[e] for p in up], [p[e] for p in down])
    return y


FEEDFORWARDS: dict[type[FeedForwardSpec], object] = {
    GELUFeedForwardSpec: dense,
    ReLUFeedForwardSpec: dense,
    SiLUFeedForwardSpec: dense,
    SwiGLUFeedForwardSpec: dense,
    GLUFeedForwardSpec: dense,
    MixtureOfExpertsSpec: mixture,
}
"""(spec, module, B L D, B L or None) -> B L D."""
