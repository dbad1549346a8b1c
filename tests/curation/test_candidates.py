"""What a filter sees of a sample, and tables of scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sets import encoded, fields, samples, scene, texts, write_set

from mmformer.curation.candidates import Candidates, Place
from mmformer.curation.extras import extra
from mmformer.curation.picture_likeness import PictureLikeness, picture_print
from mmformer.curation.scores import Cut
from mmformer.data.manifest import Manifest
from mmformer.data.scores import read_scores
from mmformer.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    train = [
        {"txt": b"first", "json": b'{"a": {"b": ["x", "y"]}, "n": 2, "kind": "dog"}', "cls": b"3"},
        {"png": encoded(scene(0)), "seg.png": encoded(scene(1)), "json": b'{"a": {}, "n": "two", "kind": 7}'},
        {"jpg": b"no jpg", "txt": b"\xff"},
        {"txt": b"fourth"},
    ]
    return write_set(tmp_path / "set", train=train, test=texts("held out"))


def values(folder: Path, *places: Place) -> list[tuple[object, ...]]:
    return list(samples(folder).values(*places))


def test_values_are_found_where_they_are(folder: Path) -> None:
    assert [text for (text,) in values(folder, Place("text"))] == [("first",), None, None, ("fourth",)]
    assert [text for (text,) in values(folder, Place.parse("text", "json:a.b"))] == [("x", "y"), None, None, None]
    both = values(folder, Place.parse("label", "json:kind"), Place("label"))
    assert both == [("dog", "3"), ("7", None), (None, None), (None, None)]


def test_the_first_picture_is_taken_or_the_one_that_is_named(folder: Path) -> None:
    for place, seed in ((Place("image"), 0), (Place("image", "seg.png"), 1)):
        read = values(folder, place)
        np.testing.assert_array_equal(read[1][0], scene(seed))
        assert [row for row, (value,) in enumerate(read) if value is None] == [0, 2, 3]


def test_texts_and_labels_are_where_builds_write_them(tmp_path: Path) -> None:
    several = {"caption": "one", "captions": ["one", "two"], "label": "dog"}
    members = fields(several, {"caption": "alone", "label": 3}, several)
    folder = write_set(tmp_path / "set", train=[*members[:2], members[2] | {"txt": b"own", "cls": b"0"}])
    found = values(folder, Place("text"), Place("label"))
    assert found == [(("one", "two"), "dog"), (("alone",), "3"), (("own",), "0")]


def test_what_is_damaged_is_noted_and_reads_as_absent(folder: Path) -> None:
    seen = samples(folder)
    assert [value for (value,) in seen.values(Place.parse("number", "json:n"))] == [2.0, None, None, None]
    assert list(seen.damaged) == [1]
    assert "train1.json:n: must hold a number, but holds a value of type str" in seen.damaged[1]
    list(seen.values(Place("text"), Place("image")))
    assert list(seen.damaged) == [1, 2]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (Place("audio"), "has a member that is a sound. 'train0' has the members txt, json, cls.*--audio wav"),
        (
            Place("text", "json", "caption"),
            "has json:caption.*the fields of its json are a, n, kind.*--text json:FIELD",
        ),
        (Place("image", "webp"), "has webp"),
    ],
)
def test_a_value_that_no_sample_has_is_a_mistake(folder: Path, place: Place, message: str) -> None:
    with pytest.raises(InputError, match=f"no sample of the split 'train' {message}"):
        values(folder, place)


def test_several_processes_make_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the edges of parts and shards, with what is damaged in its own row."""
    members = [{"png": encoded(scene(number))} for number in range(7)]
    members[4] = {"png": b"none"}
    members[5] = {"txt": b"no picture"}
    folder = write_set(tmp_path / "many", train=members)  # three in a shard
    monkeypatch.setattr("mmformer.curation.candidates._PART", 2)
    made = []
    for workers in (1, 2):
        told: list[int] = []
        seen = Candidates(Manifest.load(folder), "train", told.append, workers)
        made.append(PictureLikeness().prints(seen))
        assert sum(told) == 7
        assert list(seen.damaged) == [4]
    assert made[0] == made[1] == [None if n in (4, 5) else picture_print(scene(n)) for n in range(7)]
    with pytest.raises(InputError, match=r"no sample of the split 'train' has a member that is a sound"):
        Candidates(Manifest.load(folder), "train", workers=2).each(str, Place("audio"))


def test_progress_is_told_sample_by_sample(folder: Path) -> None:
    told: list[int] = []
    seen = samples(folder)
    seen.progress = told.append
    list(seen.raw())
    list(seen.of("test").values(Place("text")))
    assert told == [1] * 5


def test_scores_are_read_by_key_and_split(tmp_path: Path) -> None:
    path = tmp_path / "scores.tsv"
    path.write_text("split\tscore\tkey\nval\t9\ta\ntrain\t-1.5\tb\ntrain\t2\ta\ntrain\t2.0\ta\n")
    assert read_scores(path, "train", ["a", "b", "a"]) == [2.0, -1.5, 2.0]
    assert read_scores(tmp_path, "val", ["a"]) == [9.0], "a folder has its table"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("key\tsplit\tscores\n", "no column 'score'; .*Did you mean 'scores'"),
        ("", "no column 'key'; its first line is empty"),
        ("key\tsplit\tscore\na\ttrain\n", "line 2: 2 columns, but the first line has 3"),
        ("key\tsplit\tscore\na\ttrain\tgood\n", "line 2: the score of 'a' must be a number, but is 'good'"),
        ("key\tsplit\tscore\na\ttrain\tnan\n", "line 2: the score of 'a' must be a number"),
        ("key\tsplit\tscore\na\ttrain\t1\na\ttrain\t2\n", "line 3: 'a' has a second score, 2, besides 1"),
        ("key\tsplit\tscore\na\tval\t1\n", "no score of 'a' in the split 'train'"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "scores.tsv").write_text(content)
    with pytest.raises(InputError, match=message):
        read_scores(tmp_path, "train", ["a"])


def test_a_table_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.tsv cannot be read"):
        read_scores(tmp_path / "none.tsv", "train", ["a"])


def test_a_cut_keeps_the_first_of_equal_scores_and_exactly_its_fraction() -> None:
    assert [verdict.copies for verdict in Cut(0.5).verdicts([1, 1, 1, 1])] == [1, 1, 0, 0]
    assert sum(verdict.copies for verdict in Cut(0.07).verdicts(list(range(100)))) == 7
    assert [verdict.copies for verdict in Cut(least=1).verdicts([1, 0.999, None])] == [1, 0, 0]


def test_a_missing_extra_is_named() -> None:
    with pytest.raises(InputError, match=r'Comparing needs nothere: pip install "mmformer\[curation\]"'):
        extra("nothere.deep", "Comparing")


def test_fields_of_other_types_are_not_taken_for_labels_or_texts(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", train=fields({"v": 1.5}, {"v": [1]}, {"v": ["a"]}))
    seen = samples(folder)
    assert [value for (value,) in seen.values(Place("text", "json", "v"))] == [None, None, ("a",)]
    assert list(seen.damaged) == [0, 1]
