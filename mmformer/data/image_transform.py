"""What makes a picture of any size into one that a model reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from mmformer.data.decode import Transparency
from mmformer.data.native import native_size
from mmformer.data.resize import Interpolation, Resampler, Resampling, Rounding, resize
from mmformer.spec import require


@dataclass(frozen=True)
class ImageTransformSpec:
    """What makes a picture of any size into one that the model reads. A bundle carries it.

    Attributes:
        size: (height, width) in pixels. With ``native`` it is a budget: a picture has at most as many patches as one of
            this size.
        fit: ``pad`` keeps all of the picture and its proportions, ``crop`` its proportions, ``squash`` all of it, and
            ``square`` fills it up to a square first and squashes that (LLaVA); pictures are of one size. ``native``
            keeps all of it and its proportions, but for sides being rounded up to whole patches, and pictures are of
            different sizes.
        fill: the colour, 0 to 255, that ``pad`` and ``square`` fill with; only for those.
        patch: side of a patch in pixels, that of the model's ImagePatchesSpec; only for ``native``.
        enlarge: scale pictures that are below the budget up to it; only for ``native``.
        resize: what the whole picture is made to fit, in whole pixels, before the centre of ``size`` is cut out: the
            two steps of torchvision, transformers, timm and open_clip. Its shorter side has this length, for ``crop``,
            or its longer one, for ``pad``; both have, for ``squash`` and ``square``. None: one step, in which a crop
            may begin within a pixel.
        rounding: where the centre would begin half a pixel in: the pixel before it (``down``: transformers), or the
            ``even`` one (torchvision, timm, open_clip); only where ``resize`` leaves something to cut.
        interpolation: of the pixels, antialiased but for ``nearest``.
        resampler: whose arithmetic: ``torch`` is that of transformers' processors on tensors, a unit or two of 255 from
            ``pillow`` on some pixels, and has no ``lanczos``.
        transparency: what shows through a picture's transparent parts: ``white``, or (``ignored``) the colours that
            are stored there, as Pillow's ``convert("RGB")`` has it.
    """

    size: tuple[int, int] = (224, 224)
    fit: Literal["pad", "crop", "squash", "square", "native"] = "pad"
    fill: tuple[int, int, int] = (255, 255, 255)
    patch: int | None = None
    enlarge: bool = False
    resize: tuple[int, int] | None = None
    rounding: Rounding = "down"
    interpolation: Interpolation = "bicubic"
    resampler: Resampler = "pillow"
    transparency: Transparency = "white"

    def __post_init__(self) -> None:
        require(min(self.size) >= 1, self, "size", "at least 1 pixel in height and width")
        require(all(0 <= value <= 255 for value in self.fill), self, "fill", "0 to 255 in each channel")
        filled = self.fit in ("pad", "square") or self.fill == ImageTransformSpec.fill
        require(filled, self, "fill", f"left alone where fit is '{self.fit}', which fills nothing")
        native = self.fit == "native"
        require(native or self.patch is None, self, "patch", f"left out where fit is '{self.fit}'")
        divides = self.patch is not None and self.patch >= 1 and not any(side % self.patch for side in self.size)
        require(not native or divides, self, "patch", f"a divisor of both sides of the size, {self.size}")
        require(native or not self.enlarge, self, "enlarge", f"left out where fit is '{self.fit}'")
        self._check_resize()
        for name, kind in (("interpolation", Interpolation), ("resampler", Resampler), ("transparency", Transparency)):
            require(getattr(self, name) in get_args(kind), self, name, f"one of {', '.join(get_args(kind))}")
        by_torch = self.resampler == "torch"
        kernels = "nearest, bilinear or bicubic where resampler is 'torch'"
        require(not by_torch or self.interpolation != "lanczos", self, "interpolation", kernels)
        within = by_torch and self.fit == "crop" and self.resize is None
        require(not within, self, "resampler", "'pillow' where fit is 'crop' without resize, which cuts within pixels")

    def _check_resize(self) -> None:
        resize = self.resize or self.size
        require(self.fit != "native" or self.resize is None, self, "resize", "left out where fit is 'native'")
        covers = resize[0] >= self.size[0] and resize[1] >= self.size[1]
        require(covers, self, "resize", f"at least the size, {self.size}, that is cut out of it")
        steps = self.resize is None or self.resize != self.size or self.fit in ("crop", "pad")
        require(steps, self, "resize", f"left out where it is the size and fit is '{self.fit}': nothing is cut")
        require(self.rounding in get_args(Rounding), self, "rounding", f"one of {', '.join(get_args(Rounding))}")
        cuts = self.resize is not None and (self.fit == "crop" or self.resize != self.size)
        require(cuts or self.rounding == "down", self, "rounding", "left alone where resize leaves nothing to cut")

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
        resampling = Resampling(self.interpolation, self.resampler)
        size = self.target(*image.shape[:2])
        return resize(image, size, fit, self.fill, self.resize, self.rounding, resampling)
