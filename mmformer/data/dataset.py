"""From a position in the sample order to a sample, and from samples to a Batch.

The order, the augmentations and the captions are functions of (seed, position). A loader therefore has no state: it is
made to begin at any position, and gives the same batches whatever its number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from mmformer.data.augment import AugmentationSpec, augment
from mmformer.data.caption import CaptionSpec, FieldCaptionSpec, lookup
from mmformer.data.decode import decode, resize
from mmformer.data.manifest import Manifest
from mmformer.data.order import Order, OrderSpec
from mmformer.data.seeding import generator
from mmformer.data.shards import ShardReader
from mmformer.errors import InputError, nearest
from mmformer.spec import require
from mmformer.tokenizers.text import TextEncoder
from mmformer.types import Batch


@dataclass(frozen=True)
class ImageTransformSpec:
    """What makes a picture of any size into one that the model reads. A bundle carries it.

    Attributes:
        size: (height, width) in pixels.
        fit: ``pad`` keeps all of the picture and its proportions, ``crop`` its proportions, ``squash`` all of it.
        fill: the colour, 0 to 255, that ``pad`` fills with; only for ``pad``.
    """

    size: tuple[int, int] = (224, 224)
    fit: Literal["pad", "crop", "squash"] = "pad"
    fill: tuple[int, int, int] = (255, 255, 255)

    def __post_init__(self) -> None:
        require(min(self.size) >= 1, self, "size", "at least 1 pixel in height and width")
        require(all(0 <= value <= 255 for value in self.fill), self, "fill", "0 to 255 in each channel")
        filled = self.fit == "pad" or self.fill == ImageTransformSpec.fill
        require(filled, self, "fill", f"left alone where fit is '{self.fit}', which fills nothing")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 H W 3 of any size -> uint8 of this size."""
        return resize(image, self.size, self.fit, self.fill)


@dataclass(frozen=True)
class ImageInputSpec:
    """A shard's images.

    Attributes:
        member: extension of the member that holds the picture.
        transform: to the model's size.
        augment: in training, in this order.
    """

    member: str = "png"
    transform: ImageTransformSpec = field(default_factory=ImageTransformSpec)
    augment: tuple[AugmentationSpec, ...] = ()


@dataclass(frozen=True)
class TextInputSpec:
    """A shard's texts.

    Attributes:
        member: extension of the member that holds them, json or txt.
        caption: in evaluation, and in training unless ``training_caption`` is given.
        training_caption: in training.
    """

    member: str = "json"
    caption: CaptionSpec = field(default_factory=FieldCaptionSpec)
    training_caption: CaptionSpec | None = None


@dataclass(frozen=True)
class LabelInputSpec:
    """A class label.

    Attributes:
        field: dotted path of keys in the json member, to a class name or number.
        classes: a file of class names, one a line, whose order numbers them.
        member: extension of the member that holds the field; ``cls`` holds a number and needs no field.
        optional: a sample without the member or the field, or with null there, has no label (-1): losses and scores
            leave it out. False: such a sample is refused.
    """

    classes: str
    field: str = ""
    member: str = "json"
    optional: bool = False


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
        if self.image is None and self.text is None:
            raise InputError("data.image and data.text are both absent: say how to read one of them at least.")


class Sample(NamedTuple):
    """One sample, decoded, before augmentation."""

    key: str
    position: int
    image: np.ndarray | None  # uint8 H W 3
    caption: str | None
    labels: dict[str, int]


class Decoded(NamedTuple):
    """What does not depend on the position, and is worth keeping."""

    key: str
    image: np.ndarray | None
    members: dict[str, Any]


