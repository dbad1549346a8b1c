"""Adapters by themselves: a small folder that makes another model of the bundle that they were trained on.

adapters.yaml          what they are, and the hash of the weights that they change
adapters.safetensors   all that was trained, by name
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

import mmformer.adapters  # noqa: F401  # the specs' names have to be known to YAML
from mmformer.adapters.adapter import AdapterSpec, attach
from mmformer.adapters.merge import merged
from mmformer.config import parse, read_yaml, to_yaml
from mmformer.errors import InputError
from mmformer.files import whole_folder, write_whole
from mmformer.models.model import Model

SPECS, WEIGHTS = "adapters.yaml", "adapters.safetensors"


@dataclass(frozen=True)
class AdaptersSpec:
    """What ``adapters.yaml`` says.

    Attributes:
        base: SHA-256 of the model.safetensors that they were trained on.
        adapters: by name, as in the run.
    """

    base: str
    adapters: dict[str, AdapterSpec]


def write_adapters(folder: Path, spec: AdaptersSpec, trained: Mapping[str, Tensor]) -> None:
    """Write adapters; those that are there already are replaced only when the new ones are whole."""
    with whole_folder(folder) as partial:
        write_whole(partial / SPECS, to_yaml(spec))
        save_file({name: value.detach().cpu().contiguous() for name, value in trained.items()}, partial / WEIGHTS)


def read_adapters(folder: Path) -> AdaptersSpec:
    """What adapters are, and what they belong to.

    Raises:
        InputError: the folder has none.
    """
    if not (folder / SPECS).is_file():
        raise InputError(f"{folder} has no {SPECS}: it is no folder of adapters, which a run's output has.")
    return parse(AdaptersSpec, read_yaml(folder / SPECS), str(folder / SPECS))


@torch.no_grad()
def with_adapters(model: Model, spec: AdaptersSpec, trained: Mapping[str, Tensor], where: str) -> Model:
    """A model with adapters merged into its weights; the one that is handed in becomes adapted.

    Raises:
        InputError: they do not fit it; both sides are told.
    """
    attach(model, spec.adapters, seed=0)
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    wrong = sorted(own.keys() ^ trained.keys()) or [n for n in own if own[n].shape != trained[n].shape]
    if wrong:
        sides = [str(tuple(side[wrong[0]].shape)) if wrong[0] in side else "none" for side in (own, trained)]
        raise InputError(f"{where}: {wrong[0]} is {sides[0]} in the adapted model, and {sides[1]} among the adapters.")
    for name, parameter in own.items():
        parameter.copy_(trained[name])
    return merged(model)
