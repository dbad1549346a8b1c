"""Performer: softmax attention estimated by random features, in linear time."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmformer.nn.linear_attention import FeatureAttention, FeatureAttentionSpec, attend_by_features
from mmformer.nn.mixer import State, View
from mmformer.nn.position import rotate
from mmformer.spec import require

LIMIT = 60.0
"""Exponents of keys are held within ± this: sums of their exponentials neither overflow nor vanish in float32."""


@dataclass(frozen=True)
class PerformerSpec(FeatureAttentionSpec):
    """Attention whose weights estimate softmax's without bias, by positive features in random orthogonal directions.

    Its error falls as 1 / √features, and grows fast with the norms of queries and keys.

    Attributes:
        features: random directions of a head; about d·ln d, of heads d wide, are enough for most.
        redraw: updates in training after which directions are drawn anew, as a function of the seed and of how often
            they were drawn: a resumed run has the same. The last ones are saved with the weights, and a frozen layer
            keeps those that it has. None: never.
        seed: of the directions, which the layers of a stack share and its heads do not.
    """

    cost: ClassVar[str] = "L·features·D"
    source: ClassVar[str] = "Performer, Choromanski et al. 2021, §2.3 and §2.4"

    features: int = 128
    redraw: int | None = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.features >= 1, self, "features", "at least 1")
        require(self.redraw is None or self.redraw >= 1, self, "redraw", "None or at least 1")
        require(0 <= self.seed < 2**31, self, "seed", "from 0 to 2^31 - 1")

    def build(self, width: int, memory_width: int | None = None) -> Performer:
        return Performer(self, width, memory_width)


class Performer(FeatureAttention):
    directions: Tensor  # H features width of a head

    def __init__(self, spec: PerformerSpec, width: int, memory_width: int | None) -> None:
        super().__init__(spec, width, memory_width)
        self.spec = spec
        self.register_buffer("directions", torch.empty(spec.heads, spec.features, self.heads.width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.draw(0)

    @torch.no_grad()
    def draw(self, number: int) -> None:
        """Take the directions of a draw, 0 the first."""
        if not self.directions.is_meta:
            self.directions.copy_(orthogonal_directions(self.directions.shape, self.spec.seed, number))

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, view: View, past: State | None, keep: bool
    ) -> tuple[Tensor, State | None]:
        if view.rotary is not None:
            query, key = rotate(query, view.rotary), rotate(key, view.rotary)
        return attend_by_features(self._of_queries(query), self._of_keys(key), value, view, past, keep)

    def _of_queries(self, query: Tensor) -> Tensor:
        """exp(ω·q), up to a factor of each query's own, which its weights cancel: B H L features."""
        exponent = self._along(query)
        return exponent.sub_(exponent.detach().amax(-1, keepdim=True)).exp_()

    def _of_keys(self, key: Tensor) -> Tensor:
        """exp(ω·k - |k|²/2). Keys share no factor: the largest of a row would tell of later tokens, and of padding."""
        squared = key.square().sum(-1, keepdim=True) * self.heads.width**-0.5
        return self._along(key).sub_(squared / 2).clamp(-LIMIT, LIMIT).exp_()

    def _along(self, x: Tensor) -> Tensor:
        """ω·x, where softmax's 1 / √d is a factor of both x: B H L features."""
        scaled: Tensor = self.directions.to(x.dtype) * self.heads.width**-0.25
        return x @ scaled.mT


def redraw(model: nn.Module, update: int) -> None:
    """Draw directions anew where it is time to; called before each update, the first of which is 0.

    Layers that do not train keep those that they have: what is frozen stays the same function.
    """
    for module in model.modules():
        if not isinstance(module, Performer) or module.spec.redraw is None:
            continue
        trains = any(parameter.requires_grad for parameter in module.parameters())
        if trains and update % module.spec.redraw == 0:
            module.draw(update // module.spec.redraw)


def orthogonal_directions(shape: tuple[int, ...], seed: int, number: int) -> Tensor:
    """Normal directions: heads features width, as many orthogonal to each other as there can be (§2.4).

    Args:
        seed: of the draws.
        number: of the draw.
    """
    heads, features, width = shape
    # Of a seed, PyTorch's generator reads 32 bits.
    digest = hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=4).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    blocks = -(-features // width)
    # On the CPU whatever the default device is.
    normal = torch.randn(heads, blocks, width, width, generator=generator, device="cpu", dtype=torch.float64)
    turned, upper = torch.linalg.qr(normal)
    turned = turned * upper.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]  # uniform over rotations
    length = torch.randn(heads, features, width, generator=generator, device="cpu", dtype=torch.float64).norm(dim=-1)
    unit: Tensor = turned.mT.flatten(1, 2)[:, :features]
    drawn: Tensor = unit * length[..., None]
    return drawn
