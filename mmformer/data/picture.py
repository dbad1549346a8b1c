"""Pictures as people have them: files, bytes, PIL images, arrays, tensors."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor

from mmformer.data.decode import Transparency, decode_image
from mmformer.errors import InputError

Picture = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any] | Tensor
"""A path, a file's bytes, a PIL image, or an array: H W 3, H W or 3 H W, uint8 or floats from 0 to 1."""

Pictures = Sequence[Picture]
"""Several; an array or tensor of four axes is several too."""

_MUST = "a picture must be a path, bytes, a PIL image or an array"
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_AS_PNG = {
    "I": "I;16",
    "La": "LA",
    "PA": "RGBA",
    "RGBa": "RGBA",
    "RGBX": "RGB",
    "CMYK": "RGB",
    "YCbCr": "RGB",
    "HSV": "RGB",
}
"""Modes that PNG does not have -> what a picture in them is first made into."""


def listed(image: Picture | Pictures) -> tuple[bool, list[Picture]]:
    """Whether one picture was given, and the pictures as a list. Four axes of an array are a batch."""
    if isinstance(image, np.ndarray | Tensor):
        return (False, list(image)) if image.ndim == 4 else (True, [image])
    if isinstance(image, str | os.PathLike | bytes | Image.Image):
        return True, [image]
    if not isinstance(image, Sequence):
        raise InputError(f"{_MUST}, or a list of them, but is {type(image).__name__}.")
    return False, list(cast(Pictures, image))


def read_picture(picture: Picture, name: str, transparency: Transparency = "white") -> np.ndarray:
    """Any picture as uint8 H W 3, with what shows through it.

    Raises:
        InputError: a file that is missing or cannot be decoded, or an array that is no picture.
    """
    if isinstance(picture, str | os.PathLike):
        try:
            data = Path(picture).read_bytes()
        except (OSError, ValueError) as error:  # a ValueError for a path that holds a null character
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"{picture}: the picture cannot be read: {reason}.") from error
        return decode_image(data, str(picture), transparency=transparency)
    if isinstance(picture, bytes):
        return decode_image(picture, name, transparency=transparency)
    if isinstance(picture, Image.Image):
        return _from_pil(picture, name, transparency)
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu()
        # NumPy has no bfloat16
        picture = (picture.float() if picture.is_floating_point() else picture).numpy()
    if isinstance(picture, np.ndarray):
        return _from_array(picture, name)
    raise InputError(f"{name}: {_MUST}, but is {type(picture).__name__}.")


def _from_pil(picture: Image.Image, name: str, transparency: Transparency) -> np.ndarray:
    """By way of a PNG, so that transparency, depth and orientation mean what they mean in a file."""
    held, exif = io.BytesIO(), Image.Exif()
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
        if orientation is not None:
            exif[ExifTags.Base.Orientation] = orientation
        mode = picture.mode if picture.mode in _PNG_MODES else _AS_PNG[picture.mode]
        picture.convert(mode).save(held, "PNG", compress_level=0, exif=exif)
    except KeyError as error:
        raise InputError(f"{name}: a PIL image of mode {picture.mode}: make it .convert('RGB') first.") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:  # it is read only now: the file is damaged, or closed
        raise InputError(f"{name}: the PIL image cannot be read: {error}.") from error
    return decode_image(held.getvalue(), name, transparency=transparency)


def _from_array(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise InputError(f"{name}: an array must be H W 3, H W or 3 H W, but its shape is {array.shape}.")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise InputError(
                f"{name}: an array of floats must lie within 0 and 1, but spans {array.min()} to {array.max()}."
            )
        return np.ascontiguousarray((array * 255).round().astype(np.uint8))
    raise InputError(f"{name}: an array must be uint8, or floats from 0 to 1, but is {array.dtype}.")
