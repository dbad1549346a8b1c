"""From samples to a Batch: stacked, padded, encoded and, in training, augmented."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmformer.data.augment import augment
from mmformer.data.augment_sound import augment_sounds
from mmformer.data.mix import Mixing, mix
from mmformer.data.native import join_pictures
from mmformer.data.seeding import derive
from mmformer.data.sources import DataSpec
from mmformer.tokenizers.text import TextEncoder
from mmformer.types import Audio, Batch, Mixed, Notes, Patches, Skipped, Text


class Other(NamedTuple):
    """A sample whose picture is mixed into another's."""

    image: np.ndarray  # uint8 H W 3
    labels: dict[str, int]
    mixing: Mixing


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
    other: Other | None = None  # what is mixed into it
    skipped: tuple[Skipped, ...] = ()  # what it stands in for


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
        images = self._images(samples)
        notes = Notes(tuple(skipped for sample in samples for skipped in sample.skipped), {})
        batch = Batch(
            tuple(sample.key for sample in samples),
            labels,
            images,
            self._encode("text", [sample.text for sample in samples], notes),
            self._sounds(samples),
            self._encode("target", [sample.target for sample in samples], notes),
            torch.tensor([sample.position for sample in samples]),
            notes=notes,
        )
        if isinstance(images, Tensor) and any(sample.other is not None for sample in samples):
            return self._mixed(batch, images, samples)
        return batch

    def _mixed(self, batch: Batch, images: Tensor, samples: Sequence[Sample]) -> Batch:
        """Mix the others' pictures in, augmented by streams of their own."""
        others = {row: sample.other for row, sample in enumerate(samples) if sample.other is not None}
        changed = self._augment(
            torch.from_numpy(np.stack([other.image for other in others.values()])),
            [samples[row] for row in others],
            derive(self.seed, "mix"),
        )
        mixed, share = images.numpy().copy(), torch.ones(len(samples))
        for picture, (row, other) in zip(changed.numpy(), others.items(), strict=True):
            mixed[row], share[row] = mix(mixed[row], picture, other.mixing)
        labels = {
            name: torch.tensor([(sample.other or sample).labels[name] for sample in samples], dtype=torch.int64)
            for name in samples[0].labels
        }
        return batch._replace(image=torch.from_numpy(mixed), mixed=Mixed(labels, share))

    def _images(self, samples: Sequence[Sample]) -> Tensor | Patches | None:
        pictures = [sample.image for sample in samples if sample.image is not None]
        if not pictures:
            return None
        spec = self.sources[samples[0].source].image
        assert spec is not None, "its samples have images"
        if spec.transform.patch is None:  # that of all sources
            return self._augment(torch.from_numpy(np.stack(pictures)), samples, self.seed)
        each = zip(pictures, samples, strict=True)
        # Each by itself, which changes it as it would be in a batch.
        changed = [self._augment(torch.from_numpy(picture[None]), [sample], self.seed)[0] for picture, sample in each]
        return join_pictures(changed, spec.transform.patch)

    def _augment(self, pictures: Tensor, samples: Sequence[Sample], seed: int) -> Tensor:
        """B H W 3 -> B 3 H W, in training changed as each one's source says."""
        images = pictures.permute(0, 3, 1, 2).contiguous()
        for source, rows, positions in self._augmented(samples):
            spec = self.sources[source].image
            assert spec is not None, "its samples have images"
            changed = augment(images[rows], spec.augment, seed, positions)
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

    def _encode(self, name: str, texts: Sequence[str | None], notes: Notes) -> Text | None:
        there = [text for text in texts if text is not None]
        if not there or name not in self.encoders:
            return None
        text, cut = self.encoders[name].encode_counting(there)
        notes.texts[name] = len(there), cut
        return text


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
