"""Standard class names and prompts: how many, in which order, and those of open_clip where it is installed."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from mmformer.data.classes import FOLDER, read_classes, read_templates, standard_sets
from mmformer.errors import InputError

SIZES = {"cifar10": 10, "cifar100": 100, "esc50": 50, "imagenet": 1000, "speech_commands": 35}


def test_every_set_is_whole_and_says_its_source() -> None:
    assert standard_sets() == list(SIZES)
    for name, number in SIZES.items():
        classes = read_classes(name)
        assert len(classes) == number
        assert len(set(classes)) == number - 2 * (name == "imagenet"), "ImageNet has two names twice"
        assert all(each == each.strip() and each and "|" not in each for each in classes)
        for kind in ("classes", "templates"):
            head = (FOLDER / f"{name}.{kind}.txt").read_text(encoding="utf-8").splitlines()
            comments = list(itertools.takewhile(lambda line: line.startswith("#"), head))
            assert comments
            assert any(word in "".join(comments) for word in ("Source: ", "(Elizalde", "alone"))
        assert all(template.count("{}") == 1 for template in read_templates(None, name))
    assert "OpenAI" in (FOLDER / "LICENSE-CLIP.txt").read_text(encoding="utf-8")


def test_classes_stand_in_the_order_of_the_labels() -> None:
    assert read_classes("cifar10")[3] == "cat"
    assert read_classes("cifar100")[::33] == ["apple", "forest", "raccoon", "worm"]
    assert [read_classes("esc50")[place] for place in (0, 19, 36, 49)] == [
        "dog",
        "thunderstorm",
        "vacuum cleaner",
        "hand saw",
    ]
    assert [read_classes("imagenet")[place] for place in (0, 134, 517, 999)] == [
        "tench",
        "crane bird",
        "construction crane",
        "toilet paper",
    ]


def test_imagenet_is_that_of_open_clip() -> None:
    metadata = pytest.importorskip("open_clip.zero_shot_metadata")
    assert read_classes("imagenet") == list(metadata.IMAGENET_CLASSNAMES)
    assert read_templates(None, "imagenet") == tuple(each("{}") for each in metadata.OPENAI_IMAGENET_TEMPLATES)


def test_templates_go_by_name_and_by_the_classes() -> None:
    assert len(read_templates(None, "imagenet")) == 80
    assert read_templates(None, "my/classes.txt") == ("{}",)
    assert read_templates(("a {}", "cifar10"), "my/classes.txt") == ("a {}", *read_templates(None, "cifar10"))
    assert read_templates(("{}",), "imagenet") == ("{}",)


def test_a_misspelt_set_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"imagnet: the class names cannot be read.*one of cifar10, .* mean 'imagenet'"
    ):
        read_classes("imagnet")
