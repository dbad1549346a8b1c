"""How a shard's members become the values of a batch: one spec a modality."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

import mmformer.data.augment_policy  # noqa: F401  # its specs' names have to be known to YAML
from mmformer.data.augment import AugmentationSpec
from mmformer.data.augment_sound import SoundAugmentationSpec, SpecAugmentSpec
from mmformer.data.caption import CaptionSpec, FieldCaptionSpec
from mmformer.data.crop import RandomResizedCropSpec
from mmformer.data.image_transform import ImageTransformSpec
from mmformer.data.mix import MixSpec
from mmformer.data.seeding import generator
from mmformer.data.sound import AudioTransformSpec
from mmformer.spec import require


@dataclass(frozen=True)
class ImageInputSpec:
    """A shard's images.

    Attributes:
        member: extension of the member that holds the picture; of several, such as ``jpg;png``, the first that a sample
            has.
        transform: to the model's size.
        augment: in training, in this order.
        crop: in training, a random part in place of the whole, before it is augmented; None: the whole, by the
            transform.
        mix: in training, another picture that is mixed in, with its labels; None: none.
    """

    member: str = "png"
    transform: ImageTransformSpec = field(default_factory=ImageTransformSpec)
    augment: tuple[AugmentationSpec, ...] = ()
    crop: RandomResizedCropSpec | None = None
    mix: MixSpec | None = None

    def __post_init__(self) -> None:
        require(all(self.members), self, "member", "an extension, or several with ; between them")
        alike = self.mix is None or self.transform.fit != "native"
        require(alike, self, "mix", "left out where transform.fit is 'native': pictures of one size are mixed")

    @property
    def members(self) -> list[str]:
        """The extensions, the first one first."""
        return self.member.split(";")

    def choose(self, members: Collection[str]) -> str:
        """Which of a sample's members holds its picture; the first that might, where none does."""
        return next((member for member in self.members if member in members), self.members[0])


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
class AudioInputSpec:
    """A shard's sounds.

    Attributes:
        members: extensions of the members that hold a sound each: in training one of them is chosen at random, in
            evaluation the first is taken.
        transform: to the model's rate and length.
        part: of a sound that is longer than the transform's seconds, what training hears: its ``first`` so many, as
            evaluation does, or so many anywhere in it, at ``random``.
        augment: of the waveform, in training, in this order.
        spec_augment: in training, what is hidden of the spectrogram; None: nothing.
    """

    members: tuple[str, ...] = ("wav",)
    transform: AudioTransformSpec = field(default_factory=AudioTransformSpec)
    part: Literal["first", "random"] = "first"
    augment: tuple[SoundAugmentationSpec, ...] = ()
    spec_augment: SpecAugmentSpec | None = None

    def __post_init__(self) -> None:
        distinct = len(self.members) >= 1 and len(set(self.members)) == len(self.members)
        require(distinct, self, "members", "different extensions, at least one")

    def heard(self, seed: int, position: int) -> str:
        """The member that training hears at a position."""
        if len(self.members) == 1:
            return self.members[0]
        return self.members[int(generator(seed, "sound", position).integers(len(self.members)))]

    def place(self, seed: int, position: int) -> float:
        """Where in a longer sound a random part lies at a position: from 0, its beginning, to 1, its end."""
        return float(generator(seed, "sound.part", position).random())


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
