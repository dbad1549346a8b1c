"""From the vector that a pool makes of a sample to its embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from mmformer.spec import require


@dataclass(frozen=True)
class ProjectionSpec:
    """A linear map, or two with a GELU between them.

    The default is CLIP's (Radford et al. 2021, §2.4). BERT's pooler (Devlin et al. 2018, its published code) has a bias
    and a tanh; open_clip's ``mlp`` has hidden units.

    Attributes:
        bias: whether the map to the embedding has one.
        hidden: units of a layer before it, with a GELU; None: there is none.
        hidden_bias: whether that layer has a bias.
        activation: of the embedding.
    """

    bias: bool = False
    hidden: int | None = None
    hidden_bias: bool = False
    activation: Literal["none", "tanh"] = "none"

    def __post_init__(self) -> None:
        require(self.hidden is None or self.hidden >= 1, self, "hidden", "None or at least 1")
        require(self.hidden is not None or not self.hidden_bias, self, "hidden_bias", "false where hidden is None")
        require(self.activation in ("none", "tanh"), self, "activation", "'none' or 'tanh'")

    def build(self, width: int, embedding: int) -> nn.Module:
        """A module from B width to B embedding: one Linear where nothing else is asked for."""
        parts: list[nn.Module] = []
        if self.hidden is not None:
            parts += [nn.Linear(width, self.hidden, bias=self.hidden_bias), nn.GELU()]
        parts.append(nn.Linear(self.hidden or width, embedding, bias=self.bias))
        if self.activation == "tanh":
            parts.append(nn.Tanh())
        return parts[0] if len(parts) == 1 else nn.Sequential(*parts)
