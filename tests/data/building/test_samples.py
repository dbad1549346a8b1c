"""Samples to be: what becomes one, under which key, with which fields, and what is left out for which cause."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmformer.data.building.draft import Draft, Found, Span, unique_keys
from mmformer.data.building.samples import Columns, counted, from_classes, from_table, from_texts, not_named
from mmformer.data.building.tables import Row, Table, read_table, sidecars
from mmformer.errors import InputError


def fields(draft: Draft) -> dict[str, object]:
    text = draft.members["json"]
    assert isinstance(text, bytes)
    value = json.loads(text)
    assert isinstance(value, dict)
    return value


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def table(tmp_path: Path, text: str) -> Table:
    (tmp_path / "t.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    return read_table(tmp_path / "t.csv")


def causes(found: Found) -> dict[str, str]:
    return {one.name: one.cause for one in found.left_out}


def test_rows_of_one_file_are_one_sample_with_several_captions(tmp_path: Path) -> None:
    shots = put(tmp_path / "shots", "a.png", "sub/b.jpeg")
    rows = table(tmp_path, "file,caption,by\na.png,one,me\nsub/b.jpeg, two ,you\na.png,three,them\na.png,one,me\n")
    found = from_table(rows, {"image": shots}, Columns())
    assert [(draft.key, sorted(draft.members)) for draft in found.drafts] == [
        ("a", ["json", "png"]),
        ("sub/b", ["jpg", "json"]),
    ]
    first, second = found.drafts
    assert fields(first) == {"caption": "one", "captions": ["one", "three"], "by": "me"}
    assert fields(second) == {"caption": "two", "captions": ["two"], "by": "you"}
    assert first.members["png"] == Span(str(shots / "a.png"), 0, 5)
    assert found.left_out == []


def test_what_is_left_out_has_its_cause(tmp_path: Path) -> None:
    shots = put(tmp_path / "shots", "a.png", "b.png", "c.tiff", "unnamed.png", "note.txt", ".hidden.png")
    (shots / "empty.png").touch()
    rows = table(
        tmp_path,
        "file,caption\n./a.png,good\nb.png,  \nmissing.png,x\n../t.png,x\nc.tiff,x\n,x\nempty.png,x\nb.png,caf\udce9\n"
        "too few\n",
    )
    found = from_table(rows, {"image": shots}, Columns())
    assert [draft.key for draft in found.drafts] == ["a"]
    assert causes(found) == {
        "t.csv, line 3": "empty caption",
        "missing.png": "missing file",
        "../t.png": "file outside the folder",
        "c.tiff": "no image by its name",
        "t.csv, line 7": "row without a file",
        "empty.png": "empty file",
        "t.csv, line 9": "text that is not UTF-8",
        "t.csv, line 10": "row that cannot be read",
    }
    (other,) = not_named(rows, {"image": shots}, Columns())
    assert other.name == "unnamed.png", "neither hidden files nor those that are no pictures"


def test_a_table_may_name_pictures_and_sounds_and_splits(tmp_path: Path) -> None:
    named = "a.png,a.wav,hello,train\nb.png,b.wav,bye,test\na.png,a.wav,hi,test\n"
    rows = table(tmp_path, f"image,sound,text,part\n{named}")
    folders = {"image": put(tmp_path / "i", "a.png", "b.png"), "sound": put(tmp_path / "s", "a.wav", "b.wav")}
    found = from_table(rows, folders, Columns(split="part"))
    assert [(draft.key, draft.split, list(draft.members)) for draft in found.drafts] == [
        ("a", "train", ["png", "wav", "json"]),
        ("b", "test", ["png", "wav", "json"]),
    ]
    assert causes(found) == {"t.csv, line 4": "file in two splits"}


def test_a_table_alone_is_samples_of_text(tmp_path: Path) -> None:
    found = from_table(table(tmp_path, "text,label\nfine,good\nfine,bad\n"), {}, Columns())
    assert [fields(draft) for draft in found.drafts] == [
        {"caption": "fine", "label": "good"},
        {"caption": "fine", "label": "bad"},
    ]
    assert len({draft.key for draft in found.drafts}) == 2


def test_which_columns_are_kept_can_be_said(tmp_path: Path) -> None:
    rows = table(tmp_path, "text,title,caption,n\na,b,c,1\n")
    with pytest.raises(InputError, match=r"has a column 'caption', which is not the one .*--keep-columns"):
        from_table(rows, {}, Columns(caption="title"))
    (draft,) = from_table(rows, {}, Columns(caption="title", kept=("n",))).drafts
    assert fields(draft) == {"caption": "b", "n": "1"}
    with pytest.raises(InputError, match=r"--keep-columns titel: .* Did you mean 'title'\?"):
        from_table(rows, {}, Columns(caption="title", kept=("titel",)))


def test_values_of_other_types_are_kept_or_refused() -> None:
    def one(value: object) -> Table:
        return Table(Path("t.parquet"), ("text", "x"), [Row("row 1", {"text": ["a", " ", "b"], "x": value})])

    (draft,) = from_table(one(float("nan")), {}, Columns()).drafts
    assert fields(draft) == {"caption": "a", "captions": ["a", "b"], "x": None}
    with pytest.raises(InputError, match=r"row 1: a value cannot be written as JSON: .*bytes.* \(--keep-columns\)"):
        from_table(one(b"thumb"), {}, Columns())
    assert counted(from_table(one(["\ud800"]), {}, Columns()).left_out) == {"text that is not UTF-8": 1}


def test_sidecars_are_a_table(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "a.txt").write_text("of a\n")
    found = from_table(sidecars(tmp_path, ("image",)), {"image": tmp_path}, Columns())
    assert [(draft.key, fields(draft)) for draft in found.drafts] == [("a", {"caption": "of a"})]
    assert causes(found) == {"b.png": "no file with captions"}


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    put(tmp_path, "dog/1.jpg", "cat/2.png", "cat/deep/3.png", "cat/Thumbs.db", ".git/4.png", "readme.png")
    (tmp_path / "owl").mkdir()
    found = from_classes(tmp_path)
    assert [(draft.key, fields(draft)["label"]) for draft in found.drafts] == [
        ("cat/2", "cat"),
        ("cat/deep/3", "cat"),
        ("dog/1", "dog"),
    ]
    assert found.classes == ("cat", "dog")
    assert causes(found) == {"cat/Thumbs.db": "neither image nor sound", "owl": "class without files"}
    with pytest.raises(InputError, match="there is no folder in it, but each class is a folder here"):
        from_classes(tmp_path / "owl")


def test_splits_may_be_folders_above_the_classes(tmp_path: Path) -> None:
    put(tmp_path, "train/dog/1.jpg", "test/dog/1.jpg", "test/cat/2.wav")
    found = from_classes(tmp_path, split_folders=True)
    assert [(draft.key, draft.split) for draft in found.drafts] == [
        ("test/cat/2", "test"),
        ("test/dog/1", "test"),
        ("train/dog/1", "train"),
    ]


def test_lines_and_files_of_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n \ntwo ü\n".encode() + b"three")
    (tmp_path / "b.txt").touch()
    found = from_texts([tmp_path / "a.txt", tmp_path / "b.txt"])
    spans = {draft.key: draft.members["txt"] for draft in found.drafts}
    assert {key: span.read() for key, span in spans.items() if isinstance(span, Span)} == {
        "a/00000001": b"one",
        "a/00000003": "two ü".encode(),
        "a/00000004": b"three",
    }
    assert [one.cause for one in found.left_out] == ["empty file"]
    (whole,) = from_texts([tmp_path / "a.txt"], unit="file").drafts
    assert whole.key == "a"
    assert whole.members["txt"] == Span(str(tmp_path / "a.txt"), 0, (tmp_path / "a.txt").stat().st_size)


def test_keys_are_unique_and_usable() -> None:
    names = ["a.png", "a.jpg", "b.v2.png", "x/../c.png", "/d.png", "n\n.png", "__e__/f.png", "a_png.webp", "猫.png"]
    assert unique_keys(names) == ["a_png_2", "a_jpg", "b_v2", "x/c", "d", "n_", "e__/f", "a_png", "猫"]
