"""Pictures of every kind become the same uint8 H W 3, or are refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import pixels
from PIL import Image

from mmformer.data.picture import listed, read_picture
from mmformer.errors import InputError


def read(picture: Any) -> np.ndarray:
    single, pictures = listed(picture)
    assert single
    return read_picture(pictures[0], "it")


def test_floats_of_any_precision_are_the_bytes_that_they_came_from() -> None:
    for dtype in (np.float16, np.float32, np.float64):
        np.testing.assert_array_equal(read((pixels(0) / 255).astype(dtype)), pixels(0))


def test_bfloat16_is_read_as_well_as_it_is_precise() -> None:
    picture = torch.from_numpy(pixels(0) / 255).bfloat16()
    np.testing.assert_array_equal(read(picture), read(picture.float()))


@pytest.mark.parametrize("shape", [(8, 9), (1, 8, 9), (8, 9, 1)])
def test_grey_arrays(shape: tuple[int, ...]) -> None:
    grey = pixels(1, 8, 9)[..., 0]
    np.testing.assert_array_equal(read(grey.reshape(shape)), np.stack([grey] * 3, axis=-1))


def test_the_array_that_is_handed_in_stays_as_it_is() -> None:
    array = pixels(0)
    array.flags.writeable = False
    np.testing.assert_array_equal(read(array), pixels(0))


def written(mode: str, suffix: str, folder: Path) -> Path:
    """A picture file in a mode, with an orientation."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(np.concatenate([pixels(2), pixels(3)[..., :1]], axis=-1), "RGBA")
    if mode == "I;16":
        picture = Image.fromarray(pixels(2)[..., 0].astype(np.uint16) * 257)
    elif mode != "RGBA":
        picture = picture.convert("RGB").convert(mode)
    picture.save(folder / f"picture.{suffix}", exif=exif)
    return folder / f"picture.{suffix}"


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("RGBA", "png"), ("P", "png"), ("L", "jpg"), ("CMYK", "jpg"), ("RGB", "jpg"), ("I;16", "png"), ("1", "png")],
)
def test_a_pil_image_means_what_its_file_means(tmp_path: Path, mode: str, suffix: str) -> None:
    """Orientation, transparency, depth and colour model: all of that is handled alike."""
    path = written(mode, suffix, tmp_path)
    with Image.open(path) as picture:
        assert picture.mode == mode
        found = read(picture)
    assert found.shape == (26, 20, 3), "it is turned upright"
    np.testing.assert_array_equal(found, read(path))
    np.testing.assert_array_equal(found, read(path.read_bytes()))


@pytest.mark.parametrize(
    ("before", "mode"), [("LA", "La"), ("RGBA", "RGBa"), ("P", "PA"), ("RGB", "RGBX"), ("L", "I"), ("RGB", "YCbCr")]
)
def test_a_pil_image_in_a_mode_that_files_do_not_have(before: str, mode: str) -> None:
    picture = Image.fromarray(pixels(4)).convert(before)
    if mode == "I":
        found, expected = read(Image.fromarray(np.asarray(picture).astype(np.int32) * 257)), read(picture)
    else:
        found, expected = read(picture.convert(mode)), read(picture)
    np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=3 if mode == "YCbCr" else 0)


def test_a_closed_or_damaged_pil_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(pixels(0)).save(path)
    picture = Image.open(path)
    picture.close()
    with pytest.raises(InputError, match="it: the PIL image cannot be read: "):
        read(picture)
    path.write_bytes(path.read_bytes()[:200])
    with Image.open(path) as picture, pytest.raises(InputError, match=r"it: .* cannot be read: .*truncated"):
        read(picture)


NAN = np.full((4, 4, 3), np.nan, dtype=np.float32)
WRONG: dict[str, tuple[Any, str]] = {
    "missing": ("no/such.png", "^no/such.png: the picture cannot be read: No such file"),
    "folder": (Path(), r"^\.: the picture cannot be read: Is a directory"),
    "null": ("a\0.png", "the picture cannot be read: embedded null"),
    "bytes": (b"no picture", "^it: not a whole PNG"),
    "empty": (b"", "^it: not a whole PNG.*empty"),
    "shape": (np.zeros((4, 5, 7), np.uint8), r"^it: .*must be H W 3, H W or 3 H W, but its shape is \(4, 5, 7\)"),
    "no pixels": (np.zeros((0, 5), np.uint8), r"its shape is \(0, 5, 3\)"),
    "axes": (np.zeros((1, 1, 4, 4, 3), np.uint8), "its shape is"),
    "type": (np.zeros((4, 4, 3), np.int64), "must be uint8, or floats from 0 to 1, but is int64"),
    "range": (np.full((4, 4, 3), 255.0), "must lie within 0 and 1, but spans 255.0 to 255.0"),
    "nan": (NAN, "must lie within 0 and 1"),
    "number": (5, "a picture must be a path, bytes, a PIL image or an array, or a list of them, but is int"),
    "generator": (iter([b""]), "or a list of them, but is list_iterator"),
    "mode": (Image.new("F", (4, 4)), r"a PIL image of mode F: make it \.convert\('RGB'\) first"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_picture_is_refused(kind: str) -> None:
    picture, message = WRONG[kind]
    with pytest.raises(InputError, match=message):
        read(picture)


def test_a_number_in_a_list_is_refused() -> None:
    with pytest.raises(InputError, match="it: a picture must be a path, bytes, a PIL image or an array, but is int"):
        read_picture(5, "it")  # type: ignore[arg-type]
