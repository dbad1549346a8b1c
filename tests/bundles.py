"""Bundles of tiny, untrained models, and pictures to use them on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from PIL import Image
from tiny import COLOURS, SIDE, VOCABULARY, tiny_model

import mmformer
from mmformer.bundle import Transforms, save_bundle
from mmformer.data.image_transform import ImageTransformSpec
from mmformer.data.sound import AudioTransformSpec
from mmformer.errors import InputError
from mmformer.models.decoder import DecoderSpec
from mmformer.models.encoder import EncoderSpec
from mmformer.models.head import ContrastiveHeadSpec
from mmformer.models.model import ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.feedforward import GELUFeedForwardSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.rotary import RotaryPositionSpec
from mmformer.nn.stack import StackSpec
from mmformer.tokenizers.audio import SpectrogramPatchesSpec
from mmformer.tokenizers.image import ImagePatchesSpec
from mmformer.tokenizers.text import TextTokensSpec

TRANSFORMS = Transforms(ImageTransformSpec((SIDE, SIDE)), classes={"colour": list(COLOURS)})


def save_dual(folder: Path, seed: int = 0) -> Path:
    """A bundle that reads images and texts, with a contrastive head and a classification head ``colour``."""
    model = tiny_model(classes=len(COLOURS)).build()
    model.initialise(seed)
    save_bundle(folder, model, TRANSFORMS, "# A tiny model\n")
    return folder


def save_classifier(folder: Path) -> Path:
    """A bundle that reads images alone, with the head ``colour`` alone."""
    dual = tiny_model(classes=len(COLOURS))
    spec = ModelSpec(
        {"image": dual.stacks["image"]}, {"image": dual.encoders["image"]}, heads={"colour": dual.heads["colour"]}
    )
    model = spec.build()
    model.initialise(0)
    save_bundle(folder, model, TRANSFORMS, "# A tiny classifier\n")
    return folder


def change(path: Path, edit: Callable[[Any], Any]) -> None:
    """Edit a YAML file: what ``edit`` returns, or the value that it changed."""
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump(edit(data) or data, sort_keys=False), encoding="utf-8")


def refused(folder: Path, *parts: str) -> None:
    """One message, with these parts, from the front door."""
    with pytest.raises(InputError) as caught:
        mmformer.load(folder)
    for part in parts:
        assert part in str(caught.value)


def pixels(seed: int, height: int = 20, width: int = 26) -> np.ndarray:
    """A random picture, uint8 H W 3."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_pictures(folder: Path) -> list[Path]:
    """Five pictures, one of them deeper, beside files that are none; sorted as ``folder`` itself is read."""
    (folder / "deep" / "er").mkdir(parents=True)
    names = ("a.png", "b [1].PNG", "c.bmp", "deep/d.webp", "deep/er/e.png")
    for seed, name in enumerate(names):
        target = folder / name
        Image.fromarray(pixels(seed)).save(target, lossless=True)
    for name in ("notes.txt", ".hidden.png", "deep/._a.png"):
        (folder / name).write_text("no picture")
    (folder / "folder.png").mkdir()
    return [folder / name for name in names]


def trimodal_model() -> ModelSpec:
    """Pictures, texts and sounds on one trunk, and decoders that read pictures (``caption``) or sounds (``hear``)."""
    layer = LayerSpec(AttentionSpec(heads=2), GELUFeedForwardSpec(ratio=2))
    reading = dataclasses.replace(layer, cross=AttentionSpec(heads=2))
    words = TextTokensSpec(VOCABULARY, context_length=16)
    sound = SpectrogramPatchesSpec(rate=8000, window=256, hop=128, bands=16, patch=(4, 16))
    return ModelSpec(
        stacks={
            "trunk": StackSpec(16, 2, layer, RotaryPositionSpec((0, 1, 2))),
            "writer": StackSpec(16, 1, reading, RotaryPositionSpec()),
            "prefixed": StackSpec(16, 1, layer, RotaryPositionSpec()),
        },
        encoders={
            "image": EncoderSpec(ImagePatchesSpec(patch=8), "trunk", embedding=12),
            "text": EncoderSpec(words, "trunk", embedding=12, packed=True),
            "sound": EncoderSpec(sound, "trunk", embedding=12, packed=True),
        },
        decoders={
            "caption": DecoderSpec(words, "writer", {"image": "cross"}, tied=False),
            "hear": DecoderSpec(words, "prefixed", {"sound": "prefix"}, tied=False),
        },
        heads={"contrastive": ContrastiveHeadSpec()},
    )


