"""Early exit: classifiers after layers before the last, trained together, and samples that leave where one is sure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import tiny_batch, tiny_model
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from mmformer.errors import InputError
from mmformer.models.exits import EarlyExitHead, EarlyExitHeadSpec
from mmformer.models.head import ClassificationHeadSpec, ContrastiveHeadSpec
from mmformer.models.model import Model, ModelSpec
from mmformer.nn.halting import HaltingSpec
from mmformer.objectives.classification import ClassificationSpec
from mmformer.types import Batch, Mixed

TEXTS = ["red", "a small blue square", "green on the left", "a pink one", "two", "black, or white"]
DEPTH = 4


def spec(threshold: float | None = None, encoder: str = "image", **changes: Any) -> ModelSpec:
    """The tiny model, one of whose towers is four layers deep, with exits after the first and the third."""
    model = tiny_model()
    encoders = {encoder: dataclasses.replace(model.encoders[encoder], **changes)}
    stacks = {encoder: dataclasses.replace(model.stacks[encoder], depth=DEPTH)}
    return ModelSpec(
        stacks, encoders, heads={"colour": EarlyExitHeadSpec(encoder, 5, exits=(0, 2), threshold=threshold)}
    )


def built(made: ModelSpec) -> Model:
    """Weights that make some samples sure and others not."""
    model = made.build()
    model.initialise(0)
    with torch.no_grad():
        for name, parameter in model.heads["colour"].named_parameters():
            parameter.mul_(8 if name.startswith("exits.1") else 4)
    return model.eval()


def batch() -> Batch:
    return tiny_batch(TEXTS)


def by_hand(model: Model, made: Batch, encoder: str) -> list[Tensor]:
    """The logits of each exit, the last layer's among them: what the encoder makes of what left each layer."""
    part, head = model.encoders[encoder], model.heads["colour"]
    stack = model.stack_of(encoder)
    outputs = model(made, intermediates=[f"{encoder}/{layer}" for layer in range(DEPTH)])
    logits = []
    for layer, projection in ((0, head.exits[0]), (2, head.exits[1]), (3, head.projection)):
        x = stack.norm(outputs.intermediates[f"{encoder}/{layer}"])
        logits.append(projection(part.projection(part.pool(outputs.tokens[encoder]._replace(x=x)))))
    return logits


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("encoder", ["image", "text"])
def test_exits_are_what_the_encoder_makes_of_earlier_layers(encoder: str, packed: bool) -> None:
    model = built(spec(encoder=encoder, packed=packed))
    outputs = model(batch())
    first, third, last = by_hand(model, batch(), encoder)
    assert_close(outputs.exits["colour"], torch.stack((first, third), dim=1))
    assert_close(outputs.logits["colour"], last)
    assert outputs.intermediates == {}
    plain = dataclasses.replace(spec(encoder=encoder), heads={"colour": ClassificationHeadSpec(encoder, 5)}).build()
    missing, _ = plain.load_state_dict(model.state_dict(), strict=False)
    assert missing == []
    assert_close(plain.eval()(batch()).logits["colour"], last)


def calls(model: Model, encoder: str) -> list[int]:
    """How many samples each of its layers runs over, from now on."""
    sizes = [0] * DEPTH

    def count(index: int) -> Callable[..., None]:
        def hook(_: object, inputs: tuple[Tensor, ...], __: object) -> None:
            sizes[index] += len(inputs[0])

        return hook

    for index, layer in enumerate(model.stack_of(encoder).layers):
        layer.register_forward_hook(count(index))
    return sizes


