"""Encoders whose tokens go through a resampler, a norm of what is pooled, and pools of special tokens; and who reads
them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from decoders import ROWS, build, spec
from tiny import tiny_batch
from torch import Tensor
from torch.testing import assert_close

from mmformer.errors import InputError
from mmformer.models.encoder import EncoderSpec
from mmformer.models.exits import EarlyExitHeadSpec
from mmformer.models.model import Model, ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.norm import LayerNormSpec
from mmformer.nn.pool import ClassTokenPoolSpec, JoinedPoolSpec, MeanPoolSpec
from mmformer.nn.position import LearnedPositionSpec
from mmformer.nn.resampler import AttentionResamplerSpec
from mmformer.types import Batch, Outputs, Text

SMALL = AttentionResamplerSpec(5, 12, class_query=True, attention=AttentionSpec(2))


def captioner(kind: str = "cross", **changes: Any) -> ModelSpec:
    """CoCa's way: one pooler, whose first query is for the embedding, the others for the decoder."""
    made = spec(kind)
    encoder = dataclasses.replace(
        made.encoders["image"], **{"resampler": SMALL, "pool": ClassTokenPoolSpec(), "class_token": True, **changes}
    )
    stacks = dict(made.stacks)
    if kind == "cross":
        stacks["writer"] = dataclasses.replace(stacks["writer"], memory_width=12)
    return dataclasses.replace(made, stacks=stacks, encoders={"image": encoder})


def run(model: Model) -> Outputs:
    rows = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ROWS], batch_first=True)
    text = Text(rows, torch.tensor([len(row) for row in ROWS]))
    batch: Batch = tiny_batch(["a", "b", "c"])
    return model.float()(batch._replace(text=None, target=text))


def test_pools_read_the_class_query_and_decoders_the_others() -> None:
    model = build(captioner())
    outputs = run(model)
    tokens = outputs.tokens["image"]
    assert tokens.x.shape == (3, 4, 12)
    assert tokens.pos.tolist() == [[[i, 0, 0] for i in range(4)]] * 3
    assert outputs.embedding["image"].shape == (3, 12)
    query = model.encoders["image"].resampler.query  # type: ignore[union-attr]
    assert isinstance(query, Tensor)

    def changed(rows: slice) -> tuple[bool, bool]:
        """Whether the embedding, and what is written, hang on some of the queries."""
        before = query.detach().clone()
        with torch.no_grad():
            query[rows] = -before[rows]
        found = run(model)
        with torch.no_grad():
            query.copy_(before)
        return tuple(  # type: ignore[return-value]
            not torch.allclose(one, two)
            for one, two in (
                (found.embedding["image"], outputs.embedding["image"]),
                (found.losses["caption"].total, outputs.losses["caption"].total),
            )
        )

    assert changed(slice(1)) == (True, False)
    assert changed(slice(1, None)) == (False, True)


def test_without_a_class_query_all_are_read_by_all() -> None:
    outputs = run(build(captioner(resampler=dataclasses.replace(SMALL, class_query=False), pool=MeanPoolSpec())))
    assert outputs.tokens["image"].x.shape == (3, 5, 12)
    assert_close(outputs.embedding["image"], outputs.tokens["image"].x.mean(1))


def test_a_prefix_of_resampled_tokens_needs_places_for_them_alone() -> None:
    made = captioner("prefix")
    short = dataclasses.replace(made.stacks["writer"], position=LearnedPositionSpec((1, 2), (1, 1)))
    model = build(dataclasses.replace(made, stacks={**made.stacks, "writer": short}))
    assert run(model).losses["caption"].total.isfinite()
    long = dataclasses.replace(made.encoders["image"], resampler=dataclasses.replace(SMALL, queries=18))
    learned = dataclasses.replace(made.stacks["writer"], position=LearnedPositionSpec((0,), (16,)))
    with pytest.raises(InputError, match=r"stand at up to 17 \(AttentionResamplerSpec\): raise LearnedPosition"):
        ModelSpec({**made.stacks, "writer": learned}, {"image": long}, made.decoders)


def test_a_memory_of_another_width_is_refused() -> None:
    made = captioner()
    wide = dataclasses.replace(made.encoders["image"], resampler=dataclasses.replace(SMALL, width=None))
    with pytest.raises(InputError, match=r"tokens are 24 wide, but model.stacks.writer reads a memory of width 12"):
        dataclasses.replace(made, encoders={"image": wide})


def test_exits_before_a_resampler_are_refused() -> None:
    made = captioner()
    stacks = {**made.stacks, "eye": dataclasses.replace(made.stacks["eye"], depth=2)}
    with pytest.raises(InputError, match=r"model.heads.k lets samples leave a stack early, which goes with no res"):
        dataclasses.replace(made, stacks=stacks, heads={"k": EarlyExitHeadSpec("image", 2, exits=(0,))})


def test_a_pooled_vector_is_normalised_once_and_projected_then() -> None:
    """timm's fc_norm."""
    made = spec("cross")
    stacks = {**made.stacks, "eye": dataclasses.replace(made.stacks["eye"], final_norm=False)}
    encoder = dataclasses.replace(made.encoders["image"], norm=LayerNormSpec(eps=0.5), embedding=7)
    model = build(dataclasses.replace(made, stacks=stacks, encoders={"image": encoder}))
    outputs, part = run(model), model.encoders["image"]
    assert isinstance(part.norm, torch.nn.LayerNorm)
    with torch.no_grad():
        part.norm.weight.mul_(3)
        part.norm.bias.fill_(0.2)
    outputs = run(model)
    mean = outputs.tokens["image"].x.mean(1)
    centred = mean - mean.mean(1, keepdim=True)
    normed = 3 * centred / (centred.square().mean(1, keepdim=True) + 0.5).sqrt() + 0.2
    assert_close(outputs.embedding["image"], normed @ part.projection.weight.T)  # type: ignore[union-attr, operator]


@pytest.mark.parametrize(
    ("pool", "places"),
    [
        (ClassTokenPoolSpec(), [0]),
        (ClassTokenPoolSpec(1), [1]),
        (ClassTokenPoolSpec(number=2), [0, 1]),
        (ClassTokenPoolSpec(1, 2), [1, 2]),
    ],
    ids=str,
)
def test_special_tokens_are_pooled_by_their_places(pool: ClassTokenPoolSpec, places: list[int]) -> None:
    made = spec("cross")
    encoder = dataclasses.replace(made.encoders["image"], pool=pool, class_token=True, registers=2)
    outputs = run(build(dataclasses.replace(made, encoders={"image": encoder})))
    assert_close(outputs.embedding["image"], outputs.tokens["image"].x[:, places].mean(1))


def test_pools_side_by_side_make_a_wider_embedding() -> None:
    made = spec("cross")
    pools = JoinedPoolSpec((ClassTokenPoolSpec(), MeanPoolSpec()))
    encoder = EncoderSpec(made.encoders["image"].tokenizer, "eye", pools, class_token=True, norm=LayerNormSpec())
    full = dataclasses.replace(made, encoders={"image": encoder})
    assert full.embedding_widths == {"image": 48}
    assert run(build(full)).embedding["image"].shape == (3, 48)
