"""Pictures mixed with others, and the labels by which they are weighed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import labels, tiny_data, tiny_model, tiny_run, write_shards
from torch.nn import functional as F

from mmformer.data.image_transform import ImageTransformSpec
from mmformer.data.inputs import ImageInputSpec
from mmformer.data.loading import evaluation_loader, training_loader
from mmformer.data.mix import FARTHEST, Mixing, MixSpec, mix
from mmformer.data.seeding import generator
from mmformer.data.sources import DataSpec
from mmformer.errors import InputError
from mmformer.models.model import ModelSpec
from mmformer.objectives.classification import ClassificationSpec
from mmformer.training.accumulate import accumulate
from mmformer.training.fit import fit
from mmformer.training.run import EvaluationSpec
from mmformer.types import Batch, Mixed, Outputs


def drawn(spec: MixSpec, number: int = 4000) -> list[Mixing]:
    made = [spec.draw(generator(0, "test", place)) for place in range(number)]
    return [mixing for mixing in made if mixing is not None]


def test_shares_are_betas() -> None:
    for alpha in (0.2, 1.0):
        shares = np.array([mixing.share for mixing in drawn(MixSpec(mixup=alpha))])
        assert len(shares) == 4000
        assert shares.mean() == pytest.approx(0.5, abs=0.02)
        assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05), "the variance of Beta(α, α)"
    turns = np.array([mixing.turns for mixing in drawn(MixSpec())])
    assert turns.min() == 1
    assert turns.max() == FARTHEST


def test_each_is_done_as_often_as_it_says() -> None:
    assert len(drawn(MixSpec(probability=0.3))) == pytest.approx(1200, abs=80)
    assert all(mixing.box is None for mixing in drawn(MixSpec(mixup=1.0)))
    assert all(mixing.box is not None for mixing in drawn(MixSpec(mixup=0.0, cutmix=1.0)))
    both = drawn(MixSpec(mixup=1.0, cutmix=1.0))
    assert sum(mixing.box is None for mixing in both) == pytest.approx(2000, abs=120)


def test_the_share_is_what_is_left_of_the_picture() -> None:
    own, other = np.full((3, 20, 30), 10, np.uint8), np.full((3, 20, 30), 210, np.uint8)
    made, share = mix(own, other, Mixing(1, 0.75, None))
    assert (made == 60).all()
    assert share == 0.75
    for mixing in drawn(MixSpec(mixup=0.0, cutmix=1.0), 300):
        made, share = mix(own, other, mixing)
        assert set(np.unique(made)) <= {10, 210}
        assert (made == 10).mean() == pytest.approx(share)
        assert (made == made[:1]).all(), "all channels alike"
    assert (own == 10).all()


# ------------------------------------------------------------------------------------------------- in the data


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def data(shards: Path, spec: MixSpec | None) -> DataSpec:
    image = ImageInputSpec("png", ImageTransformSpec((16, 16)), mix=spec)
    return tiny_data(shards, image=image, labels=labels(shards), text=None)


def batches(spec: DataSpec, **ranks: int) -> list[Batch]:
    return list(training_loader(spec, {}, 3, 0, 6, **ranks))  # type: ignore[arg-type]


def test_the_other_is_a_sample_of_the_split_and_its_label_comes_along(shards: Path) -> None:
    plain = {key: (image, int(label)) for batch in batches(data(shards, None)) for key, image, label in _each(batch)}
    seen = {}
    for batch in batches(data(shards, MixSpec(mixup=1.0))):
        assert batch.mixed is not None
        assert batch.image is not None
        for row, key in enumerate(batch.keys):
            own, label = plain[key]
            assert label == int(batch.labels["colour"][row]), "its own stays"
            share, other = float(batch.mixed.share[row]), int(batch.mixed.labels["colour"][row])
            candidates = [image for image, number in plain.values() if number == other]
            errors = [
                (share * own.float() + (1 - share) * image.float() - batch.image[row]).abs().max()
                for image in candidates
            ]
            assert min(errors) <= 0.51, key
            seen[key] = other != label
    assert sum(seen.values()) > len(seen) / 2


def _each(batch: Batch) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    assert batch.image is not None
    return list(zip(batch.keys, batch.image, batch.labels["colour"], strict=True))


def test_ranks_mix_what_one_process_mixes(shards: Path) -> None:
    spec = data(shards, MixSpec(0.5, 1.0, 1.0))
    spec = dataclasses.replace(spec, image=tiny_data(shards).image)
    assert spec.image is not None
    spec = dataclasses.replace(spec, image=dataclasses.replace(spec.image, mix=MixSpec(0.5, 1.0, 1.0)))
    whole = {int(p): (i, s) for batch in batches(spec) for p, i, s in _rows(batch)}
    parts = {
        int(p): (i, s) for rank in range(2) for batch in batches(spec, rank=rank, ranks=2) for p, i, s in _rows(batch)
    }
    assert whole.keys() == parts.keys()
    for position, (image, share) in whole.items():
        assert torch.equal(parts[position][0], image)
        assert parts[position][1] == share
    assert 0.2 < sum(share == 1 for _, share in whole.values()) / len(whole) < 0.8


def _rows(batch: Batch) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
    assert batch.image is not None
    assert batch.positions is not None
    share = torch.ones(len(batch.keys)) if batch.mixed is None else batch.mixed.share
    return list(zip(batch.positions, batch.image, share.tolist(), strict=True))


def test_evaluation_mixes_nothing(shards: Path) -> None:
    spec = data(shards, MixSpec())
    made, plain = (next(iter(evaluation_loader(given, "val", {}))) for given in (spec, data(shards, None)))
    assert made.mixed is None
    assert torch.equal(made.image, plain.image)


# ------------------------------------------------------------------------------------------------- in the loss


def test_the_loss_is_weighed_by_the_shares() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    own, other = torch.tensor([0, 1, 2, -1]), torch.tensor([2, -1, 1, 0])
    share = torch.tensor([0.3, 0.6, 1.0, 0.5])
    batch = Batch(("a",) * 4, {"x": own}, mixed=Mixed({"x": other}, share))
    outputs = Outputs.empty()._replace(logits={"x": logits})
    term = ClassificationSpec(head="x").build().losses(outputs, batch)["cross_entropy"]
    log = F.log_softmax(logits, dim=-1)
    expected = -(0.3 * log[0, 0] + 0.7 * log[0, 2]) - log[1, 1] - log[2, 2]
    torch.testing.assert_close(term.total, expected)
    assert float(term.items) == 3


def classifier() -> ModelSpec:
    """The pictures' half of the tiny model, with a head."""
    whole = tiny_model(classes=8)
    image, head = whole.encoders["image"], whole.heads["colour"]
    return ModelSpec({"image": whole.stacks["image"]}, {"image": image}, heads={"colour": head})


