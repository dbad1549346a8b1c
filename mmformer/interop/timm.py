"""Vision transformers as timm keeps them: config.json with the name of an architecture, and weights beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmformer.errors import InputError
from mmformer.interop.checkpoint import State, read_json, read_weights, write_json, write_weights
from mmformer.interop.family import Family
from mmformer.interop.source import Found, families_of, hub_folder
from mmformer.interop.timm_models import described, written

WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def open_model(name: str) -> Found:
    """A model in a folder, or of the hub, where the organisation ``timm`` need not be named.

    Raises:
        InputError: no such folder, or one that is not whole; a model of another kind.
    """
    folder = hub_folder(name if Path(name).is_dir() or "/" in name else f"timm/{name}")
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(f"{folder} has no config.json: it is no folder of a timm model.")
    config = read_json(file)
    try:
        built = described(config)
    except ValueError as error:
        raise InputError(f"{file}: {config.get('architecture')!r} is {error}.") from error
    families = {family.name: family for family in families_of("timm")}
    family = families["deit" if built["distilled"] else "vit"]
    layouts = list(family.layouts)
    if not built["num_classes"] and len(layouts) == 1:
        raise InputError(f"{file} has num_classes 0, but a distilled model is read with its classifiers alone.")
    return Found(
        family, layouts[0 if built["num_classes"] else 1], config, read_weights(folder, WEIGHTS), folder, str(file)
    )


def write_folder(folder: Path, family: Family, layout: str, config: Mapping[str, Any], state: State) -> None:
    """What ``timm.create_model("local-dir:FOLDER", pretrained=True)`` opens."""
    said = {key: value for key, value in config.items() if key not in ("built", "id2label", "label2id")}
    changed = config.get("built")
    if changed:  # since it was read, or all of it is said
        built = {**described(said), **changed} if "architecture" in said else changed
        said |= written(built, said.get("pretrained_cfg", {}), config.get("id2label", {}))
    write_json(folder / "config.json", said)
    write_weights(state, folder / WEIGHTS[0])
