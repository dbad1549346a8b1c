"""A system to be timed: another library's model, as it saves itself, and one pass of it and of ours."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmformer.interop.open_clip import CONFIG, MERGES, WEIGHTS
from mmformer.models.logits import text_logits, text_of
from mmformer.models.model import Model

DEEP: dict[str, Any] = {"num_hidden_layers": 4}
IDS = torch.randint(5, 1000, (4, 256), generator=torch.Generator().manual_seed(0))
SHORT = IDS[:, :64]
PICTURES = torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(1))


class Reference(NamedTuple):
    """A model of another library."""

    library: str  # as ``mmformer import`` calls it
    save: Callable[[Path], Any]  # makes it, saves it in a folder, and returns it


class Case(NamedTuple):
    """A reference, and one pass of either: what they make is the same."""

    reference: Reference
    shape: str
    theirs: Callable[[Any], tuple[Tensor, ...]]
    ours: Callable[[Model], tuple[Tensor, ...]]


CASES: dict[str, Callable[[], Case]] = {}


def case(made: Callable[[], Case]) -> Callable[[], Case]:
    """A function that makes one, by its name."""
    CASES[made.__name__] = made
    return made


def transformers_model(name: str, kind: str, *beside: Any, **sizes: Any) -> Reference:
    """A class of transformers, by its config's and its own name, and what is saved beside it."""

    def save(folder: Path) -> Any:
        import transformers

        reference = getattr(transformers, name + kind)(getattr(transformers, f"{name}Config")(**sizes))
        for part in (reference, *beside):
            part.save_pretrained(folder)
        return reference

    return Reference("hf", save)


def timm_model(name: str, **options: Any) -> Reference:
    """One of timm's architectures, four layers deep where nothing else is said."""

    def save(folder: Path) -> Any:
        import timm

        reference = timm.create_model(name, **{"depth": 4, **options})
        timm.models.save_for_hf(reference, str(folder), safe_serialization=True)
        return reference

    return Reference("timm", save)


def open_clip_model(name: str, **changes: dict[str, Any]) -> Reference:
    """One of open_clip's models, with changes of the parts of its config."""

    def save(folder: Path) -> Any:
        import open_clip
        from safetensors.torch import save_file

        config = copy.deepcopy(open_clip.get_model_config(name))
        for part, change in changes.items():
            config[part] |= change
        folder.mkdir()
        (folder / CONFIG).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
        if "hf_tokenizer_name" not in config["text_cfg"]:
            (folder / MERGES).write_bytes(Path(open_clip.__file__).with_name(MERGES).read_bytes())
        reference = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        if hasattr(reference, "text_decoder"):  # which open_clip leaves as memory happens to be, often zero
            torch.nn.init.normal_(reference.text_decoder.text_projection, std=0.05)
        save_file(reference.state_dict(), folder / WEIGHTS[0])
        return reference

    return Reference("open_clip", save)


def logits(model: Model, ids: Tensor, written: Tensor | None = None, **others: Any) -> tuple[Tensor, ...]:
    """Ours over a vocabulary."""
    return (text_logits(model, None, text_of(ids), None if written is None else text_of(written), others),)
