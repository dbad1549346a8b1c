"""Bundles of tiny, untrained models, and pictures to use them on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from tiny import COLOURS, SIDE, tiny_model

from mmformer.bundle import Transforms, save_bundle
from mmformer.data.inputs import ImageTransformSpec
from mmformer.models.model import ModelSpec

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
