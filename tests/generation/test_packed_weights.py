"""Writing with weights that are packed for it: the same texts, and a model that stays as it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from writers import KINDS, decoding, prompts

from mmformer.generation.beam import BeamSpec
from mmformer.generation.generation import GenerationSpec
from mmformer.generation.sampling import GreedySpec
from mmformer.nn import prepacked
from mmformer.nn.prepacked import PackedLinear
from mmformer.types import Text


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="PyTorch without MKL")
@pytest.mark.parametrize("spec", [GreedySpec(max_length=6), BeamSpec(6, beams=2)], ids=["greedy", "beams"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_weights_write_the_same(kind: str, spec: GenerationSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    made, prompt = decoding(kind), prompts(6, ragged=True)
    packed = spec.write(made, prompt)
    assert made._fast is not None
    assert made._fast.pieces is not None
    assert any(isinstance(part, PackedLinear) for part in made._fast.stack.modules())
    assert not any(isinstance(part, PackedLinear) for part in made.stack.modules())
    monkeypatch.setattr(prepacked, "FEWEST", {})
    other = decoding(kind)
    plain = spec.write(other, prompt)
    assert other._fast is not None
    assert other._fast.stack is other.stack
    assert [text.ids for text in packed] == [text.ids for text in plain]


def test_a_step_has_a_gradient_where_one_is_wanted() -> None:
    made, prompt = decoding("cross", 4), prompts(4, ragged=False)
    with torch.no_grad():
        expected, _ = made.step(torch.full((4,), 7), made.begin(prompt)[1])
    logits, _ = made.step(torch.full((4,), 7), made.begin(Text(prompt.ids, prompt.lengths))[1])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    weight = next(part.weight for part in made.stack.modules() if isinstance(part, nn.Linear))
    (gradient,) = torch.autograd.grad(logits.clamp(min=-9).sum(), [weight])
    assert gradient.abs().max() > 0