@pytest.mark.parametrize("encoder", ["image", "text"])
def test_sure_samples_leave_and_are_not_computed_on(encoder: str) -> None:
    """A sample's logits are those of the first exit that is sure; layers after it run over the others alone."""
    model, made = built(spec(encoder=encoder)), batch()
    every = by_hand(model, made, encoder)
    surest = [logits.detach().softmax(-1).amax(-1) for logits in every[:2]]
    between = torch.cat(surest).sort().values.unfold(0, 2, 1).mean(1).tolist()
    # The first exit is sure of some, the other of some of the rest, and not of all.
    threshold = next(t for t in between if 0 < (surest[0] < t).sum() > (torch.maximum(*surest) < t).sum() > 0)
    head = model.heads["colour"]
    assert isinstance(head, EarlyExitHead)
    head.threshold = threshold
    sizes = calls(model, encoder)
    outputs = model(made)
    expected, left = [], []
    for row in range(len(TEXTS)):
        at = next((number for number in (0, 1) if surest[number][row] >= threshold), 2)
        expected.append(every[at][row])
        left.append((0, 2, 3)[at])
    assert_close(outputs.logits["colour"], torch.stack(expected))
    assert outputs.early[encoder].left.tolist() == left
    assert sizes == [sum(layer >= index for layer in left) for index in range(DEPTH)]
    assert len(TEXTS) == sizes[0] > sizes[1] == sizes[2] > sizes[3] > 0
    assert "colour" not in outputs.exits


@pytest.mark.parametrize("encoder", ["image", "text"])
def test_leaving_is_choosing_afterwards(encoder: str) -> None:
    """Where processes run layers together, and hidden states are asked for, all is computed; it means the same."""
    model, made = built(spec(0.5, encoder, packed=encoder == "text")), batch()
    left = model(made)
    asked = model(made, intermediates=[f"{encoder}/1"])
    assert asked.intermediates[f"{encoder}/1"].shape[0] == len(TEXTS)
    model.stack_of(encoder).may_stop = False
    sizes = calls(model, encoder)
    whole = model(made)
    assert sizes == [sizes[0]] * DEPTH, "all rows go through all layers"
    assert 0 in left.early[encoder].left.tolist()
    real = ... if left.tokens[encoder].valid is None else left.tokens[encoder].valid
    for other in (whole, asked):
        assert_close(other.logits["colour"], left.logits["colour"])
        assert_close(other.embedding[encoder], left.embedding[encoder])
        assert_close(other.tokens[encoder].x[real], left.tokens[encoder].x[real])
        assert torch.equal(other.early[encoder].left, left.early[encoder].left)


@pytest.mark.parametrize(("threshold", "layer"), [(1e-6, 0), (1.0, DEPTH - 1)])
def test_all_leave_at_once_or_none(threshold: float, layer: int) -> None:
    model, made = built(spec(threshold=threshold)), batch()
    sizes = calls(model, "image")
    outputs = model(made)
    assert outputs.early["image"].left.tolist() == [layer] * len(TEXTS)
    assert sizes == [len(TEXTS) if index <= layer else 0 for index in range(DEPTH)]
    assert outputs.logits["colour"].shape == (len(TEXTS), 5)


def test_a_sample_leaves_where_it_would_alone() -> None:
    model, made = built(spec(threshold=0.6)), batch()
    together = model(made)
    for row in range(len(TEXTS)):
        alone = model(made.rows(slice(row, row + 1)))
        assert_close(alone.logits["colour"][0], together.logits["colour"][row])
        assert alone.early["image"].left[0] == together.early["image"].left[row]


