"""From samples to a Batch: stacked, padded, encoded and, in training, augmented."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmformer.data.augment import augment
from mmformer.data.augment_sound import augment_sounds
from mmformer.data.sources import DataSpec
from mmformer.tokenizers.text import TextEncoder
from mmformer.types import Audio, Batch, Text


class Sample(NamedTuple):
    """One sample, decoded, before augmentation."""

    key: str
    position: int
    image: np.ndarray | None  # uint8 H W 3
    text: str | None
    audio: np.ndarray | None  # float32 S
    target: str | None
    labels: dict[str, int]
    source: int = 0  # index into DataSpec.each()


class Collate:
    """Samples to a Batch. All of them fill the same fields; in training, each source's are augmented in its own way."""

    def __init__(self, spec: DataSpec, encoders: Mapping[str, TextEncoder], seed: int, training: bool) -> None:
        self.sources = spec.each()
        self.encoders, self.seed, self.training = encoders, seed, training

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        labels = {
            name: torch.tensor([sample.labels[name] for sample in samples], dtype=torch.int64)
            for name in samples[0].labels
        }
        return Batch(
            tuple(sample.key for sample in samples),
            labels,
            self._images(samples),
            self._encode("text", [sample.text for sample in samples]),
            self._sounds(samples),
            self._encode("target", [sample.target for sample in samples]),
            torch.tensor([sample.position for sample in samples]),
        )

    def _images(self, samples: Sequence[Sample]) -> Tensor | None:
        pictures = [sample.image for sample in samples if sample.image is not None]
        if not pictures:
            return None
        images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()  # B 3 H W
        for source, rows, positions in self._augmented(samples):
            spec = self.sources[source].image
            assert spec is not None, "its samples have images"
            changed = augment(images[rows], spec.augment, self.seed, positions)
            images = changed if len(rows) == len(samples) else images.index_copy(0, rows, changed)
        return images

    def _sounds(self, samples: Sequence[Sample]) -> Audio | None:
        sounds = [sample.audio for sample in samples if sample.audio is not None]
        if not sounds:
            return None
        spec = self.sources[samples[0].source].audio
        assert spec is not None, "its samples have sounds"
        rate, most = spec.transform.rate, spec.transform.most  # those of all sources
        masks: list[tuple[Tensor, Tensor]] = []
        for source, rows, positions in self._augmented(samples):
            spec = self.sources[source].audio
            assert spec is not None, "its samples have sounds"
            changed = augment_sounds([sounds[row] for row in rows], spec.augment, rate, self.seed, positions)
            for row, sound in zip(rows.tolist(), changed, strict=True):
                sounds[row] = sound[:most]
            if spec.spec_augment is not None:
                masks.append((rows, spec.spec_augment.draw(self.seed, positions)))
        return pad_sounds(sounds, rate)._replace(hidden=_joined(masks, len(samples)))

    def _augmented(self, samples: Sequence[Sample]) -> list[tuple[int, Tensor, list[int]]]:
        """In training: each source, its rows of the batch, and their positions."""
        sources = sorted({sample.source for sample in samples}) if self.training else []
        rows = [[row for row, sample in enumerate(samples) if sample.source == source] for source in sources]
        return [
            (source, torch.tensor(own), [samples[row].position for row in own])
            for source, own in zip(sources, rows, strict=True)
        ]

    def _encode(self, name: str, texts: Sequence[str | None]) -> Text | None:
        there = [text for text in texts if text is not None]
        return self.encoders[name].encode(there) if there and name in self.encoders else None


def pad_sounds(sounds: Sequence[np.ndarray], rate: int) -> Audio:
    """Waveforms as rows, zero past their ends.

    Rows are of round lengths: of fewer kinds, and with room for a last frame that reaches past its sound.
    """
    lengths = [len(sound) for sound in sounds]
    samples = torch.zeros(len(sounds), -(-max(lengths) // 1024) * 1024)  # B S
    for row, sound in zip(samples, sounds, strict=True):
        row[: len(sound)] = torch.from_numpy(sound)
    return Audio(samples, torch.tensor(lengths, dtype=torch.int64), rate)


def _joined(masks: Sequence[tuple[Tensor, Tensor]], size: int) -> Tensor | None:
    """The rectangles of some rows as those of all; where a row has fewer, the rest are empty."""
    if not masks:
        return None
    hidden = torch.zeros(size, max(drawn.shape[1] for _, drawn in masks), 4)  # B N 4
    for rows, drawn in masks:
        hidden[rows, : drawn.shape[1]] = drawn
    return hidden
