"""Sheets of samples: what a set has, and what a run makes of it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from tiny import tiny_data, tiny_model, write_shards

from mmformer.data.augment_sound import SpecAugmentSpec
from mmformer.data.buckets import BucketSpec
from mmformer.data.collate import Collate
from mmformer.data.contact_sheet import Tile, draw_contact_sheet, draw_spectrum
from mmformer.data.curriculum import CurriculumSpec
from mmformer.data.dataset import MixedDataset
from mmformer.data.inputs import AudioInputSpec
from mmformer.data.manifest import Manifest
from mmformer.data.opening import open_samples
from mmformer.data.preview import raw_tiles, training_rows
from mmformer.data.scores import SCORES_COLUMNS
from mmformer.data.shards import RawSample, ShardWriter
from mmformer.data.sound import AudioTransformSpec, Sound
from mmformer.data.sources import SourceSpec
from mmformer.drawing import SCALE, Pen


def test_samples_are_spread_over_the_split_with_their_texts(tmp_path: Path) -> None:
    manifest = Manifest.load(write_shards(tmp_path / "set"))
    tiles = raw_tiles(manifest, "train", 4, ["names.en"])
    reader_keys = [tile.title for tile in raw_tiles(manifest, "train", 100)]
    assert [tile.title for tile in tiles] == reader_keys[::8]
    assert tiles[0].picture is not None
    assert tiles[0].picture.shape == (20, 24, 3)
    assert tiles[0].text == "small black square, left"
    assert list(tiles[0].notes) == ["png 24 x 20", "24 characters"]
    assert raw_tiles(manifest, "train", 1, ["keywords.en"], tokens=len)[0].notes[1] == "4 tokens, and 2 more"


def test_a_run_shows_what_training_reads(tmp_path: Path) -> None:
    data = tiny_data(write_shards(tmp_path / "set"))
    encoders = tiny_model().text_encoders()
    rows = training_rows(data, encoders, 3, number=2, draws=3)
    dataset = MixedDataset(data, 3)
    for number, (read, *drawn) in enumerate(rows):
        sample = dataset[number]
        assert read.title == sample.key
        assert read.picture is not None
        assert sample.image is not None
        assert (read.picture == sample.image).all()
        batch = Collate(data, encoders, 3, training=True)([sample])
        assert batch.image is not None
        assert batch.text is not None
        assert drawn[0].picture is not None
        assert (drawn[0].picture == batch.image[0].permute(1, 2, 0).numpy()).all(), "just what the first step sees"
        assert drawn[0].text == sample.text
        assert drawn[0].notes == [f"text: {int(batch.text.lengths[0])} tokens"]
        assert len({tile.picture.tobytes() for tile in drawn if tile.picture is not None}) == 3


def test_a_run_shows_what_buckets_and_curricula_make_of_it(tmp_path: Path) -> None:
    """The first update has other samples than without them, and the sheet shows those."""
    folder = write_shards(tmp_path / "set")
    plain = tiny_data(folder, batch_size=8)
    keys = open_samples(str(folder), "train").keys
    scores = [SCORES_COLUMNS, *((key, "train", str(number)) for number, key in enumerate(keys))]
    (tmp_path / "scores.tsv").write_text("".join("\t".join(row) + "\n" for row in scores))
    eased = CurriculumSpec(str(tmp_path / "scores.tsv"), updates=100, begin=0.3)
    shown = []
    for data in (plain, replace(plain, buckets=BucketSpec("text")), replace(plain, curriculum=eased)):
        dataset = MixedDataset(data, 3)
        rows = training_rows(data, tiny_model().text_encoders(), 3, number=8, draws=1)
        shown.append([row[0].title for row in rows])
        assert shown[-1] == [dataset[position].key for position in range(8)]
    assert len({tuple(keys) for keys in shown}) == 3


def test_every_kind_of_source_is_shown(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set")
    texts = SourceSpec(str(folder), text=tiny_data(folder).text, weight=0.2)
    data = tiny_data(folder, also={"texts": texts}, batch_size=8, weight=0.8)
    rows = training_rows(data, tiny_model().text_encoders(), 0, number=5, draws=2)
    assert [row[1].picture is not None for row in rows] == [True, True, True, False, False]
    assert all(row[1].text for row in rows)


def test_damaged_samples_are_shown_as_such(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.new("RGB", (9, 9)).save(whole, "PNG")
    with ShardWriter(tmp_path, "s", samples_per_shard=3) as writer:
        writer.write(RawSample("a", {"png": whole.getvalue()[:45], "txt": b"cut"}))
        writer.write(RawSample("b", {"png": whole.getvalue(), "json": b"{"}))
        writer.write(RawSample("c", {"png": whole.getvalue(), "txt": b"whole"}))
    cut, unclosed, fine = raw_tiles(writer.manifest, "train", 3)
    assert (cut.picture, cut.text, cut.notes[0]) == (None, "cut", "png damaged")
    assert unclosed.picture is not None
    assert (unclosed.text, unclosed.notes) == ("", ["png 9 x 9, json damaged"])
    assert (fine.text, fine.notes[0]) == ("whole", "png 9 x 9")


def test_sounds_are_shown_with_what_is_hidden_of_them(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(0).uniform(-1, 1, 4000).astype(np.float32), 8000, format="WAV")
    with ShardWriter(tmp_path, "s", samples_per_shard=1) as writer:
        for key in "ab":
            writer.write(RawSample(key, {"wav": buffer.getvalue(), "txt": b"noise"}))
    tile, _ = raw_tiles(writer.manifest, "train", 5)
    assert (tile.picture, tile.text, tile.notes[0]) == (None, "noise", "wav 0.50 s at 8,000 Hz")
    audio = AudioInputSpec(transform=AudioTransformSpec(8000, 1.0), spec_augment=SpecAugmentSpec(time=1, frequency=1))
    data = tiny_data(tmp_path, image=None, text=None, audio=audio, validation=None, test=None)
    ((read, drawn),) = training_rows(data, {}, 0, number=1, draws=1)
    red = (214, 90, 80)
    assert read.spectrum is not None
    assert drawn.spectrum is not None
    assert not (read.spectrum == red).all(-1).any()
    assert (drawn.spectrum == red).all(-1).any()


def test_a_spectrum_is_dark_where_the_tone_is() -> None:
    time = np.arange(8000) / 8000
    low, high = (
        draw_spectrum(Sound(np.sin(2 * np.pi * pitch * time).astype(np.float32), 8000)) for pitch in (300, 3000)
    )
    darkest = [int(one[:, :, 0].mean(1).argmin()) for one in (low, high)]
    assert darkest[0] > darkest[1], "low tones are at the bottom"
    hidden = draw_spectrum(Sound(np.zeros(8000, np.float32), 8000), np.array([[0.5, 1, 0, 1]], np.float32))
    red = (hidden == (214, 90, 80)).all(-1)
    assert red[:, red.shape[1] // 2 + 1 :].all()
    assert not red[:, : red.shape[1] // 2 - 1].any()


def test_a_sheet_has_a_place_for_each_tile() -> None:
    black = Tile("k", np.zeros((9, 9, 3), np.uint8), None, "words " * 40, ["a note"])
    sheet = draw_contact_sheet("title", "line", [[black, black], [black]])
    dark = np.asarray(sheet.convert("L")) < 5
    places = [dark[250:260, 40:250].any(), dark[250:260, 260:460].any()]
    assert places == [True, True]
    lower = dark[sheet.height // 2 + 60 :]
    assert lower[:, :250].any()
    assert not lower[:, 260:].any()


def test_a_row_is_as_high_as_what_it_holds() -> None:
    picture = Tile("k", np.zeros((9, 9, 3), np.uint8), None, "", [])
    sound = Tile("k", None, np.zeros((9, 9, 3), np.uint8), "", [])
    rows = ([sound], [sound]), ([picture], [sound]), ([sound], [picture]), ([picture], [picture])
    small, one, other, large = (draw_contact_sheet("title", "line", pair).height for pair in rows)
    assert small < one == other < large


@pytest.mark.parametrize(
    "text", ["", "short", "some words that do not fit into one line", "W" * 80, "a " + "W" * 80 + " b"]
)
def test_wrapped_lines_fit_and_lose_nothing_but_what_the_ellipsis_stands_for(text: str) -> None:
    pen = Pen(Image.new("RGB", (10, 10)))
    whole = pen.wrapped(text, 14, 120, 100)
    assert "".join(whole).replace(" ", "") == text.replace(" ", "")
    from PIL import ImageFont

    font = ImageFont.load_default(14 * SCALE)
    cut = pen.wrapped(text, 14, 120, 2)
    assert all(font.getlength(line) <= 120 * SCALE for line in whole + cut)
    if len(whole) > 2:
        assert len(cut) == 2
        assert cut[0] == whole[0]
        assert cut[1].endswith("…")
    else:
        assert cut == whole
