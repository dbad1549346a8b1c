"""Augmentations against slow references that share no code with them, and the promise of seeding by position."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, RandAugment, TrivialAugmentWide

from mmformer.data.augment import (
    AugmentationSpec,
    ColorJitterSpec,
    HorizontalFlipSpec,
    RandomAffineSpec,
    RandomEraseSpec,
    augment,
)
from mmformer.data.augment_policy import RandAugmentSpec, TrivialAugmentSpec
from mmformer.data.seeding import generator
from mmformer.errors import InputError

ALL: tuple[AugmentationSpec, ...] = (
    RandomAffineSpec(0.2, 30, (0.6, 1.5), 1.4),
    HorizontalFlipSpec(),
    ColorJitterSpec(0.5, 0.5, 0.5, 0.2, 0.3),
    RandomEraseSpec(0.6),
    RandAugmentSpec(2, 12),
    TrivialAugmentSpec(),
)
Pixels = NDArray[np.float64]


def pictures(number: int, height: int = 20, width: int = 28, seed: int = 0) -> Tensor:
    """Smooth random pictures: bilinear resampling of noise would amplify every rounding."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(number, 3, 5, 5, generator=generator) * 255
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return fine.clamp(0, 255).round().to(torch.uint8)


def draws(spec: AugmentationSpec, number: int, seed: int = 0) -> Tensor:
    return torch.rand(number, spec.draws, generator=torch.Generator().manual_seed(seed))


def close(found: Tensor, expected: Pixels, levels: float = 1.0) -> None:
    """Within a level, and nearly everywhere equal after rounding."""
    difference = np.abs(found.permute(1, 2, 0).double().numpy() - expected)
    assert difference.max() <= levels
    assert (difference > 0.51).mean() < 0.01


# ------------------------------------------------------------------------------------------------- seeding


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: type(spec).__name__)
def test_an_image_depends_on_its_position_and_not_on_its_batch(spec: AugmentationSpec) -> None:
    images, positions = pictures(33), [100 + 7 * i for i in range(33)]
    together = augment(images, [spec], 5, positions)
    alone = torch.cat([augment(images[i : i + 1], [spec], 5, [positions[i]]) for i in range(33)])
    assert torch.equal(together, alone)
    shuffled = torch.randperm(33, generator=torch.Generator().manual_seed(0)).tolist()
    mixed = augment(images[shuffled], [spec], 5, [positions[i] for i in shuffled])
    assert torch.equal(mixed, together[shuffled])
    assert not torch.equal(augment(images, [spec], 6, positions), together)
    assert not torch.equal(augment(images, [spec], 5, [p + 1 for p in positions]), together)


def test_threads_do_not_matter() -> None:
    """Loader workers compute on one thread, the training process on all of them."""
    images = pictures(64, 96, 96)
    one = augment(images, ALL, 0, range(64))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(augment(images, ALL, 0, range(64)), one)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("spec", [RandAugmentSpec(3, 20), TrivialAugmentSpec()], ids=lambda spec: type(spec).__name__)
def test_policies_are_torchvisions(spec: RandAugmentSpec | TrivialAugmentSpec) -> None:
    """Called by itself with the seed that the image's stream gives."""
    images, before = pictures(12), torch.get_rng_state()
    found = augment(images, [spec], 3, range(12))
    assert torch.equal(torch.get_rng_state(), before), "the global stream is left alone"
    bilinear = InterpolationMode.BILINEAR
    if isinstance(spec, RandAugmentSpec):
        policy = RandAugment(num_ops=3, magnitude=20, interpolation=bilinear, fill=255)
    else:
        policy = TrivialAugmentWide(interpolation=bilinear, fill=255)
    for position in range(12):
        high, low = generator(3, f"augment.0.{type(spec).__name__}", position).random(2, dtype=np.float32)
        torch.manual_seed((int(high * 2**24) << 24) + int(low * 2**24))
        assert torch.equal(found[position], policy(images[position]))


def test_each_of_a_list_draws_for_itself() -> None:
    images = pictures(16)
    erase = RandomEraseSpec(1.0)
    twice = augment(images, [erase, erase], 0, range(16))
    once = augment(images, [erase], 0, range(16))
    assert ((twice != images).float().mean() > 1.3 * (once != images).float().mean()).item()
    assert torch.equal(augment(images, [], 0, range(16)), images)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**40))
