"""Images to tokens: linear patches against an unfold that shares no code, the stem against its promise of no batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from mmformer.errors import InputError
from mmformer.nn.norm import RMSNormSpec
from mmformer.tokenizers.image import ConvolutionalStemSpec, ImagePatchesSpec, ImageTokenizer, ImageTokenizerSpec
from mmformer.types import Tokens, is_special

MEAN, STD = (0.1, 0.4, 0.7), (0.2, 0.3, 0.5)
SPECS: list[ImageTokenizerSpec] = [ImagePatchesSpec(MEAN, STD, patch=4), ConvolutionalStemSpec(MEAN, STD, (6,))]


def build(spec: Any, width: int = 10, seed: int = 0) -> ImageTokenizer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: ImageTokenizer = spec.build(width)
    return module.eval()


def pictures(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, height, width), generator=generator, dtype=torch.uint8)


def normalised(image: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    return (image.double() / 255 - torch.tensor(mean).double()[:, None, None]) / torch.tensor(std).double()[
        :, None, None
    ]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec).__name__)
@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 12), (20, 4), (16, 16)])
def test_shapes_and_coordinates(spec: ImageTokenizerSpec, height: int, width: int) -> None:
    tokens: Tokens = build(spec)(pictures(3, height, width))
    rows, columns = height // 4, width // 4
    assert tokens.x.shape == (3, rows * columns, 10)
    assert tokens.x.dtype == torch.float32
    assert tokens.pos.dtype == torch.int64
    assert tokens.valid is None
    assert tokens.segment is None
    expected = [[0, row, column] for row in range(rows) for column in range(columns)]
    assert tokens.pos.tolist() == [expected] * 3
    assert not is_special(tokens.pos).any()


@pytest.mark.parametrize(("height", "width", "patch"), [(8, 8, 4), (6, 15, 3), (5, 2, 1), (14, 7, 7)])
def test_linear_patches_are_an_unfold_and_a_projection(height: int, width: int, patch: int) -> None:
    module = build(ImagePatchesSpec(MEAN, STD, patch))
    image = pictures(2, height, width)
    unfolded = F.unfold(normalised(image), patch, stride=patch).transpose(1, 2)  # B L (3 patch patch)
    linear = module.projection
    assert isinstance(linear, nn.Linear)
    expected = unfolded @ linear.weight.double().T + linear.bias.double()
    assert torch.allclose(module(image).x.double(), expected, atol=1e-5, rtol=0)


def test_without_a_bias_grey_is_nothing() -> None:
    """Of what is normalised to zero; CLIP's patches are like that."""
    grey = torch.full((1, 3, 8, 8), 51, dtype=torch.uint8)
    spec = ImagePatchesSpec((0.2, 0.2, 0.2), STD, patch=4, bias=False)
    assert [name for name, _ in build(spec).named_parameters()] == ["projection.weight"]
    assert build(spec)(grey).x.abs().max() < 1e-6
    assert build(dataclasses.replace(spec, bias=True))(grey).x.abs().max() > 1e-3


def test_the_projection_is_the_usual_convolution() -> None:
    """The weights of a ViT's patch convolution fit as they are, flattened."""
    module = build(ImagePatchesSpec(MEAN, STD, 4))
    image = pictures(2, 8, 12)
    linear = module.projection
    assert isinstance(linear, nn.Linear)
    convolved = F.conv2d(normalised(image).float(), linear.weight.view(10, 3, 4, 4), linear.bias, stride=4)
    assert torch.allclose(module(image).x, convolved.flatten(2).transpose(1, 2), atol=1e-5, rtol=0)


def test_what_remains_past_the_last_patch_is_not_read() -> None:
    spec, image = ImagePatchesSpec(MEAN, STD, patch=4, remainder=3), pictures(2, 11, 15)
    found, whole = build(spec)(image), build(dataclasses.replace(spec, remainder=0))(image[:, :, :8, :12])
    assert torch.equal(found.x, whole.x) and torch.equal(found.pos, whole.pos)
    assert found.x.shape[1] == 6
    with pytest.raises(InputError, match=r"remainder is 3, .* past the last patch of 4x4, but .* are of 12x15"):
        build(spec)(pictures(1, 12, 15))


def convolved(x: Tensor, kernel: Tensor, bias: Tensor, stride: int) -> Tensor:
    """3x3 with a border of zeros, place by place."""
    padded = F.pad(x, (1, 1, 1, 1))
    rows, columns = x.shape[2] // stride, x.shape[3] // stride
    y = torch.zeros(len(x), len(kernel), rows, columns, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            top, left = stride * row, stride * column
            window = padded[:, :, top : top + 3, left : left + 3]
            y[:, :, row, column] = torch.einsum("bcij,ocij->bo", window, kernel) + bias
    return y


@pytest.mark.parametrize("strides", [None, (1, 2, 1), (2, 2, 1)])
def test_the_stem_is_convolutions_norms_and_gelus(strides: tuple[int, ...] | None) -> None:
    module = build(ConvolutionalStemSpec(MEAN, STD, (6, 8), strides))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()), std=0.3)
    image = pictures(2, 8, 16)
    x = normalised(image)
    kernels = [(m.weight.double(), m.bias.double()) for m in module.modules() if isinstance(m, nn.Conv2d)]
    gains = [(m.weight.double(), m.bias.double()) for m in module.modules() if isinstance(m, nn.LayerNorm)]
    each = strides or (2, 2, 2)
    for (kernel, shift), (gain, bias), stride in zip(kernels, gains, each, strict=False):
        y = convolved(x, kernel, shift, stride)
        mean, variance = y.mean(1, keepdim=True), y.var(1, unbiased=False, keepdim=True)
        y = (y - mean) / (variance + 1e-6).sqrt() * gain[:, None, None] + bias[:, None, None]
        x = 0.5 * y * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (y + 0.044715 * y**3)))
    expected = convolved(x, *kernels[-1], each[-1]).flatten(2).transpose(1, 2)
    assert [len(kernel) for kernel, _ in kernels] == [6, 8, 10]
    assert len(gains) == 2
    assert torch.allclose(module(image).x.double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec).__name__)
