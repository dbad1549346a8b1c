"""Flamingo's resampler, against loops over the equations of figure 5 of its paper."""

from __future__ import annotations

import dataclasses

import nn_reference
import numpy as np
import pytest
import torch
from contract import randomise
from torch import Tensor
from torch.testing import assert_close

from mmformer.nn.attention import AttentionSpec
from mmformer.nn.feedforward import ReLUFeedForwardSpec
from mmformer.nn.norm import LayerNormSpec, RMSNormSpec
from mmformer.nn.perceiver import PerceiverLayer, PerceiverResampler, PerceiverResamplerSpec
from mmformer.types import Tokens

WIDTH = 16
SPECS = {
    "plain": PerceiverResamplerSpec(3, depth=2, attention=AttentionSpec(2, bias=False)),
    "wide": PerceiverResamplerSpec(
        *(4, 24, True, 1, AttentionSpec(4, head_width=8, qk_norm=True)),
        *(ReLUFeedForwardSpec(2, squared=True), RMSNormSpec(), True),
    ),
    "one": PerceiverResamplerSpec(1, depth=3, attention=AttentionSpec(2), norm=LayerNormSpec(eps=0.1), content=True),
}
VALID = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [1, 0, 0, 0, 0]]).bool()


def build(spec: PerceiverResamplerSpec) -> PerceiverResampler:
    module = randomise(spec.build(WIDTH)).double()
    assert isinstance(module, PerceiverResampler)
    return module


def tokens(valid: Tensor | None = None, special: int = 1) -> Tokens:
    x = torch.randn(*VALID.shape, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pos = torch.arange(VALID.shape[1])[:, None].expand(*VALID.shape, 3) - special
    return Tokens(x, torch.where(pos < 0, pos, 0).contiguous(), valid)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_a_perceiver_is_its_loops(name: str, padded: bool) -> None:
    spec, module, read = SPECS[name], build(SPECS[name]), tokens(VALID if padded else None)
    norm = nn_reference.NORMS[type(spec.norm)]
    made = module(read).x
    for index, row in enumerate(read.x.numpy()):
        real = VALID[index].numpy() if padded else np.ones(len(row), dtype=bool)
        real = real & (np.arange(len(row)) > 0) if spec.content else real  # the first token is special
        features = row if spec.width is None else row @ nn_reference.array(module.project.weight).T
        x = nn_reference.array(module.query)
        for layer in module.layers:
            assert isinstance(layer, PerceiverLayer)
            fed = nn_reference.fed(spec.feedforward, layer.feedforward, None)
            latents = np.stack([norm(spec.norm, layer.query_norm, latent) for latent in x])
            seen = np.stack([norm(spec.norm, layer.memory_norm, token) for token in features])
            seen = np.concatenate([seen[real], latents])
            allowed = np.ones((1, len(x), len(seen)), dtype=bool)
            x = x + nn_reference.attention(spec.attention, layer.attention, latents[None], seen[None], allowed)[1][0]
            x = x + fed(np.stack([norm(spec.norm, layer.feedforward_norm, latent) for latent in x])[None])[0]
        expected = np.stack([norm(spec.norm, module.norm, latent) for latent in x])
        assert_close(made[index], torch.from_numpy(expected), rtol=1e-11, atol=1e-11)


def test_special_tokens_are_content_or_are_not_read() -> None:
    """Which tokens a row has besides makes no difference, where they are special."""
    spec, read = SPECS["plain"], tokens(special=2)
    whole, content = build(spec), build(dataclasses.replace(spec, content=True))
    content.load_state_dict(whole.state_dict())
    rest = Tokens(read.x[:, 2:], read.pos[:, 2:])
    assert_close(content(read).x, whole(rest).x, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(content(read).x, whole(read).x)


def test_a_row_without_features_is_its_latents() -> None:
    """They read one another then, which is no reason for NaN."""
    module = build(SPECS["plain"])
    nothing = module(tokens(torch.zeros_like(VALID))).x
    assert nothing.isfinite().all() and torch.equal(nothing[0], nothing[1])


def test_gradients_reach_every_parameter() -> None:
    module = build(SPECS["wide"])
    made = module(tokens(VALID)).x
    (made * torch.randn(made.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())
