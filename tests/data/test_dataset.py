"""From shards to batches: the same for any number of workers and from any step, and clear where data is wrong."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import COLOURS, SIDE, VOCABULARY, labels, sample, tiny_data, write_few, write_shards

from mmformer.cli.main import plain
from mmformer.data.caption import FieldCaptionSpec
from mmformer.data.dataset import SampleDataset
from mmformer.data.decode import decode_image
from mmformer.data.inputs import ImageTransformSpec
from mmformer.data.loading import PositionBatches, Turns, evaluation_loader, training_loader
from mmformer.data.order import OrderSpec
from mmformer.data.sources import DataSpec
from mmformer.errors import InputError
from mmformer.tokenizers.text import TextEncoder, TextTokensSpec
from mmformer.types import Batch

STEPS = 10  # of 8 samples: two and a half epochs of 32


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextTokensSpec(VOCABULARY, context_length=16).encoder()


@pytest.fixture(scope="module")
def full(shards: Path, encoder: TextEncoder) -> list[Batch]:
    return train(tiny_data(shards, labels=labels(shards)), encoder)


def train(
    spec: DataSpec, encoder: TextEncoder | None, first: int = 0, steps: int = STEPS, seed: int = 3
) -> list[Batch]:
    return list(training_loader(spec, {"text": encoder} if encoder else {}, seed, first, steps))  # type: ignore[arg-type]  # a loader of Batches


def failure(spec: DataSpec, encoder: TextEncoder) -> str:
    """What the first batch fails with."""
    batches = iter(training_loader(spec, {"text": encoder}, 3, 0, STEPS))
    with pytest.raises(InputError) as caught:
        next(batches)
    if spec.workers:
        batches._shutdown_workers()  # type: ignore[attr-defined]  # left to the collector, it waits 5 s for each
    return str(caught.value)


def equal(a: Iterable[Batch], b: Iterable[Batch]) -> bool:
    def same(x: Any, y: Any) -> bool:
        if isinstance(x, torch.Tensor):
            return x.dtype == y.dtype and torch.equal(x, y)
        if isinstance(x, dict):
            return list(x) == list(y) and all(same(x[key], y[key]) for key in x)
        if isinstance(x, tuple):
            return len(x) == len(y) and all(map(same, x, y))
        return bool(x == y)

    return same(tuple(a), tuple(b))


def test_a_batch_has_what_was_asked_for(full: list[Batch]) -> None:
    assert len(full) == STEPS
    for batch in full:
        assert batch.image is not None
        assert batch.text is not None
        assert len(batch.keys) == 8
        assert batch.image.shape == (8, 3, SIDE, SIDE)
        assert batch.image.dtype == torch.uint8
        assert batch.image.is_contiguous()
        assert batch.text.ids.shape[0] == 8
        assert batch.text.ids.dtype == torch.int64
        assert batch.labels["colour"].dtype == torch.int64


def test_an_epoch_has_every_sample_once(full: list[Batch]) -> None:
    first = Counter(key for batch in full[:4] for key in batch.keys)
    second = Counter(key for batch in full[4:8] for key in batch.keys)
    assert first == second
    assert set(first.values()) == {1}
    assert len(first) == 32
    assert [batch.keys for batch in full[:4]] != [batch.keys for batch in full[4:8]], "in another order"


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_workers(
    workers: int, full: list[Batch], shards: Path, encoder: TextEncoder
) -> None:
    spec = tiny_data(shards, labels=labels(shards), workers=workers)
    assert equal(train(spec, encoder), full)


@pytest.mark.parametrize("first", [0, 1, 3, 7, 9, 10])
def test_a_run_may_begin_at_any_step(first: int, full: list[Batch], shards: Path, encoder: TextEncoder) -> None:
    spec = tiny_data(shards, labels=labels(shards))
    loader = training_loader(spec, {"text": encoder}, 3, first, STEPS)
    assert len(loader) == STEPS, "the whole run's: Lightning counts on from where it was"
    assert equal(list(loader), full[first:])  # type: ignore[arg-type]


def test_a_run_may_begin_at_any_step_with_workers(full: list[Batch], shards: Path, encoder: TextEncoder) -> None:
    assert equal(train(tiny_data(shards, labels=labels(shards), workers=2), encoder, first=5), full[5:])


@pytest.mark.parametrize("cache", [0, 1024])
def test_the_cache_changes_nothing(cache: int, full: list[Batch], shards: Path, encoder: TextEncoder) -> None:
    assert equal(train(tiny_data(shards, labels=labels(shards), cache_mib=cache), encoder), full)


def test_the_cache_keeps_to_its_room(shards: Path) -> None:
    def cached(mib: int) -> int:
        dataset = SampleDataset(tiny_data(shards, cache_mib=mib), "train", OrderSpec(), 0, True)
        dataset._room = min(dataset._room, 5000)  # a few pictures of 768 bytes and what their texts count for
        for position in range(64):
            dataset[position]
        return len(dataset._cache)

    assert cached(0) == 0
    assert 1 <= cached(1) < 5


def test_a_sample_is_read_once_while_it_is_cached(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = SampleDataset(tiny_data(shards), "train", OrderSpec(), 0, True)
    read, reads = dataset.reader.read, []
    monkeypatch.setattr(dataset.reader, "read", lambda *where: (reads.append(where), read(*where))[1])
    for position in range(96):
        dataset[position]
    assert len(reads) == 32


def test_the_global_random_state_is_left_alone(shards: Path, encoder: TextEncoder) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    numpy_before = np.random.get_state()[1].tolist()  # noqa: NPY002  # the state that must not change
    train(tiny_data(shards), encoder, steps=2)
    train(tiny_data(shards, workers=1), encoder, steps=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy_before  # noqa: NPY002


# ------------------------------------------------------------------------------------------------- evaluation


def test_evaluation_reads_every_sample_once_as_it_is(shards: Path, encoder: TextEncoder) -> None:
    spec = tiny_data(shards, labels=labels(shards), workers=2)
    batches: list[Batch] = list(evaluation_loader(spec, "val", {"text": encoder}))  # type: ignore[arg-type]
    assert [len(batch.keys) for batch in batches] == [3, 3, 2]
    keys = [key for batch in batches for key in batch.keys]
    assert keys == [f"{index:02d}" for index in range(48) if index % 6 == 4]
    dataset = SampleDataset(spec, "val", OrderSpec(shuffle=False), 0, False)
    at = 0
    for batch in batches:
        assert batch.image is not None
        for image in batch.image:
            raw = dataset.reader[at]
            picture = decode_image(raw.members["png"], "x")
            assert np.array_equal(image.permute(1, 2, 0).numpy(), ImageTransformSpec((SIDE, SIDE))(picture))
            fields = json.loads(raw.members["json"])
            expected = encoder.encode([fields["names"]["en"]])
            assert dataset[at].text == fields["names"]["en"], "the caption of evaluation, not of training"
            assert batch.text is not None
            row = batch.text.ids[at % 3]
            assert row[: int(expected.lengths[0])].tolist() == expected.ids[0, : int(expected.lengths[0])].tolist()
            assert batch.labels["colour"][at % 3] == fields["number"]
            at += 1


def test_positions_are_cut_into_batches() -> None:
    assert list(PositionBatches(3, 10, 3)) == [[3, 4, 5], [6, 7, 8], [9]]
    assert [len(PositionBatches(0, n, 3)) for n in (0, 1, 3, 4)] == [0, 1, 1, 2]
    assert list(PositionBatches(5, 5, 3)) == []


# ------------------------------------------------------------------------------------------------- every field


@pytest.mark.parametrize(("samples", "ranks"), [(8, 2), (9, 2), (1, 2), (10, 3), (30, 3), (7, 1)])
def test_ranks_share_the_batches_of_a_split(samples: int, ranks: int) -> None:
    whole = list(Turns(samples, 3))
    assert [position for batch in whole for position in batch] == list(range(samples))
    each = [list(Turns(samples, 3, rank, ranks)) for rank in range(ranks)]
    assert {len(batches) for batches in each} == {-(-len(whole) // ranks)} == {len(Turns(samples, 3, 0, ranks))}
    dealt = [batch for turn in zip(*each, strict=True) for batch in turn]
    assert dealt[: Turns(samples, 3).batches] == whole
    assert all(batch == whole[0] for batch in dealt[len(whole) :])


def image_of(spec: DataSpec, **changes: Any) -> DataSpec:
    return dataclasses.replace(spec, image=dataclasses.replace(spec.image, **changes))  # type: ignore[type-var]


def text_of(spec: DataSpec, **changes: Any) -> DataSpec:
    return dataclasses.replace(spec, text=dataclasses.replace(spec.text, **changes))  # type: ignore[type-var]


CHANGES: list[Any] = [
    lambda spec: dataclasses.replace(spec, train="val", order=OrderSpec()),
    lambda spec: dataclasses.replace(spec, image=None),
    lambda spec: dataclasses.replace(spec, text=None),
    lambda spec: dataclasses.replace(spec, batch_size=4),
    lambda spec: dataclasses.replace(spec, labels={}),
    lambda spec: dataclasses.replace(spec, order=OrderSpec(lanes=1, block=8)),
    lambda spec: dataclasses.replace(spec, order=OrderSpec(lanes=2, block=4)),
    lambda spec: dataclasses.replace(spec, order=OrderSpec(lanes=2, shuffle=False)),
    lambda spec: image_of(spec, transform=ImageTransformSpec((8, 16))),
    lambda spec: image_of(spec, transform=ImageTransformSpec((SIDE, SIDE), "crop")),
    lambda spec: image_of(spec, transform=ImageTransformSpec((SIDE, SIDE), "squash")),
    lambda spec: image_of(spec, transform=ImageTransformSpec((SIDE, SIDE), fill=(0, 0, 0))),
    lambda spec: image_of(spec, augment=()),
    lambda spec: text_of(spec, training_caption=None),
    lambda spec: text_of(spec, training_caption=FieldCaptionSpec("colour")),
]


@pytest.mark.parametrize("number", range(len(CHANGES)))
def test_every_field_changes_the_batches(number: int, full: list[Batch], shards: Path, encoder: TextEncoder) -> None:
    spec = CHANGES[number](tiny_data(shards, labels=labels(shards)))
    assert not equal(train(spec, encoder), full)


def test_the_seed_changes_the_batches(full: list[Batch], shards: Path, encoder: TextEncoder) -> None:
    assert not equal(train(tiny_data(shards, labels=labels(shards)), encoder, seed=4), full)


def test_the_caption_of_evaluation_serves_training_where_there_is_no_other(shards: Path) -> None:
    spec = text_of(tiny_data(shards), training_caption=None, caption=FieldCaptionSpec("colour"))
    dataset = SampleDataset(spec, "train", spec.order, 0, True)
    assert {dataset[p].text for p in range(32)} == set(COLOURS)


REFUSED: list[tuple[Any, str]] = [
    ({"batch_size": 0}, "DataSpec.batch_size must be at least 1, but is 0."),
    ({"evaluation_batch_size": 0}, "DataSpec.evaluation_batch_size must be at least 1, but is 0."),
    ({"workers": -1}, "DataSpec.workers must be at least 0, but is -1."),
    ({"cache_mib": -1}, "DataSpec.cache_mib must be at least 0, but is -1."),
    ({"image": None, "text": None}, "data.image, data.text and data.audio are all absent"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=str)
def test_values_out_of_range_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        tiny_data(tmp_path, **change)
    assert str(caught.value).startswith(message)


def test_transforms_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match=r"ImageTransformSpec.size must be at least 1 pixel"):
        ImageTransformSpec((0, 3))
    with pytest.raises(InputError, match=r"ImageTransformSpec.fill must be 0 to 255"):
        ImageTransformSpec(fill=(0, 0, 256))
    for fit in ("crop", "squash"):
        ImageTransformSpec(fit=fit)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=rf"fill must be left alone where fit is '{fit}', which fills nothing"):
            ImageTransformSpec(fit=fit, fill=(0, 0, 0))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- what is wrong


HINT = "To train without such samples, set data.on_damage to skip."


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_without_a_member_is_told_by_name(workers: int, tmp_path: Path, encoder: TextEncoder) -> None:
    folder = write_few(tmp_path, png=[b"", b"", sample("x", "red", 0, 0).members["png"], b""])
    spec = tiny_data(folder, order=OrderSpec(shuffle=False), workers=workers, batch_size=2)
    message = plain(failure(spec, encoder))
    assert message == f"{folder}: sample 's0' has no member '.png', which data asks for; it has json. " + HINT


def test_a_member_that_no_sample_has_is_told(shards: Path, encoder: TextEncoder) -> None:
    with pytest.raises(InputError, match=r"has a member 'jpg': there are json, png"):
        train(image_of(tiny_data(shards), member="jpg"), encoder, steps=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_cannot_be_decoded_is_one_clear_message(
    workers: int, tmp_path: Path, encoder: TextEncoder
) -> None:
    """Also from a worker, whose traceback the loader wraps around it."""
    folder = write_few(tmp_path, png=[b"no picture"] * 4)
    spec = tiny_data(folder, order=OrderSpec(shuffle=False), workers=workers, batch_size=2)
    wrapped = failure(spec, encoder)
    assert ("Original Traceback" in wrapped) == (workers > 0)
    message = plain(wrapped)
    assert message.startswith("s0.png: not a whole PNG")
    assert message.endswith(f"Replace it or leave it out. {HINT}")
    assert "\n" not in message
    assert "Traceback" not in message


def test_a_split_or_folder_that_is_not_there_is_told(shards: Path, tmp_path: Path, encoder: TextEncoder) -> None:
    with pytest.raises(InputError, match=r"trian.*Did you mean 'train'\?"):
        train(tiny_data(shards, train="trian"), encoder)
    with pytest.raises(InputError, match="nowhere"):
        train(tiny_data(tmp_path / "nowhere"), encoder)
    with pytest.raises(InputError, match=r"order.lanes is 5, but only 4 of the 4 shards hold samples"):
        train(tiny_data(shards, order=OrderSpec(lanes=5)), encoder)
