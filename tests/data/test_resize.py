"""Resizing: sizes, plain colours, what is kept and what is cut, and that each way of rounding is its library's own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from mmformer.data.resize import Resampling, resize
from mmformer.errors import InputError

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
SIZES = st.tuples(st.integers(1, 90), st.integers(1, 90))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.integers(1, 40))
def test_resize_gives_the_size_and_keeps_a_plain_colour(rows: int, columns: int, height: int, width: int) -> None:
    plain = np.full((rows, columns, 3), (10, 120, 250), np.uint8)
    for fit in ("squash", "crop"):
        resized = resize(plain, (height, width), fit)  # type: ignore[arg-type]
        assert resized.shape == (height, width, 3)
        assert (resized == plain[0, 0]).all()
    padded = resize(plain, (height, width), "pad", fill=(1, 2, 3))
    assert padded.shape == (height, width, 3)
    inside = (padded == plain[0, 0]).all(axis=-1)
    assert ((padded == (1, 2, 3)).all(axis=-1) == ~inside).all()
    filled_rows, filled_columns = inside.any(axis=1), inside.any(axis=0)
    assert filled_rows.all() or filled_columns.all(), "it fits one side"
    assert (inside == filled_rows[:, None] & filled_columns[None]).all(), "what is filled is one rectangle"


def nearest_to(image: NDArray[np.uint8], row: float, column: float) -> NDArray[np.uint8]:
    return image[int(row * image.shape[0]), int(column * image.shape[1])]


def test_resize_keeps_what_it_should() -> None:
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, :32], wide[:, 32:64], wide[:, 64:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    squashed, cropped, padded = (resize(wide, 24, fit) for fit in ("squash", "crop", "pad"))
    assert [nearest_to(squashed, 0.5, x).argmax() for x in (0.1, 0.5, 0.9)] == [0, 1, 2]
    assert [nearest_to(cropped, 0.5, x).tolist() for x in (0.2, 0.8)] == [[0, 255, 0]] * 2
    assert [nearest_to(padded, 0.5, x).argmax() for x in (0.1, 0.5, 0.9)] == [0, 1, 2]
    assert (padded[:8] == 255).all() and (padded[-8:] == 255).all() and not (padded[8:16] == 255).all(axis=-1).any()


def test_cropping_is_resizing_the_shorter_side_and_cutting_the_middle() -> None:
    picture = resize(PICTURE, (60, 90), "squash")
    whole = np.asarray(Image.fromarray(picture).resize((48, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resize(picture, 32, "crop"), whole[:, 8:40])
    needle = np.zeros((1, 200_000, 3), np.uint8)
    assert resize(needle, 224, "crop").shape == (224, 224, 3)  # the whole of it would take 30 TB


def test_resize_averages_what_it_shrinks() -> None:
    board = np.indices((64, 64)).sum(axis=0)[..., None] % 2 * np.full(3, 255)
    assert np.abs(resize(board.astype(np.uint8), 8, "squash").astype(int) - 127).max() <= 2


def test_resize_refuses_nonsense() -> None:
    with pytest.raises(InputError, match="resized to 0x5"):
        resize(PICTURE, (0, 5))
    with pytest.raises(InputError, match=r"fit is 'padd'.*Did you mean 'pad'"):
        resize(PICTURE, 5, "padd")  # type: ignore[arg-type]
    assert resize(PICTURE, (20, 30)) is PICTURE


def drawn(rows: int, columns: int) -> NDArray[np.uint8]:
    return np.random.default_rng(rows * 1000 + columns).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


@settings(max_examples=80, deadline=None)
@given(SIZES, st.integers(1, 50), st.sampled_from(["bilinear", "bicubic", "lanczos", "nearest"]))
def test_cropping_in_whole_pixels_is_torchvisions(shape: tuple[int, int], side: int, kernel: str) -> None:
    """Resize and CenterCrop, to the pixel; transformers rounds the cut down where torchvision takes the even pixel."""
    from torchvision.transforms import v2

    image = drawn(*shape)
    resized = v2.functional.resize(Image.fromarray(image), [side + 3], v2.InterpolationMode(kernel))
    ours = resize(image, side, "crop", whole=(side + 3, side + 3), rounding="even", resampling=Resampling(kernel))  # type: ignore[arg-type]
    np.testing.assert_array_equal(ours, np.asarray(v2.functional.center_crop(resized, [side])))
    top, left = (resized.height - side) // 2, (resized.width - side) // 2
    cut = np.asarray(resized)[top : top + side, left : left + side]
    down = resize(image, side, "crop", whole=(side + 3, side + 3), resampling=Resampling(kernel))  # type: ignore[arg-type]
    np.testing.assert_array_equal(down, cut)


@settings(max_examples=80, deadline=None)
@given(SIZES, st.tuples(st.integers(2, 40), st.integers(2, 40)), st.integers(0, 5), st.sampled_from(["crop", "pad"]))
def test_proportions_in_whole_pixels_are_timms(
    shape: tuple[int, int], size: tuple[int, int], more: int, fit: str
) -> None:
    """ResizeKeepRatio and CenterCropOrPad, to the pixel, wherever timm does not ask Pillow for a side of 0."""
    from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio

    image = drawn(*shape)
    whole = (size[0] + more, size[1] + more + (size[0] == size[1]))  # a square is torchvision's
    keep = ResizeKeepRatio(whole, longest=float(fit == "pad"), interpolation="bicubic")
    if min(ResizeKeepRatio.get_params(Image.fromarray(image), whole, float(fit == "pad"))) > 0:
        theirs = CenterCropOrPad(size, fill=(9, 8, 7))(keep(Image.fromarray(image)))
        ours = resize(image, size, fit, (9, 8, 7), whole, "even")  # type: ignore[arg-type]
        np.testing.assert_array_equal(ours, np.asarray(theirs))


def test_a_square_is_filled_before_it_is_squashed() -> None:
    """So that the edges blend with the colour, unlike those of a padded one."""
    tall = np.zeros((40, 10, 3), np.uint8)
    canvas = np.full((40, 40, 3), (200, 100, 50), np.uint8)
    canvas[:, 15:25] = 0
    squared = resize(tall, 16, "square", (200, 100, 50))
    np.testing.assert_array_equal(squared, resize(canvas, 16, "squash"))
    assert (squared != resize(tall, 16, "pad", (200, 100, 50))).any()


def test_the_centre_of_a_needle_is_made_alone() -> None:
    needle = drawn(3, 60_000)
    cut = resize(needle, 64, "crop", whole=(64, 64))  # of 1,280,000 pixels a row
    whole = np.asarray(Image.fromarray(needle).resize((1_280_000, 64), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(cut, whole[:, 639_968:640_032])


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(7, 9), (64, 48), (31, 200)])
def test_torch_resamples_nearly_as_pillow(kernel: str, size: tuple[int, int]) -> None:
    image = drawn(90, 70)
    by_torch = Resampling(kernel, "torch")(image, size).astype(int)  # type: ignore[arg-type]
    by_pillow = Resampling(kernel)(image, size).astype(int)  # type: ignore[arg-type]
    apart = np.abs(by_torch - by_pillow)
    assert apart.max() <= {"bilinear": 1, "bicubic": 10}[kernel]  # of noise, enlarged
    assert apart.mean() < 0.5


def before(image: NDArray[np.uint8], size: tuple[int, int], fit: str, fill: tuple[int, int, int]) -> NDArray[np.uint8]:
    """What a transform without the newer fields has always meant."""
    (rows, columns), (height, width) = image.shape[:2], size
    box = (0.0, 0.0, float(columns), float(rows))
    if (rows, columns) == (height, width):
        return image
    if fit == "crop":
        scale = max(height / rows, width / columns)
        left, top = (columns - width / scale) / 2, (rows - height / scale) / 2
        box = (max(0.0, left), max(0.0, top), min(columns - left, columns), min(rows - top, rows))
    elif fit == "pad":
        scale = min(height / rows, width / columns)
        inner = (max(1, min(width, round(columns * scale))), max(1, min(height, round(rows * scale))))
        padded = np.empty((height, width, 3), np.uint8)
        padded[:] = fill
        y, x = (height - inner[1]) // 2, (width - inner[0]) // 2
        padded[y : y + inner[1], x : x + inner[0]] = np.asarray(Image.fromarray(image).resize(inner, 3))
        return padded
    return np.array(Image.fromarray(image).resize((width, height), 3, box=box))


@settings(max_examples=80, deadline=None)
@given(SIZES, st.tuples(st.integers(1, 40), st.integers(1, 40)), st.sampled_from(["crop", "pad", "squash"]))
def test_transforms_of_old_bundles_mean_what_they_meant(
    shape: tuple[int, int], size: tuple[int, int], fit: str
) -> None:
    image = drawn(*shape)
    np.testing.assert_array_equal(resize(image, size, fit, (1, 2, 3)), before(image, size, fit, (1, 2, 3)))  # type: ignore[arg-type]
