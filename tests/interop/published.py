"""Folders as libraries publish them, with random weights, files as people have them, and commands upon them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from parity import randomise
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmformer.cli.main import main

ALIKE = 1e-4
"""How far probabilities and embeddings of unit length may be from the reference's."""

Command = Callable[..., Any]

TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SEEN = TEXT | {"image_size": 32, "patch_size": 8}
NAMES = ["tench", "goldfish", "great white shark", "hen"]
"""Of classes."""


def succeeding(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command that is to succeed, and reads what it prints: JSON, where that is asked for."""

    def run(*words: object) -> Any:
        capsys.readouterr()
        code = main([str(word) for word in words])
        told = capsys.readouterr()
        assert code == 0, told.err
        return json.loads(told.out) if "--json" in words else told.out

    return run


def refused(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command that is to be refused, and gives what it says."""

    def run(*words: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        return capsys.readouterr().err

    return run


def write_pictures(folder: Path) -> list[str]:
    """Of odd sizes, with a gradient and a patch each; one is grey, one of a palette."""
    paths = []
    for number, (width, height) in enumerate([(37, 61), (120, 45), (32, 32), (201, 199)]):
        random = np.random.default_rng(number)
        x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
        pixels = np.stack([x, y, 255 - x], 2) * random.uniform(0.2, 1, 3)
        pixels[height // 4 : height // 2, width // 3 :] = random.integers(0, 256, 3)
        picture = Image.fromarray(pixels.astype(np.uint8))
        picture = picture.convert("L") if number == 1 else picture.convert("P") if number == 3 else picture
        paths.append(str(folder / f"{number}.png"))
        picture.save(paths[-1])
    return paths


def opened(paths: Sequence[str]) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in paths]


def write_sounds(folder: Path) -> list[str]:
    paths = []
    for number, length in enumerate([9_000, 16_000, 30_001]):
        random = np.random.default_rng(number)
        wave = 0.3 * np.sin(np.arange(length) * random.uniform(0.05, 0.5)) + 0.05 * random.standard_normal(length)
        paths.append(str(folder / f"{number}.wav"))
        soundfile.write(paths[-1], wave.astype(np.float32), 16_000, subtype="PCM_16")
    return paths


def heard(paths: Sequence[str]) -> list[Any]:
    return [soundfile.read(path, dtype="float32")[0] for path in paths]


def published(folder: Path, reference: Any, *beside: Any, size: float = 1.0, **values: float) -> Any:
    """A model with random weights, some of them by name, and what goes beside it, as the library saves and opens it."""
    randomise(reference, size=size)
    for name, value in values.items():
        reference.get_parameter(name).data.fill_(value)
    for each in (reference.eval(), *beside):
        each.save_pretrained(folder)
    return type(reference).from_pretrained(folder).eval()


def scores(said: Any, names: Sequence[str]) -> Tensor:
    """What a pipeline of transformers says of each value, N names."""
    return torch.tensor([[{each["label"]: each["score"] for each in one}[name] for name in names] for one in said])


def check_answers(answers: Any, theirs: Tensor, names: Sequence[str]) -> None:
    """What classify says of each value against probabilities of the reference, N names."""
    assert len(answers) == len(theirs)
    for answer, row in zip(answers, theirs, strict=True):
        assert set(answer["probabilities"]) == set(names)
        ours = torch.tensor([answer["probabilities"][name] for name in names])
        torch.testing.assert_close(ours, row, rtol=0, atol=ALIKE)
        assert answer["label"] == names[int(row.argmax())]
    assert float(theirs.std(0).max()) > 20 * ALIKE, "the reference tells nothing apart"


def check_embeddings(rows: Any, theirs: Tensor) -> None:
    """What embed prints against embeddings of the reference, of any length, N E."""
    ours = torch.tensor([row["embedding"] for row in rows])
    torch.testing.assert_close(ours, F.normalize(theirs, dim=-1), rtol=0, atol=ALIKE)
    assert float(ours.std(0).max()) > 20 * ALIKE, "the reference tells nothing apart"
