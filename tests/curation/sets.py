"""Small sets to filter, and what is left of them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmformer.curation.candidates import Candidates
from mmformer.data.manifest import Manifest
from mmformer.data.shards import RawSample, ShardReader, ShardWriter

Members = Mapping[str, bytes]


def write_set(folder: Path, **splits: Sequence[Members]) -> Path:
    """Candidates ``train0``, ``train1``, …, ``test0``, …, three in a shard."""
    with ShardWriter(folder, "set", samples_per_shard=3) as writer:
        for split, samples in splits.items():
            for number, members in enumerate(samples):
                writer.write(RawSample(f"{split}{number}", dict(members)), split)
    return folder


def samples(folder: Path, split: str = "train") -> Candidates:
    return Candidates(Manifest.load(folder), split)


def texts(*captions: str) -> list[Members]:
    return [{"txt": caption.encode()} for caption in captions]


def fields(*values: Any) -> list[Members]:
    return [{"json": json.dumps(value).encode()} for value in values]


def encoded(pixels: np.ndarray, kind: str = "png", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def scene(seed: int, side: int = 96) -> np.ndarray:
    """A picture of soft random blots, uint8 H W 3: the same at any size, but for detail."""
    blots = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(blots).resize((side, side), Image.Resampling.BICUBIC))


def keys(folder: Path, split: str = "train") -> list[str]:
    return list(ShardReader(Manifest.load(folder), split).keys)


def table(path: Path) -> list[list[str]]:
    """The rows of a table, without its head."""
    return [line.split("\t") for line in path.read_text().splitlines()[1:]]
