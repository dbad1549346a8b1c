"""Buckets: the same samples in other updates, in their lanes and windows, and less padding."""

from __future__ import annotations

import dataclasses
import io
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import VOCABULARY, sample, tiny_data, tiny_run, write_few, write_shards

from mmformer.config import parse, to_data
from mmformer.data.buckets import Buckets, BucketSpec, Measured
from mmformer.data.dataset import MixedDataset
from mmformer.data.inputs import AudioInputSpec, ImageInputSpec, ImageTransformSpec
from mmformer.data.loading import training_loader
from mmformer.data.mixture import Mixture
from mmformer.data.order import OrderSpec
from mmformer.data.seeding import permutation
from mmformer.data.shards import RawSample, ShardWriter
from mmformer.data.sound import AudioTransformSpec
from mmformer.data.sources import DataSpec, SourceSpec
from mmformer.errors import InputError
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.training.run import RunSpec
from mmformer.types import Batch, Patches

ENCODER = TextTokensSpec(VOCABULARY, context_length=32).encoder()
RATE = 8000


def random_length(position: int) -> Measured:
    return Measured(0, 0, position * 7919 % 61)


def slow(position: int, batch: int, lanes: int, updates: int, seed: int) -> int:
    """One kind and one epoch, without arrays and caches."""
    update, row = position // batch, position % batch // lanes
    window, lane = update // updates, position % lanes
    inside = [p for p in range(window * updates * batch, (window + 1) * updates * batch) if p % lanes == lane]
    inside.sort(key=lambda p: (random_length(p).length, p))
    place = permutation(updates, seed, "buckets", window, 0).tolist()[update % updates]
    return inside[place * (batch // lanes) + row]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(2, 5), st.integers(0, 9), st.data())
def test_a_position_is_found_as_by_sorting_by_hand(
    lanes: int, rows: int, updates: int, seed: int, data: st.DataObject
) -> None:
    batch = lanes * rows
    mixture = Mixture([1.0], [0], batch, lanes)
    buckets = Buckets(BucketSpec("audio", updates), mixture, seed)
    for position in data.draw(st.lists(st.integers(0, 10 * batch * updates), max_size=12)):
        fresh = pickle.loads(pickle.dumps(Buckets(BucketSpec("audio", updates), mixture, seed)))
        found = buckets.locate(position, random_length)
        assert found == fresh.locate(position, random_length) == slow(position, batch, lanes, updates, seed)


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_a_window_keeps_its_samples_lanes_and_kinds(lanes: int) -> None:
    batch, updates = 8, 6
    mixture = Mixture([2.0, 1.0, 1.0], ["a", "a", "b"], batch, lanes)
    buckets = Buckets(BucketSpec("image", updates), mixture, 3)

    def measure(position: int) -> Measured:
        source, place = mixture.locate(position)
        return Measured(source, place // 40, place * 31 % 17)

    for window in range(5):
        positions = range(window * batch * updates, (window + 1) * batch * updates)
        found = [buckets.locate(position, measure) for position in positions]
        assert sorted(found) == list(positions)
        assert all(one % lanes == other % lanes for one, other in zip(positions, found, strict=True))
        for one, other in zip(positions, found, strict=True):
            assert mixture.kind(one // batch) == mixture.kind(other // batch), "an update stays of its kind"


def test_updates_come_in_random_order() -> None:
    buckets = Buckets(BucketSpec("audio", 4), Mixture([1.0], [0], 2, 1), 0)
    lengths = [random_length(buckets.locate(position, random_length)).length for position in range(0, 2000, 2)]
    shortest = Counter(int(np.argmin(lengths[first : first + 4])) for first in range(0, 1000, 4))
    assert min(shortest[place] for place in range(4)) > 40, "of 250 windows"


def wav(samples: int, level: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.full(samples, level, np.float32), RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 sounds of 20 to 800 ms in 8 shards, each sample in two voices."""
    folder = tmp_path_factory.mktemp("sounds")
    random = np.random.default_rng(0)
    with ShardWriter(folder, "sounds", samples_per_shard=8) as writer:
        for number in range(64):
            low, high = (int(random.integers(160, 6400)) for _ in range(2))
            members = {"low.wav": wav(low, 0.1), "high.wav": wav(high, 0.2)}
            writer.write(RawSample(f"s{number:02d}", sample("x", "red", 0, 0).members | members))
    return folder


def heard(sounds: Path, **changes: Any) -> DataSpec:
    audio = AudioInputSpec(("low.wav", "high.wav"), AudioTransformSpec(RATE, seconds=0.6))
    text = tiny_data(sounds).text
    spec = DataSpec(str(sounds), audio=audio, text=text, batch_size=8, order=OrderSpec(lanes=2, block=8))
    return dataclasses.replace(spec, **changes)


def batches(spec: DataSpec, first: int = 0, steps: int = 20, **ranks: int) -> list[Batch]:
    return list(training_loader(spec, {"text": ENCODER}, 3, first, steps, **ranks))  # type: ignore[arg-type]


def contents(batch: Batch) -> list[tuple[Any, ...]]:
    """Position, key, sound and text of each sample."""
    assert batch.positions is not None
    assert batch.audio is not None
    assert batch.text is not None
    rows = [batch.rows(slice(row, row + 1)) for row in range(len(batch.keys))]
    return [
        (
            int(position),
            key,
            part.audio.samples[0, : int(part.audio.lengths)].numpy().tobytes(),
            *part.text.ids.tolist(),
        )
        for position, key, part in zip(batch.positions, batch.keys, rows, strict=True)
        if part.audio is not None and part.text is not None
    ]


def padding(made: list[Batch]) -> float:
    """How many samples are computed with for each that is real."""
    sizes = [(batch.audio.lengths.max() * len(batch.keys), batch.audio.lengths.sum()) for batch in made if batch.audio]
    return float(sum(size for size, _ in sizes) / sum(real for _, real in sizes))


def test_windows_hold_the_samples_that_they_would_hold_without(sounds: Path) -> None:
    plain, sorted_ = batches(heard(sounds)), batches(heard(sounds, buckets=BucketSpec("audio", 4)))
    for first in range(0, 20, 4):
        before = Counter(tuple(map(str, one)) for batch in plain[first : first + 4] for one in contents(batch))
        after = Counter(tuple(map(str, one)) for batch in sorted_[first : first + 4] for one in contents(batch))
        assert before == after, "with the voices and captions that they had"
    assert [batch.keys for batch in plain] != [batch.keys for batch in sorted_]
    assert padding(sorted_) < 1 + (padding(plain) - 1) / 2


def test_no_batch_has_a_sample_twice_where_a_window_reaches_over_an_epoch(sounds: Path) -> None:
    for batch in batches(heard(sounds, buckets=BucketSpec("audio", 3)), steps=48):
        assert len(set(batch.keys)) == 8


def test_batches_do_not_depend_on_ranks_workers_or_where_a_run_goes_on(sounds: Path) -> None:
    spec = heard(sounds, buckets=BucketSpec("audio", 4))
    full = [contents(batch) for batch in batches(spec)]
    assert [contents(batch) for batch in batches(spec, first=7)] == full[7:]
    assert [contents(batch) for batch in batches(dataclasses.replace(spec, workers=2))] == full
    parts = [[contents(batch) for batch in batches(spec, rank=rank, ranks=2)] for rank in range(2)]
    for both, whole in zip(zip(*parts, strict=True), full, strict=True):
        assert sorted(both[0] + both[1]) == sorted(whole)
        assert [{one[0] % 2 for one in part} for part in both] == [{0}, {1}], "each rank reads its own lanes"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = []
    for number in range(8):
        file = io.BytesIO()
        Image.fromarray(np.full((10 + 11 * number, 90 - 11 * number, 3), number, np.uint8)).save(file, "PNG")
        files.append(file.getvalue())
    return write_few(tmp_path_factory.mktemp("pictures"), 8, png=files)


def seen(pictures: Path, **changes: Any) -> DataSpec:
    image = ImageInputSpec("png", ImageTransformSpec((96, 96), "native", patch=8))
    return tiny_data(pictures, image=image, order=OrderSpec(), batch_size=2, **changes)


@pytest.mark.parametrize("field", ["image", "text", "audio", "target"])
def test_lengths_are_those_of_what_is_read(field: Any, pictures: Path, sounds: Path) -> None:
    text = tiny_data(sounds).text
    given = {"audio": heard(sounds), "image": seen(pictures)}.get(field, heard(sounds, target=text))
    dataset = MixedDataset(dataclasses.replace(given, buckets=BucketSpec(field, 4)), 3)
    found = set()
    for position in range(100):
        value = getattr(dataset.sources[0].sample(position, position), field)
        expected = value.shape[0] * value.shape[1] if field == "image" else len(value)
        assert dataset._measure(position).length == expected
        found.add(expected)
    assert len(found) >= 4


def test_pictures_of_about_one_size_share_a_batch(pictures: Path) -> None:
    def waste(made: list[Batch]) -> float:
        grids = [batch.image.grid.prod(1) for batch in made if isinstance(batch.image, Patches)]
        assert len(grids) == 20
        return sum(float(grid.max()) * len(grid) for grid in grids) / sum(float(grid.sum()) for grid in grids) - 1

    assert waste(batches(seen(pictures, buckets=BucketSpec("image", 4)))) < waste(batches(seen(pictures))) / 2


def test_what_cannot_be_read_waits_to_be_told(tmp_path: Path) -> None:
    shards = write_few(tmp_path / "shards", 4, png=[b"no picture", *[b""] * 3])
    spec = seen(shards, buckets=BucketSpec("image", 2))
    dataset = MixedDataset(spec, 3)
    assert {dataset._measure(position).length for position in range(4)} == {0}
    with pytest.raises(InputError, match=r"not a whole PNG|has no member"):
        batches(spec, steps=2)


def test_sources_are_sorted_together_and_kinds_apart(sounds: Path) -> None:
    audio, text = heard(sounds).audio, heard(sounds).text
    more, words = SourceSpec(str(sounds), audio=audio, text=text), SourceSpec(str(sounds), text=text)
    spec = heard(sounds, also={"more": more, "words": words})
    plain = batches(spec)
    made = batches(dataclasses.replace(spec, buckets=BucketSpec("audio", 10)))
    assert [batch.audio is None for batch in made] == [batch.audio is None for batch in plain]
    assert padding([batch for batch in made if batch.audio]) < padding([batch for batch in plain if batch.audio])


def test_a_run_file_says_it(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards")
    run = tiny_run(shards, data={"buckets": BucketSpec("text", 4)})
    assert parse(RunSpec, to_data(run), "") == run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"buckets": BucketSpec("image")}, r"data.buckets.by is image, but data.image is absent"),
        ({"buckets": BucketSpec("audio"), "batch_size": 7}, r"batch_size is 7, which data.order.lanes, 2, does not"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], message: str, sounds: Path) -> None:
    with pytest.raises(InputError, match=message):
        heard(sounds, **changes)


def test_pictures_of_one_size_and_single_updates_are_refused(pictures: Path) -> None:
    with pytest.raises(InputError, match=r"fit is 'pad', which makes all pictures of one size"):
        tiny_data(pictures, buckets=BucketSpec("image"))
    with pytest.raises(InputError, match=r"BucketSpec.updates must be at least 2"):
        BucketSpec("audio", 1)
