"""Damaged samples: refused with their name, or skipped, with another one in their place that position alone decides."""

from __future__ import annotations

import dataclasses
import io
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from bundles import tone
from tiny import VOCABULARY, sample, tiny_data, write_few, write_shards

from mmformer.data.damage import MOST
from mmformer.data.dataset import MixedDataset
from mmformer.data.inputs import AudioInputSpec
from mmformer.data.loading import evaluation_loader, training_loader
from mmformer.data.manifest import Manifest
from mmformer.data.mix import MixSpec
from mmformer.data.order import OrderSpec
from mmformer.data.shards import RawSample, ShardReader, ShardWriter
from mmformer.data.sources import DataSpec, SourceSpec
from mmformer.errors import InputError
from mmformer.tokenizers.text import TextEncoder, TextTokensSpec
from mmformer.types import Batch

PNG = sample("x", "red", 0, 0).members["png"]
EMPTY = b'{"names": {"en": " "}, "keywords": {"en": [""]}}'
BROKEN: dict[int, tuple[dict[str, bytes], str, str]] = {
    2: ({"png": PNG[:60]}, "damaged picture", "not a whole PNG"),
    9: ({"json": b"\xff\xfe{}"}, "damaged text", "not UTF-8 text: byte 0"),
    13: ({"png": b""}, "missing member", "has no member '.png'"),
    20: ({"json": EMPTY}, "no caption", "the caption is empty"),
}
"""Number of a training sample -> its members, and what is told of it."""


