"""Captions of the lengths that real ones have."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

from mmformer.data.decode import decode_json
from mmformer.data.opening import open_samples

EMOJI = Path("data/emoji")


class NotHereError(Exception):
    """A set that is not part of this project is not on this machine."""


def emoji_names(number: int) -> list[str]:
    """English names of the embedded emoji, as they come."""
    samples = open_samples(str(EMOJI), "train")
    return [decode_json(samples[index].members["json"], "json")["names"]["en"] for index in range(number)]


def multi30k(number: int) -> list[str]:
    """English captions of Multi30k (Elliott et al. 2016), as they come, from the folder that ``DATA`` names.

    Raises:
        NotHereError: it is not there.
    """
    file = Path(os.environ.get("DATA", ".")) / "multi30k" / "train.en.gz"
    if not file.exists():
        raise NotHereError(f"{file} is not there: set DATA to a folder with multi30k/ as it was published.")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [line.strip() for _, line in zip(range(number), lines, strict=False)]
