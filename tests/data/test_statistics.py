"""What is measured of a set equals what was put into it, and its picture shows it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmformer.data.histograms import bars, draw_histograms, histogram
from mmformer.data.manifest import Manifest
from mmformer.data.shards import RawSample, ShardWriter
from mmformer.data.statistics import Facts, Questions, evenness, measure, spans, summary
from mmformer.errors import InputError
from mmformer.tokenizers.vocabulary import Vocabulary

VOCABULARY = str(Path(__file__).parents[2] / "tokenizers" / "emoji-12.model")
SIZES = [(4, 6), (10, 5), (8, 8), (3, 9)]  # height, width
TEXTS = ["a red heart", "grün", "grün", "two words"]


def png(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def wav(samples: int, rate: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(samples, np.float32), rate, format="WAV")
    return buffer.getvalue()


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    with ShardWriter(tmp_path, "s", samples_per_shard=2) as writer:
        for number, (size, text) in enumerate(zip(SIZES, TEXTS, strict=True)):
            fields = {"caption": text, "label": "ab"[number % 2], "more": {"x": [text, "z"]}}
            members = {"png": png(size), "json": json.dumps(fields).encode(), "wav": wav(800 * (number + 1), 8000)}
            writer.write(RawSample(f"k{number}", members))
        writer.write(RawSample("v", {"png": b"no picture", "txt": b"plain", "cls": b"7"}), "val")
    return writer.manifest


@pytest.mark.parametrize("workers", [1, 2])
def test_facts_are_those_of_the_samples(manifest: Manifest, workers: int) -> None:
    seen: list[int] = []
    splits = measure(manifest, Questions(vocabulary=VOCABULARY), workers, seen.append)
    train, val = splits["train"], splits["val"]
    assert seen == [1, 1, 1]
    assert (train.samples, dict(train.members)) == (4, {"png": 4, "json": 4, "wav": 4})
    assert train.sizes["png"] == sum(len(png(size)) for size in SIZES)
    assert list(zip(train.height, train.width, strict=True)) == SIZES
    assert train.aspect == [1.5, 0.5, 1.0, 3.0]
    assert train.seconds == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert dict(train.rates) == {8000: 4}
    assert train.captions == [1, 1, 1, 1]
    assert train.characters == [11, 4, 4, 9]
    assert train.words == [3, 1, 1, 2]
    vocabulary = Vocabulary.load(VOCABULARY)
    assert train.tokens == [len(vocabulary.encode(f" {text}")) for text in TEXTS]
    assert len(train.texts) == 3
    assert dict(train.classes) == {"a": 2, "b": 2}
    assert (dict(val.unreadable), val.width, dict(val.classes), val.characters) == ({"png": 1}, [], {"7": 1}, [5])


def test_texts_and_classes_are_found_where_they_are_said_to_be(manifest: Manifest) -> None:
    train = measure(manifest, Questions(fields=("more.*",), label="more.none"), 1)["train"]
    assert train.captions == [2, 2, 2, 2]
    assert train.characters[:2] == [11, 1]
    assert not train.classes


def test_languages_are_guessed(manifest: Manifest) -> None:
    pytest.importorskip("py3langid")
    splits = measure(manifest, Questions(languages=True), 1)
    assert splits["train"].languages.total() == 4
    assert splits["train"].languages["de"] >= 1


def test_an_absent_package_is_named(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "py3langid.langid", None)
    with pytest.raises(InputError, match=r'pip install "mmformer\[curation\]"'):
        measure(manifest, Questions(languages=True), 1)


def test_a_summary_says_what_there_is_and_can_be_written_as_json(manifest: Manifest) -> None:
    splits = measure(manifest, Questions(), 1)
    told = json.loads(json.dumps({split: summary(manifest, split, facts) for split, facts in splits.items()}))
    train = told["train"]
    assert (train["samples"], train["shards"], train["members"]["wav"]["count"]) == (4, 2, 4)
    assert train["images"]["width"] == {"min": 5, "p5": 5.15, "median": 7.0, "mean": 7.0, "p95": 8.85, "max": 9}
    assert train["sounds"]["hours"] == pytest.approx(1 / 3600)
    assert (train["texts"]["count"], train["texts"]["distinct"]) == (4, 3)
    assert train["classes"] == {"count": 2, "without": 0, "evenness": 1.0, "counts": {"a": 2, "b": 2}}
    assert "sounds" not in told["val"]
    assert "languages" not in train["texts"]


def test_damaged_texts_are_counted_and_the_rest_is_measured(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "s", samples_per_shard=4) as writer:
        writer.write(RawSample("a", {"json": b'{"caption": "fine", "label": "x"}'}))
        writer.write(RawSample("b", {"json": b'{"caption": "cu'}))
        writer.write(RawSample("c", {"txt": b"\xff", "cls": b"one"}))
    facts = measure(writer.manifest, Questions(), 1)["train"]
    assert facts.unreadable == {"json": 1, "txt": 1, "cls": 1}
    assert (facts.samples, facts.captions, facts.classes) == (3, [1, 0, 0], {"x": 1})


def test_evenness_is_relative_entropy() -> None:
    assert evenness({"a": 5, "b": 5, "c": 5}) == pytest.approx(1)
    assert evenness({"a": 3, "b": 1}) == pytest.approx(0.811278, abs=1e-6)  # entropy in bits, by 1 bit
    assert evenness({"a": 3}) == 1
    assert spans([2, 2]) == dict.fromkeys(("min", "p5", "median", "mean", "p95", "max"), 2.0)


@pytest.mark.parametrize(
    ("values", "counts", "marks"),
    [
        ([1, 1, 2, 4], [2, 1, 0, 1], ["1", "2.5", "4"]),
        ([0.0, 0.1, 1.0], None, ["0", "0.5", "1"]),
        ([1.5, 15.0, 150.0], None, ["1.5", "15", "150"]),  # logarithmic
        ([7, 7], None, ["7"]),
        ([1, 500, 2, 1000], None, None),
        ([0.1 + 0.2, 0.3], None, None),
    ],
)
def test_a_histogram_has_every_value(values: list[float], counts: list[int] | None, marks: list[str] | None) -> None:
    panel = histogram("t", values, "u")
    assert sum(panel.counts) == len(values)
    assert counts is None or panel.counts == counts
    assert marks is None or [text for _, text in panel.marks] == marks


def test_bars_show_the_commonest() -> None:
    panel = bars("t", {f"c{n}": n for n in range(1, 12)})
    assert (panel.names[0], panel.counts[0]) == ("c11", 11)
    assert panel.note == "and 3 others with at most 3"


def test_the_picture_grows_with_what_was_measured(manifest: Manifest) -> None:
    some = draw_histograms("set", "five", measure(manifest, Questions(), 1))
    few = draw_histograms("set", "none", {"train": Facts(samples=3)})
    assert some.width == few.width
    assert some.height > few.height
    below = some.crop((40, 130, some.width - 40, some.height)).convert("L")
    assert len(set(below.tobytes())) > 20, "something is drawn"