def save_answering(folder: Path) -> Path:
    """A bundle as ``save_trimodal``'s, whose decoders read two things: ``answer`` a picture and a text, ``both`` a
    picture and a sound; and one a text alone, ``translate``.
    """
    spec = trimodal_model()
    words = spec.decoders["caption"].tokenizer
    reads = {"answer": ("image", "text"), "both": ("image", "sound"), "translate": ("text",)}
    decoders = {
        name: DecoderSpec(words, "writer", dict.fromkeys(names, "cross"), tied=False) for name, names in reads.items()
    }
    stacks = {name: spec.stacks[name] for name in ("trunk", "writer")}
    return _save_sharp(folder, dataclasses.replace(spec, stacks=stacks, decoders=decoders))


def save_writing(folder: Path) -> Path:
    """A bundle with a translator of texts (``translate``), a listener (``hear``) and a language model (``tell``)."""
    spec = trimodal_model()
    words = spec.decoders["caption"].tokenizer
    decoders = {
        "translate": DecoderSpec(words, "writer", {"text": "cross"}, tied=False),
        "hear": spec.decoders["hear"],
        "tell": DecoderSpec(words, "prefixed", tied=False),
    }
    encoders = {name: spec.encoders[name] for name in ("text", "sound")}
    return _save_sharp(folder, dataclasses.replace(spec, encoders=encoders, decoders=decoders))


def save_trimodal(folder: Path) -> Path:
    """A bundle of ``trimodal_model``, whose decoders are sharp enough to write different things."""
    return _save_sharp(folder, trimodal_model())


def _save_sharp(folder: Path, spec: ModelSpec) -> Path:
    model = spec.build()
    model.initialise(0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and ("writer" in name or "prefixed" in name or "decoders" in name):
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    transforms = Transforms(ImageTransformSpec((SIDE, SIDE)), AudioTransformSpec(8000, seconds=0.5))
    save_bundle(folder, model, transforms, "# A tiny model of three modalities\n")
    return folder


def save_two_eyed(folder: Path) -> Path:
    """A bundle of ``trimodal_model`` with a second image encoder, ``other``, sounds of another width, and two heads."""
    spec = trimodal_model()
    encoders = spec.encoders | {
        "sound": dataclasses.replace(spec.encoders["sound"], embedding=10),
        "other": EncoderSpec(ImagePatchesSpec(patch=4), "trunk", embedding=12),
    }
    heads = {"warm": ContrastiveHeadSpec(temperature=0.5), "cold": ContrastiveHeadSpec(temperature=0.1)}
    decoders = {"caption": spec.decoders["caption"]}
    stacks = {name: spec.stacks[name] for name in ("trunk", "writer")}
    model = ModelSpec(stacks, encoders, decoders, heads).build()
    model.initialise(0)
    transforms = Transforms(ImageTransformSpec((SIDE, SIDE)), AudioTransformSpec(8000, seconds=0.5))
    save_bundle(folder, model, transforms, "# A tiny model with two eyes\n")
    return folder


def tone(frequency: float, seconds: float = 0.3, rate: int = 8000) -> np.ndarray:
    """A sine, float32."""
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def write_sounds(folder: Path) -> list[Path]:
    """Four sounds of different rates, lengths and formats, beside files that are none."""
    (folder / "deep").mkdir(parents=True)
    made = (
        ("a.wav", 300, 0.3, 8000),
        ("b.flac", 600, 0.1, 16_000),
        ("c.ogg", 900, 0.2, 44_100),
        ("deep/d.mp3", 200, 0.4, 44_100),
    )
    for name, frequency, seconds, rate in made:
        soundfile.write(folder / name, tone(frequency, seconds, rate), rate)
    for name in ("notes.txt", ".hidden.wav", "a.png"):
        (folder / name).write_text("no sound")
    return [folder / name for name, *_ in made]
