"""Which mixers fit a length and a memory."""

from __future__ import annotations

import pytest

from mmformer.nn.attention import AttentionSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.shaw import ShawAttentionSpec
from mmformer.nn.stack import StackSpec
from mmformer.scaling.mixers import Fit, fits

ROOM = 1e12


@pytest.fixture(scope="module")
def found() -> dict[str, Fit]:
    stack = StackSpec(32, 3, LayerSpec(AttentionSpec(heads=2)))
    return {fit.mixer: fit for fit in fits(stack, 256, causal=False, bfloat16=False, room=ROOM)}


def test_flops_of_attention_are_its_products(found: dict[str, Fit]) -> None:
    length, width, layers = 256, 32, 3
    linear = 3 * 2 * length * (4 * width * width + 2 * 4 * width * width)  # forward, and twice backward
    between = 7 * 2 * length * length * width
    assert found["AttentionSpec"].flops == pytest.approx(layers * (linear + between))


def test_what_keeps_scores_fits_shorter_rows(found: dict[str, Fit]) -> None:
    fused, shaw = found["AttentionSpec"], found[ShawAttentionSpec.__name__]
    assert fused.longest > 5 * shaw.longest > 0
    assert fused.rows == int(ROOM // fused.bytes)


def test_what_cannot_stand_there_says_why(found: dict[str, Fit]) -> None:
    assert found["MambaSpec"].refused == "it is not bidirectional"
    assert not found["LinearAttentionSpec"].refused
