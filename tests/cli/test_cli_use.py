"""``mmformer classify``, ``retrieve`` and ``embed``, as typed."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from bundles import pixels
from PIL import Image
from safetensors.numpy import load_file
from tiny import COLOURS
from typed import Typed

import mmformer

LABELS = "cat,dog,pizza"


# ---- classify


def test_classify_shows_a_table(typed: Typed, shots: list[str]) -> None:
    alone = typed("classify", shots[0], "--labels", LABELS)
    lines = alone.splitlines()
    assert lines[0].strip() == "shots/a.png"
    assert lines[2].replace("┃", " ").split() == ["label", "probability"]
    assert {line.split()[1] for line in lines[4:7]} == {"cat", "dog", "pizza"}
    assert sum(float(line.split()[3]) for line in lines[4:7]) == pytest.approx(100, abs=0.2)
    several = typed("classify", "shots", "--labels", LABELS, "--top", 2)
    assert [several.index(name) for name in shots] == sorted(several.index(name) for name in shots)
    assert several.count("%") == 10
    assert "notes" not in several
    assert "hidden" not in several


def test_classify_prints_json_alone(typed: Typed, dual: Path, shots: list[str]) -> None:
    found = typed.json("classify", "shots", "--labels", LABELS, "--top", 2)
    assert [row["image"] for row in found] == shots
    expected = mmformer.load(dual).classify(shots, LABELS.split(","), top=2)
    for row, answer in zip(found, expected, strict=True):
        assert row["probabilities"] == pytest.approx(answer, abs=1e-6)
        assert row["label"] == next(iter(answer)) == next(iter(row["probabilities"]))


def test_classify_uses_the_head_without_labels(typed: Typed, classifier: Path, shots: list[str]) -> None:
    assert set(typed.json("classify", shots[0], "--top", 99)[0]["probabilities"]) == set(COLOURS)
    assert len(typed.json("classify", shots[0], "--head", "colour")[0]["probabilities"]) == 5
    typed.bundle = str(classifier)
    assert typed.json("classify", shots[0])[0]["label"] in COLOURS
    assert "This model reads no text, only image" in typed.refused("classify", shots[0], "--labels", LABELS)


def test_labels_and_templates_from_files(typed: Typed, shots: list[str]) -> None:
    Path("labels.txt").write_bytes(b"\xef\xbb\xbfcat\r\n\r\n  dog \npizza")
    Path("templates.txt").write_text("a photo of a {}\na drawing of a {}\n")
    by_words = ("--labels", "cat,", "--labels", " dog, pizza")
    templates = ("--template", "a photo of a {}", "--template", "a drawing of a {}")
    plain = typed.json("classify", shots[0], *by_words)
    assert typed.json("classify", shots[0], "--labels-file", "labels.txt") == plain
    ensembled = typed.json("classify", shots[0], *by_words, *templates)
    assert typed.json("classify", shots[0], *by_words, "--templates-file", "templates.txt") == ensembled
    assert ensembled != plain
    assert typed.json("classify", shots[0], *by_words, *templates[:2]) != ensembled


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_results_keep_the_order_of_the_input(typed: Typed, shots: list[str], batch_size: int) -> None:
    inputs = (shots[3], "shots/deep/er", "shots/*.bmp", shots[0], "shots", "shots/**/*.png")
    found = typed.json("classify", *inputs, "--labels", LABELS, "--batch-size", batch_size)
    assert [row["image"] for row in found] == [shots[3], shots[4], shots[2], shots[0], shots[1]], "each once"
    alone = [typed.json("classify", row["image"], "--labels", LABELS)[0] for row in found[:2]]
    for row, expected in zip(found, alone, strict=False):
        assert row["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)


def test_a_file_is_taken_whatever_its_name(typed: Typed, shots: list[str]) -> None:
    Path(shots[0]).rename("picture")
    Path(shots[2]).rename("star*[.png")
    assert [row["image"] for row in typed.json("classify", "picture", "star*[.png")] == ["picture", "star*[.png"]


def test_names_are_shown_as_they_are(typed: Typed, shots: list[str]) -> None:
    os.rename(os.fsencode(shots[0]), b"shots/\xff[bold]\x1b[31m.png")  # noqa: PTH104
    table = typed("classify", "shots", "--labels", "[red]cat[/red],a\u202eb,:smile:", "--top", 3)
    assert "shots/\\udcff[bold]\\x1b[31m.png" in table
    assert "[red]cat[/red]" in table
    assert "a\\u202eb" in table
    assert ":smile:" in table


def test_long_names_are_not_cut_where_no_terminal_reads(typed: Typed, shots: list[str]) -> None:
    name = "shots/" + "long " * 45 + ".png"
    Path(shots[0]).rename(name)
    assert name in typed("classify", "shots", "--labels", LABELS)


# ---- retrieve


def test_retrieve_finds_pictures_for_a_text_typed_as_documented(typed: Typed, dual: Path, shots: list[str]) -> None:
    table = typed("retrieve", "--images", "shots/", "a red heart")
    lines = table.splitlines()
    assert lines[0].strip() == "a red heart"
    assert lines[2].replace("┃", " ").split() == ["picture", "similarity"]
    similarity = mmformer.load(dual).similarity(shots, "a red heart")
    best = [shots[i] for i in similarity.argsort(descending=True)]
    assert [line.split("│")[1].strip() for line in lines[4:9]] == best
    scores = [float(line.split("│")[2]) for line in lines[4:9]]
    assert scores == pytest.approx(similarity.sort(descending=True).values.tolist(), abs=1e-3)


@pytest.mark.parametrize(
    "words",
    [
        ("a red heart", "two dogs", "--images", "shots", "--top", 2, "--json"),
        ("--images=shots", "a red heart", "--top", 2, "two dogs", "--json"),
        ("--json", "--images", "shots/*.*", "--images", "shots/deep", "--top=2", "--", "a red heart", "two dogs"),
    ],
)
def test_options_stand_anywhere(typed: Typed, shots: list[str], words: tuple[object, ...]) -> None:
    found = json.loads(typed("retrieve", *words))
    assert [row["query"] for row in found] == ["a red heart", "two dogs"]
    expected = typed.json("retrieve", "--images", "shots", "a red heart", "two dogs", "--top", 2)
    assert [[m["image"] for m in row["matches"]] for row in found] == [
        [m["image"] for m in row["matches"]] for row in expected
    ]


def test_retrieve_finds_a_picture_itself_first(typed: Typed, shots: list[str]) -> None:
    found = typed.json("retrieve", "--image", shots[1], "shots/deep", "--images", "shots", "--top", 1)
    assert [row["query"] for row in found] == [shots[1], *shots[3:]]
    for row in found:
        assert [match["image"] for match in row["matches"]] == [row["query"]]
        assert row["matches"][0]["score"] == pytest.approx(1, abs=1e-5)
    table = typed("retrieve", "--images", "shots", "--image", *shots[:2], "--top", 2)
    assert table.count("shots/b [1].PNG") >= 1
    assert "query" in table


def test_retrieve_finds_texts(typed: Typed, shots: list[str]) -> None:
    Path("texts.txt").write_text("cat\ncat\na dog, large\n")
    found = typed.json("retrieve", "--texts-file", "texts.txt", "--image", shots[0])
    assert sorted(match["text"] for match in found[0]["matches"]) == ["a dog, large", "cat"]
    found = typed.json("retrieve", "--texts", LABELS, "dog", "cat", "--top", 1)
    assert [row["matches"][0]["text"] for row in found] == ["dog", "cat"]
    assert "text" in typed("retrieve", "--texts", LABELS, "dog")


def test_the_same_query_twice_is_answered_twice(typed: Typed, shots: list[str]) -> None:
    found = typed.json("retrieve", "--images", "shots", "dog", "dog")
    assert found[0] == found[1]
    assert typed("retrieve", "--images", "shots", "dog", "dog", "--top", 1).count("dog") == 2


# ---- embed


def test_embed_writes_the_same_to_every_format(typed: Typed, dual: Path, shots: list[str]) -> None:
    words = ("--images", shots[0], "shots/deep", "--texts", "cat, file,allow_pickle", "--overwrite", "--output")
    for name in ("e.npz", "e.safetensors", "e.jsonl"):
        Path(name).write_text("what was there before")
        assert typed("embed", *words, name) == f"{name}: 6 embeddings of 12 numbers\n"
    model = mmformer.load(dual)
    pictures, texts = [shots[0], *shots[3:]], ["cat", "file", "allow_pickle"]
    expected = dict(zip(pictures, model.embed(image=pictures).numpy(), strict=True))
    expected |= dict(zip(texts, model.embed(text=texts).numpy(), strict=True))
    with np.load("e.npz") as file:
        found = [{key: file[key] for key in file.files}, load_file("e.safetensors")]
    rows = [json.loads(line) for line in Path("e.jsonl").read_text().splitlines()]
    found.append({row.get("image") or row["text"]: np.array(row["embedding"], np.float32) for row in rows})
    assert [next(iter(row)) for row in rows] == ["image"] * 3 + ["text"] * 3
    for vectors in found:
        assert vectors.keys() == expected.keys()
        for key, vector in vectors.items():
            assert vector.dtype == np.float32
            np.testing.assert_array_equal(vector, expected[key])
    assert not list(Path().glob("*.partial"))
    assert typed.json("embed", *words[:-1]) == rows


def test_embed_takes_texts_alone(typed: Typed, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\ncat\n")
    assert [row["text"] for row in typed.json("embed", "--texts-file", tmp_path / "names.txt")] == ["cat", "dog"]


# ---- what both share


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("batch_size", "shown"), [(2, True), (5, False)])
@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("classify", "shots", "--labels", LABELS), "classifying"),
        (("retrieve", "--images", "shots", "cat"), "searching"),
        (("embed", "--images", "shots"), "embedding"),
    ],
)
def test_a_bar_for_more_than_one_batch_where_someone_watches(
    typed: Typed,
    shots: list[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    what: str,
    batch_size: int,
    shown: bool,
) -> None:
    terminal = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        typed.json(words[0], *words[1:], "--batch-size", batch_size)
    assert (f"{what}:" in terminal.getvalue()) is shown
    assert ("/5 " in terminal.getvalue()) is shown


def test_a_failed_write_leaves_what_was_there(typed: Typed, shots: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("e.npz").write_text("before")

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    message = typed.refused("embed", "--images", "shots", "--output", "e.npz", "--overwrite")
    assert "e.npz cannot be written: No space left on device." in message
    assert Path("e.npz").read_text() == "before"
    assert not list(Path().glob("*.partial"))


def test_a_very_long_text_is_a_text(typed: Typed, shots: list[str]) -> None:
    found = typed.json("retrieve", "--images", "shots", "long " * 2000, "--top", 1, told="The text was cut")
    assert len(found) == 1
    assert "there is no such file" in typed.refused("classify", "long " * 2000)


def test_hundreds_of_pictures_go_through_in_batches(typed: Typed, tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for number in range(70):
        Image.fromarray(pixels(number, 4, 4)).save(many / f"{number:03d}.png")
    found = typed.json("embed", "--images", many)
    assert [Path(row["image"]).name for row in found] == [f"{number:03d}.png" for number in range(70)]
