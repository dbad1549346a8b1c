"""Models as open_clip keeps them: open_clip_config.json and weights beside it; and OpenAI's own weights of CLIP."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from mmformer.errors import InputError
from mmformer.interop.checkpoint import State, read_json, read_tensors, read_weights, write_json, write_weights
from mmformer.interop.family import Family
from mmformer.interop.pictures import picture_transform
from mmformer.interop.source import Found, families_of, hub_folder
from mmformer.interop.vocabularies import from_open_clip
from mmformer.tokenizers.cleaning import Cleaning

CONFIG = "open_clip_config.json"
WEIGHTS = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"),
    *("open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"),
)
"""In the order in which open_clip looks for them."""

MERGES = "bpe_simple_vocab_16e6.txt.gz"
"""CLIP's vocabulary, which open_clip has in itself; it may lie beside a config or OpenAI's weights."""

SIZES = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's weights have among them."""


def open_model(name: str) -> Found:
    """A model in a folder, of a file with a config beside it, or of the hub (``hf-hub:ORGANISATION/NAME``).

    Raises:
        InputError: no such folder, or one that is not whole; what mmformer does not read.
    """
    name = name.removeprefix("hf-hub:").removeprefix("local-dir:")
    if Path(name).is_file():
        return open_file(Path(name))
    folder = hub_folder(name)
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} has no {CONFIG}: it is no folder of an open_clip model.")
    return _found(read_json(folder / CONFIG), read_weights(folder, WEIGHTS), folder, str(folder / CONFIG))


def open_file(file: Path) -> Found:
    """Weights with open_clip's config beside them, or OpenAI's, whose sizes are read off the tensors.

    Raises:
        InputError: it says too little, or holds more than tensors.
    """
    state, config = read_tensors(file), file.parent / CONFIG
    if config.is_file():
        return _found(read_json(config), state, file.parent, str(config))
    if not all(name in state for name in SIZES):
        raise InputError(
            f"{file} has no {CONFIG} beside it, and is not as OpenAI published CLIP, with {', '.join(SIZES)} among its "
            f"tensors: nothing says what model it is. Put its {CONFIG} beside it."
        )
    return _found({"model_cfg": openai_config(state, str(file))}, _without(state, SIZES), None, str(file))


def write_folder(folder: Path, family: Family, layout: str, config: Mapping[str, Any], state: State) -> None:
    """What ``open_clip.create_model_and_transforms("local-dir:FOLDER")`` opens."""
    file = folder / CONFIG
    kept = read_json(file) if file.is_file() else {}
    model = dict(config) if layout == "CLIP" else {**config, "custom_text": True}
    write_json(file, {**kept, "model_cfg": model})
    write_weights(state, folder / WEIGHTS[0])


def openai_config(state: State, where: str) -> dict[str, Any]:
    """What open_clip's config of OpenAI's weights would be.

    Raises:
        InputError: they are a ResNet's, or their sizes do not agree.
    """
    if "visual.proj" not in state or "visual.conv1.weight" not in state:
        raise InputError(f"{where} has no vision transformer, but a ResNet, which mmformer's parts do not express.")
    width, _, side, _ = state["visual.conv1.weight"].shape
    places = state["visual.positional_embedding"].shape[0] - 1
    text = state["ln_final.weight"].shape[0]
    config: dict[str, Any] = {
        "embed_dim": state["text_projection"].shape[1],
        "quick_gelu": True,
        "vision_cfg": {
            **{"image_size": round(places**0.5) * side, "patch_size": side, "width": width},
            "layers": _layers(state, "visual.transformer.resblocks."),
        },
        "text_cfg": {
            **{"context_length": state["positional_embedding"].shape[0], "width": text, "heads": text // 64},
            **{"vocab_size": len(state["token_embedding.weight"]), "layers": _layers(state, "transformer.resblocks.")},
        },
    }
    found = (config["vision_cfg"]["image_size"], config["text_cfg"]["context_length"], config["text_cfg"]["vocab_size"])
    for name, value in zip(SIZES, found, strict=True):
        if int(state[name]) != value:
            raise InputError(f"{where} has {name} {int(state[name])}, but its tensors are of a model with {value}.")
    return config


def family_of(config: Mapping[str, Any], where: str) -> Family:
    """Whose model a config is of.

    Raises:
        InputError: pictures are read by a tower of timm's that is none of SigLIP's.
    """
    families = {family.name: family for family in families_of("open_clip")}
    timm = config["vision_cfg"].get("timm_model_name")
    if timm and "siglip" not in timm:
        raise InputError(
            f"{where} has timm_model_name {timm!r}, but of timm's towers mmformer reads SigLIP's there, beside "
            f"open_clip's own vision transformers."
        )
    return families["SigLIP" if timm else "CoCa" if "multimodal_cfg" in config else "CLIP"]


def _found(data: Mapping[str, Any], state: State, folder: Path | None, where: str) -> Found:
    config = data.get("model_cfg", data)
    for part in ("vision_cfg", "text_cfg"):
        if not isinstance(config.get(part), Mapping):
            raise InputError(f"{where} has no {part}, which says what the model is.")
    if all(name.startswith("module.") for name in state):  # as training over several processes leaves them
        state = {name.removeprefix("module."): value for name, value in state.items()}
    said = {**data.get("preprocess_cfg", {}), "size": config["vision_cfg"].get("image_size", 224)}
    file = Path(where).with_name(MERGES)
    merges = file.read_bytes() if file.is_file() else None
    cleaning = _cleaning(config["text_cfg"], where)
    family = family_of(config, where)
    custom = any(name.startswith("text.") for name in state)
    layout = next(iter(family.layouts)) if len(family.layouts) == 1 else "CustomTextCLIP" if custom else "CLIP"
    return Found(
        dataclasses.replace(family, clean=cleaning),
        layout,
        config,
        state,
        folder,
        where,
        None if merges is None else from_open_clip(merges, cleaning, config["text_cfg"].get("context_length", 77)),
        picture_transform(said, where, "open_clip"),
    )


def _cleaning(text: Mapping[str, Any], where: str) -> Cleaning:
    """What open_clip does to a text first: it lowers those for its own vocabulary, and leaves others as they are."""
    options = dict(text.get("tokenizer_kwargs") or {})
    cleaning: Cleaning = options.pop("clean", "whitespace" if text.get("hf_tokenizer_name") else "lower")
    if options or cleaning not in get_args(Cleaning):
        raise InputError(
            f"{where} has text_cfg.tokenizer_kwargs {text['tokenizer_kwargs']!r}, but what mmformer does to texts is "
            f"clean, {' or '.join(get_args(Cleaning))}, and nothing else."
        )
    return cleaning


def _layers(state: State, begin: str) -> int:
    return len({name.removeprefix(begin).split(".")[0] for name in state if name.startswith(begin)})


def _without(state: State, names: tuple[str, ...]) -> State:
    return {name: value for name, value in state.items() if name not in names}
