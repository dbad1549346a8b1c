"""From a position in the sample order to a sample: of one source, and of all that a run mixes.

The order, the augmentations and the captions are functions of (seed, position): there is no state but a cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from mmformer.data.buckets import Buckets, Measured
from mmformer.data.caption import lookup
from mmformer.data.classes import read_classes
from mmformer.data.collate import Other, Sample
from mmformer.data.curriculum import Curriculum
from mmformer.data.damage import MOST, DamageError, ShardError, damage
from mmformer.data.decode import decode
from mmformer.data.inputs import TextInputSpec
from mmformer.data.lengths import length
from mmformer.data.mixture import Place
from mmformer.data.opening import open_samples
from mmformer.data.order import Order, OrderSpec
from mmformer.data.remote import CacheSpec
from mmformer.data.samples import RawSample
from mmformer.data.seeding import derive, generator
from mmformer.data.sound import decode_sound
from mmformer.data.sources import DataSpec
from mmformer.errors import InputError, nearest
from mmformer.spec import require
from mmformer.types import Skipped


class Decoded(NamedTuple):
    """What does not depend on the position, and is worth keeping."""

    key: str
    image: np.ndarray | None
    members: dict[str, Any]  # texts and labels


class SampleDataset(Dataset[Sample]):
    """The samples of one source's split by position in their order.

    Args:
        training: whether to draw what is random in training.
        skips: whether other samples stand in for damaged ones; False: those are errors.
    """

    def __init__(
        self, spec: DataSpec, split: str, order: OrderSpec, seed: int, training: bool, skips: bool = False
    ) -> None:
        self.spec, self.seed, self.training, self.skips = spec, seed, training, skips
        self._crop = spec.image.crop if training and spec.image is not None else None
        self.reader = open_samples(spec.source, split, spec.copies)
        self.order: Order = order.build(self.reader.counts, seed)
        self.classes = {name: read_classes(label.classes) for name, label in spec.labels.items()}
        # Of two classes of one name, the first is meant.
        self._numbers = {
            name: dict(zip(names[::-1], range(len(names))[::-1], strict=True)) for name, names in self.classes.items()
        }
        self._cache: dict[tuple[int, int], Decoded] = {}
        self._sounds: dict[tuple[int, int, str], np.ndarray] = {}  # apart: one of several is heard at a time
        self._room = spec.cache_mib * 2**20

    def __len__(self) -> int:
        """Samples in the split; positions go on past it, into the next epoch."""
        return len(self.reader)

    def __getitem__(self, position: int) -> Sample:
        return self.sample(position, position)

    def sample(self, place: int, position: int) -> Sample:
        """The sample at a place of the order; what is random of it is drawn for a position of the run.

        Raises:
            InputError: it is damaged, and may not be skipped, or too many are in a row.
        """
        skipped: list[Skipped] = []
        while True:
            try:
                return self._sample(place, position)._replace(skipped=tuple(skipped))
            except DamageError as error:
                skipped.append(Skipped(position, self.spec.source, error.key, error.cause, str(error)))
                if not self.skips:
                    hint = " To train without such samples, set data.on_damage to skip." if self.training else ""
                    raise InputError(f"{error}{hint}") from error
                if len(skipped) == MOST:
                    raise InputError(
                        f"{self.spec.source}: {MOST} samples in a row cannot be used, which is no damage here and "
                        f"there: see whether data asks for what they have. Of the last: {error}"
                    ) from error
                place += self.order.spec.lanes * self._turns(error, len(skipped))

    def _turns(self, error: DamageError, number: int) -> int:
        """How much later in its lane the sample is that stands in for one, the first (number 1) or a further one.

        The first is that of the same row an update later: a batch would else have a sample twice. A shard of which none
        can be used is left behind.
        """
        if error.shard is not None:
            return self.order.turns_past(error.shard)
        return -(-self.spec.batch_size // self.order.spec.lanes) if number == 1 else 1

    def _sample(self, place: int, position: int) -> Sample:
        _, shard, row = self.order.locate(place)
        decoded = self._decoded(shard, row)
        text, target = (
            self._caption(decoded, position, spec, stream)
            for spec, stream in ((self.spec.text, "caption"), (self.spec.target, "target"))
        )
        image, sound = self._image(decoded, position, "crop"), self._sound(shard, row, position)
        other = self._other(place, position)
        return Sample(decoded.key, position, image, text, sound, target, self._labels(decoded), other=other)

    def _decoded(self, shard: int, row: int) -> Decoded:
        return self._cache.get((shard, row)) or self._decode(shard, row)

    def _image(self, decoded: Decoded, position: int, stream: str) -> np.ndarray | None:
        """The picture, or a part of it."""
        if decoded.image is None or self._crop is None or self.spec.image is None:
            return decoded.image
        return self._crop(decoded.image, self.spec.image.transform.target, generator(self.seed, stream, position))

    def _other(self, place: int, position: int) -> Other | None:
        """What is mixed into the sample at a place of the order; None: nothing."""
        spec = self.spec.image.mix if self.training and self.spec.image is not None else None
        mixing = None if spec is None else spec.draw(generator(self.seed, "mix", position))
        if mixing is None:
            return None
        _, shard, row = self.order.locate(place + mixing.turns * self.order.spec.lanes)
        decoded = self._decoded(shard, row)
        image = self._image(decoded, position, "mix.crop")
        assert image is not None, "only pictures are mixed"
        return Other(image, self._labels(decoded), mixing)

    def _decode(self, shard: int, row: int) -> Decoded:
        spec = self.spec
        labels = spec.labels.values()
        read = {label.member for label in labels if not label.optional}
        read |= {text.member for text in (spec.text, spec.target) if text is not None}
        pictures = set() if spec.image is None else set(spec.image.members)
        wanted = sorted(read | pictures if len(pictures) < 2 else read)
        perhaps = {label.member for label in labels} - set(wanted)
        raw = self._read(shard, row, wanted, everything=bool(perhaps) or len(pictures) > 1)

        transparency = "white" if spec.image is None else spec.image.transform.transparency

        def value(member: str, kind: str) -> Any:
            with damage(raw.key, f"damaged {kind}"):
                return decode(member, raw.members[member], f"{raw.key}.{member}", transparency)

        texts = read | (perhaps & raw.members.keys())
        image = None
        if spec.image is not None:
            picture = spec.image.choose(raw.members)
            self._require(raw, [picture], shard, row)
            image = value(picture, "picture")
            if self._crop is None:
                image = spec.image.transform(image)
            else:
                image = self._crop.reduce(image, spec.image.transform.size)
        decoded = Decoded(raw.key, image, {member: value(member, "text") for member in texts})
        # A parsed json member takes several times the room of its text.
        size = (0 if image is None else image.nbytes) + 8 * sum(len(raw.members[member]) for member in texts)
        if self._has_room(size):
            self._cache[shard, row] = decoded
        return decoded

    def _sound(self, shard: int, row: int, position: int) -> np.ndarray | None:
        """One of the sounds in training, the first in evaluation; of that one what is kept is decoded."""
        spec = self.spec.audio
        if spec is None:
            return None
        member = spec.heard(self.seed, position) if self.training else spec.members[0]
        cached = self._sounds.get((shard, row, member))
        if cached is not None:
            return cached
        raw = self._read(shard, row, [member])
        varies = self.training and spec.part == "random"
        place = spec.place(self.seed, position) if varies else 0.0
        with damage(raw.key, "damaged sound"):
            sound = decode_sound(raw.members[member], f"{raw.key}.{member}", spec.transform.seconds, place)
        samples = spec.transform(sound)
        whole = len(sound.samples) < int(spec.transform.seconds * sound.rate)
        if (whole or not varies) and self._has_room(samples.nbytes):
            self._sounds[shard, row, member] = samples
        return samples

    def _read(self, shard: int, row: int, wanted: list[str], everything: bool = False) -> RawSample:
        """A sample's bytes, with all that is wanted.

        Raises:
            DamageError: the sample has no such member, or its shard is missing, was changed, or cannot be reached.
            InputError: none of its shard has it.
        """
        # A member that a whole shard lacks may not be asked for by name.
        try:
            raw = self.reader.read(shard, row, None if everything else wanted)
        except ShardError as error:
            raise DamageError(str(error), f"{shard}:{row}", error.cause, shard) from error
        self._require(raw, wanted, shard, row)
        return raw

    def _require(self, raw: RawSample, wanted: list[str], shard: int, row: int) -> None:
        missing = [member for member in wanted if member not in raw.members]
        if missing:
            raise DamageError(
                f"{self.spec.source}: sample '{raw.key}' has no member '.{missing[0]}', which data asks for; "
                f"it has {', '.join(sorted(self.reader.read(shard, row).members))}.",
                raw.key,
                "missing member",
            )

    def _has_room(self, size: int) -> bool:
        """Whether the cache takes so many bytes more; they count then."""
        fits = size <= self._room
        self._room -= size if fits else 0
        return fits

    def _caption(self, decoded: Decoded, position: int, spec: TextInputSpec | None, stream: str) -> str | None:
        if spec is None:
            return None
        chosen = (self.training and spec.training_caption) or spec.caption
        with damage(decoded.key, "no caption"):
            text = chosen.choose(decoded.members[spec.member], generator(self.seed, stream, position), decoded.key)
            if not text or text.isspace():
                raise InputError(f"{decoded.key}.{spec.member}: the caption is empty. Write one, or leave it out.")
        return text

    def _labels(self, decoded: Decoded) -> dict[str, int]:
        labels: dict[str, int] = {}
        for name, spec in self.spec.labels.items():
            value = lookup(decoded.members.get(spec.member), spec.field, decoded.key, spec.optional)
            names = self.classes[name]
            if value is None and spec.optional:
                labels[name] = -1
            elif isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names):
                labels[name] = value
            elif isinstance(value, str) and value in self._numbers[name]:
                labels[name] = self._numbers[name][value]
            else:
                raise InputError(
                    f"{decoded.key}: the label '{name}' is {value!r:.60}, which is none of the {len(names)} classes in "
                    f"{spec.classes}.{nearest(str(value), names)}"
                    + (" For samples without a label, set LabelInputSpec.optional." if value is None else "")
                )
        return labels

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}, "_sounds": {}, "_room": self.spec.cache_mib * 2**20}


class MixedDataset(Dataset[Sample]):
    """The training samples of all sources by position of the run."""

    def __init__(self, spec: DataSpec, seed: int) -> None:
        self.mixture = spec.mixture()
        # The first source's order is the same, whatever is mixed with it.
        seeds = [seed, *(derive(seed, f"source.{name}") for name in spec.also)]
        self.buckets = None if spec.buckets is None else Buckets(spec.buckets, self.mixture, seed)
        self.sources = [
            SampleDataset(each, each.train, each.order, own, training=True, skips=spec.on_damage == "skip")
            for each, own in zip(spec.each(), seeds, strict=True)
        ]
        elsewhere = any(source.reader.elsewhere for source in self.sources)
        require(elsewhere or spec.copies == CacheSpec(), spec, "copies", "left alone where no shard is at a URL")
        self.curricula = [
            None
            if each.curriculum is None
            else Curriculum(each.curriculum, source.reader, each.train, source.order, spec.batch_size)
            for each, source in zip(spec.each(), self.sources, strict=True)
        ]

    def __len__(self) -> int:
        """Samples of all sources; positions go on past it."""
        return sum(map(len, self.sources))

    def __getitem__(self, position: int) -> Sample:
        position, (source, place) = self.place(position)
        return self.sources[source].sample(place, position)._replace(source=source)

    def place(self, position: int) -> tuple[int, Place]:
        """The position whose sample is read for one, where buckets exchange them, and the place of that sample."""
        if self.buckets is not None:
            position = self.buckets.locate(position, self._measure)
        return position, self._locate(position)

    def _locate(self, position: int) -> Place:
        """The source of a position, and the place in its order."""
        source, place = self.mixture.locate(position)
        curriculum = self.curricula[source]
        if curriculum is not None:
            place = curriculum.place(place, position // self.mixture.batch_size)
        return Place(source, place)

    def _measure(self, position: int) -> Measured:
        """What is known of a sample before it is read."""
        assert self.buckets is not None
        source, place = self._locate(position)
        samples = self.sources[source]
        epoch, part, row = samples.order.locate(place)
        field, seed = self.buckets.spec.by, samples.seed
        return Measured(source, epoch, length(samples.spec, field, samples.reader, part, row, seed, position))
