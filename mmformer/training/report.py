"""``report.png``: held-out pictures, with what the trained model calls them and writes of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import mmformer
from mmformer.data.classes import read_classes
from mmformer.data.dataset import SampleDataset
from mmformer.data.decode import decode_image
from mmformer.data.opening import open_samples
from mmformer.data.order import OrderSpec
from mmformer.data.sources import DataSpec
from mmformer.errors import InputError
from mmformer.evaluation.metric import Score
from mmformer.models.model import ModelSpec
from mmformer.predictor import Predictor
from mmformer.training.run import RunSpec
from mmformer.training.sheet import Card, draw_sheet

NUMBER = 18
LABELS = 3
CANDIDATES = 1000
"""Names at most that a picture is held against."""


def write_report(run: RunSpec, output: Path, scores: Mapping[str, Score]) -> list[Card]:
    """Draw the first pictures of the test split into ``report.png`` of a run's folder, as its bundle sees them.

    Where the model compares images with texts, labels are the texts of the split, of the first ``CANDIDATES`` samples
    at most; otherwise its own classes.

    Returns:
        The cards; empty, and no file is written, where there are no pictures or the model says nothing of them.
    """
    data = run.data
    if data.image is None or data.test is None:
        return []
    reader = open_samples(data.source, data.test, data.copies)
    raws = [reader[number] for number in range(min(NUMBER, len(reader)))]
    keys = [raw.key for raw in raws]
    files = [raw.members[data.image.choose(raw.members)] for raw in raws]
    names = _names(data, data.test)
    model = mmformer.load(output / "bundle")
    labels = _labels(run.model, model, files, list(dict.fromkeys(name for name in names if name)))
    captions = _captions(run.model, model, files)
    if not labels and not captions:
        return []
    cards = [
        Card(
            decode_image(files[place], key),
            names[place],
            captions[place] if captions else None,
            list(labels[place].items()) if labels else [],
        )
        for place, key in enumerate(keys)
    ]
    said = ["what it writes of each"] * bool(captions) + [f"the {LABELS} names that fit it best"] * bool(labels)
    shown, right = (["the name"], "; the right one in green") if any(card.name for card in cards) else ([], "")
    line = f"{len(cards)} pictures that training never saw: {', '.join(shown + said)}{right}."
    draw_sheet(output.name, [line], cards, _footer(scores)).save(output / "report.png", optimize=True)
    return cards


def _names(data: DataSpec, split: str) -> list[str | None]:
    """What the first samples are called, those that are shown among them: what decoders learn to write, or else texts,
    or else their classes; None where the run reads none of these.
    """
    text = data.target or data.text
    if text is not None:  # neither pictures nor sounds are decoded for it
        texts = dataclasses.replace(data, text=text, target=None, image=None, audio=None, labels={})
        dataset = _as_it_is(texts, split)
        return [dataset[number].text for number in range(min(CANDIDATES, len(dataset)))]
    if len(data.labels) != 1:
        return [None] * NUMBER
    ((label, spec),) = data.labels.items()
    dataset, classes = _as_it_is(data, split), read_classes(spec.classes)
    numbers = [dataset[number].labels[label] for number in range(min(NUMBER, len(dataset)))]
    return [None if number < 0 else classes[number] for number in numbers]


def _as_it_is(data: DataSpec, split: str) -> SampleDataset:
    return SampleDataset(data, split, OrderSpec(shuffle=False), seed=0, training=False)


def _labels(spec: ModelSpec, model: Predictor, files: list[bytes], names: list[str]) -> list[dict[str, float]]:
    """The likeliest labels of each picture; empty where the model has none to give."""
    if len(names) > 1 and _compares(model):
        return model.classify(files, names, top=LABELS)
    own = [name for name in model.transforms.classes if spec.modalities_of(spec.heads[name].reads) == {"image"}]
    return model.classify(files, head=own[0], top=LABELS) if len(own) == 1 else []


def _compares(model: Predictor) -> bool:
    """Whether the model compares images with texts, in one way."""
    try:
        model.check_comparable("image", "text")
        model.scale()
    except InputError:
        return False
    return True


def _captions(spec: ModelSpec, model: Predictor, files: list[bytes]) -> list[str]:
    """What the first decoder that reads nothing but images writes; empty where there is none."""
    for name, decoder in spec.decoders.items():
        if spec.modalities_of(decoder.reads) == {"image"}:
            return model.caption(image=files, decoder=name)
    return []


def _footer(scores: Mapping[str, Score]) -> str:
    """The recalls at 1 and their chance, or else the first score."""
    found = {name: score for name, score in scores.items() if name.endswith("R@1")}
    if not found:
        return next((f"{name} {score.value:.1f} {score.unit}".strip() for name, score in scores.items()), "")
    ways = [f"{name.split('/')[-2].replace('_to_', ' to ')} {score.value:.0f}" for name, score in found.items()]
    chance = next(iter(found.values())).chance
    return f"R@1 in percent{'' if chance is None else f' (chance {chance:.2g})'}: {', '.join(ways)}"
