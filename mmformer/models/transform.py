"""What stands between a token and its logits in BERT and those made of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.nn.norm import LayerNormSpec, NormSpec
from mmformer.spec import require

Activation = Literal["gelu", "gelu_tanh", "relu"]


@dataclass(frozen=True)
class TransformSpec:
    """A linear map, an activation and a norm (BERT, Devlin et al. 2018, §3.1, its published code).

    Attributes:
        activation: after the linear map; ``gelu_tanh`` is the GELU by its approximation.
        norm: after the activation.
    """

    activation: Activation = "gelu"
    norm: NormSpec = field(default_factory=LayerNormSpec)

    def __post_init__(self) -> None:
        known = ("gelu", "gelu_tanh", "relu")
        require(self.activation in known, self, "activation", f"one of {', '.join(map(repr, known))}")

    def build(self, width: int) -> Transform:
        """A module from … width to … width."""
        return Transform(self, width)


class Transform(nn.Module):
    def __init__(self, spec: TransformSpec, width: int) -> None:
        super().__init__()
        self.activation = spec.activation
        self.dense = nn.Linear(width, width)
        self.norm = spec.norm.build(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dense(x)
        if self.activation == "relu":
            x = F.relu(x)
        else:
            x = F.gelu(x, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        y: Tensor = self.norm(x)
        return y