def test_nobody_leaves_in_training_and_all_exits_are_weighed_alike() -> None:
    model, made = built(spec(threshold=1e-6)).train(), batch()
    outputs = model(made)
    made = made._replace(labels={"colour": torch.tensor([0, 1, -1, 2, 3, 4])})
    objective = ClassificationSpec(head="colour").build()
    loss = objective.losses(outputs, made)["cross_entropy"]
    each = [outputs.logits["colour"], *outputs.exits["colour"].unbind(1)]
    expected = sum(F.cross_entropy(logits, made.labels["colour"], ignore_index=-1, reduction="sum") for logits in each)
    assert_close(loss.total, expected / 3)
    assert float(loss.items) == 5
    loss.total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_mixed_labels_are_weighed_at_every_exit() -> None:
    model, made = built(spec()).train(), batch()
    outputs = model(made)
    labels, other = torch.tensor([0, 1, 2, 2, 3, 4]), torch.tensor([1, 1, 0, 4, -1, 0])
    share = torch.tensor([0.5, 0.7, 1.0, 0.2, 0.3, 0.9])
    made = made._replace(labels={"colour": labels}, mixed=Mixed({"colour": other}, share))
    loss = ClassificationSpec(head="colour").build().losses(outputs, made)["cross_entropy"]
    total = 0.0
    for logits in (outputs.logits["colour"], *outputs.exits["colour"].unbind(1)):
        for row in range(6):
            logs = logits[row].log_softmax(-1)
            own = float(share[row]) if other[row] >= 0 else 1.0
            total = total - (own * logs[labels[row]] + (1 - own) * logs[other[row]]) / 3
    assert_close(loss.total, total)


def changed(**changes: Any) -> ModelSpec:
    made = spec()
    return dataclasses.replace(made, heads={"colour": dataclasses.replace(made.heads["colour"], **changes)})


def with_head(head: Any, threshold: float | None = 0.5) -> ModelSpec:
    made = spec(threshold)
    return dataclasses.replace(made, heads={**made.heads, "other": head})


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: EarlyExitHeadSpec("image", 5), "EarlyExitHeadSpec.exits must be one layer or several, in ascending order"),
    (lambda: EarlyExitHeadSpec("image", 5, exits=(2, 0)), "EarlyExitHeadSpec.exits must be one layer or several"),
    (lambda: EarlyExitHeadSpec("image", 5, exits=(-1,)), "EarlyExitHeadSpec.exits must be one layer or several"),
    (lambda: changed(threshold=0.0), "EarlyExitHeadSpec.threshold must be None, or above 0 and at most 1, but is 0.0"),
    (lambda: changed(threshold=1.5), "EarlyExitHeadSpec.threshold must be None, or above 0 and at most 1"),
    (lambda: changed(exits=(0, 3)), "model.heads.colour.exits has 3, but exits come before the last layer, which is 3"),
    (
        lambda: with_head(ClassificationHeadSpec("image", 3)),
        "A threshold lets samples leave the encoder 'image' early, but model.heads.colour and model.heads.other read",
    ),
]


@pytest.mark.parametrize(("make", "words"), REFUSED, ids=[words[:60] for _, words in REFUSED])
def test_it_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        make()


@pytest.mark.parametrize("whole", [{"halting": HaltingSpec()}, {"reversible": True}], ids=str)
def test_exits_from_a_stack_that_runs_as_a_whole_are_refused(whole: dict[str, Any]) -> None:
    made = spec()
    stacks = {"image": dataclasses.replace(made.stacks["image"], **whole)}
    with pytest.raises(InputError, match=rf"model\.heads\.colour lets samples leave .*: leave out its {min(whole)}"):
        dataclasses.replace(made, stacks=stacks)


def test_a_threshold_that_is_set_later_is_refused_as_well() -> None:
    model = built(with_head(ClassificationHeadSpec("image", 3), threshold=None))
    assert model(batch()).exits["colour"].shape == (6, 2, 5)
    head = model.heads["colour"]
    assert isinstance(head, EarlyExitHead)
    head.threshold = 0.5
    with pytest.raises(InputError, match="A threshold lets samples leave the encoder 'image' early"):
        model(batch())


def test_two_heads_may_have_exits_of_one_encoder() -> None:
    model = built(with_head(EarlyExitHeadSpec("image", 3, exits=(1, 2)), threshold=None))
    outputs = model(batch())
    assert {name: logits.shape for name, logits in outputs.exits.items()} == {"colour": (6, 2, 5), "other": (6, 2, 3)}
    assert sorted(outputs.early["image"].embedding) == [0, 1, 2]
    without = built(with_head(ContrastiveHeadSpec(), threshold=0.5))
    assert without(batch()).early["image"].left is not None
