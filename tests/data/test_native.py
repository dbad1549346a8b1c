"""Pictures in their own proportions: SigLIP 2's sizes, patches in their order, and the same alone and in any batch."""

from __future__ import annotations

import dataclasses
import io
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import AUGMENTATIONS, COLOURS, VOCABULARY, tiny_data, tiny_model, tiny_run, write_few
from torch.nn import functional as F

import mmformer
from mmformer.bundle import Transforms, load_bundle, save_bundle
from mmformer.data.crop import RandomResizedCropSpec
from mmformer.data.dataset import SampleDataset
from mmformer.data.inputs import ImageInputSpec, ImageTransformSpec
from mmformer.data.loading import training_loader
from mmformer.data.mix import MixSpec
from mmformer.data.native import join_pictures, native_size
from mmformer.data.order import OrderSpec
from mmformer.data.preview import training_rows
from mmformer.errors import InputError
from mmformer.models.model import ModelSpec
from mmformer.nn.pool import ClassTokenPoolSpec
from mmformer.nn.position import LearnedPositionSpec
from mmformer.tokenizers.image import ConvolutionalStemSpec, ImagePatchesSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.training.fit import fit
from mmformer.training.run import EvaluationSpec
from mmformer.types import Batch, Patches

NATIVE = ImageTransformSpec((32, 32), "native", patch=8)  # 16 patches
SIZES = ((20, 24), (90, 8), (8, 8), (41, 200), (64, 64), (7, 300), (33, 17))
ENCODER = TextTokensSpec(VOCABULARY, context_length=16).encoder()


def slow_size(height: int, width: int, budget: int, patch: int, enlarge: bool) -> tuple[int, int]:
    """Every factor that makes a side whole, tried in exact fractions."""
    factors = [Fraction(n * patch, side) for side in (height, width) for n in range(1, budget + 1)]
    if not enlarge:
        factors = [*(factor for factor in factors if factor < 1), Fraction(1)]
    grids = [(factor, ceil(height * factor / patch), ceil(width * factor / patch)) for factor in factors]
    _, rows, columns = max(grid for grid in grids if grid[1] * grid[2] <= budget)
    return rows * patch, columns * patch


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 40), st.integers(1, 17), st.booleans())
def test_the_largest_size_within_the_budget(height: int, width: int, budget: int, patch: int, enlarge: bool) -> None:
    found = native_size(height, width, budget, patch, enlarge)
    assert found == slow_size(height, width, budget, patch, enlarge)
    assert native_size(width, height, budget, patch, enlarge) == found[::-1]


def searched_size(height: int, width: int, budget: int, patch: int) -> tuple[int, int]:
    """The search of SigLIP 2's published image processor."""

    def scaled(scale: float, side: int) -> int:
        return max(patch, ceil(side * scale / patch) * patch)

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        scale = (low + high) / 2
        fits = scaled(scale, height) / patch * (scaled(scale, width) / patch) <= budget
        low, high = (scale, high) if fits else (low, scale)
    return scaled(low, height), scaled(low, width)


@pytest.mark.parametrize(("height", "width"), [(480, 640), (427, 640), (1080, 1920), (333, 500), (768, 511), (30, 97)])
@pytest.mark.parametrize("budget", [64, 128, 256, 576, 1024])
def test_sizes_are_siglip_2s(height: int, width: int, budget: int) -> None:
    assert native_size(height, width, budget, 16, True) == searched_size(height, width, budget, 16)


def test_extremes_have_a_size() -> None:
    assert native_size(1, 10**6, 256, 16, False) == (16, 4096)
    assert native_size(10**6, 1, 256, 16, True) == (4096, 16)
    assert native_size(5, 3, 1, 16, True) == (16, 16)
    assert native_size(40, 24, 256, 16, False) == (48, 32), "below the budget it keeps its size, in whole patches"


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pictures() -> list[np.ndarray]:
    return [pixels(*size, seed) for seed, size in enumerate(SIZES)]


def patches(images: list[np.ndarray]) -> Patches:
    joined = join_pictures([torch.from_numpy(NATIVE(image)).permute(2, 0, 1) for image in images], NATIVE.patch)
    assert isinstance(joined, Patches)
    return joined


def test_a_transform_gives_the_size_and_keeps_the_whole() -> None:
    for image in pictures():
        made = NATIVE(image)
        assert made.shape[:2] == slow_size(*image.shape[:2], 16, 8, False)
    rows = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[:, None, None], (64, 16, 3))
    made = NATIVE(np.ascontiguousarray(rows))
    assert made.shape == (64, 16, 3)
    assert (made == rows).all(), "as it is where it fits"


