"""How a shard's members become the values of a batch: one spec a modality."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

import mmformer.data.augment_policy  # noqa: F401  # its specs' names have to be known to YAML
from mmformer.data.augment import AugmentationSpec
from mmformer.data.augment_sound import SoundAugmentationSpec, SpecAugmentSpec
from mmformer.data.caption import CaptionSpec, FieldCaptionSpec
from mmformer.data.crop import RandomResizedCropSpec
from mmformer.data.decode import resize
from mmformer.data.mix import MixSpec
from mmformer.data.native import native_size
from mmformer.data.seeding import generator
from mmformer.data.sound import AudioTransformSpec
from mmformer.spec import require


@dataclass(frozen=True)
class ImageTransformSpec:
    """What makes a picture of any size into one that the model reads. A bundle carries it.

    Attributes:
        size: (height, width) in pixels. With ``native`` it is a budget: a picture has at most as many patches as one of
            this size.
        fit: ``pad`` keeps all of the picture and its proportions, ``crop`` its proportions, ``squash`` all of it, and
            pictures are of one size; ``native`` keeps all of it and its proportions, but for sides being rounded up to
            whole patches, and pictures are of different sizes.
        fill: the colour, 0 to 255, that ``pad`` fills with; only for ``pad``.
        patch: side of a patch in pixels, that of the model's ImagePatchesSpec; only for ``native``.
        enlarge: scale pictures that are below the budget up to it; only for ``native``.
    """

    size: tuple[int, int] = (224, 224)
    fit: Literal["pad", "crop", "squash", "native"] = "pad"
    fill: tuple[int, int, int] = (255, 255, 255)
    patch: int | None = None
    enlarge: bool = False

    def __post_init__(self) -> None:
        require(min(self.size) >= 1, self, "size", "at least 1 pixel in height and width")
        require(all(0 <= value <= 255 for value in self.fill), self, "fill", "0 to 255 in each channel")
        filled = self.fit == "pad" or self.fill == ImageTransformSpec.fill
        require(filled, self, "fill", f"left alone where fit is '{self.fit}', which fills nothing")
        native = self.fit == "native"
        require(native or self.patch is None, self, "patch", f"left out where fit is '{self.fit}'")
        divides = self.patch is not None and self.patch >= 1 and not any(side % self.patch for side in self.size)
        require(not native or divides, self, "patch", f"a divisor of both sides of the size, {self.size}")
        require(native or not self.enlarge, self, "enlarge", f"left out where fit is '{self.fit}'")

    @property
    def budget(self) -> int | None:
        """Patches that a picture has at most, where pictures are of different sizes."""
        return None if self.patch is None else self.size[0] // self.patch * (self.size[1] // self.patch)

    def target(self, height: int, width: int) -> tuple[int, int]:
        """The size that a picture of (height, width), or a part of one, is made into."""
        if self.patch is None or self.budget is None:
            return self.size
        return native_size(height, width, self.budget, self.patch, self.enlarge)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 H W 3 of any size -> uint8 of its target's."""
        fit = "squash" if self.fit == "native" else self.fit
        return resize(image, self.target(*image.shape[:2]), fit, self.fill)


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
