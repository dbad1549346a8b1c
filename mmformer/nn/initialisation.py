"""First weights by name: how the matrices of a stack's layers are drawn, each by what it is for.

Parts say what their matrices are for (``Part.roles``), and an initialisation says how each kind is drawn; neither knows
the other. What a part does not name keeps the start that it gives itself, as norms, gains and recurrences do.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mmformer.errors import InputError
from mmformer.spec import Catalogued, family, require

Role = Literal["query", "key", "value", "inner", "output"]
"""What a matrix is for: ``output`` is a branch's last, whose products the residual sum adds; ``inner`` all others of a
feed-forward, and those of a mixer that make no queries, keys or values."""


class Rows(NamedTuple):
    """Rows of a matrix that are drawn as a matrix of their own; several are often multiplied by at once."""

    role: Role
    number: int | None = None  # None: all that there are


Roles = Mapping[str, tuple[Rows, ...]]
"""The path of a linear map in a part, or of a parameter (… out in) without a bias -> its rows, from the first on."""


class Part(nn.Module):
    """What a residual branch is made of: a mixer or a feed-forward."""

    makes_input_again: ClassVar[bool] = False
    """Whether its first products read by ``product_of`` (``nn/recomputed.py``): what it reads need not be kept then."""

    def roles(self) -> Roles:
        """What its matrices are for; parts that it is made of say that themselves.

        Matrices that are not named keep the start that their module gives them.
        """
        return {}


@family
@dataclass(frozen=True)
class InitialisationSpec(Catalogued, ABC):
    """How the matrices of a stack's layers are drawn, and what their biases are at first."""

    cost: ClassVar[str] = "0"

    @abstractmethod
    def draw(self, weight: Tensor, bias: Tensor | None, role: Role, branches: int) -> None:
        """Fill them in place.

        Args:
            weight: … out in; matrices that are stacked are drawn alike.
            bias: … out; None: there is none.
            branches: how many residual branches the stack has, two for most layers.
        """


@dataclass(frozen=True)
class GPT2InitialisationSpec(InitialisationSpec):
    """Normal; what residual sums add is drawn smaller by √branches, so that their variance does not grow with depth.

    Attributes:
        std: standard deviation of all but residual outputs.
    """

    source: ClassVar[str] = "GPT-2, Radford et al. 2019, §2.3"

    std: float = 0.02

    def __post_init__(self) -> None:
        require(self.std > 0, self, "std", "positive")

    def draw(self, weight: Tensor, bias: Tensor | None, role: Role, branches: int) -> None:
        nn.init.normal_(weight, std=self.std / math.sqrt(branches) if role == "output" else self.std)
        _zero(bias)


@dataclass(frozen=True)
class TruncatedNormalInitialisationSpec(InitialisationSpec):
    """Normal, cut off at two standard deviations, all matrices alike (BERT, ViT).

    Attributes:
        std: of the normal distribution before it is cut; what is drawn has 0.88 of it.
    """

    source: ClassVar[str] = "BERT, Devlin et al. 2019, in its code; ViT as in DeiT, Touvron et al. 2021, §6"

    std: float = 0.02

    def __post_init__(self) -> None:
        require(self.std > 0, self, "std", "positive")

    def draw(self, weight: Tensor, bias: Tensor | None, role: Role, branches: int) -> None:
        nn.init.trunc_normal_(weight, std=self.std, a=-2 * self.std, b=2 * self.std)
        _zero(bias)


@dataclass(frozen=True)
class XavierInitialisationSpec(InitialisationSpec):
    """Uniform, with a variance of 2 / (in + out); queries, keys and values are matrices of their own."""

    source: ClassVar[str] = "Glorot and Bengio 2010, §4.2.1; ViT, Dosovitskiy et al. 2021, in its code"

    def draw(self, weight: Tensor, bias: Tensor | None, role: Role, branches: int) -> None:
        bound = math.sqrt(6 / sum(weight.shape[-2:]))
        nn.init.uniform_(weight, -bound, bound)
        _zero(bias)


