"""``report.png``: what it shows is what the bundle says, and it fits its cards."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import pixels, save_classifier, save_trimodal, save_two_eyed
from PIL import Image, ImageDraw
from tiny import labels, tiny_data, tiny_run, write_shards

import mmformer
from mmformer.data.classes import read_classes
from mmformer.data.dataset import SampleDataset
from mmformer.data.order import OrderSpec
from mmformer.evaluation.metric import Score
from mmformer.training import report
from mmformer.training.report import write_report
from mmformer.training.run import RunSpec
from mmformer.training.sheet import Card, draw_sheet

GREEN = (0x2F, 0x8F, 0x5B)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def run_of(bundle: Path, shards: Path) -> RunSpec:
    """A run whose model is a bundle's, as far as the report asks."""
    model = mmformer.load(bundle).model.spec
    run = tiny_run(shards, data={"labels": labels(shards)})
    object.__setattr__(run, "model", model)  # past the checks: only reading is tried here
    return run


def test_what_could_mean_several_things_is_left_out(shards: Path, tmp_path: Path) -> None:
    """Two encoders of images and two contrastive heads: none is chosen, and the run ends all the same."""
    bundle = save_two_eyed(tmp_path / "bundle")
    cards = write_report(run_of(bundle, shards), tmp_path, {})
    assert [card.labels for card in cards] == [[]] * 8
    assert all(card.caption is not None for card in cards)


def has_green(image: Image.Image) -> bool:
    distance = np.abs(np.asarray(image.convert("RGB")).astype(int) - GREEN).max(-1)
    return bool((distance < 16).any())  # scaled down, edges blend


def test_it_shows_what_the_bundle_says(shards: Path, tmp_path: Path) -> None:
    bundle = save_trimodal(tmp_path / "bundle")
    run = run_of(bundle, shards)
    cards = write_report(run, tmp_path, {"retrieval/image_to_text/R@1": Score(12.5, 12.5, "%")})
    dataset = SampleDataset(run.data, "test", OrderSpec(shuffle=False), 0, training=False)
    names = [dataset[number].text for number in range(8)]
    assert [card.name for card in cards] == names
    model = mmformer.load(bundle)
    files = [dataset.reader[number].members["png"] for number in range(8)]
    assert [card.caption for card in cards] == model.caption(image=files)
    wanted = model.classify(files, [name for name in names if name], top=3)
    assert [dict(card.labels) for card in cards] == wanted
    with Image.open(tmp_path / "report.png") as image:
        assert image.width > 1000
        right = any(card.name == label for card in cards for label, _ in card.labels)
        assert has_green(image) == right


def test_names_are_of_the_first_samples_and_nothing_else_is_decoded(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large split is not held in memory for the sake of eighteen pictures."""
    run, asked = run_of(save_trimodal(tmp_path / "bundle"), shards), []
    item = SampleDataset.__getitem__
    monkeypatch.setattr(report, "CANDIDATES", 3)
    monkeypatch.setattr(SampleDataset, "__getitem__", lambda self, place: asked.append(place) or item(self, place))
    monkeypatch.setattr(report, "NUMBER", 2)
    cards = write_report(run, tmp_path, {})
    assert len(cards) == 2
    assert asked == [0, 1, 2]
    assert all(len(card.labels) == 3 for card in cards)


def test_a_classifier_shows_its_own_classes(shards: Path, tmp_path: Path) -> None:
    run = run_of(save_classifier(tmp_path / "bundle"), shards)
    object.__setattr__(run, "data", tiny_data(shards, text=None, labels=labels(shards)))
    cards = write_report(run, tmp_path, {})
    assert len(cards) == 8
    assert all(len(card.labels) == 3 and card.caption is None for card in cards)
    (spec,) = run.data.labels.values()
    assert {card.name for card in cards} <= set(read_classes(spec.classes))  # what is right is in green


@pytest.mark.parametrize("change", [{"test": None}, {"image": None}])
def test_without_pictures_there_is_none(change: dict[str, None], shards: Path, tmp_path: Path) -> None:
    run = tiny_run(shards)
    object.__setattr__(run, "data", dataclasses.replace(run.data, **change))
    assert write_report(run, tmp_path, {}) == []
    assert not (tmp_path / "report.png").exists()


def test_the_right_name_is_green_and_no_other() -> None:
    card = Card(np.full((9, 9, 3), 255, np.uint8), "cat", None, [("dog", 0.7), ("cat", 0.3)])
    assert has_green(draw_sheet("t", ["l"], [card], "f"))
    assert not has_green(draw_sheet("t", ["l"], [card._replace(name="sun")], "f"))


def test_long_words_stay_on_their_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[float, float]] = []
    plain = ImageDraw.ImageDraw.text

    def spy(self: Any, at: tuple[float, float], text: str, fill: str, font: Any, anchor: str) -> None:
        width = font.getlength(text)
        left = at[0] - {"l": 0.0, "m": width / 2, "r": width}[anchor[0]]
        drawn.append((left, left + width))
        plain(self, at, text, fill, font, anchor)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", spy)
    words = "an extraordinarily long name that no card has room for, whatever the letters"
    draw_sheet("t", [], [Card(pixels(1), words, words, [(words, 0.5)])], "")
    inside = [(left, right) for left, right in drawn if right > left]
    assert inside
    assert all(left >= 40 * 2 and right <= (40 + 220) * 2 for left, right in inside[1:-1]), inside


def test_cards_stand_in_rows_of_six() -> None:
    one, seven = (draw_sheet("t", [], [Card(pixels(0), "a", None, [])] * number, "") for number in (1, 7))
    assert seven.width == one.width
    assert seven.height > one.height