def test_patches_are_those_of_each_picture_and_go_together_again() -> None:
    images = [NATIVE(image) for image in pictures()]
    joined = patches(pictures())
    assert joined.pixels.dtype == torch.uint8
    for row, image in enumerate(images):
        whole = torch.from_numpy(image).permute(2, 0, 1)
        unfolded = F.unfold(whole[None].float(), 8, stride=8)[0].T.reshape(-1, 3, 8, 8)  # L 3 P P
        assert joined.grid[row].tolist() == [image.shape[0] // 8, image.shape[1] // 8]
        assert torch.equal(joined.pixels[row, : len(unfolded)].float(), unfolded)
        assert not joined.pixels[row, len(unfolded) :].any()
        assert torch.equal(joined.picture(row), whole)
    part = Batch(tuple("abcdefg"), {}, joined).rows(slice(0, 3)).image
    assert isinstance(part, Patches)
    assert part.pixels.shape[1] == int(joined.grid[:3].prod(1).max()), "no longer than it must be"
    assert torch.equal(part.picture(1), joined.picture(1))


@pytest.mark.parametrize("image", pictures(), ids=str)
def test_tokens_are_those_of_the_picture_as_a_whole(image: np.ndarray) -> None:
    module = ImagePatchesSpec(patch=8).build(10)
    whole = torch.from_numpy(NATIVE(image)).permute(2, 0, 1)[None]
    expected = module(whole)
    found = module(patches([image, *pictures()]))
    number = expected.x.shape[1]
    assert torch.allclose(found.x[0, :number], expected.x[0], atol=1e-6)
    assert torch.equal(found.pos[0, :number], expected.pos[0])
    assert found.valid is not None
    assert found.valid[0].tolist() == [True] * number + [False] * (found.x.shape[1] - number)
    assert not found.pos[0, number:].any()


def model(packed: bool, **changes: Any) -> ModelSpec:
    spec = tiny_model(classes=len(COLOURS))
    image = dataclasses.replace(spec.encoders["image"], packed=packed, **changes)
    return dataclasses.replace(spec, encoders=spec.encoders | {"image": image})


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("changes", [{}, {"pool": ClassTokenPoolSpec(), "class_token": True, "registers": 2}])
def test_embeddings_are_the_same_alone_and_in_any_batch(packed: bool, changes: dict[str, Any]) -> None:
    built = model(packed, **changes).build().eval()
    built.initialise(3)
    with torch.inference_mode():
        together = built(Batch(tuple("abcdefg"), {}, patches(pictures())), decode=False).embedding["image"]
        for row, image in enumerate(pictures()):
            whole = torch.from_numpy(NATIVE(image)).permute(2, 0, 1)[None]
            alone = built(Batch(("a",), {}, patches([image])), decode=False).embedding["image"][0]
            plain = built(Batch(("a",), {}, whole.contiguous()), decode=False).embedding["image"][0]
            assert torch.allclose(together[row], alone, atol=2e-6)
            assert torch.allclose(plain, alone, atol=2e-6), "as a picture of one size"


def test_packed_does_no_work_on_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    built = model(packed=True).build().eval()
    built.initialise(0)
    shapes: list[torch.Size] = []
    built.stacks["image"].register_forward_pre_hook(lambda module, given: shapes.append(given[0].x.shape))
    joined = patches(pictures())
    with torch.inference_mode():
        built(Batch(tuple("abcdefg"), {}, joined), decode=False)
    real, longest = int(joined.grid.prod(1).sum()), int(joined.grid.prod(1).max())
    assert shapes[0][0] * shapes[0][1] < len(SIZES) * longest
    assert shapes[0][0] == -(-real // longest), "as few rows as could be"


def test_a_bundle_reads_pictures_in_their_own_proportions(tmp_path: Path) -> None:
    built = model(packed=True).build()
    built.initialise(1)
    save_bundle(tmp_path / "bundle", built, Transforms(NATIVE, classes={"colour": list(COLOURS)}), "# A model\n")
    assert load_bundle(tmp_path / "bundle")[1].image == NATIVE
    loaded = mmformer.load(tmp_path / "bundle", batch_size=2)
    many = pictures() + pictures()[::-1]
    together = loaded.embed(image=many)
    for row, image in enumerate(many):
        assert torch.allclose(loaded.embed(image=image), together[row], atol=2e-6)
    assert not torch.allclose(together[0], together[1], atol=1e-3)
    assert len(loaded.classify(many, top=1)) == len(many)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Eight pictures of different proportions, with the tiny set's captions."""
    files = []
    for seed in range(8):
        file = io.BytesIO()
        Image.fromarray(pixels(12 + 9 * seed, 70 - 8 * seed, seed)).save(file, "PNG")
        files.append(file.getvalue())
    return write_few(tmp_path / "shards", 8, png=files)


def data(shards: Path, **image: Any) -> Any:
    spec = ImageInputSpec("png", NATIVE, **image)
    return tiny_data(shards, image=spec, validation=None, test=None, batch_size=4, order=OrderSpec())


def drawn(spec: Any) -> dict[int, torch.Tensor]:
    """Position -> its picture, of three epochs."""
    found = {}
    for batch in training_loader(spec, {"text": ENCODER}, 5, 0, 6):
        assert isinstance(batch, Batch)
        assert batch.positions is not None
        found |= {int(position): batch.picture(row) for row, position in enumerate(batch.positions)}
    return found


@pytest.mark.parametrize("spec", AUGMENTATIONS, ids=lambda spec: type(spec).__name__)
def test_augmentations_change_each_picture_as_in_a_batch_of_its_size(shards: Path, spec: Any) -> None:
    plain, changed = drawn(data(shards)), drawn(data(shards, augment=(spec,)))
    again = drawn(dataclasses.replace(data(shards, augment=(spec,)), batch_size=2))
    assert sum(not torch.equal(plain[position], changed[position]) for position in plain) >= 3
    for position, image in again.items():
        assert torch.equal(image, changed[position]), "whatever it is batched with"
        assert image.shape == plain[position].shape


def test_random_parts_have_proportions_of_their_own(shards: Path) -> None:
    crop = RandomResizedCropSpec((0.2, 0.9), (0.5, 2.0))
    dataset = SampleDataset(data(shards, crop=crop), "train", OrderSpec(), 1, True)
    shapes = set()
    for position in range(40):
        image = dataset[position].image
        assert image is not None
        rows, columns = image.shape[0] / 8, image.shape[1] / 8
        assert rows * columns <= 16
        assert rows == int(rows)
        assert columns == int(columns)
        shapes.add(image.shape)
    assert len(shapes) > 6


def test_a_run_trains_and_is_used(shards: Path, tmp_path: Path) -> None:
    run = tiny_run(shards, steps=2, evaluation=EvaluationSpec())
    run = dataclasses.replace(run, data=data(shards, augment=AUGMENTATIONS))
    assert fit(run, tmp_path / "run")
    loaded = mmformer.load(tmp_path / "run" / "bundle")
    assert loaded.transforms.image == NATIVE
    assert loaded.embed(image=pictures()).shape == (len(SIZES), 12)


def test_the_preview_shows_pictures_as_they_are(shards: Path) -> None:
    rows = training_rows(data(shards), {"text": ENCODER}, 5, 3, 2)
    for row in rows:
        assert row[0].picture is not None
        assert row[1].picture is not None
        np.testing.assert_array_equal(row[0].picture, row[1].picture)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": None}, r"ImageTransformSpec.patch must be a divisor of both sides .* but is None"),
        ({"patch": 7}, r"patch must be a divisor of both sides of the size, \(32, 32\), but is 7"),
        ({"fit": "pad"}, r"patch must be left out where fit is 'pad', but is 8"),
        ({"fit": "crop", "patch": None, "enlarge": True}, r"enlarge must be left out where fit is 'crop'"),
        ({"fill": (0, 0, 0)}, r"fill must be left alone where fit is 'native'"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(NATIVE, **change)


def test_enlarging_fills_the_budget() -> None:
    larger = dataclasses.replace(NATIVE, enlarge=True)
    assert NATIVE(pixels(9, 5)).shape == (16, 8, 3)
    assert larger(pixels(9, 5)).shape == (40, 24, 3)


def test_mixing_is_refused() -> None:
    with pytest.raises(InputError, match=r"ImageInputSpec.mix must be left out where transform.fit is 'native'"):
        ImageInputSpec("png", NATIVE, mix=MixSpec())


def test_a_model_that_cannot_read_them_is_refused(shards: Path) -> None:
    run = tiny_run(shards)

    def changed(spec: ModelSpec) -> Any:
        return dataclasses.replace(run, model=spec, data=data(shards))

    for tokenizer, named in ((ImagePatchesSpec(patch=4), "patch=4"), (ConvolutionalStemSpec(), "ConvolutionalStem")):
        with pytest.raises(InputError, match=rf"patches of 8x8 .*model.encoders.image reads pictures by .*{named}"):
            changed(model(False, tokenizer=tokenizer))
    spec = model(False)
    learned = dataclasses.replace(spec.stacks["image"], position=LearnedPositionSpec((1, 2), (16, 8)))
    with pytest.raises(InputError, match=r"model.stacks.image.position has \(16, 8\) places .* 16 rows or columns"):
        changed(dataclasses.replace(spec, stacks=spec.stacks | {"image": learned}))
    enough = dataclasses.replace(learned, position=LearnedPositionSpec((1, 2), (16, 16)))
    changed(dataclasses.replace(spec, stacks=spec.stacks | {"image": enough}))


def test_a_tokenizer_refuses_what_it_cannot_read() -> None:
    joined = patches(pictures())
    with pytest.raises(InputError, match=r"ConvolutionalStemSpec reads whole pictures of one size, .*ImagePatchesSpec"):
        ConvolutionalStemSpec().build(8)(joined)
    with pytest.raises(InputError, match=r"ImagePatchesSpec.patch is 4, .*\(7, 16, 3, 8, 8\)"):
        ImagePatchesSpec(patch=4).build(8)(joined)
    with pytest.raises(InputError, match=r"handed float32 of shape"):
        ImagePatchesSpec(patch=8).build(8)(joined._replace(pixels=joined.pixels.float()))
