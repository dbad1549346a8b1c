"""The embedded emoji: whole, as large as promised, and true triples of drawing, text and sound."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmformer.data.manifest import Manifest
from mmformer.data.shards import RawSample, ShardReader, verify
from mmformer.errors import InputError

FOLDER = Path(__file__).parents[2] / "data" / "emoji"
LANGUAGES = {"en", "zh", "de", "fr", "es", "ja", "ko", "ru", "pt", "it", "ar", "hi"}
COUNTS = {"train": 1279, "val": 168, "test": 154}


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return Manifest.load(FOLDER)


@pytest.fixture(scope="module")
def samples(manifest: Manifest) -> dict[str, list[RawSample]]:
    readers = {split: ShardReader(manifest, split) for split in manifest.splits}
    return {split: [reader[position] for position in range(len(reader))] for split, reader in readers.items()}


@pytest.fixture(scope="module")
def texts(samples: dict[str, list[RawSample]]) -> dict[str, list[dict[str, Any]]]:
    return {split: [json.loads(one.members["json"]) for one in rows] for split, rows in samples.items()}


def test_the_set_is_whole(manifest: Manifest) -> None:
    assert verify(manifest) == []
    assert {split: sum(shard.samples for shard in manifest.split(split)) for split in manifest.splits} == COUNTS
    keys = [key for split in manifest.splits for key in ShardReader(manifest, split).keys]
    assert len(keys) == len(set(keys)) == 1601


def test_everything_fits_in_20_megabytes() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= 20_000_000
    names = {path.name for path in files}
    assert {"README.md", "LICENSE-font.txt", "LICENSE-cldr.txt", "LICENSE-unicode-data.txt", "build.py"} <= names


def test_texts_are_complete(texts: dict[str, list[dict[str, Any]]], samples: dict[str, list[RawSample]]) -> None:
    fields = {"id", "char", "names", "keywords", "group", "subgroup", "split", "speech"}
    partial = []
    for split, rows in texts.items():
        for one, row in zip(samples[split], rows, strict=True):
            assert row.keys() == fields
            assert (row["id"], row["split"]) == (one.key, split)
            assert row["id"] == "-".join(f"{ord(point):x}" for point in row["char"])
            assert all(name.strip() for name in row["names"].values())
            assert [clip["ext"] for clip in row["speech"]] == ["en-0.ogg", "en-1.ogg"]
            assert len({clip["voice"] for clip in row["speech"]}) == 2
            if set(row["names"]) != LANGUAGES or set(row["keywords"]) != LANGUAGES:
                partial.append(set(row["names"]))
    assert partial == [{"en"}] * 21  # newer than the annotations


def test_groups_are_listed_in_order(texts: dict[str, list[dict[str, Any]]]) -> None:
    groups = (FOLDER / "groups.txt").read_text(encoding="utf-8").splitlines()
    assert groups[0] == "Smileys & Emotion"
    assert groups[-1] == "Symbols"
    assert len(groups) == 8
    for rows in texts.values():
        assert {row["group"] for row in rows} == set(groups)
    assert len({row["subgroup"] for rows in texts.values() for row in rows}) == 96


def test_splits_follow_the_hash_but_for_the_drawing_that_comes_twice(texts: dict[str, list[dict[str, Any]]]) -> None:
    odd = []
    for split, rows in texts.items():
        for row in rows:
            base = row["id"].replace("-fe0f", "")
            number = int(hashlib.sha256(base.encode()).hexdigest()[:8], 16) % 10
            if {0: "test", 1: "val"}.get(number, "train") != split:
                odd.append(row["id"])
    assert set(odd) <= {"1f468-200d-1f468-200d-1f466"}


def test_drawings_are_square_and_in_one_split_only(samples: dict[str, list[RawSample]]) -> None:
    seen: dict[bytes, str] = {}
    for split, rows in samples.items():
        for one in rows:
            with Image.open(io.BytesIO(one.members["png"]), formats=["PNG"]) as image:
                assert image.size == (128, 128)
                assert "transparency" not in image.info
                pixels = np.asarray(image.convert("RGB"))
            assert (pixels == 255).all(axis=-1).any()
            assert (pixels < 240).any()
            assert seen.setdefault(hashlib.sha256(pixels.tobytes()).digest(), split) == split
    assert len(seen) == 1600


def test_names_are_spoken(samples: dict[str, list[RawSample]]) -> None:
    chosen = [*samples["test"], *samples["train"][::16]]
    seconds = []
    for one in chosen:
        for extension in ("en-0.ogg", "en-1.ogg"):
            sound, rate = soundfile.read(io.BytesIO(one.members[extension]), dtype="float32")
            assert rate == 16_000
            assert sound.ndim == 1
            assert 0.1 < np.abs(sound).max() <= 1.0
            seconds.append(len(sound) / rate)
    assert min(seconds) > 0.2
    assert max(seconds) < 6.0
    assert 0.7 < np.mean(seconds) < 1.5


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    spec = importlib.util.spec_from_file_location("emoji_build", FOLDER / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "emoji_build", module)
    spec.loader.exec_module(module)
    yield module
    for name in {"noto_font", "speech", "unicode_text"} - before:
        sys.modules.pop(name, None)


def test_the_builder_says_what_to_install(
    builder: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(builder.SOURCES, "espeak-ng", ("1", tmp_path / "absent"))
    with pytest.raises(InputError, match=r"Not installed: .*espeak-ng. On Debian: apt-get install .*espeak-ng"):
        builder.check_sources()
    monkeypatch.setattr(sys, "argv", ["build.py", "--check"])
    assert builder.main() == 2
    assert "apt-get install" in capsys.readouterr().err


def test_the_builder_remakes_a_few_samples(
    builder: ModuleType, samples: dict[str, list[RawSample]], texts: dict[str, list[dict[str, Any]]]
) -> None:
    try:
        builder.check_sources()
    except InputError as error:
        pytest.skip(str(error))
    font = builder.NotoFont(builder.FONT)
    emoji = {one.id: one for one in builder.read_emoji(builder.EMOJI_TEST, builder.CLDR)}
    assert len(emoji) == 1601
    result = builder.Comparison(builder.Counter(), [])
    for one, row in list(zip(samples["val"], texts["val"], strict=True))[:8]:
        made = builder.make_sample(emoji[one.key], builder.draw(font.png(row["char"])), "val")
        assert made.members.keys() == one.members.keys()
        for extension, data in one.members.items():
            result.member(f"{one.key}.{extension}", made.members[extension], data)
    assert result.differences == []
    assert result.compared["decoded sounds"] == 16