def test_a_run_learns_from_mixtures_in_parts_too(shards: Path, tmp_path: Path) -> None:
    run = dataclasses.replace(
        tiny_run(shards),
        data=data(shards, MixSpec(mixup=1.0)),
        model=classifier(),
        objectives={"colour": ClassificationSpec(head="colour")},
        evaluation=EvaluationSpec(),
    )
    model = run.model.build()
    model.initialise(0)
    batch = batches(run.data)[0]
    losses = []
    for parts in (1, 2):
        model.zero_grad()
        made = accumulate(
            model,
            {"colour": ClassificationSpec(head="colour").build()},
            {"colour": 1.0},
            batch,
            parts,
            lambda loss: loss.backward(),
        )
        losses.append((made["loss"], [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(losses[0][0], losses[1][0])
    torch.testing.assert_close(losses[0][1], losses[1][1], rtol=1e-4, atol=1e-6)
    plain = accumulate(
        model,
        {"colour": ClassificationSpec(head="colour").build()},
        {"colour": 1.0},
        batch._replace(mixed=None),
        1,
        lambda loss: loss.backward(),
    )
    assert abs(float(plain["loss"]) - float(losses[0][0])) > 1e-4
    with pytest.raises(InputError, match=r"data.image.mix mixes pictures and their labels, but objectives.contrastive"):
        tiny_run(shards, data={"image": data(shards, MixSpec()).image})
    assert fit(run, tmp_path / "out") is not None


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: MixSpec(0.0), "probability"),
        (lambda: MixSpec(mixup=-1.0), "mixup"),
        (lambda: MixSpec(cutmix=-1.0), "cutmix"),
        (lambda: MixSpec(mixup=0.0), "mixup"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(make: type, name: str) -> None:
    with pytest.raises(InputError, match=rf"MixSpec.{name} must be"):
        make()