class SampleDataset(Dataset[Sample]):
    """The samples of a split by position in their order."""

    def __init__(self, spec: DataSpec, split: str, order: OrderSpec, seed: int, training: bool) -> None:
        self.spec, self.seed, self.training = spec, seed, training
        self.reader = ShardReader(Manifest.load(spec.source), split)
        self.order: Order = order.build(self.reader.counts, seed)
        self.classes = {name: read_classes(label.classes) for name, label in spec.labels.items()}
        self._cache: dict[tuple[int, int], Decoded] = {}
        self._room = spec.cache_mib * 2**20

    def __len__(self) -> int:
        """Samples in the split; positions go on past it, into the next epoch."""
        return len(self.reader)

    def __getitem__(self, position: int) -> Sample:
        place = self.order.locate(position)
        decoded = self._cache.get((place.shard, place.row)) or self._decode(place.shard, place.row)
        return Sample(decoded.key, position, decoded.image, self._caption(decoded, position), self._labels(decoded))

    def _decode(self, shard: int, row: int) -> Decoded:
        image_spec, text_spec = self.spec.image, self.spec.text
        labels = self.spec.labels.values()
        needed = {label.member for label in labels if not label.optional} | ({text_spec.member} if text_spec else set())
        wanted = sorted(needed | ({image_spec.member} if image_spec else set()))
        perhaps = {label.member for label in labels} - set(wanted)
        # A member that a whole shard lacks may not be asked for by name.
        raw = self.reader.read(shard, row, None if perhaps else wanted)
        texts = needed | (perhaps & raw.members.keys())
        missing = [member for member in wanted if member not in raw.members]
        if missing:
            raise InputError(
                f"{self.spec.source}: sample '{raw.key}' has no member '.{missing[0]}', which data asks for; "
                f"it has {', '.join(sorted(self.reader.read(shard, row).members))}."
            )
        members = {member: decode(member, raw.members[member], f"{raw.key}.{member}") for member in texts}
        image = None
        if image_spec is not None:
            picture = decode(image_spec.member, raw.members[image_spec.member], f"{raw.key}.{image_spec.member}")
            image = image_spec.transform(picture)
        decoded = Decoded(raw.key, image, members)
        # A parsed json member takes several times the room of its text.
        size = (0 if image is None else image.nbytes) + 8 * sum(len(raw.members[member]) for member in texts)
        if size <= self._room:
            self._room -= size
            self._cache[shard, row] = decoded
        return decoded

    def _caption(self, decoded: Decoded, position: int) -> str | None:
        if self.spec.text is None:
            return None
        spec = (self.training and self.spec.text.training_caption) or self.spec.text.caption
        random = generator(self.seed, "caption", position)
        return spec.choose(decoded.members[self.spec.text.member], random, decoded.key)

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
        return {**self.__dict__, "_cache": {}, "_room": self.spec.cache_mib * 2**20}


class Collate:
    """Samples to a Batch: images stacked and, in training, augmented; captions encoded."""

    def __init__(self, spec: DataSpec, encoder: TextEncoder | None, seed: int, training: bool) -> None:
        self.augment = spec.image.augment if training and spec.image is not None else ()
        self.encoder, self.seed = encoder, seed

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        image = text = None
        if samples[0].image is not None:
            stacked = torch.from_numpy(np.stack([sample.image for sample in samples if sample.image is not None]))
            image = stacked.permute(0, 3, 1, 2).contiguous()  # B 3 H W
            image = augment(image, self.augment, self.seed, [sample.position for sample in samples])
        if samples[0].caption is not None and self.encoder is not None:
            text = self.encoder.encode([sample.caption for sample in samples if sample.caption is not None])
        labels = {
            name: torch.tensor([sample.labels[name] for sample in samples], dtype=torch.int64)
            for name in samples[0].labels
        }
        return Batch(tuple(sample.key for sample in samples), labels, image, text)


class PositionBatches(Sampler[list[int]]):
    """The positions of some batches, one after the other.

    Its length is that of the whole run, with the batches before ``start``: Lightning takes up its own count of batches
    where a resumed run does, and would otherwise end its epoch too early and begin again at ``start``.
    """

    def __init__(self, start: int, stop: int, batch_size: int) -> None:
        self.start, self.stop, self.batch_size = start, stop, batch_size

    def __len__(self) -> int:
        return -(-self.stop // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(self.start, self.stop, self.batch_size):
            yield list(range(first, min(first + self.batch_size, self.stop)))


def training_loader(
    spec: DataSpec, encoder: TextEncoder | None, seed: int, first_step: int, steps: int
) -> DataLoader[Sample]:
    """The batches of updates ``first_step`` to ``steps - 1``: update u covers positions u × batch_size onwards."""
    dataset = SampleDataset(spec, spec.train, spec.order, seed, training=True)
    if len(dataset) < 1:
        raise InputError(f"{spec.source}: the split '{spec.train}' has no samples.")
    batches = PositionBatches(first_step * spec.batch_size, steps * spec.batch_size, spec.batch_size)
    return _loader(dataset, batches, Collate(spec, encoder, seed, training=True), spec.workers)


def evaluation_loader(spec: DataSpec, split: str, encoder: TextEncoder | None) -> DataLoader[Sample]:
    """Every sample of a split once, in the shards' order, as it is."""
    dataset = SampleDataset(spec, split, OrderSpec(shuffle=False), seed=0, training=False)
    batches = PositionBatches(0, len(dataset), spec.evaluation_batch_size)
    # Held-out splits are read between training steps: a second set of workers would fight over the same cores.
    return _loader(dataset, batches, Collate(spec, encoder, 0, training=False), workers=0)


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