def test_any_size_is_kept_and_nothing_is_changed_in_place(height: int, width: int, position: int) -> None:
    images = pictures(2, height, width)
    before = images.clone()
    changed = augment(images, ALL, 1, [position, position + 1])
    assert changed.shape == images.shape
    assert changed.dtype == torch.uint8
    assert torch.equal(images, before)


IDENTITIES = [
    HorizontalFlipSpec(0.0),
    RandomAffineSpec(0.0, 0.0, (1.0, 1.0), 1.0),
    ColorJitterSpec(0.0, 0.0, 0.0, 0.0, 0.0),
    RandomEraseSpec(0.0),
]


@pytest.mark.parametrize("size", [(16, 16), (15, 21), (48, 48), (97, 64)])
@pytest.mark.parametrize("spec", IDENTITIES, ids=lambda spec: type(spec).__name__)
def test_settings_that_change_nothing_change_no_bit(spec: AugmentationSpec, size: tuple[int, int]) -> None:
    images = torch.randint(0, 256, (8, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images[0] = torch.tensor([0, 255, 254], dtype=torch.uint8)[:, None, None]
    assert torch.equal(spec.apply(images, draws(spec, 8)), images)


FIELDS: list[tuple[AugmentationSpec, dict[str, Any]]] = [
    (HorizontalFlipSpec(0.3), {"probability": 0.8}),
    (RandomAffineSpec(), {"shift": 0.2}),
    (RandomAffineSpec(), {"degrees": 20.0}),
    (RandomAffineSpec(), {"scale": (0.8, 1.3)}),
    (RandomAffineSpec(), {"scale": (0.7, 1.2)}),
    (RandomAffineSpec(), {"stretch": 1.5}),
    (ColorJitterSpec(), {"brightness": 0.3}),
    (ColorJitterSpec(), {"contrast": 0.5}),
    (ColorJitterSpec(), {"saturation": 0.5}),
    (ColorJitterSpec(), {"hue": 0.1}),
    (ColorJitterSpec(), {"grayscale": 0.5}),
    (RandomEraseSpec(), {"probability": 0.9}),
    (RandomEraseSpec(1.0), {"area": (0.02, 0.5)}),
    (RandomEraseSpec(1.0), {"area": (0.1, 0.2)}),
    (RandAugmentSpec(), {"operations": 3}),
    (RandAugmentSpec(), {"magnitude": 20}),
]


@pytest.mark.parametrize(("spec", "change"), FIELDS, ids=str)
def test_every_field_changes_the_result(spec: AugmentationSpec, change: dict[str, Any]) -> None:
    images = pictures(16)
    other = dataclasses.replace(spec, **change)
    assert not torch.equal(augment(images, [spec], 0, range(16)), augment(images, [other], 0, range(16)))


def test_every_field_is_among_those() -> None:
    tried = {(type(spec), name) for spec, change in FIELDS for name in change}
    assert tried == {(type(spec), field.name) for spec in ALL for field in dataclasses.fields(spec)}


REFUSED: list[tuple[Any, str]] = [
    (lambda: HorizontalFlipSpec(1.1), "HorizontalFlipSpec.probability must be from 0 to 1, but is 1.1."),
    (lambda: HorizontalFlipSpec(math.nan), "HorizontalFlipSpec.probability must be from 0 to 1, but is nan."),
    (lambda: RandomAffineSpec(shift=-0.1), "RandomAffineSpec.shift must be from 0 to 1"),
    (lambda: RandomAffineSpec(degrees=181), "RandomAffineSpec.degrees must be from 0 to 180"),
    (lambda: RandomAffineSpec(scale=(0.0, 1.0)), "RandomAffineSpec.scale must be (smallest, largest), both positive"),
    (lambda: RandomAffineSpec(scale=(1.2, 0.8)), "RandomAffineSpec.scale must be (smallest, largest)"),
    (lambda: RandomAffineSpec(stretch=0.9), "RandomAffineSpec.stretch must be at least 1"),
    (lambda: ColorJitterSpec(brightness=1.5), "ColorJitterSpec.brightness must be from 0 to 1"),
    (lambda: ColorJitterSpec(contrast=-1), "ColorJitterSpec.contrast must be from 0 to 1"),
    (lambda: ColorJitterSpec(saturation=2), "ColorJitterSpec.saturation must be from 0 to 1"),
    (lambda: ColorJitterSpec(hue=0.6), "ColorJitterSpec.hue must be from 0 to 0.5"),
    (lambda: ColorJitterSpec(grayscale=2), "ColorJitterSpec.grayscale must be from 0 to 1"),
    (lambda: RandomEraseSpec(probability=2), "RandomEraseSpec.probability must be from 0 to 1"),
    (lambda: RandomEraseSpec(area=(0.0, 0.1)), "RandomEraseSpec.area must be (smallest, largest), within 0 to 1"),
    (lambda: RandomEraseSpec(area=(0.3, 0.1)), "RandomEraseSpec.area must be (smallest, largest), within 0 to 1"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_values_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value).startswith(message)


# ------------------------------------------------------------------------------------------------- references


def test_flip_chooses_by_its_draw() -> None:
    images, uniform = pictures(4), torch.tensor([[0.0], [0.29], [0.3], [0.9]])
    flipped = HorizontalFlipSpec(0.3).apply(images, uniform)
    assert torch.equal(flipped[:2], images[:2].flip(3))
    assert torch.equal(flipped[2:], images[2:])


def source_of(spec: RandomAffineSpec, uniform: Tensor, height: int, width: int) -> NDArray[np.float64]:
    """The map from a place in the result to a place in the source, in pixels from the middle: 2 x 3, rows x and y."""
    signed = [2 * float(value) - 1 for value in uniform]
    angle = math.radians(spec.degrees) * signed[0]
    magnify = math.exp(math.log(spec.scale[0]) + float(uniform[1]) * math.log(spec.scale[1] / spec.scale[0]))
    stretch = math.exp(signed[2] * math.log(spec.stretch) / 2)
    unstretched = np.diag([1 / stretch, stretch]) / magnify
    turned = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    shift = np.array([signed[3] * spec.shift * width, signed[4] * spec.shift * height])
    return np.hstack((turned @ unstretched, shift[:, None]))


def resampled(image: Tensor, matrix: NDArray[np.float64]) -> Pixels:
    """One bilinear resampling, pixel by pixel; outside, the nearest pixel of the border."""
    source = image.permute(1, 2, 0).double().numpy()
    height, width = source.shape[:2]
    result = np.empty_like(source)
    for row in range(height):
        for column in range(width):
            place = matrix @ np.array([column + 0.5 - width / 2, row + 0.5 - height / 2, 1.0])
            x = min(max(place[0] + width / 2 - 0.5, 0), width - 1)
            y = min(max(place[1] + height / 2 - 0.5, 0), height - 1)
            left, top = math.floor(x), math.floor(y)
            right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
            upper = source[top, left] * (left + 1 - x) + source[top, right] * (x - left)
            lower = source[bottom, left] * (left + 1 - x) + source[bottom, right] * (x - left)
            result[row, column] = upper * (top + 1 - y) + lower * (y - top)
    return result


@pytest.mark.parametrize("size", [(20, 20), (16, 32), (33, 17)])
def test_affine_is_one_bilinear_resampling(size: tuple[int, int]) -> None:
    """A turn turns: on a picture that is not square too."""
    spec = RandomAffineSpec(0.2, 45, (0.7, 1.4), 1.3)
    images, uniform = pictures(6, *size), draws(spec, 6)
    changed = spec.apply(images, uniform)
    for image, row, found in zip(images, uniform, changed, strict=True):
        close(found, resampled(image, source_of(spec, row, *size)))


@pytest.mark.parametrize("size", [(24, 24), (24, 40)])
def test_affine_agrees_with_pillow_inside(size: tuple[int, int]) -> None:
    spec = RandomAffineSpec(0.0, 40, (1.0, 1.2))  # magnified: the middle comes from within
    height, width = size
    images, uniform = pictures(6, *size, seed=3), draws(spec, 6, seed=3)
    for image, row, found in zip(images, uniform, spec.apply(images, uniform), strict=True):
        (a, b, _), (d, e, _) = source_of(spec, row, *size)
        middle = np.array([width / 2, height / 2])
        c, f = middle - np.array([[a, b], [d, e]]) @ middle
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        moved = picture.transform(
            (width, height), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR
        )
        expected = np.asarray(moved).astype(np.float64)
        inside = slice(height // 3, -(height // 3)), slice(width // 2 - height // 6, width // 2 + height // 6)
        difference = np.abs(found.permute(1, 2, 0).double().numpy() - expected)[inside]
        assert difference.size > 0
        assert difference.max() <= 1


def test_a_shift_moves_by_its_share_of_the_side() -> None:
    spec = RandomAffineSpec(0.25, 0.0, (1.0, 1.0))
    images = pictures(1, 16, 32)
    right = torch.tensor([[0.5, 0.5, 0.5, 1.0, 0.5]])
    moved = spec.apply(images, right)  # a quarter of 32 pixels
    assert torch.equal(moved[..., :-8], images[..., 8:])
    assert torch.equal(moved[..., -8:], images[..., -1:].expand(-1, -1, -1, 8))
    down = torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.0]])
    assert torch.equal(spec.apply(images, down)[..., 4:, :], images[..., :-4, :])


def coloured(spec: ColorJitterSpec, image: Tensor, uniform: Tensor) -> Pixels:
    """Hue, then saturation, contrast and brightness, each by its own formula on each pixel."""
    signed = [2 * float(value) - 1 for value in uniform]
    source = image.permute(1, 2, 0).double().numpy()
    weights = np.array([0.299, 0.587, 0.114])
    axis = np.ones(3) / math.sqrt(3)
    angle = 2 * math.pi * spec.hue * signed[3]
    saturation = 0.0 if float(uniform[4]) < spec.grayscale else 1 + spec.saturation * signed[2]
    mean = (source @ weights).mean()
    result = np.empty_like(source)
    for place in np.ndindex(source.shape[:2]):
        pixel = source[place]
        along = axis * (axis @ pixel)
        across = pixel - along
        turned = along + across * math.cos(angle) + np.cross(axis, across) * math.sin(angle)
        # The colour turns, the lightness stays.
        pixel = weights @ pixel + saturation * (turned - weights @ turned)
        pixel = mean + (1 + spec.contrast * signed[1]) * (pixel - mean)
        result[place] = np.clip((1 + spec.brightness * signed[0]) * pixel, 0, 255)
    return result


@pytest.mark.parametrize(
    "spec",
    [
        ColorJitterSpec(0.5, 0, 0),
        ColorJitterSpec(0, 0.5, 0),
        ColorJitterSpec(0, 0, 0.9),
        ColorJitterSpec(0, 0, 0, hue=0.5),
        ColorJitterSpec(0, 0, 0, grayscale=0.5),
        ColorJitterSpec(0.4, 0.6, 0.8, 0.3, 0.2),
    ],
    ids=str,
)
def test_colours_change_by_the_formulas(spec: ColorJitterSpec) -> None:
    images, uniform = pictures(6, 9, 11), draws(spec, 6)
    for image, row, found in zip(images, uniform, spec.apply(images, uniform), strict=True):
        close(found, coloured(spec, image, row))


def test_grey_is_grey_for_certain() -> None:
    spec = ColorJitterSpec(0, 0, 0, grayscale=1.0)
    grey = augment(pictures(32), [spec], 0, range(32)).int()
    assert (grey.amax(1) - grey.amin(1)).max() <= 1  # a rounding apart


def test_erase_overwrites_one_rectangle() -> None:
    spec = RandomEraseSpec(1.0, (0.05, 0.3))
    images, uniform = pictures(40, 30, 40), draws(spec, 40)
    for image, row, found in zip(images, uniform, spec.apply(images, uniform), strict=True):
        area = 0.05 + float(row[1]) * 0.25
        ratio = 3 ** (float(row[2]) * 2 - 1)
        tall, wide = min(1.0, math.sqrt(area * ratio)), min(1.0, math.sqrt(area / ratio))
        top, left = float(row[3]) * (1 - tall), float(row[4]) * (1 - wide)
        expected = image.clone()
        for y in range(30):
            for x in range(40):
                if 0 <= (y + 0.5) / 30 - top < tall and 0 <= (x + 0.5) / 40 - left < wide:
                    expected[:, y, x] = torch.tensor([int(256 * float(value)) for value in row[5:]])
        assert torch.equal(found, expected)
        changed = (found != image).any(0).float().mean().item()
        assert 0 < changed <= 0.3 + 0.06  # a row and a column of rounding


def test_erase_happens_as_often_as_it_should() -> None:
    images = pictures(400, 8, 8)
    changed = (augment(images, [RandomEraseSpec(0.25)], 0, range(400)) != images).flatten(1).any(1)
    assert 70 <= changed.sum().item() <= 130  # 100 expected, 8.7 the deviation; a small rectangle may miss every centre
