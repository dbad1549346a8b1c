"""What is said where a part cannot what it is to do: the option that is in the way, and the parts that can."""

from __future__ import annotations

import pytest

from mmformer.errors import InputError
from mmformer.nn.ability import Ability, Able, require_abilities
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.linformer import LinformerSpec
from mmformer.nn.mamba import MambaSpec
from mmformer.nn.pattern import WindowSpec
from mmformer.nn.router import ExpertChoiceSpec

CASES: list[tuple[Able, list[Ability], str]] = [
    (MambaSpec(), ["bidirectional"], "MambaSpec(), which does not: set its bidirectional to true, or take Att"),
    (
        MambaSpec(bidirectional=True),
        ["causal"],
        "which does not: set its bidirectional to false, or take Att",
    ),
    (
        AttentionSpec(4, key_value_heads=2),
        ["rotary", "rotary_heads"],
        "AttentionSpec(heads=4, key_value_heads=2), which does not: set its key_value_heads to null, or take "
        "LSHAttentionSpec or LinearAttentionSpec or PerformerSpec.",
    ),
    (
        AttentionSpec(pattern=WindowSpec(before=4)),
        ["cross"],
        "AttentionSpec(pattern=WindowSpec(before=4)), which does not: set its pattern to null, or take LinearAttention",
    ),
    (LinformerSpec(), ["causal", "bias"], "LinformerSpec(), which does not: take AttentionSpec or ShawAttentionSpec."),
    (ExpertChoiceSpec(), ["causal"], "ExpertChoiceSpec(), which does not: take TokenChoiceSpec."),
]


@pytest.mark.parametrize(("part", "needed", "said"), CASES)
def test_the_way_out_is_told(part: Able, needed: list[Ability], said: str) -> None:
    with pytest.raises(InputError) as error:
        require_abilities("WHERE", part, needed, "This")
    assert said in str(error.value)
