"""Pictures of another size: what of them stays, where, and how their pixels are made of the old ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmformer.data.decode import MAX_PIXELS
from mmformer.errors import InputError, nearest

Fit = Literal["pad", "crop", "squash", "square"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Resampler = Literal["pillow", "torch"]
Rounding = Literal["down", "even"]
Pixels = NDArray[np.uint8]
Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True)
class Resampling:
    """How pixels are made of the old ones: all but ``nearest`` average where they shrink (antialiasing).

    Attributes:
        interpolation: the kernel.
        resampler: whose arithmetic: Pillow's, or PyTorch's on a CPU. On drawings they are a unit or two of 255 apart in
            a hundredth of the pixels, on noise (bicubic, enlarged) up to ten; ``nearest``, wherever two are equally
            near, may be either. PyTorch has no ``lanczos``.
    """

    interpolation: Interpolation = "bicubic"
    resampler: Resampler = "pillow"

    def __call__(self, image: Pixels, size: Size, box: tuple[float, float, float, float] | None = None) -> Pixels:
        """uint8 H W 3, or of it a box (left, top, right, bottom), which is for Pillow -> uint8 of the size."""
        if box is None and image.shape[:2] == size:
            return image
        if self.resampler == "torch" and box is None:
            return self._by_torch(image, size)
        method = Image.Resampling[self.interpolation.upper()]
        return np.array(Image.fromarray(image).resize(size[::-1], method, box=box))

    def _by_torch(self, image: Pixels, size: Size) -> Pixels:
        # torchvision knows which of PyTorch's kernels for bytes a CPU has, and rounds where it has none.
        import torch
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2 import functional as transforms

        name = "nearest-exact" if self.interpolation == "nearest" else self.interpolation
        # One pixel's channels beside each other, in and out: the kernel is three times as fast so.
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)  # 3 H W
        resized = transforms.resize(pixels, list(size), InterpolationMode(name), antialias=True)
        return np.ascontiguousarray(resized.permute(1, 2, 0).numpy())


def resize(
    image: Pixels,
    size: int | Size,
    fit: Fit = "pad",
    fill: tuple[int, int, int] = (255, 255, 255),
    whole: Size | None = None,
    rounding: Rounding = "down",
    resampling: Resampling | None = None,
) -> Pixels:
    """A picture of another size; the same array where nothing of it changes.

    Args:
        image: uint8, H W 3.
        size: the side of a square, or (height, width), in pixels.
        fit: ``pad`` keeps all of it and its proportions and fills the rest; ``crop`` keeps its proportions and cuts
            from the centre what does not fit; ``squash`` keeps all of it and not its proportions; ``square`` fills it
            up to a square first, and squashes that.
        fill: the colour that ``pad`` and ``square`` fill with.
        whole: first make all of it as large as fits this size, in whole pixels, and then cut the centre out; None:
            in one step, for which a crop may begin within a pixel.
        rounding: where the centre would begin half a pixel in, after ``whole``: the pixel before, or the even one.
        resampling: bicubic, by Pillow, where it is left out.

    Raises:
        InputError: the size is not positive, or the fit is unknown.
    """
    size = (size, size) if isinstance(size, int) else size
    resampling = resampling or Resampling()
    if min(size) < 1:
        raise InputError(f"An image was to be resized to {size[0]}x{size[1]}, but both sides must be at least 1.")
    if fit not in get_args(Fit):
        raise InputError(f"fit is '{fit}', but must be one of {', '.join(get_args(Fit))}.{nearest(fit, get_args(Fit))}")
    if fit == "square":
        side = max(image.shape[:2])
        image, fit = _centre(image, (side, side), fill, "down"), "squash"
    if whole is not None:
        inner = _whole_size(image.shape[0], image.shape[1], whole, fit)
        if inner[0] * inner[1] > MAX_PIXELS:  # of a picture so long, what stays is made by itself, by Pillow
            return resampling(image, size, _box(image.shape[:2], inner, size, rounding))
        return _centre(resampling(image, inner), size, fill, rounding)
    rows, columns = image.shape[:2]
    if (rows, columns) == size or fit == "squash":
        return resampling(image, size)
    height, width = size
    if fit == "crop":
        # Only the part that stays is resampled: the whole of a very long image, scaled up, might not fit into memory.
        scale = max(height / rows, width / columns)
        left, top = (columns - width / scale) / 2, (rows - height / scale) / 2
        box = (max(0.0, left), max(0.0, top), min(columns - left, columns), min(rows - top, rows))
        return resampling(image, size, box)
    scale = min(height / rows, width / columns)
    inner = (max(1, min(height, round(rows * scale))), max(1, min(width, round(columns * scale))))
    return _centre(resampling(image, inner), size, fill, "down")


def _whole_size(rows: int, columns: int, whole: Size, fit: Fit) -> Size:
    """What a picture is resized to, as the libraries round it that models come from, each to the pixel.

    To a square, and no smaller: torchvision's ``Resize`` and transformers' ``shortest_edge``. To anything else, or no
    larger: ``ResizeKeepRatio`` of timm and open_clip.
    """
    if fit == "squash":
        return whole
    height, width = whole
    if fit == "crop" and height == width:
        longer = int(height * max(rows, columns) / min(rows, columns))
        return (longer, height) if rows > columns else (height, longer)
    ratio = (min if fit == "crop" else max)(rows / height, columns / width)
    return max(1, round(rows / ratio)), max(1, round(columns / ratio))


def _centre(image: Pixels, size: Size, fill: tuple[int, int, int], rounding: Rounding) -> Pixels:
    """The middle of a picture, where it is larger than a size, in the middle of the colour where it is smaller."""
    rows, columns = image.shape[:2]
    if (rows, columns) == size:
        return image
    top, left = (_start(have, want, rounding) for have, want in ((rows, size[0]), (columns, size[1])))
    part = image[max(0, top) :, max(0, left) :][: size[0], : size[1]]
    if part.shape[:2] == size:
        return np.ascontiguousarray(part)
    canvas = np.empty((*size, 3), np.uint8)
    canvas[:] = fill
    canvas[max(0, -top) :, max(0, -left) :][: part.shape[0], : part.shape[1]] = part
    return canvas


def _start(have: int, want: int, rounding: Rounding) -> int:
    """Where what is wanted begins in what is there; below 0: how much is to be filled before it."""
    if have < want:
        return -((want - have) // 2)
    return round((have - want) / 2) if rounding == "even" else (have - want) // 2


def _box(shape: Size, inner: Size, size: Size, rounding: Rounding) -> tuple[float, float, float, float]:
    """The part of a picture that the centre of it, were it resized to an inner size, would be made of."""
    top, left = (_start(have, want, rounding) for have, want in zip(inner, size, strict=True))
    down, across = shape[0] / inner[0], shape[1] / inner[1]
    right, bottom = min(shape[1], (left + size[1]) * across), min(shape[0], (top + size[0]) * down)
    return left * across, top * down, right, bottom
