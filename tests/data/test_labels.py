"""Class labels: from names, numbers and cls members, and what is none of the classes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_data, write_few

from mmformer.data.dataset import LabelInputSpec, SampleDataset, read_classes
from mmformer.data.order import OrderSpec
from mmformer.errors import InputError


@pytest.mark.parametrize(
    "spec",
    [{"field": "colour"}, {"field": "number"}, {"field": "", "member": "cls"}],
    ids=["name", "number", "cls member"],
)
def test_a_label_is_a_name_or_a_number(spec: dict[str, str], tmp_path: Path) -> None:
    folder = write_few(tmp_path, cls=[b"0", b"1", b"2", b"3"])
    data = tiny_data(folder, labels={"colour": LabelInputSpec(str(folder / "colours.txt"), **spec)})
    dataset = SampleDataset(data, "train", OrderSpec(shuffle=False), 0, False)
    assert [dataset[p].labels for p in range(4)] == [{"colour": n} for n in range(4)]


@pytest.mark.parametrize(
    ("colour", "message"),
    [
        ('"redd"', "the label 'colour' is 'redd', which is none of the 8 classes in .*colours.txt.* mean 'red'"),
        ("8", "the label 'colour' is 8, which is none of the 8 classes"),
        ("-1", "the label 'colour' is -1, which is none of the 8 classes"),
        ("true", "the label 'colour' is True, which is none of the 8 classes"),
        ("null", "the label 'colour' is None, which is none of the 8 classes"),
        ("[1]", r"the label 'colour' is \[1\], which is none of the 8 classes"),
    ],
)
def test_a_label_that_is_none_of_the_classes_is_refused(colour: str, message: str, tmp_path: Path) -> None:
    folder = write_few(tmp_path, json=[f'{{"colour": {colour}, "names": {{"en": "x"}}}}'.encode()] * 4)
    data = tiny_data(folder, labels={"colour": LabelInputSpec(str(folder / "colours.txt"), "colour")})
    dataset = SampleDataset(data, "train", OrderSpec(), 0, False)
    with pytest.raises(InputError, match=message):
        dataset[0]


@pytest.mark.parametrize(
    ("text", "message"), [("a\nb\na\n", "'a' is there more than once"), (" \n\n", "there are no class names in it")]
)
def test_class_names_must_be_there_and_differ(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_classes(tmp_path / "names.txt")
    with pytest.raises(InputError, match=r"nowhere.txt: the class names cannot be read: No such file"):
        read_classes(tmp_path / "nowhere.txt")


def test_class_names_are_lines_without_space_around(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(" a b \r\n\n  c\n", encoding="utf-8")
    assert read_classes(tmp_path / "names.txt") == ["a b", "c"]