def test_tokens_do_not_depend_on_the_batch(spec: ImageTokenizerSpec) -> None:
    module = build(spec).train()
    image = pictures(5, 8, 8)
    together = module(image).x
    for index in range(5):
        assert torch.allclose(module(image[index : index + 1]).x[0], together[index], atol=1e-6, rtol=0)
    assert not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())
    assert not list(module.buffers()), "no running statistics"


def test_non_square_is_not_transposed() -> None:
    image = torch.zeros(1, 3, 8, 12, dtype=torch.uint8)
    image[..., 4:, 8:] = 255  # the last patch of the last row
    tokens = build(SPECS[0])(image)
    changed = (tokens.x != tokens.x[:, :1]).any(-1)[0]
    assert tokens.pos[0, changed].tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec).__name__)
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            torch.zeros(1, 3, 10, 8, dtype=torch.uint8),
            "of every 4x4 pixels, which do not divide an image of 10x8",
        ),
        (torch.zeros(1, 3, 8, 3, dtype=torch.uint8), "do not divide an image of 8x3: resize to 8x4"),
        (
            torch.zeros(1, 3, 8, 8, dtype=torch.float64),
            "(batch, 3, height, width), but was handed float64 of shape (1, 3, 8",
        ),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "but was handed int64"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int8), "but was handed int8"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.bool), "but was handed bool"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "of shape (3, 8, 8)"),
        (torch.zeros(1, 8, 8, 3, dtype=torch.uint8), "of shape (1, 8, 8, 3)"),
        (torch.zeros(1, 4, 8, 8, dtype=torch.uint8), "of shape (1, 4, 8, 8)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_image_is_refused(spec: ImageTokenizerSpec, image: Tensor, message: str) -> None:
    with pytest.raises(InputError) as caught:
        build(spec)(image)
    assert str(caught.value).startswith(type(spec).__name__)
    assert message in str(caught.value)


CHANGES: list[tuple[ImageTokenizerSpec, dict[str, Any]]] = [
    (SPECS[0], {"mean": (0.1, 0.4, 0.6)}),
    (SPECS[0], {"std": (0.2, 0.3, 0.4)}),
    (SPECS[0], {"patch": 2}),
    (SPECS[0], {"bias": False}),
    (SPECS[1], {"mean": (0.1, 0.4, 0.6)}),
    (SPECS[1], {"std": (0.2, 0.3, 0.4)}),
    (SPECS[1], {"channels": (7,)}),
    (SPECS[1], {"channels": (6, 6)}),
    (SPECS[1], {"norm": RMSNormSpec()}),
]


@pytest.mark.parametrize(("spec", "change"), CHANGES, ids=str)
def test_every_field_changes_the_tokens(spec: ImageTokenizerSpec, change: dict[str, Any]) -> None:
    image = pictures(2, 8, 8)
    one, other = build(spec)(image).x, build(dataclasses.replace(spec, **change))(image).x
    assert spec != dataclasses.replace(spec, **change)
    assert one.shape != other.shape or not torch.allclose(one, other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImagePatchesSpec(patch=0), "ImagePatchesSpec.patch must be at least 1 pixel, but is 0."),
        (
            lambda: ImagePatchesSpec(patch=4, remainder=4),
            "ImagePatchesSpec.remainder must be 0 to 3, less than a patch",
        ),
        (lambda: ImagePatchesSpec(std=(0.0, 1.0, 1.0)), "ImagePatchesSpec.std must be positive on each channel"),
        (lambda: ConvolutionalStemSpec(channels=(3, 0)), "ConvolutionalStemSpec.channels must be at least 1 each"),
        (
            lambda: ConvolutionalStemSpec(channels=(3, 3), strides=(2, 2)),
            "ConvolutionalStemSpec.strides must be 1 or 2 for each of the 3 convolutions (one more than the channels), "
            "but is (2, 2).",
        ),
        (lambda: ConvolutionalStemSpec(channels=(3,), strides=(2, 4)), "ConvolutionalStemSpec.strides must be 1 or 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value).startswith(message)


def test_the_stride_is_what_divides() -> None:
    assert ImagePatchesSpec(patch=7).stride == 7
    assert ConvolutionalStemSpec(channels=(1, 1, 1)).stride == 16
    assert ConvolutionalStemSpec(channels=()).stride == 2
    assert ConvolutionalStemSpec(channels=(1, 1, 1), strides=(1, 2, 1, 2)).stride == 4


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec).__name__)
def test_every_parameter_gets_a_gradient(spec: ImageTokenizerSpec) -> None:
    module = build(spec)
    module(pictures(2, 8, 8)).x.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_what_is_normalised_already_is_taken_as_it_is() -> None:
    spec = ImagePatchesSpec(patch=4, mean=(0.1, 0.4, 0.7), std=(0.2, 0.3, 0.5))
    module, image = spec.build(8), torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    scaled = (image / 255 - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)
    assert_close(module(scaled).x, module(image).x, rtol=1e-5, atol=1e-5)
