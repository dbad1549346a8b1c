"""Parts against those of transformers and timm, with their weights: the same numbers."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import LongformerConfig, MambaConfig, MixtralConfig
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from mmformer.nn.attention import AttentionSpec
from mmformer.nn.feedforward import GELUFeedForwardSpec, SwiGLUFeedForwardSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.mamba import MambaSpec
from mmformer.nn.mask import Mask
from mmformer.nn.mixer import Mixer, View
from mmformer.nn.moe import MixtureOfExpertsSpec
from mmformer.nn.norm import LayerNormSpec
from mmformer.nn.pattern import WindowSpec
from mmformer.nn.router import TokenChoiceSpec
from mmformer.nn.stack import StackSpec
from mmformer.types import Tokens

EQUAL = {"rtol": 1e-5, "atol": 1e-5}


def copy(pairs: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for mine, theirs in pairs:
            assert mine.shape == theirs.shape
            mine.copy_(theirs)


def varied(module: nn.Module) -> nn.Module:
    """With no parameter at a value of no meaning."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


def mixed(mixer: Mixer, x: Tensor, mask: Mask) -> Tensor:
    return mixer.eval()(x, View(mask), None, False)[0]


def test_a_block_is_timms() -> None:
    theirs = varied(Block(32, 4, qkv_bias=True)).double().eval()
    stack = (
        StackSpec(
            32, 1, LayerSpec(AttentionSpec(4), GELUFeedForwardSpec(), norm=LayerNormSpec(eps=1e-6)), final_norm=False
        )
        .build()
        .double()
    )
    (ours,) = stack.layers
    mine = {
        "norm1": ours.mixer_residual.norm,
        "attn.qkv": ours.mixer.qkv,
        "attn.proj": ours.mixer.out,
        "norm2": ours.feedforward_residual.norm,
        "mlp.fc1": ours.feedforward.up,
        "mlp.fc2": ours.feedforward.down,
    }
    for name, module in mine.items():
        module.load_state_dict(theirs.get_submodule(name).state_dict())
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    assert_close(stack.eval()(Tokens(x, torch.zeros(2, 9, 3, dtype=torch.int64))).tokens.x, theirs(x), **EQUAL)


def test_a_window_is_longformers() -> None:
    config = LongformerConfig(hidden_size=32, num_attention_heads=4, attention_window=[8])
    theirs = varied(LongformerSelfAttention(config, 0)).eval()
    ours = AttentionSpec(4, pattern=WindowSpec(4, 4)).build(32)
    for kind in ("weight", "bias"):
        parts = [getattr(getattr(theirs, name), kind) for name in ("query", "key", "value")]
        copy([(getattr(ours.qkv, kind), torch.cat(parts))])
    copy([(ours.out.weight, torch.eye(32)), (ours.out.bias, torch.zeros(32))])  # it has no projection out
    x, seen = torch.randn(2, 24, 32), torch.zeros(2, 24)
    expected = theirs(x, attention_mask=seen, is_index_masked=seen < 0, is_index_global_attn=seen < 0)[0]
    assert_close(mixed(ours, x, Mask()), expected, **EQUAL)


def test_mamba_is_transformers() -> None:
    config = MambaConfig(hidden_size=32, state_size=8, expand=2, conv_kernel=4, use_mambapy=False)
    theirs = varied(MambaMixer(config, 0)).eval()
    ours = MambaSpec(states=8).build(32)
    scan = ours.forwards
    copy(
        [
            (ours.enter.weight, theirs.in_proj.weight),
            (scan.kernel, theirs.conv1d.weight[:, 0].T),
            (scan.kernel_bias, theirs.conv1d.bias),
            (scan.select.weight, theirs.x_proj.weight),
            (scan.step, theirs.dt_proj.weight),
            (scan.step_bias, theirs.dt_proj.bias),
            (scan.log_decay, theirs.A_log),
            (scan.skip, theirs.D),
            (ours.out.weight, theirs.out_proj.weight),
        ]
    )
    x = torch.randn(2, 37, 32)
    assert_close(mixed(ours, x, Mask(causal=True)), theirs(x), **EQUAL)


def test_experts_are_mixtrals() -> None:
    config = MixtralConfig(hidden_size=32, intermediate_size=48, num_local_experts=4, num_experts_per_tok=2)
    theirs = MixtralSparseMoeBlock(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # which it leaves as they lay in memory
            parameter.normal_(std=0.1)
    expert = SwiGLUFeedForwardSpec(ratio=1.5)
    ours = MixtureOfExpertsSpec(4, expert, TokenChoiceSpec(top=2)).build(32).eval()
    copy(
        [
            (ours.router.weight, theirs.gate.weight),
            (ours.experts.up.weight, theirs.experts.gate_up_proj),
            (ours.experts.down.weight, theirs.experts.down_proj),
        ]
    )
    x = torch.randn(2, 13, 32)
    expected = theirs(x)
    assert_close(ours(x)[0], expected[0] if isinstance(expected, tuple) else expected, **EQUAL)