@dataclass(frozen=True)
class T5InitialisationSpec(InitialisationSpec):
    """Normal, with a variance of 1 / in.

    Attributes:
        factor: on all standard deviations.
        head_width: where attention does not divide scores by its root (``AttentionSpec.scale`` of 1), queries are drawn
            smaller by it, so that scores start alike (T5's own way); None: attention divides.
    """

    source: ClassVar[str] = "T5, Raffel et al. 2020, in its code"

    factor: float = 1.0
    head_width: int | None = None

    def __post_init__(self) -> None:
        require(self.factor > 0, self, "factor", "positive")
        require(self.head_width is None or self.head_width >= 1, self, "head_width", "None or at least 1")

    def draw(self, weight: Tensor, bias: Tensor | None, role: Role, branches: int) -> None:
        smaller = self.head_width or 1 if role == "query" else 1
        nn.init.normal_(weight, std=self.factor / math.sqrt(weight.shape[-1] * smaller))
        _zero(bias)


@dataclass(frozen=True)
class ZeroResidualInitialisationSpec(InitialisationSpec):
    """Every branch adds nothing at first: its last matrix is zero. All others keep the start that they have."""

    source: ClassVar[str] = "Fixup, Zhang et al. 2019, §3; as adaLN-Zero, Peebles and Xie 2022, §3.2"

    def draw(self, weight: Tensor, bias: Tensor | None, role: Role, branches: int) -> None:
        if role == "output":
            nn.init.zeros_(weight)
            _zero(bias)


@dataclass(frozen=True)
class DeepNormInitialisationSpec(InitialisationSpec):
    """Xavier's normal; values, outputs and feed-forwards smaller by β = (4 × branches)^-¼: what ``placement: deep``
    goes with, and what its stacks have unasked.

    Each stack counts its own branches. Of an encoder that a decoder reads, the paper counts the decoder's layers too.
    """

    source: ClassVar[str] = "DeepNet, Wang et al. 2022, §3, figure 2"

    def draw(self, weight: Tensor, bias: Tensor | None, role: Role, branches: int) -> None:
        gain = 1.0 if role in ("query", "key") else (4 * branches) ** -0.25
        nn.init.normal_(weight, std=gain * math.sqrt(2 / sum(weight.shape[-2:])))
        _zero(bias)


@contextmanager
def own_stream(seed: int, name: str) -> Iterator[None]:
    """Inside, what is drawn on the CPU is a function of (seed, name); the stream outside goes on as it was."""
    digest = hashlib.blake2b(f"{seed}/initialise/{name}".encode(), digest_size=8).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest, "little") >> 1)
        yield


def drawn_by(spec: InitialisationSpec, branch: Part, branches: int) -> dict[nn.Module, list[Callable[[], None]]]:
    """What is to be called after a module's own ``reset_parameters``, for the modules of a branch that have matrices.

    Raises:
        InputError: the branch does not say what its matrices are for.
    """
    calls: dict[nn.Module, list[Callable[[], None]]] = {}
    for part in branch.modules():
        for path, rows in part.roles().items() if isinstance(part, Part) else ():
            parent, _, name = path.rpartition(".")
            owner: nn.Module = part.get_submodule(parent)
            found = getattr(owner, name)
            if isinstance(found, nn.Module):
                calls.setdefault(found, []).append(_call(spec, found, "weight", "bias", rows, branches))
            else:
                calls.setdefault(owner, []).append(_call(spec, owner, name, None, rows, branches))
    if not calls and any(parameter.ndim > 1 for parameter in branch.parameters()):
        raise InputError(
            f"{type(spec).__name__} draws matrices by what they are for, but {type(branch).__name__} does not say that "
            f"of its own: leave StackSpec.initialisation out."
        )
    return calls


def _call(
    spec: InitialisationSpec, owner: nn.Module, name: str, of_bias: str | None, rows: tuple[Rows, ...], branches: int
) -> Callable[[], None]:
    @torch.no_grad()
    def call() -> None:
        # As they are by then: a module that was built without data has others when it is given some.
        weight, bias = getattr(owner, name), None if of_bias is None else getattr(owner, of_bias)
        sizes = [weight.shape[-2] if each.number is None else each.number for each in rows]
        weights = torch.split(weight, sizes, dim=-2)
        biases = [None] * len(rows) if bias is None else torch.split(bias, sizes, dim=-1)
        for each, own_weight, own_bias in zip(rows, weights, biases, strict=True):
            spec.draw(own_weight, own_bias, each.role, branches)

    return call


def _zero(bias: Tensor | None) -> None:
    if bias is not None:
        nn.init.zeros_(bias)