def damaged(whole: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a set, with some of its training samples damaged; keys of others in ``changes`` too."""
    with ShardWriter(folder, "tiny", samples_per_shard=8) as writer:
        for split in ("train", "val", "test"):
            reader = ShardReader(Manifest.load(whole), split)
            for place, raw in enumerate(reader[place] for place in range(len(reader))):
                own = BROKEN[place][0] if split == "train" and place in BROKEN else changes.get(f"{split}{place}", {})
                members = {name: data for name, data in (raw.members | own).items() if data}
                writer.write(RawSample(raw.key, members), split)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def broken(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return damaged(whole, tmp_path_factory.mktemp("broken") / "set")


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextTokensSpec(VOCABULARY, context_length=16).encoder()


def batches(spec: DataSpec, encoder: TextEncoder, steps: int = 12, first: int = 0, **ranks: int) -> list[Batch]:
    return list(training_loader(spec, {"text": encoder}, 3, first, steps, **ranks))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def names(whole: Path) -> list[str]:
    """The keys of the training samples, by number."""
    return list(ShardReader(Manifest.load(whole), "train").keys)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_another_sample_stands_in_and_the_rest_stay_where_they_are(
    lanes: int, shuffle: bool, whole: Path, broken: Path, encoder: TextEncoder, names: list[str]
) -> None:
    order = OrderSpec(lanes, shuffle=shuffle)
    clean = [key for batch in batches(tiny_data(whole, order=order), encoder) for key in batch.keys]
    made = batches(tiny_data(broken, order=order, on_damage="skip"), encoder)
    found = [key for batch in made for key in batch.keys]
    bad = {names[number]: rest for number, (_, *rest) in BROKEN.items()}
    assert not set(found) & set(bad)
    changed = [place for place, (a, b) in enumerate(zip(clean, found, strict=True)) if a != b]
    assert changed == [place for place, key in enumerate(clean) if key in bad], "each time one's turn comes"
    assert all(clean.index(found[place], place + 8) % lanes == place % lanes for place in changed[:4]), "of its lane"
    noted = [note for batch in made for note in batch.notes.skipped]  # type: ignore[union-attr]
    assert {note.position for note in noted} == set(changed)
    for note in noted:
        cause, reason = bad[note.key]
        assert (note.source, note.cause) == (str(broken), cause)
        assert reason in note.reason


def test_no_batch_has_a_sample_twice(broken: Path, encoder: TextEncoder) -> None:
    spec = tiny_data(broken, on_damage="skip", order=OrderSpec(2))
    counts = [max(Counter(batch.keys).values()) for batch in batches(spec, encoder, 4)]
    assert counts == [1] * 4


@pytest.mark.parametrize("workers", [0, 2])
def test_stand_ins_do_not_depend_on_workers_ranks_or_where_a_run_begins(
    workers: int, broken: Path, encoder: TextEncoder
) -> None:
    spec = tiny_data(broken, on_damage="skip")
    once = batches(spec, encoder)
    again = batches(dataclasses.replace(spec, workers=workers), encoder, first=5)
    for one, other in zip(once[5:], again, strict=True):
        assert one.keys == other.keys
        assert one.notes == other.notes
        assert one.image is not None and other.image is not None
        assert one.image.equal(other.image)
    parts = [batches(spec, encoder, rank=rank, ranks=2) for rank in range(2)]
    for one, *halves in zip(once, *parts, strict=True):
        assert sorted(one.keys) == sorted(key for half in halves for key in half.keys)
        noted = {note for half in halves for note in half.notes.skipped}  # type: ignore[union-attr]
        assert noted == set(one.notes.skipped)  # type: ignore[union-attr]


def test_a_stand_in_is_as_it_would_be_at_that_position(broken: Path) -> None:
    """Its augmentation and caption are drawn for the position that it stands at."""
    dataset = MixedDataset(tiny_data(broken, on_damage="skip"), 3)
    own = dataset.sources[0]
    position = next(position for position in range(32) if dataset[position].skipped)
    (note,) = dataset[position].skipped
    assert note.position == position
    assert own.sample(position + 8, position).text == dataset[position].text
    assert dataset[position].key == own.sample(position + 8, position).key == own[position + 8].key


def test_without_skipping_the_first_one_is_refused(broken: Path, encoder: TextEncoder) -> None:
    with pytest.raises(InputError, match=r"To train without such samples, set data.on_damage to skip\.$"):
        batches(tiny_data(broken), encoder)


def test_what_is_measured_on_is_never_skipped(whole: Path, tmp_path: Path, encoder: TextEncoder) -> None:
    spec = tiny_data(damaged(whole, tmp_path / "set", val3={"png": PNG[:60]}), on_damage="skip")
    with pytest.raises(InputError, match=r"not a whole PNG.*leave it out\.$"):
        list(evaluation_loader(spec, "val", {"text": encoder}))
    learned = list(evaluation_loader(spec, "train", {"text": encoder}, skips=True))
    assert sum(len(batch.keys) for batch in learned) == 32  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("sound", "reason"),
    [
        (tone(300)[:0], "there is no sample in this sound"),
        (np.full(800, np.nan, np.float32), "some samples are NaN or infinite"),
    ],
)
def test_sounds_are_skipped_too(sound: np.ndarray, reason: str, tmp_path: Path, encoder: TextEncoder, wav: Any) -> None:
    folder = write_few(tmp_path, wav=[wav(tone(300)), wav(sound), wav(tone(400)), wav(tone(500))])
    spec = tiny_data(folder, audio=AudioInputSpec(), batch_size=2, order=OrderSpec(), on_damage="skip")
    (noted,) = {(n.key, n.cause, n.reason) for b in batches(spec, encoder) for n in b.notes.skipped}  # type: ignore[union-attr]
    assert noted[:2] == ("s1", "damaged sound")
    assert reason in noted[2]


@pytest.fixture
def wav() -> Any:
    def write(samples: np.ndarray) -> bytes:
        file = io.BytesIO()
        soundfile.write(file, samples, 8000, format="WAV", subtype="FLOAT")
        return file.getvalue()

    return write


def test_damage_everywhere_is_a_mistake_in_the_configuration(tmp_path: Path, encoder: TextEncoder) -> None:
    folder = write_few(tmp_path, png=[b"no picture"] * 4)
    spec = tiny_data(folder, order=OrderSpec(), batch_size=2, on_damage="skip")
    with pytest.raises(InputError, match=rf"{MOST} samples in a row cannot be used.*s\d.png: not a whole PNG"):
        batches(spec, encoder, 1)


def test_what_is_no_damage_of_one_sample_is_refused(whole: Path, encoder: TextEncoder) -> None:
    spec = tiny_data(whole, on_damage="skip")
    assert spec.image is not None
    other = dataclasses.replace(spec, image=dataclasses.replace(spec.image, member="jpg"))
    with pytest.raises(InputError, match="has a member 'jpg': there are json, png"):
        batches(other, encoder)


def test_texts_that_are_too_long_are_counted(whole: Path) -> None:
    short = TextTokensSpec(VOCABULARY, context_length=6).encoder()
    spec = tiny_data(whole)
    dataset = MixedDataset(spec, 3)
    for batch in batches(spec, short, 3):
        texts = [dataset[position].text for position in batch.positions.tolist()]  # type: ignore[union-attr]
        lengths = [len(short.vocabulary.encode(f" {text}")) + 1 for text in texts]  # with eos
        assert batch.notes is not None
        assert batch.notes.texts == {"text": (8, sum(length > 6 for length in lengths))}
    assert 0 < sum(length > 6 for length in lengths) < 8, "some are cut and some are not"


def test_a_batch_larger_than_the_split_is_refused(whole: Path, encoder: TextEncoder) -> None:
    message = (
        r"data.batch_size is 33, but the split 'train' of .* has 32 samples: .*Set data.batch_size to 32 or less\."
    )
    with pytest.raises(InputError, match=message):
        batches(tiny_data(whole, batch_size=33), encoder)
    assert len(set(batches(tiny_data(whole, batch_size=32), encoder, 1)[0].keys)) == 32


def test_each_source_of_a_mixture_stands_in_for_its_own(whole: Path, broken: Path, encoder: TextEncoder) -> None:
    alone = tiny_data(whole)
    pictures = SourceSpec(str(broken), image=alone.image, text=alone.text)
    spec = tiny_data(whole, also={"broken": pictures}, on_damage="skip")
    made = batches(spec, encoder, 16)
    noted = {(note.source, note.key) for batch in made for note in batch.notes.skipped}  # type: ignore[union-attr]
    assert {source for source, _ in noted} == {str(broken)}
    assert len(noted) == len(BROKEN)
    dataset = MixedDataset(spec, 3)
    for position in (note.position for batch in made for note in batch.notes.skipped):  # type: ignore[union-attr]
        assert dataset[position].source == 1


def test_a_picture_to_be_mixed_in_that_is_damaged_is_skipped_with_what_it_is_mixed_into(
    whole: Path, broken: Path, names: list[str]
) -> None:
    spec = tiny_data(broken, on_damage="skip")
    assert spec.image is not None
    mixing = dataclasses.replace(spec, image=dataclasses.replace(spec.image, mix=MixSpec()))
    dataset = MixedDataset(mixing, 3)
    unusable = {names[number] for number in BROKEN}
    for position in range(32):
        found = dataset[position]
        assert found.other is not None
        assert {note.key for note in found.skipped} <= unusable
        assert found.key not in unusable
    own = {note.key for position in range(32) for note in MixedDataset(spec, 3)[position].skipped}
    assert own == unusable


# ------------------------------------------------------------------------------------- shards of which none can be used


def without(whole: Path, folder: Path, spoil: str = "missing") -> tuple[Path, set[str]]:
    """A copy of a set, whose third training shard is missing, or is another file; and the keys that it had."""
    shutil.copytree(whole, folder)
    manifest = Manifest.load(folder)
    shard = manifest.split("train")[2]
    if spoil == "missing":
        manifest.path(shard).unlink()
    else:
        manifest.path(shard).write_bytes(b"another")
    return folder, set(manifest.index(shard).keys)


@pytest.mark.parametrize("spoil", ["missing", "changed"])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("lanes", [1, 2])
def test_others_stand_in_for_a_shard_that_cannot_be_used(
    lanes: int, shuffle: bool, spoil: str, whole: Path, tmp_path: Path, encoder: TextEncoder
) -> None:
    order = OrderSpec(lanes, shuffle=shuffle)
    folder, lost = without(whole, tmp_path / "set", spoil)
    clean = [key for batch in batches(tiny_data(whole, order=order), encoder) for key in batch.keys]
    made = batches(tiny_data(folder, order=order, on_damage="skip"), encoder)
    found = [key for batch in made for key in batch.keys]
    assert not lost & set(found)
    assert [a == b for a, b in zip(clean, found, strict=True)] == [key not in lost for key in clean]
    noted = [note for batch in made for note in batch.notes.skipped]  # type: ignore[union-attr]
    assert {note.cause for note in noted} == {f"{spoil} shard"}
    assert {note.key for note in noted} == {f"2:{row}" for row in range(8)}
    assert all("tiny-train-000002.tar" in note.reason for note in noted)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_stands_in_for_a_shard_is_the_same_in_any_process(
    workers: int, whole: Path, tmp_path: Path, encoder: TextEncoder
) -> None:
    folder, _ = without(whole, tmp_path / "set")
    spec = tiny_data(folder, on_damage="skip")
    once = batches(spec, encoder)
    again = batches(dataclasses.replace(spec, workers=workers), encoder, first=5)
    assert [(one.keys, one.notes) for one in once[5:]] == [(one.keys, one.notes) for one in again]
    parts = [batches(spec, encoder, rank=rank, ranks=2) for rank in range(2)]
    for one, *halves in zip(once, *parts, strict=True):
        assert sorted(one.keys) == sorted(key for half in halves for key in half.keys)


def test_a_shard_that_cannot_be_used_is_asked_for_once(whole: Path, tmp_path: Path) -> None:
    folder, _ = without(whole, tmp_path / "set")
    dataset = MixedDataset(tiny_data(folder, on_damage="skip"), 3)
    samples = dataset.sources[0].reader
    assert isinstance(samples, ShardReader)
    asked: list[str] = []
    fetch = samples.manifest.fetch
    object.__setattr__(samples.manifest, "fetch", lambda shard: asked.append(shard.path) or fetch(shard))
    for position in range(64):
        assert dataset[position].key
    assert asked.count("tiny-train-000002.tar") == 1


def test_without_skipping_a_shard_that_cannot_be_used_is_refused(
    whole: Path, tmp_path: Path, encoder: TextEncoder
) -> None:
    folder, _ = without(whole, tmp_path / "set")
    with pytest.raises(InputError, match=r"tiny-train-000002.tar is missing: .* set data.on_damage to skip\.$"):
        batches(tiny_data(folder), encoder)


def test_a_lane_of_nothing_but_shards_that_cannot_be_used_is_refused(whole: Path, tmp_path: Path) -> None:
    folder, _ = without(whole, tmp_path / "set")
    dataset = MixedDataset(tiny_data(folder, on_damage="skip", order=OrderSpec(4)), 3)
    with pytest.raises(InputError, match=rf"{MOST} samples in a row cannot be used"):
        for position in range(4):
            assert dataset[position].key


def test_the_number_that_may_be_skipped_is_left_alone_where_none_is(whole: Path) -> None:
    with pytest.raises(InputError, match=r"DataSpec.most_skipped must be left alone unless on_damage is skip"):
        tiny_data(whole, most_skipped=5)
    with pytest.raises(InputError, match=r"DataSpec.most_skipped must be at least 0, but is -1"):
        tiny_data(whole, on_damage="skip", most_skipped=-1)
