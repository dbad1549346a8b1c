"""Attention pools against those of timm, transformers and open_clip, with their weights: the same numbers."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from contract import randomise
from torch import Tensor, nn
from torch.testing import assert_close

from mmformer.nn.attention import Attention, AttentionSpec
from mmformer.nn.feedforward import GELUFeedForwardSpec
from mmformer.nn.norm import LayerNormSpec
from mmformer.nn.pool import AttentionPoolSpec
from mmformer.nn.resampler import AttentionResamplerSpec
from mmformer.types import Tokens

X = torch.randn(3, 7, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TOKENS = Tokens(X, torch.zeros(3, 7, 3, dtype=torch.int64))


def load(module: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    module.load_state_dict({name: value.detach() for name, value in state.items()})
    return module.eval()


def of_multihead(theirs: nn.MultiheadAttention) -> dict[str, Tensor]:
    """The state of an ``Attention`` that reads a memory."""
    if theirs.in_proj_weight is None:
        query, key, value = theirs.q_proj_weight, theirs.k_proj_weight, theirs.v_proj_weight
    else:
        query, key, value = theirs.in_proj_weight.chunk(3)
    query_bias, key_bias, value_bias = theirs.in_proj_bias.chunk(3)
    return {
        "attention.q.weight": query,
        "attention.q.bias": query_bias,
        "attention.kv.weight": torch.cat((key, value)),
        "attention.kv.bias": torch.cat((key_bias, value_bias)),
        "attention.out.weight": theirs.out_proj.weight,
        "attention.out.bias": theirs.out_proj.bias,
    }


def pool(approximate: str = "none") -> nn.Module:
    feedforward = GELUFeedForwardSpec(approximate=approximate)  # type: ignore[arg-type]
    return AttentionPoolSpec(AttentionSpec(4), feedforward, LayerNormSpec(eps=1e-6)).build(32).double()


def test_the_attention_pool_is_timms() -> None:
    timm = pytest.importorskip("timm.layers")
    theirs = (
        randomise(timm.AttentionPoolLatent(32, num_heads=4, norm_layer=partial(nn.LayerNorm, eps=1e-6))).double().eval()
    )
    names = {"latent": "query", "proj": "attention.out", "q": "attention.q", "kv": "attention.kv", "norm": "norm"}
    names |= {"mlp.fc1": "feedforward.up", "mlp.fc2": "feedforward.down"}
    state = {}
    for name, value in theirs.named_parameters():
        part, _, last = name.rpartition(".")
        state[f"{names[part]}.{last}" if part else names[last]] = value
    assert_close(load(pool(), state)(TOKENS), theirs(X), rtol=1e-12, atol=1e-12)


def test_the_attention_pool_is_siglips_of_transformers() -> None:
    siglip = pytest.importorskip("transformers.models.siglip.modeling_siglip")
    config = siglip.SiglipVisionConfig(hidden_size=32, intermediate_size=128, num_attention_heads=4)
    theirs = randomise(siglip.SiglipMultiheadAttentionPoolingHead(config)).double().eval()
    state = {"query": theirs.probe, **of_multihead(theirs.attention)}
    state |= {f"norm.{name}": value for name, value in theirs.layernorm.named_parameters()}
    state |= {f"feedforward.up.{name}": value for name, value in theirs.mlp.fc1.named_parameters()}
    state |= {f"feedforward.down.{name}": value for name, value in theirs.mlp.fc2.named_parameters()}
    assert_close(load(pool("tanh"), state)(TOKENS), theirs(X), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("width", [32, 24])
def test_the_resampler_is_the_attentional_pooler_of_open_clip(width: int) -> None:
    transformer = pytest.importorskip("open_clip.transformer")
    theirs = randomise(transformer.AttentionalPooler(width, 32, n_head=4, n_queries=5)).double().eval()
    spec = AttentionResamplerSpec(5, width, attention=AttentionSpec(4), norm=LayerNormSpec(eps=1e-5))
    state = {"query": theirs.query, **of_multihead(theirs.attn)}
    state |= {f"query_norm.{name}": value for name, value in theirs.ln_q.named_parameters()}
    state |= {f"memory_norm.{name}": value for name, value in theirs.ln_k.named_parameters()}
    ours = load(spec.build(32).double(), state)
    assert isinstance(ours.attention, Attention)
    assert_close(ours(TOKENS).x, theirs(X), rtol=1e-12, atol=1e-12)
