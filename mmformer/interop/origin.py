"""Where an imported bundle came from: what its export needs that the model's spec does not say."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmformer.errors import InputError
from mmformer.interop.checkpoint import read_json

FOLDER = "origin"
"""In a bundle: the files that came with the model, as they were, and ``origin.json`` beside them."""


@dataclass(frozen=True)
class Origin:
    """Attributes:
    library, family, layout: of the family that read it.
    config: as it was.
    seen: what its weights show besides, or instead.
    absent: optional names that its weights had not.
    dtypes: of its weights, name -> "float16"; those that are not named have the commonest, under "".
    """

    library: str
    family: str
    layout: str
    config: dict[str, Any]
    absent: tuple[str, ...] = ()
    dtypes: dict[str, str] = field(default_factory=dict)
    seen: dict[str, Any] = field(default_factory=dict)

    @property
    def said(self) -> dict[str, Any]:
        """The config, with what the weights show."""
        return self.config | self.seen

    def to_bytes(self) -> bytes:
        return (json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n").encode()

    def in_float32(self) -> Origin:
        """The same of weights that were changed since: they go out as they are now, and are not rounded back."""
        whole = {name: kind for name, kind in self.dtypes.items() if not getattr(torch, kind).is_floating_point}
        return dataclasses.replace(self, dtypes={**whole, "": "float32"}, config=_in_float32(self.config))

    def restored(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors in the precision that they came in; what came in float16 and was not trained is the same again."""
        common = self.dtypes.get("", "float32")
        return {name: value.to(getattr(torch, self.dtypes.get(name, common))) for name, value in state.items()}


def _in_float32(config: dict[str, Any]) -> dict[str, Any]:
    """A config, and those of parts in it, that say so where they say a precision."""
    said = {key: _in_float32(value) if isinstance(value, dict) else value for key, value in config.items()}
    return said | {key: "float32" for key in ("dtype", "torch_dtype") if said.get(key)}


def precisions(state: Mapping[str, Tensor]) -> dict[str, str]:
    """What ``Origin.dtypes`` says of some weights."""
    names = {name: str(value.dtype).removeprefix("torch.") for name, value in state.items()}
    counts = list(names.values())
    common = max(dict.fromkeys(counts), key=counts.count) if counts else "float32"
    return {"": common, **{name: found for name, found in names.items() if found != common}}


def read_origin(bundle: Path) -> Origin | None:
    """Where a bundle came from; None: it was made here.

    Raises:
        InputError: what it says of that is damaged.
    """
    file = bundle / FOLDER / "origin.json"
    if not file.is_file():
        return None
    data = read_json(file)
    names = {each.name for each in dataclasses.fields(Origin)}
    if set(data) != names:
        raise InputError(f"{file} has {', '.join(sorted(data))}, but {', '.join(sorted(names))} are expected.")
    return Origin(**{**data, "absent": tuple(data["absent"])})


def files_of_changed(bundle: Path) -> dict[str, bytes]:
    """The files that came with a bundle's model, by their paths, for a bundle with its weights changed.

    Raises:
        InputError: what they say of where it came from is damaged.
    """
    files = {f"{FOLDER}/{file.name}": file.read_bytes() for file in sorted((bundle / FOLDER).glob("*"))}
    origin = read_origin(bundle)
    return files if origin is None else files | {f"{FOLDER}/origin.json": origin.in_float32().to_bytes()}
