"""From a position in the sample order to a sample, and from samples to a Batch.

The order, the augmentations and the captions are functions of (seed, position). A loader therefore has no state: it is
made to begin at any position, and gives the same batches whatever its number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from mmformer.data.augment import augment
from mmformer.data.augment_sound import augment_sounds
from mmformer.data.caption import lookup
from mmformer.data.decode import decode
from mmformer.data.inputs import AudioInputSpec, ImageInputSpec, LabelInputSpec, TextInputSpec
from mmformer.data.manifest import Manifest
from mmformer.data.order import Order, OrderSpec
from mmformer.data.seeding import generator
from mmformer.data.shards import RawSample, ShardReader
from mmformer.data.sound import decode_sound
from mmformer.errors import InputError, nearest
from mmformer.spec import require
from mmformer.tokenizers.text import TextEncoder
from mmformer.types import Audio, Batch, Text


@dataclass(frozen=True)
class DataSpec:
    """What a run reads.

    Attributes:
        source: a folder of shards with their manifest.
        train: name of the split to train on.
        validation: split that is looked at while training; None: none.
        test: split for the end; None: none.
        image: how images are read; None: not.
        text: how texts are read; None: not.
        audio: how sounds are read; None: not.
        target: how the texts are read that decoders learn to write, where they write ``target``; None: not.
        labels: by name.
        batch_size: samples of one update, over all ranks and micro-batches.
        evaluation_batch_size: samples of one evaluation batch.
        order: of the training samples.
        workers: processes that read and decode; 0: the training process itself. The batches do not depend on it.
        cache_mib: memory, in each process, for decoded samples, in MiB.
    """

    source: str
    train: str = "train"
    validation: str | None = None
    test: str | None = None
    image: ImageInputSpec | None = None
    text: TextInputSpec | None = None
    audio: AudioInputSpec | None = None
    target: TextInputSpec | None = None
    labels: dict[str, LabelInputSpec] = field(default_factory=dict)
    batch_size: int = 256
    evaluation_batch_size: int = 256
    order: OrderSpec = field(default_factory=OrderSpec)
    workers: int = 0
    cache_mib: int = 256

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, self, "batch_size", "at least 1")
        require(self.evaluation_batch_size >= 1, self, "evaluation_batch_size", "at least 1")
        require(self.workers >= 0, self, "workers", "at least 0")
        require(self.cache_mib >= 0, self, "cache_mib", "at least 0")
        if self.image is None and self.text is None and self.audio is None:
            raise InputError("data.image, data.text and data.audio are all absent: say how to read one of them.")


class Sample(NamedTuple):
    """One sample, decoded, before augmentation."""

    key: str
    position: int
    image: np.ndarray | None  # uint8 H W 3
    text: str | None
    audio: np.ndarray | None  # float32 S
    target: str | None
    labels: dict[str, int]


class Decoded(NamedTuple):
    """What does not depend on the position, and is worth keeping."""

    key: str
    image: np.ndarray | None
    members: dict[str, Any]  # texts and labels


class SampleDataset(Dataset[Sample]):
    """The samples of a split by position in their order."""

    def __init__(self, spec: DataSpec, split: str, order: OrderSpec, seed: int, training: bool) -> None:
        self.spec, self.seed, self.training = spec, seed, training
        self.reader = ShardReader(Manifest.load(spec.source), split)
        self.order: Order = order.build(self.reader.counts, seed)
        self.classes = {name: read_classes(label.classes) for name, label in spec.labels.items()}
        self._cache: dict[tuple[int, int], Decoded] = {}
        self._sounds: dict[tuple[int, int, str], np.ndarray] = {}  # apart: one of several is heard at a time
        self._room = spec.cache_mib * 2**20

    def __len__(self) -> int:
        """Samples in the split; positions go on past it, into the next epoch."""
        return len(self.reader)

    def __getitem__(self, position: int) -> Sample:
        _, shard, row = self.order.locate(position)
        decoded = self._cache.get((shard, row)) or self._decode(shard, row)
        text, target = (
            self._caption(decoded, position, spec, stream)
            for spec, stream in ((self.spec.text, "caption"), (self.spec.target, "target"))
        )
        sound, labels = self._sound(shard, row, position), self._labels(decoded)
        return Sample(decoded.key, position, decoded.image, text, sound, target, labels)

    def _decode(self, shard: int, row: int) -> Decoded:
        spec = self.spec
        labels = spec.labels.values()
        read = {label.member for label in labels if not label.optional}
        read |= {text.member for text in (spec.text, spec.target) if text is not None}
        wanted = sorted(read if spec.image is None else {*read, spec.image.member})
        perhaps = {label.member for label in labels} - set(wanted)
        raw = self._read(shard, row, wanted, everything=bool(perhaps))

        def value(member: str) -> Any:
            return decode(member, raw.members[member], f"{raw.key}.{member}")

        texts = read | (perhaps & raw.members.keys())
        image = None if spec.image is None else spec.image.transform(value(spec.image.member))
        decoded = Decoded(raw.key, image, {member: value(member) for member in texts})
        # A parsed json member takes several times the room of its text.
        size = (0 if image is None else image.nbytes) + 8 * sum(len(raw.members[member]) for member in texts)
        if self._has_room(size):
            self._cache[shard, row] = decoded
        return decoded

    def _sound(self, shard: int, row: int, position: int) -> np.ndarray | None:
        """One of the sounds in training, the first in evaluation; only that one is decoded."""
        spec = self.spec.audio
        if spec is None:
            return None
        drawn = generator(self.seed, "sound", position) if self.training and len(spec.members) > 1 else None
        member = spec.members[0 if drawn is None else int(drawn.integers(len(spec.members)))]
        cached = self._sounds.get((shard, row, member))
        if cached is not None:
            return cached
        raw = self._read(shard, row, [member])
        sound = decode_sound(raw.members[member], f"{raw.key}.{member}", spec.transform.seconds)
        samples = spec.transform(sound)
        if self._has_room(samples.nbytes):
            self._sounds[shard, row, member] = samples
        return samples

    def _read(self, shard: int, row: int, wanted: list[str], everything: bool = False) -> RawSample:
        """A sample's bytes, with all that is wanted.

        Raises:
            InputError: the sample has no such member.
        """
        # A member that a whole shard lacks may not be asked for by name.
        raw = self.reader.read(shard, row, None if everything else wanted)
        missing = [member for member in wanted if member not in raw.members]
        if missing:
            raise InputError(
                f"{self.spec.source}: sample '{raw.key}' has no member '.{missing[0]}', which data asks for; "
                f"it has {', '.join(sorted(self.reader.read(shard, row).members))}."
            )
        return raw

    def _has_room(self, size: int) -> bool:
        """Whether the cache takes so many bytes more; they count then."""
        fits = size <= self._room
        self._room -= size if fits else 0
        return fits

    def _caption(self, decoded: Decoded, position: int, spec: TextInputSpec | None, stream: str) -> str | None:
        if spec is None:
            return None
        chosen = (self.training and spec.training_caption) or spec.caption
        return chosen.choose(decoded.members[spec.member], generator(self.seed, stream, position), decoded.key)

    def _labels(self, decoded: Decoded) -> dict[str, int]:
        labels: dict[str, int] = {}
        for name, spec in self.spec.labels.items():
            value = lookup(decoded.members.get(spec.member), spec.field, decoded.key, spec.optional)
            names = self.classes[name]
            if value is None and spec.optional:
                labels[name] = -1
            elif isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names):
                labels[name] = value
            elif value in names:
                labels[name] = names.index(value)
            else:
                raise InputError(
                    f"{decoded.key}: the label '{name}' is {value!r:.60}, which is none of the {len(names)} classes in "
                    f"{spec.classes}.{nearest(str(value), names)}"
                    + (" For samples without a label, set LabelInputSpec.optional." if value is None else "")
                )
        return labels

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}, "_sounds": {}, "_room": self.spec.cache_mib * 2**20}


class Collate:
    """Samples to a Batch: images stacked and, in training, augmented; sounds padded; texts encoded."""

    def __init__(self, spec: DataSpec, encoders: Mapping[str, TextEncoder], seed: int, training: bool) -> None:
        self.augment = spec.image.augment if training and spec.image is not None else ()
        self.audio = spec.audio
        self.encoders, self.seed, self.training = encoders, seed, training

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        positions = [sample.position for sample in samples]
        image = None
        pictures = [sample.image for sample in samples if sample.image is not None]
        if pictures:
            stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()  # B 3 H W
            image = augment(stacked, self.augment, self.seed, positions)
        labels = {
            name: torch.tensor([sample.labels[name] for sample in samples], dtype=torch.int64)
            for name in samples[0].labels
        }
        keys = tuple(sample.key for sample in samples)
        audio = None if self.audio is None else self._sounds(self.audio, samples, positions)
        text, target = self._encode("text", samples), self._encode("target", samples)
        return Batch(keys, labels, image, text, audio, target, torch.tensor(positions))

    def _sounds(self, spec: AudioInputSpec, samples: Sequence[Sample], positions: list[int]) -> Audio:
        sounds = [sample.audio for sample in samples if sample.audio is not None]
        rate = spec.transform.rate
        if not self.training:
            return pad_sounds(sounds, rate)
        changed = augment_sounds(sounds, spec.augment, rate, self.seed, positions)
        audio = pad_sounds([sound[: spec.transform.most] for sound in changed], rate)
        return (
            audio if spec.spec_augment is None else audio._replace(hidden=spec.spec_augment.draw(self.seed, positions))
        )

    def _encode(self, field_name: str, samples: Sequence[Sample]) -> Text | None:
        texts = [text for sample in samples if (text := getattr(sample, field_name)) is not None]
        return self.encoders[field_name].encode(texts) if texts and field_name in self.encoders else None


def pad_sounds(sounds: Sequence[np.ndarray], rate: int) -> Audio:
    """Waveforms as rows, zero past their ends.

    Rows are of round lengths: of fewer kinds, and with room for a last frame that reaches past its sound.
    """
    lengths = [len(sound) for sound in sounds]
    samples = torch.zeros(len(sounds), -(-max(lengths) // 1024) * 1024)  # B S
    for row, sound in zip(samples, sounds, strict=True):
        row[: len(sound)] = torch.from_numpy(sound)
    return Audio(samples, torch.tensor(lengths, dtype=torch.int64), rate)


class PositionBatches(Sampler[list[int]]):
    """The positions of some batches, one after the other; of several ranks, those in one's own lanes.

    Position p belongs to lane p mod lanes, and their number is a multiple of the ranks'.

    Its length is that of the whole run, with the batches before ``start``: Lightning takes up its own count of batches
    where a resumed run does, and would otherwise end its epoch too early and begin again at ``start``.
    """

    def __init__(self, start: int, stop: int, batch_size: int, rank: int = 0, ranks: int = 1) -> None:
        self.start, self.stop, self.batch_size, self.rank, self.ranks = start, stop, batch_size, rank, ranks

    def __len__(self) -> int:
        return -(-self.stop // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(self.start, self.stop, self.batch_size):
            batch = range(first, min(first + self.batch_size, self.stop))
            yield [position for position in batch if position % self.ranks == self.rank]


def training_loader(
    spec: DataSpec,
    encoders: Mapping[str, TextEncoder],
    seed: int,
    first_step: int,
    steps: int,
    rank: int = 0,
    ranks: int = 1,
) -> DataLoader[Sample]:
    """The batches of updates ``first_step`` to ``steps - 1``: update u covers positions u × batch_size onwards.

    Of several ranks, each reads its part of every batch.
    """
    dataset = SampleDataset(spec, spec.train, spec.order, seed, training=True)
    if len(dataset) < 1:
        raise InputError(f"{spec.source}: the split '{spec.train}' has no samples.")
    first, last = first_step * spec.batch_size, steps * spec.batch_size
    batches = PositionBatches(first, last, spec.batch_size, rank, ranks)
    return _loader(dataset, batches, Collate(spec, encoders, seed, training=True), spec.workers)


def evaluation_loader(spec: DataSpec, split: str, encoders: Mapping[str, TextEncoder]) -> DataLoader[Sample]:
    """Every sample of a split once, in the shards' order, as it is."""
    dataset = SampleDataset(spec, split, OrderSpec(shuffle=False), seed=0, training=False)
    batches = PositionBatches(0, len(dataset), spec.evaluation_batch_size)
    # Held-out splits are read between training steps: a second set of workers would fight over the same cores.
    return _loader(dataset, batches, Collate(spec, encoders, 0, training=False), workers=0)


def _loader(dataset: SampleDataset, batches: PositionBatches, collate: Collate, workers: int) -> DataLoader[Sample]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        # Its own generator: the loader would otherwise draw from the global stream that dropout uses.
        generator=torch.Generator().manual_seed(0),
    )


def read_classes(path: str | Path) -> list[str]:
    """Class names, one a line.

    Raises:
        InputError: no such file, no names, or a name twice.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{path}: the class names cannot be read: {reason}.") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise InputError(f"{path}: there are no class names in it; write one a line.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{path}: the class '{twice[0]}' is there more than once.")
    return names
