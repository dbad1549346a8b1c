"""Random parts of pictures: where they lie, what is kept of the picture, and that training alone sees them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_data, write_shards

from mmformer.data.crop import RandomResizedCropSpec
from mmformer.data.dataset import SampleDataset
from mmformer.data.inputs import ImageInputSpec, ImageTransformSpec
from mmformer.data.order import OrderSpec
from mmformer.data.seeding import generator
from mmformer.errors import InputError


def boxes(spec: RandomResizedCropSpec, height: int, width: int, number: int = 3000) -> np.ndarray:
    return np.array([spec.box(height, width, generator(0, "test", place)) for place in range(number)])


def test_parts_have_the_area_and_proportions_that_are_asked_for() -> None:
    spec = RandomResizedCropSpec((0.2, 0.5), (0.5, 2.0))
    left, top, right, bottom = boxes(spec, 60, 80).T
    assert left.min() >= 0
    assert top.min() >= 0
    assert right.max() <= 80
    assert bottom.max() <= 60
    area, ratio = (right - left) * (bottom - top) / 4800, (right - left) / (bottom - top)
    for found, (low, high) in ((area, spec.area), (ratio, spec.ratio)):
        assert low - 1e-9 <= found.min() < low * 1.05
        assert high * 0.95 < found.max() <= high + 1e-9
    assert area.mean() == pytest.approx(0.35, abs=0.01)
    assert np.log(ratio).mean() == pytest.approx(0, abs=0.05), "even in the logarithm"
    centre = (left + right) / 2
    assert centre.mean() == pytest.approx(40, abs=1)


def test_a_picture_too_long_gives_its_middle() -> None:
    left, top, right, bottom = boxes(RandomResizedCropSpec((0.9, 1.0)), 10, 100, 3).T
    np.testing.assert_allclose(right - left, 10 * 4 / 3)
    np.testing.assert_allclose(left + right, 100)
    assert (top == 0).all()
    assert (bottom == 10).all()


def test_a_part_is_that_part_of_the_picture() -> None:
    spec = RandomResizedCropSpec((0.1, 0.4))
    rows, columns = np.mgrid[0:64, 0:64]
    image = np.stack((rows * 4, columns * 4, rows * 0), axis=-1).astype(np.uint8)
    for place in range(20):
        left, top, right, bottom = spec.box(64, 64, generator(0, "test", place))
        part = spec(image, lambda height, width: (16, 24), generator(0, "test", place))
        assert part.shape == (16, 24, 3)
        middle = part[7:9, 11:13].reshape(4, 3).mean(axis=0)
        assert middle[0] == pytest.approx(4 * ((top + bottom) / 2 - 0.5), abs=3)
        assert middle[1] == pytest.approx(4 * ((left + right) / 2 - 0.5), abs=3)


def test_the_smallest_parts_have_a_pixel() -> None:
    spec, image = RandomResizedCropSpec((1e-6, 1e-6)), np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    for place in range(50):
        part = spec(image, lambda height, width: (height, width), generator(0, "test", place))
        assert part.shape == (1, 1, 3)
        assert (image == part).all(axis=2).any()


def test_a_part_is_its_own() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    part = RandomResizedCropSpec((1.0, 1.0), (1.0, 1.0))(image, lambda *size: size, generator(0, "test", 0))
    part[:] = 1
    assert not image.any()


def test_a_large_picture_is_kept_as_small_as_its_smallest_part_allows() -> None:
    spec = RandomResizedCropSpec((0.25, 1.0))
    large = np.zeros((300, 500, 3), np.uint8)
    assert spec.reduce(large, (32, 32)).shape == (75, 125, 3), "four times smaller: half of its 75 rows are 32 or more"
    assert spec.reduce(large, (80, 80)) is large, "not twice as large"
    assert spec.reduce(large, (200, 100)) is large


def test_training_sees_parts_and_evaluation_the_whole(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards")
    spec = tiny_data(shards, image=ImageInputSpec("png", ImageTransformSpec((16, 16))))
    cropped = dataclasses.replace(spec, image=dataclasses.replace(spec.image, crop=RandomResizedCropSpec((0.3, 0.6))))
    whole, parts, again = (SampleDataset(given, "train", OrderSpec(), 1, True) for given in (spec, cropped, cropped))
    held = SampleDataset(cropped, "train", OrderSpec(), 1, False)
    number = len(whole)
    different = 0
    for position in range(number):
        samples = [dataset[position].image for dataset in (whole, parts, again, held)]
        assert all(image is not None and image.shape == (16, 16, 3) for image in samples)
        np.testing.assert_array_equal(samples[1], samples[2])
        np.testing.assert_array_equal(samples[0], samples[3])
        different += not np.array_equal(samples[0], samples[1])
    assert different == number


@pytest.mark.parametrize("area", [(0.0, 1.0), (0.5, 0.2), (0.5, 1.2)])
def test_areas_and_proportions_that_make_no_sense_are_refused(area: tuple[float, float]) -> None:
    with pytest.raises(InputError, match=r"RandomResizedCropSpec.area must be"):
        RandomResizedCropSpec(area)
    with pytest.raises(InputError, match=r"RandomResizedCropSpec.ratio must be"):
        RandomResizedCropSpec(ratio=(2.0, 1.0))
