"""Pictures as people have them: files, bytes, PIL images, arrays, tensors."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mmformer.data.decode import decode_image
from mmformer.errors import InputError

Picture = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any] | Tensor
"""A path, a file's bytes, a PIL image, or an array: H W 3, H W or 3 H W, uint8 or floats from 0 to 1."""

Pictures = Sequence[Picture]
"""Several; an array or tensor of four axes is several too."""

_MUST = "a picture must be a path, bytes, a PIL image or an array"


def listed(image: Picture | Pictures) -> tuple[bool, list[Picture]]:
    """Whether one picture was given, and the pictures as a list. Four axes of an array are a batch."""
    if isinstance(image, np.ndarray | Tensor):
        return (False, list(image)) if image.ndim == 4 else (True, [image])
    if isinstance(image, str | os.PathLike | bytes | Image.Image):
        return True, [image]
    if not isinstance(image, Sequence):
        raise InputError(f"{_MUST}, but is {type(image).__name__}.")
    return False, list(cast(Pictures, image))


def read_picture(picture: Picture, name: str) -> np.ndarray:
    """Any picture as uint8 H W 3.

    Raises:
        InputError: a file that is missing or cannot be decoded, or an array that is no picture.
    """
    if isinstance(picture, str | os.PathLike):
        path = Path(picture)
        try:
            return decode_image(path.read_bytes(), str(path))
        except OSError as error:
            raise InputError(f"{path}: the picture cannot be read: {error.strerror}.") from error
    if isinstance(picture, bytes):
        return decode_image(picture, name)
    if isinstance(picture, Image.Image):
        held = io.BytesIO()
        picture.save(held, "PNG")
        return decode_image(held.getvalue(), name)
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu().numpy()
    if isinstance(picture, np.ndarray):
        return _from_array(picture, name)
    raise InputError(
        f"{name}: a picture must be a path, bytes, a PIL image or an array, but is {type(picture).__name__}."
    )


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
