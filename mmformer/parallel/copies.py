"""Whether copies are copies still: what several processes have of a parameter alike is the same in every bit.

Each of them updates its copy by itself: along ``data`` all that it has, along ``tensor`` what is not shared out (norms,
embeddings …), in a pipeline what several stages have. Nothing else would notice if they drifted apart, and a checkpoint
has one of them.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmformer import collectives
from mmformer.models.model import Model
from mmformer.parallel.sharding import local_part, mesh_of, pipeline_of

BLOCK = 1 << 20
"""Numbers that are looked at together."""

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Place = tuple[Any, ...]
"""Which part of a parameter a process has: processes that say the same have copies."""


class Drift(NamedTuple):
    """Copies that differ."""

    name: str  # of the first such parameter
    processes: list[list[int]]  # in groups that have the same of it
    parameters: int  # that differ, in all


@torch.no_grad()
def find_drift(model: Model) -> Drift | None:
    """Compare what processes hold as copies; every process has to ask, and all are told the same. None: all agree.

    A number is made of the bits of each parameter, in one pass; where nothing differs, processes tell each other one
    hash for each place on the mesh that they have parts of.
    """
    if collectives.world_size() == 1:
        return None
    own = _by_place(model)
    if not _differing(collectives.of_all({place: {"": _hash(numbers)} for place, numbers in own.items()})):
        return None
    differing = _differing(collectives.of_all(own))
    first = next(name for name, _ in model.named_parameters() if name in differing)
    return Drift(first, differing[first], len(differing))


def _differing(told: Sequence[Mapping[Place, Mapping[str, Any]]]) -> dict[str, list[list[int]]]:
    """What processes that have the same place say different things of: the processes, in groups that say the same."""
    said: dict[tuple[Place, str], dict[Any, list[int]]] = defaultdict(lambda: defaultdict(list))
    for rank, places in enumerate(told):
        for place, numbers in places.items():
            for name, number in numbers.items():
                said[place, name][number].append(rank)
    return {name: list(groups.values()) for (_, name), groups in said.items() if len(groups) > 1}


def _hash(numbers: Mapping[str, int]) -> str:
    return hashlib.sha256(repr(numbers).encode()).hexdigest()


def _by_place(model: Model) -> dict[Place, dict[str, int]]:
    """place -> parameter -> a number that its bits make, of the parts that this process has."""
    stages = pipeline_of(model)
    found: dict[Place, dict[str, int]] = defaultdict(dict)
    for name, parameter in model.named_parameters():
        if not parameter.is_meta:
            held = () if stages is None else stages.holders[name]  # stages that have others have no copies
            found[(*_place(parameter), *held)][name] = _number(local_part(parameter))
    return dict(found)


def _place(parameter: Tensor) -> Place:
    """Where this process stands along the dimensions of the mesh that a parameter is shared out over, not copied."""
    mesh = mesh_of(parameter)
    if mesh is None:
        return ()
    placements = parameter.placements  # type: ignore[attr-defined]
    along = zip(mesh.mesh_dim_names, mesh.get_coordinate(), placements, strict=True)
    return tuple((name, place) for name, place, placement in along if not placement.is_replicate())


def _number(part: Tensor) -> int:
    """The bits of all numbers, each times an odd one by its position, added up modulo 2 ** 64."""
    bits = part.contiguous().view(-1).view(_BITS[part.element_size()])
    factors = torch.arange(1, 2 * min(BLOCK, len(bits)) + 1, 2, device=part.device)
    blocks = [(block.long() * factors[: len(block)]).sum() for block in torch.split(bits, BLOCK)]
    return int(torch.stack(blocks).sum())
