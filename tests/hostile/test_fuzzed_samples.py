"""Pictures, sounds, captions and tables of strangers: decoded, or refused in words."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from attempts import damaged, fuzz, strange
from PIL import Image

from mmformer.data.building.tables import read_table
from mmformer.data.caption import (
    FieldCaptionSpec,
    JoinedCaptionSpec,
    MixedCaptionSpec,
    SampledCaptionSpec,
    WordDropoutCaptionSpec,
)
from mmformer.data.decode import decode_class, decode_image, decode_json, decode_text, image_size
from mmformer.data.sound import AudioTransformSpec, decode_sound, sound_length

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
WAVE = (0.5 * np.sin(np.arange(2000) / 9)).astype(np.float32)
SAMPLE = {
    "names": {"en": "a cat", "de": "eine Katze"},
    "keywords": {"en": ["cat", "pet"]},
    "size": [1, 2.5],
    "no": None,
}


def picture(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(file, kind, **options)
    return file.getvalue()


def sound(kind: str, subtype: str | None = None, rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.stack([WAVE, -WAVE], 1), rate, format=kind, subtype=subtype)
    return file.getvalue()


PICTURES = {
    "png": [picture("PNG"), picture("PNG", "P"), picture("PNG", "RGBA")],
    "jpeg": [picture("JPEG"), picture("JPEG", progressive=True), picture("JPEG", "CMYK")],
    "webp": [picture("WEBP"), picture("WEBP", lossless=True)],
    "gif": [picture("GIF", "P")],
    "bmp": [picture("BMP"), picture("BMP", "P")],
}
SOUNDS = {
    "wav": [sound("WAV"), sound("WAV", "FLOAT"), sound("WAV", "IMA_ADPCM"), sound("WAVEX", "PCM_24")],
    "flac": [sound("FLAC")],
    "ogg": [sound("OGG", "VORBIS"), sound("OGG", "OPUS", 48_000)],
    "mp3": [sound("MP3", rate=44_100)],
}
LONG = pytest.mark.slow


@pytest.mark.parametrize("budget", [80, pytest.param(3000, marks=LONG)])
@pytest.mark.parametrize("kind", PICTURES)
def test_pictures(kind: str, budget: int) -> None:
    def attempt(data: bytes) -> None:
        size = image_size(data)
        made = decode_image(data, "a")
        assert made.dtype == np.uint8 and made.ndim == 3 and made.shape[2] == 3
        assert size is not None and sorted(size) == sorted(made.shape[:2]), "the header is what was decoded"

    assert set(fuzz("pictures", damaged(*PICTURES[kind]), attempt, budget)) == {"read", "refused"}


@pytest.mark.parametrize("budget", [50, pytest.param(3000, marks=LONG)])
@pytest.mark.parametrize("kind", SOUNDS)
def test_sounds(kind: str, budget: int) -> None:
    transform = AudioTransformSpec(8000, seconds=0.1)

    def attempt(data: bytes) -> None:
        sound_length(data)
        made = decode_sound(data, "a", seconds=0.1, place=0.5)
        assert made.samples.dtype == np.float32 and np.isfinite(made.samples).all()
        assert 1 <= len(transform(made)) <= transform.most

    assert "refused" in fuzz("sounds", damaged(*SOUNDS[kind]), attempt, budget)


CAPTIONS = (
    FieldCaptionSpec("names.en"),
    SampledCaptionSpec("keywords.en", otherwise="names.de"),
    JoinedCaptionSpec((FieldCaptionSpec("names.en"), SampledCaptionSpec("keywords.en"))),
    MixedCaptionSpec((FieldCaptionSpec("names.en"), FieldCaptionSpec("names.de"))),
    WordDropoutCaptionSpec(FieldCaptionSpec("names.en")),
)


@pytest.mark.parametrize("budget", [80, pytest.param(3000, marks=LONG)])
def test_captions(budget: int) -> None:
    def attempt(data: bytes) -> None:
        fields = decode_json(data, "a.json")
        for caption in CAPTIONS:
            assert isinstance(caption.choose(fields, np.random.default_rng(0), "a"), str)

    trees = strange(SAMPLE).map(lambda tree: json.dumps(tree).encode())
    assert set(fuzz("captions", trees | damaged(json.dumps(SAMPLE).encode()), attempt, budget)) == {"read", "refused"}


@pytest.mark.parametrize("budget", [100, pytest.param(3000, marks=LONG)])
def test_texts_and_classes(budget: int) -> None:
    def attempt(data: bytes) -> None:
        assert isinstance(decode_text(data, "a.txt"), str)
        assert isinstance(decode_class(data, "a.cls"), int)

    assert set(fuzz("texts", damaged(b"12345678\n", "größer, 大".encode()), attempt, budget)) == {"read", "refused"}


TABLES = {
    ".csv": b'file,caption\na.png,"a cat, sitting"\nb.png,"two ""cats"""\n',
    ".tsv": b"file\tcaption\na.png\ta cat\nb.png\ttwo cats\n",
    ".jsonl": b'{"file": "a.png", "caption": ["a cat", "eine Katze"]}\n{"file": "b.png", "caption": "cats"}\n',
}


@pytest.mark.parametrize("budget", [50, pytest.param(1000, marks=LONG)])
@pytest.mark.parametrize("suffix", [*TABLES, ".parquet"])
def test_tables(suffix: str, tmp_path: Path, budget: int) -> None:
    file = tmp_path / f"table{suffix}"
    if suffix == ".parquet":
        arrow = pytest.importorskip("pyarrow", reason="tables in Parquet")
        from pyarrow import parquet

        parquet.write_table(arrow.table({"file": ["a.png", "b.png"], "caption": ["a cat", "cats"]}), file)
    else:
        file.write_bytes(TABLES[suffix])

    def attempt(data: bytes) -> None:
        file.write_bytes(data)
        table = read_table(file)
        assert len(table.rows) > 0
        assert all(row.problem is not None or set(row.values) <= set(table.columns) for row in table.rows)

    assert "read" in fuzz("tables", damaged(file.read_bytes()), attempt, budget)
