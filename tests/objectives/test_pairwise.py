"""What the contrastive objectives share: what counts as an equal caption, and what they refuse of a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_batch

from mmformer.errors import InputError
from mmformer.models.head import ClassificationHeadSpec, ContrastiveHeadSpec
from mmformer.objectives.contrastive import ContrastiveSpec
from mmformer.objectives.pairwise import PairwiseSpec, caption_identity, chunks
from mmformer.objectives.sigmoid import SigmoidContrastiveSpec
from mmformer.spec import Parts
from mmformer.types import Batch, Outputs, Text

SPECS = {ContrastiveSpec: None, SigmoidContrastiveSpec: -10.0}
"""Objective -> the bias of a head that it reads."""


def test_equal_captions_have_equal_numbers() -> None:
    texts = ["red", "a red heart", "red", "heart red a", "", "red red", "a red heart", ""]
    number = caption_identity(tiny_batch(texts).text)  # type: ignore[arg-type]
    assert number.dtype == torch.int64
    expected = torch.tensor([[a == b for b in texts] for a in texts])
    assert torch.equal(number[:, None] == number[None, :], expected)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(1, 8191), min_size=1, max_size=24), min_size=2, max_size=30))
def test_different_captions_have_different_numbers(rows: list[list[int]]) -> None:
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    number = caption_identity(Text(ids, torch.tensor([len(row) for row in rows])))
    assert (number[:, None] == number[None, :]).tolist() == [[a == b for b in rows] for a in rows]


def test_padding_does_not_count() -> None:
    ids = torch.tensor([[7, 8, 3, 0, 0], [7, 8, 3, 4, 9]])
    one = caption_identity(Text(ids, torch.tensor([3, 3])))
    assert one[0] == one[1]
    assert torch.equal(caption_identity(Text(ids[:, :3], torch.tensor([3, 3]))), one)


def test_captions_that_differ_past_the_context_length_are_equal() -> None:
    """They are compared as the model reads them: tiny's context is 16 tokens."""
    start = "a large red square on the left of a small blue square"
    number = caption_identity(tiny_batch([f"{start} {start} one", f"{start} {start} two", "one", "two"]).text)  # type: ignore[arg-type]
    assert (number[:, None] == number[None, :]).sum() == 6
    assert number[0] == number[1]


def test_many_captions_do_not_collide() -> None:
    ids = torch.randint(5, 8192, (50_000, 8), generator=torch.Generator().manual_seed(0)).unique(dim=0)
    assert len(caption_identity(Text(ids, torch.full((len(ids),), 8))).unique()) == len(ids)
    near = torch.tensor([[a, b, c] for a in range(30) for b in range(30) for c in range(30)])
    assert len(caption_identity(Text(near, torch.full((len(near),), 3))).unique()) == len(near)


# ------------------------------------------------------------------------------------------------- the checks


@pytest.mark.parametrize("spec", SPECS)
def test_a_pair_that_the_batch_lacks_has_no_loss(spec: type[PairwiseSpec]) -> None:
    objective = spec(pairs=(("image", "text"), ("sound", "text"))).build()
    outputs = Outputs.empty()._replace(embedding={"image": torch.randn(6, 4)}, scale={"contrastive": torch.ones(1)})
    outputs.bias["contrastive"] = torch.zeros(1)
    batch = Batch(("a",) * 6, {})
    assert objective.losses(outputs, batch) == {}
    assert not objective.finds(outputs)
    outputs.embedding["text"] = torch.randn(6, 4)
    assert objective.losses(outputs, batch).keys() == {"image_text"}
    assert objective.finds(outputs)


CHECKS: list[tuple[dict[str, Any], dict[str, int], str]] = [
    ({"head": "contrst"}, {"image": 4, "text": 4}, "reads the head 'contrst', but .* Did you mean 'contrastive'"),
    ({"head": "colour"}, {"image": 4, "text": 4}, "reads the head 'colour', but .*add a ContrastiveHeadSpec"),
    ({}, {"image": 4, "txt": 4}, "Spec.pairs has 'text', but the model's encoders are image, txt. Did you mean 'txt'"),
    ({}, {"image": 4, "text": 5}, "'image' against 'text', but their embeddings are 4 and 5 wide"),
]


@pytest.mark.parametrize(("fields", "widths", "message"), CHECKS)
@pytest.mark.parametrize(("spec", "bias"), SPECS.items())
def test_a_model_that_does_not_fit_is_refused(
    spec: type[PairwiseSpec], bias: float | None, fields: dict[str, Any], widths: dict[str, int], message: str
) -> None:
    heads = {"contrastive": ContrastiveHeadSpec(bias=bias), "colour": ClassificationHeadSpec("image", 2)}
    with pytest.raises(InputError, match=message):
        spec(**fields).check(Parts(widths, heads, {}, ()))
    spec().check(Parts({"image": 4, "text": 4}, heads, {}, ()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": 0.0}, "weight must be positive"),
        ({"weight": float("nan")}, "weight must be positive"),
        ({"pairs": ()}, "pairs must be at least one pair"),
        ({"pairs": (("a", "a"),)}, "pairs must be different pairs of two different encoders"),
        ({"pairs": (("a", "b"), ("b", "a"))}, "pairs must be different pairs"),
        ({"chunk": 0}, "chunk must be at least 1"),
    ],
)
@pytest.mark.parametrize("spec", SPECS)
def test_values_out_of_range_are_refused(spec: type[PairwiseSpec], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        spec(**fields)
    assert str(caught.value).startswith(f"{spec.__name__}.{message}")


@pytest.mark.parametrize(("number", "chunk"), [(7, 1), (7, 3), (7, 7), (7, 100), (0, 4)])
def test_chunks_are_all_rows_in_order(number: int, chunk: int) -> None:
    parts = [list(range(number))[part] for part in chunks(number, chunk)]
    assert [row for part in parts for row in part] == list(range(number))
    assert all(0 < len(part) <= chunk for part in parts)
