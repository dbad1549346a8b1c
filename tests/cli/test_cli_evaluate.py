"""``mmformer evaluate``: its words, its table and JSON, the folder that it leaves, and its mistakes."""

from __future__ import annotations

import base64
import csv
import html.parser
import io
import json
from pathlib import Path
from typing import Any

import pytest
import soundfile
from bundles import tone
from PIL import Image
from tiny import COLOURS, write_few, write_shards

from mmformer.cli.main import main


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("measured") / "tiny")


def labels(shards: Path) -> str:
    return json.dumps({"colour": {"classes": str(shards / "colours.txt"), "field": "colour"}})


def told(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    assert main(["evaluate", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["evaluate", *map(str, words)]) == 2
    return capsys.readouterr().err


class Page(html.parser.HTMLParser):
    """What a report has in it: its tags, its pictures and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.pictures: list[Image.Image] = []
        self.references: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "src" and value is not None and value.startswith("data:image/png;base64,"):
                self.pictures.append(Image.open(io.BytesIO(base64.b64decode(value.partition(",")[2]))))
            elif name in ("src", "href"):
                self.references.append(str(value))

    def handle_data(self, data: str) -> None:
        self.words += data


def test_a_folder_of_shards_is_enough_with_its_texts(
    dual: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = told(capsys, dual, "--data", shards, "--data.text", "json:names.en", "--data.labels", labels(shards))
    assert scores["retrieval/image_to_text/R@1"]["chance"] == pytest.approx(12.5)
    assert {"colour/accuracy", "zero_shot_colour_image/per_class"} <= set(scores)
    same = told(capsys, dual, f"--data={shards / 'manifest.json'}", "--data.text=json:names.en")
    assert same["retrieval/image_to_text/R@1"] == scores["retrieval/image_to_text/R@1"]


def test_a_recipe_says_the_same(dual: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "EVAL.yaml"
    file.write_text(
        f"data: {{source: {shards}, text: json:names.en}}\n"
        "metrics:\n  r: {class_path: RetrievalSpec, init_args: {recall: [1, 2]}}\n"
    )
    scores = told(capsys, dual, "--config", file)
    assert list(scores)[:3] == ["r/image_to_text/R@1", "r/image_to_text/R@2", "r/image_to_text/median_rank"]
    other = told(capsys, dual, "--config", file, "--data.split", "val", "--metrics.r.recall", "[3]", "--processes", "1")
    assert set(other) == {f"r/{way}/{k}" for way in ("image_to_text", "text_to_image") for k in ("R@3", "median_rank")}


def test_what_is_left_in_a_folder(dual: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "found"
    words = (dual, "--data", shards, "--data.text", "json:names.en", "--data.labels", labels(shards))
    assert main(["evaluate", *map(str, words), "--output", str(output)]) == 0
    assert "report.html" in capsys.readouterr().out
    scores = json.loads((output / "scores.json").read_text())
    with (output / "colour" / "confusion.csv").open() as file:
        head, *rows = csv.reader(file)
    assert head[1:] == [row[0] for row in rows] == list(COLOURS)
    assert sum(int(cell) for row in rows for cell in row[1:]) == 8
    right = sum(int(row[place + 1]) for place, row in enumerate(rows))
    assert scores["colour/accuracy"]["value"] == pytest.approx(100 * right / 8)
    with (output / "colour" / "per_class.tsv").open() as file:
        classes = list(csv.DictReader(file, delimiter="\t"))
    recalls = [float(row["recall"]) for row in classes if row["recall"]]
    assert scores["colour/per_class"]["value"] == pytest.approx(100 * sum(recalls) / len(recalls), abs=0.01)
    for way in ("image_to_text", "text_to_image"):
        with (output / "retrieval" / way / "samples.tsv").open() as file:
            samples = list(csv.DictReader(file, delimiter="\t"))
        ranks = [-float(row["minus the rank of its own"]) for row in samples]
        assert ranks == sorted(ranks, reverse=True)
        found = 100 * sum(rank <= 5 for rank in ranks) / 8
        assert scores[f"retrieval/{way}/R@5"]["value"] == pytest.approx(found)
    # The recipe that was left measures the same again.
    again = told(capsys, dual, "--config", output / "recipe.yaml")
    assert again == scores
    assert "there is one" not in refused(capsys, *words, "--output", output)
    assert main(["evaluate", *map(str, words), "--output", str(output), "--overwrite"]) == 0


def test_the_report_is_one_file_with_pictures(
    dual: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "found"
    words = (dual, "--data", shards, "--data.text", "json:names.en", "--data.labels", labels(shards))
    assert main(["evaluate", *map(str, words), "--output", str(output)]) == 0
    page = Page((output / "report.html").read_text(encoding="utf-8"))
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not page.references, "nothing from elsewhere"
    # 4 worst and 4 best of 8 samples in retrieval both ways and in two classifications with two charts each; and what
    # texts found in place of their own
    with (output / "retrieval" / "text_to_image" / "samples.tsv").open() as file:
        ranks = [float(row[2]) for row in list(csv.reader(file, delimiter="\t"))[1:]]
    wrong = sum(rank < -1 for rank in ranks)
    assert wrong > 0
    assert sum(picture.size == (16, 16) for picture in page.pictures) == 4 * 8 + wrong
    assert len(page.pictures) == 4 * 8 + wrong + 2 * 2
    for word in (
        "accuracy",
        "Worst",
        "Best",
        "Confusion matrix",
        "mean average precision",
        "Recipe",
    ):
        assert word in page.words
    scores = json.loads((output / "scores.json").read_text())
    assert all(name in page.words for name in scores)


def test_sounds_can_be_heard_in_the_report(trimodal: Path, tmp_path: Path) -> None:
    sounds = []
    for frequency in (200, 400, 800, 1600):
        sounds.append(io.BytesIO())
        soundfile.write(sounds[-1], tone(frequency), 8000, format="WAV")
    heard = write_few(tmp_path / "shards", png=[b""] * 4, wav=[sound.getvalue() for sound in sounds])
    words = ("--data", heard, "--data.split", "train", "--data.text", "json:names.en", "--output", tmp_path / "found")
    metrics = ("--metrics", "{r: {class_path: RetrievalSpec, init_args: {pairs: [[sound, text]]}}}")
    assert main(["evaluate", *map(str, (trimodal, *words, *metrics))]) == 0
    page = Page((tmp_path / "found" / "report.html").read_text(encoding="utf-8"))
    assert page.tags.count("audio") == 2 * 4, "2 worst and 2 best, both ways"
    (first, *_) = page.references
    assert first.startswith("data:audio/flac;base64,")
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(first.partition(",")[2])))
    assert rate == 8000
    assert samples.max() == pytest.approx(0.5, abs=0.01)


def test_the_whole_recipe_is_printed(dual: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(dual), "--data", str(shards), "--print_config"]) == 0
    said = capsys.readouterr().out
    assert f"source: {shards}" in said
    assert "dtype: float32" in said
    assert main(["evaluate", "--help"]) == 0
    assert "--data.references" in capsys.readouterr().out


def test_mistakes_are_told_in_one_line(
    dual: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    text = ("--data.text", "json:names.en")
    for words, message in (
        (("--data", shards), "evaluate needs the folder of a bundle first"),
        ((dual,), "evaluate needs --data SHARDS or --config EVAL.yaml"),
        ((dual, "--data", tmp_path / "none"), "There is no folder of shards"),
        ((dual, "--data", shards, "--dta.split", "test"), "unknown key 'dta.split'. Did you mean 'data'"),
        ((dual, "--data", shards, "--data.splt", "test"), "Did you mean 'split'"),
        ((dual, "--data", shards, *text, "--processes", "no"), "--processes must be a whole number, at least 1"),
        ((dual, "--data", shards, *text, "--overwrite"), "--overwrite replaces what is in --output"),
        ((dual, "--data", shards, *text, "--output", full), "this folder holds something else (notes.txt)"),
        ((tmp_path / "nothing", "--data", shards), "there is no such bundle"),
        ((dual, "--data", shards, "--metrics.r.class_path", "RetrievlSpec"), "RetrievalSpec"),
    ):
        said = refused(capsys, *words)
        assert message in said
        assert said.count("\n") == 1
    assert list(full.iterdir()) == [full / "notes.txt"]
