"""Class labels: from names, numbers and cls members, and what is none of the classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_data, write_few

from mmformer.data.classes import read_classes
from mmformer.data.collate import Collate
from mmformer.data.dataset import SampleDataset
from mmformer.data.inputs import LabelInputSpec
from mmformer.data.loading import evaluation_loader
from mmformer.data.order import OrderSpec
from mmformer.errors import InputError
from mmformer.evaluation.classification import AccuracySpec
from mmformer.objectives.classification import ClassificationSpec
from mmformer.types import Batch, Outputs


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


def few(tmp_path: Path, **members: list[bytes]) -> tuple[Path, str]:
    folder = write_few(tmp_path, **members)
    return folder, str(folder / "colours.txt")


def as_json(*more: str) -> list[bytes]:
    return [f'{{"names": {{"en": "x"}}{field}}}'.encode() for field in more]


def test_an_optional_label_may_be_absent_or_null(tmp_path: Path) -> None:
    folder, classes = few(tmp_path, json=as_json(', "colour": "blue"', "", ', "colour": null', ', "colour": 0'))
    spec = LabelInputSpec(classes, "colour", optional=True)
    dataset = SampleDataset(tiny_data(folder, labels={"colour": spec}), "train", OrderSpec(shuffle=False), 0, False)
    samples = [dataset[p] for p in range(4)]
    assert [sample.labels for sample in samples] == [{"colour": n} for n in (1, -1, -1, 0)]
    labels = Collate(dataset.spec, {}, 0, False)(samples).labels
    assert labels["colour"].tolist() == [1, -1, -1, 0]
    assert labels["colour"].dtype == torch.int64

    batch = Batch(tuple("abcd"), labels)
    logits = torch.zeros(4, 8)
    logits[[0, 1, 2], [1, 1, 1]] = 4.0  # right; without a label twice; wrong
    logits[3, 5] = 4.0
    made = Outputs.empty()._replace(logits={"colour": logits})
    (term,) = ClassificationSpec(head="colour").build().losses(made, batch).values()
    assert term.items == 2
    expected = torch.nn.functional.cross_entropy(logits[[0, 3]], torch.tensor([1, 0]), reduction="sum")
    torch.testing.assert_close(term.total, expected)
    metric = AccuracySpec("colour").build()
    metric.update(made, batch)
    assert metric.compute()["accuracy"].value == 50


def test_an_optional_label_is_still_checked(tmp_path: Path) -> None:
    folder, classes = few(tmp_path, json=as_json(', "colour": "redd"', ', "colour": -1', ', "colour": {}', ""))
    spec = LabelInputSpec(classes, "colour", optional=True)
    dataset = SampleDataset(tiny_data(folder, labels={"colour": spec}), "train", OrderSpec(shuffle=False), 0, False)
    for position, found in enumerate(("'redd'", "-1", "{}")):
        with pytest.raises(InputError, match=f"the label 'colour' is {found}, which is none of the 8 classes"):
            dataset[position]
    strict = tiny_data(folder, labels={"colour": LabelInputSpec(classes, "colour")})
    with pytest.raises(InputError, match="there is no field 'colour'"):
        SampleDataset(strict, "train", OrderSpec(shuffle=False), 0, False)[3]


@pytest.mark.parametrize("written", [[b"2", b"", b"0", b""], [b""] * 4], ids=["some", "none at all"])
@pytest.mark.parametrize("cache_mib", [0, 1])
def test_an_optional_member_may_be_absent(written: list[bytes], cache_mib: int, tmp_path: Path) -> None:
    folder, classes = few(tmp_path, cls=written)
    spec = LabelInputSpec(classes, member="cls", optional=True)
    data = tiny_data(folder, labels={"colour": spec}, cache_mib=cache_mib)
    batches: list[Batch] = list(evaluation_loader(data, "train", {}))  # type: ignore[arg-type]
    found = [int(label) for batch in batches for label in batch.labels["colour"]]
    assert found == [int(data or b"-1") for data in written]
    strict = tiny_data(folder, labels={"colour": LabelInputSpec(classes, member="cls")})
    with pytest.raises(InputError, match="cls"):
        list(evaluation_loader(strict, "train", {}))


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
