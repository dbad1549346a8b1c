"""How messages write what a spec holds."""

from __future__ import annotations

import math

import pytest

from mmformer.nn.attention import AttentionSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.norm import RMSNormSpec
from mmformer.nn.pattern import AllOfSpec, WindowSpec
from mmformer.nn.stack import StackSpec
from mmformer.spec import told


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        ("tanh", "'tanh'"),
        (None, "None"),
        (math.nan, "nan"),
        ((1, 2.5), "(1, 2.5)"),
        ((), "()"),
        ((WindowSpec(),), "(WindowSpec(),)"),
        (AttentionSpec(heads=8), "AttentionSpec()"),
        (
            LayerSpec(AttentionSpec(heads=4), norm=RMSNormSpec()),
            "LayerSpec(mixer=AttentionSpec(heads=4), norm=RMSNormSpec())",
        ),
        (AttentionSpec(pattern=AllOfSpec()), "AttentionSpec(pattern=AllOfSpec())"),
        (StackSpec(16, 2), "StackSpec(width=16, depth=2)"),  # they have no default
    ],
)
def test_of_a_spec_only_what_is_not_the_default(value: object, text: str) -> None:
    assert told(value) == text
