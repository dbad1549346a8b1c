"""A fixed number of tokens out of however many, against loops; and what readers find of them."""

from __future__ import annotations

import nn_reference
import numpy as np
import pytest
import torch
from contract import randomise
from torch import Tensor
from torch.testing import assert_close

from mmformer.nn.attention import AttentionSpec
from mmformer.nn.norm import LayerNormSpec, RMSNormSpec
from mmformer.nn.resampler import AttentionResampler, AttentionResamplerSpec
from mmformer.types import Tokens, is_special

WIDTH = 16
SPECS = {
    "plain": AttentionResamplerSpec(3, attention=AttentionSpec(2)),
    "wide": AttentionResamplerSpec(4, 24, True, AttentionSpec(4, qk_norm=True), RMSNormSpec(), final_norm=True),
    "one": AttentionResamplerSpec(1, 8, attention=AttentionSpec(2, bias=False), norm=LayerNormSpec(eps=0.1)),
}
VALID = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [1, 0, 0, 0, 0]]).bool()


def build(name: str) -> AttentionResampler:
    module = randomise(SPECS[name].build(WIDTH)).double()
    assert isinstance(module, AttentionResampler)
    return module


def tokens(valid: Tensor | None) -> Tokens:
    x = torch.randn(*VALID.shape, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Tokens(x, torch.zeros(*VALID.shape, 3, dtype=torch.int64), valid)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_a_resampler_is_its_loops(name: str, padded: bool) -> None:
    spec, module, read = SPECS[name], build(name), tokens(VALID if padded else None)
    norm = nn_reference.NORMS[type(spec.norm)]
    queries = np.stack([norm(spec.norm, module.query_norm, row) for row in nn_reference.array(module.query)])
    for index, row in enumerate(read.x.numpy()):
        seen = np.stack([norm(spec.norm, module.memory_norm, token) for token in row])
        real = VALID[index].numpy() if padded else np.ones(len(row), dtype=bool)
        allowed = np.broadcast_to(real, (spec.queries, len(row)))[None]
        _, y = nn_reference.attention(spec.attention, module.attention, queries[None], seen[None], allowed)
        expected = [norm(spec.norm, module.norm, made) if spec.final_norm else made for made in y[0]]
        assert_close(module(read).x[index], torch.from_numpy(np.stack(expected)), rtol=1e-12, atol=1e-12)


def test_its_tokens_stand_in_their_order_and_a_class_token_nowhere() -> None:
    plain, wide = build("plain")(tokens(VALID)), build("wide")(tokens(VALID))
    assert plain.pos.tolist() == [[[0, 0, 0], [1, 0, 0], [2, 0, 0]]] * 3
    assert wide.pos.tolist() == [[[-1, -1, -1], [0, 0, 0], [1, 0, 0], [2, 0, 0]]] * 3
    assert is_special(wide.pos)[:, 0].all()
    assert (plain.valid, wide.valid) == (None, None)
    assert (SPECS["plain"].places, SPECS["wide"].places) == ((3, 1, 1), (3, 1, 1))
    assert (SPECS["plain"].width_of(WIDTH), SPECS["wide"].width_of(WIDTH)) == (WIDTH, 24)


def test_gradients_reach_every_parameter() -> None:
    module = build("wide")
    made = module(tokens(VALID)).x
    (made * torch.randn(made.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())
