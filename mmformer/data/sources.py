"""What a run reads: one folder of shards, or several that are mixed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from mmformer.data.buckets import BucketSpec
from mmformer.data.curriculum import CurriculumSpec
from mmformer.data.inputs import AudioInputSpec, ImageInputSpec, LabelInputSpec, TextInputSpec
from mmformer.data.mixture import Mixture
from mmformer.data.order import OrderSpec
from mmformer.data.remote import CacheSpec
from mmformer.errors import InputError
from mmformer.spec import require
from mmformer.types import MODALITIES


@dataclass(frozen=True)
class SourceSpec:
    """What is read of one folder of shards.

    Attributes:
        source: a folder of shards with their manifest; a pattern for several (``data/{a,b}``, ``data/part-{00..15}``,
            ``data/*``); a URL of such a folder, as fsspec opens it, or a pattern for several; or a folder of folders of
            files, one for each class, whose samples have the class's number as ``cls`` and its name as ``txt``.
        train: name of the split to train on.
        image: how images are read; None: not.
        text: how texts are read; None: not.
        audio: how sounds are read; None: not.
        target: how the texts are read that decoders learn to write, where they write ``target``; None: not.
        labels: by name.
        weight: its share of the training samples, in proportion to the other sources' weights.
        curriculum: easy samples first; None: all from the start.
    """

    source: str
    train: str = "train"
    image: ImageInputSpec | None = None
    text: TextInputSpec | None = None
    audio: AudioInputSpec | None = None
    target: TextInputSpec | None = None
    labels: dict[str, LabelInputSpec] = field(default_factory=dict)
    weight: float = 1.0
    curriculum: CurriculumSpec | None = None

    def __post_init__(self) -> None:
        require(self.weight > 0, self, "weight", "positive")

    @property
    def holds(self) -> tuple[str, ...]:
        """The fields of Batch that it fills."""
        return tuple(name for name in (*MODALITIES, "target") if getattr(self, name) is not None)

    @property
    def kind(self) -> tuple[Any, ...]:
        """Sources of one kind fill the same fields of a batch, and so are mixed within it."""
        return self.holds, tuple(sorted(self.labels))


@dataclass(frozen=True)
class DataSpec(SourceSpec):
    """What a run reads: a source, and what is mixed with it in training.

    Sources that hold the same things are mixed within every batch; those that hold other things (image and text here,
    sound and text there) take turns by whole batches. What is held out is read of the first source alone.

    Attributes:
        also: further sources to train on, by name.
        validation: split that is looked at while training; None: none.
        test: split for the end; None: none.
        batch_size: samples of one update, over all ranks and micro-batches.
        evaluation_batch_size: samples of one evaluation batch.
        order: of the training samples of each source.
        buckets: whether training samples of about one length share an update, for less padding; None: they are taken as
            they come.
        on_damage: what becomes of a training sample that cannot be used (a picture, sound or text that cannot be
            decoded, a member or caption that is not there): ``refuse`` ends the run, ``skip`` has another one stand in,
            the same one whenever the run is repeated; those are counted, and ``skipped.tsv`` in the run's output lists
            them. So it is with all samples of a shard that is missing, was changed, or cannot be reached. What is
            measured on is never skipped.
        most_skipped: different samples that a run may skip, in all processes; where there are more, all of them end
            after the same update. Left alone where none is skipped.
        workers: processes that read and decode; 0: the training process itself. The batches do not depend on it.
        cache_mib: memory, in each process, for decoded samples, in MiB; sources have equal parts of it.
        copies: of shards that are at URLs, where they are kept; left alone where there are none.
    """

    also: dict[str, SourceSpec] = field(default_factory=dict)
    validation: str | None = None
    test: str | None = None
    batch_size: int = 256
    evaluation_batch_size: int = 256
    order: OrderSpec = field(default_factory=OrderSpec)
    buckets: BucketSpec | None = None
    on_damage: Literal["refuse", "skip"] = "refuse"
    most_skipped: int = 10_000
    workers: int = 0
    cache_mib: int = 256
    copies: CacheSpec = field(default_factory=CacheSpec)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batch_size >= 1, self, "batch_size", "at least 1")
        require(self.evaluation_batch_size >= 1, self, "evaluation_batch_size", "at least 1")
        require(self.most_skipped >= 0, self, "most_skipped", "at least 0")
        counted = self.on_damage == "skip" or self.most_skipped == DataSpec.most_skipped
        require(counted, self, "most_skipped", "left alone unless on_damage is skip")
        require(self.workers >= 0, self, "workers", "at least 0")
        require(self.cache_mib >= 0, self, "cache_mib", "at least 0")
        alone = self.also or self.weight == SourceSpec.weight
        require(bool(alone), self, "weight", "left alone where there is nothing else to mix with (data.also)")
        for where, source in self.named.items():
            if not {"image", "text", "audio"} & set(source.holds):
                raise InputError(
                    f"{where}.image, {where}.text and {where}.audio are all absent: say how to read one of them."
                )
        self._require_agreement()
        if self.also:
            self.mixture()
        if self.buckets is not None:
            self._require_lengths(self.buckets.by)

    @property
    def named(self) -> dict[str, SourceSpec]:
        """Every source by its place in a run file."""
        return {"data": self, **{f"data.also.{name}": source for name, source in self.also.items()}}

    @property
    def filled(self) -> set[str]:
        """The fields of Batch that some source fills."""
        return {name for source in self.named.values() for name in source.holds}

    @property
    def all_labels(self) -> dict[str, LabelInputSpec]:
        """The labels of all sources."""
        return {name: label for source in reversed(self.named.values()) for name, label in source.labels.items()}

    def shared(self, name: str) -> Any:
        """How a field of Batch is read, of the first source that fills it; None: none does."""
        read = (getattr(source, name) for source in self.named.values())
        return next((spec for spec in read if spec is not None), None)

    def mixture(self) -> Mixture:
        """Which source stands where.

        Raises:
            InputError: weights, or a batch size, that cannot be mixed.
        """
        sources = self.each()
        weights = [source.weight for source in self.named.values()]
        return Mixture(weights, [source.kind for source in sources], self.batch_size, self.order.lanes)

    def each(self) -> list[DataSpec]:
        """Every source as if it were alone."""
        fields = [field.name for field in dataclasses.fields(SourceSpec)]
        own = {"also": {}, "weight": SourceSpec.weight, "buckets": None, "cache_mib": self.cache_mib // len(self.named)}
        return [
            dataclasses.replace(self, **{name: getattr(source, name) for name in fields} | own)
            for source in self.named.values()
        ]

    def _require_lengths(self, field_name: str) -> None:
        """Refuse buckets by what has no lengths, or which no update is made of."""
        if field_name not in self.filled:
            raise InputError(f"data.buckets.by is {field_name}, but data.{field_name} is absent: take what is read.")
        if field_name == "image" and self.shared("image").transform.fit != "native":
            raise InputError(
                f"data.buckets.by is image, but data.image.transform.fit is '{self.shared('image').transform.fit}', "
                f"which makes all pictures of one size: leave buckets out, or set fit to native."
            )
        if self.batch_size % self.order.lanes:
            raise InputError(
                f"data.batch_size is {self.batch_size}, which data.order.lanes, {self.order.lanes}, does not divide, "
                f"but buckets are made of each lane by itself: take a multiple of {self.order.lanes}."
            )

    def _require_agreement(self) -> None:
        """Refuse sources that would hand the model different things under one name: a bundle says each once."""
        said: dict[str, tuple[str, object]] = {}
        for where, source in self.named.items():
            parts: dict[str, object] = {}
            for name in ("image", "audio"):
                if name in source.holds:
                    parts[f"{name}.transform"] = getattr(source, name).transform
            parts |= {f"labels.{name}.classes": label.classes for name, label in source.labels.items()}
            for name, value in parts.items():
                first, other = said.setdefault(name, (where, value))
                if other != value:
                    raise InputError(
                        f"{where}.{name} is {value}, but {first}.{name} is {other}: the model reads both in one way. "
                        f"Give both the same."
                    )
