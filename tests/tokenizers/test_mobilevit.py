"""MobileViT's block against timm's with the same weights, and the maps and stacks that it refuses."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable

import pytest
import torch
from timm.layers import ConvNormAct, LayerNorm2d
from timm.models.byobnet import LayerFn
from timm.models.mobilevit import MobileVitBlock
from tiny import tiny_batch, tiny_model
from torch import Tensor, nn
from torch.testing import assert_close

from mmformer.config import parse, to_data
from mmformer.errors import InputError
from mmformer.models.model import ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.feedforward import GELUFeedForwardSpec
from mmformer.nn.halting import HaltingSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.mamba import MambaSpec
from mmformer.nn.moe import MixtureOfExpertsSpec
from mmformer.nn.norm import LayerNormSpec
from mmformer.nn.position import SinusoidalPositionSpec
from mmformer.nn.stack import StackSpec
from mmformer.tokenizers.image import ConvolutionalStemSpec
from mmformer.tokenizers.mobilevit import MobileViTBlock, MobileViTBlockSpec

CHANNELS, WIDTH = 8, 16
LAYER = LayerSpec(AttentionSpec(4), GELUFeedForwardSpec(ratio=2.0))
SPEC = MobileViTBlockSpec(StackSpec(WIDTH, 2, LAYER), cell=2)
COARSE = dataclasses.replace(SPEC, cell=4)
STEM = ConvolutionalStemSpec(channels=(4, CHANNELS), blocks=(None, SPEC))


def timms() -> MobileVitBlock:
    """With norms over the channels of each place, as we have them, in place of BatchNorm; and GELU in its layers."""
    torch.manual_seed(0)
    block = MobileVitBlock(
        CHANNELS,
        transformer_dim=WIDTH,
        transformer_depth=2,
        num_heads=4,
        patch_size=2,
        layers=LayerFn(
            conv_norm_act=functools.partial(ConvNormAct, norm_layer=LayerNorm2d, act_layer=nn.SiLU),
        ),
    )
    for layer in block.transformer:
        layer.mlp.act = nn.GELU()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return block.eval()


def copied(peer: MobileVitBlock) -> MobileViTBlock:
    ours = SPEC.build(CHANNELS, LayerNormSpec(eps=1e-6)).eval()
    state = {
        "local.weight": peer.conv_kxk.conv.weight,
        "up.weight": peer.conv_1x1.weight[..., 0, 0],
        "down.weight": peer.conv_proj.conv.weight[..., 0, 0],
        "fusion.weight": peer.conv_fusion.conv.weight,
    }
    names = {"local_norm": peer.conv_kxk.bn, "down_norm": peer.conv_proj.bn, "fusion_norm": peer.conv_fusion.bn}
    names["stack.norm"] = peer.norm
    for index, layer in enumerate(peer.transformer):
        names |= {
            f"stack.layers.{index}.mixer_residual.norm": layer.norm1,
            f"stack.layers.{index}.mixer.qkv": layer.attn.qkv,
            f"stack.layers.{index}.mixer.out": layer.attn.proj,
            f"stack.layers.{index}.feedforward_residual.norm": layer.norm2,
            f"stack.layers.{index}.feedforward.up": layer.mlp.fc1,
            f"stack.layers.{index}.feedforward.down": layer.mlp.fc2,
        }
    for name, module in names.items():
        state |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    ours.load_state_dict(state)
    return ours


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (6, 10), (2, 2)])
def test_the_block_is_timms(rows: int, columns: int) -> None:
    peer = timms()
    x = torch.randn(3, CHANNELS, rows, columns, generator=torch.Generator().manual_seed(1))
    # timm's layers have an epsilon of 1e-5, ours of 1e-6.
    for module in peer.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    assert_close(copied(peer)(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), peer(x), atol=1e-5, rtol=1e-5)


def pictures(height: int = 32, width: int = 48) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, height, width), generator=draw, dtype=torch.uint8)


def test_a_stem_with_a_block_is_the_stem_with_the_block_between() -> None:
    torch.manual_seed(0)
    stem = STEM.build(10).eval()
    plain = dataclasses.replace(STEM, blocks=()).build(10).eval()
    plain.load_state_dict({name: value for name, value in stem.state_dict().items() if not name.startswith("blocks.")})
    plain.blocks[1] = stem.blocks[1]
    tokens = stem(pictures())
    assert torch.equal(tokens.x, plain(pictures()).x)
    assert tokens.pos[0].tolist() == [[0, row, column] for row in range(4) for column in range(6)]


def test_every_place_is_told_of_all_others() -> None:
    """What a stem of convolutions alone cannot: a corner's token hangs on the other corner's pixels."""
    torch.manual_seed(0)
    stem, image = STEM.build(10).eval(), pictures()
    other = image.clone()
    other[:, :, -8:, -8:] = 255 - other[:, :, -8:, -8:]
    changed = (stem(image).x - stem(other).x).abs().amax((0, 2))
    assert (changed > 1e-7).all()
    plain = dataclasses.replace(STEM, blocks=()).build(10).eval()
    assert (plain(image).x - plain(other).x).abs().amax((0, 2))[0] == 0


@pytest.mark.parametrize("change", [{"cell": 4}, {"stack": StackSpec(WIDTH, 2, LAYER, SinusoidalPositionSpec((1, 2)))}])
def test_every_field_changes_the_tokens(change: dict) -> None:
    found = []
    for spec in (SPEC, dataclasses.replace(SPEC, **change)):
        torch.manual_seed(0)
        found.append(dataclasses.replace(STEM, blocks=(None, spec)).build(10).eval()(pictures(32, 32)).x)
    assert found[0].shape == found[1].shape
    assert not torch.allclose(*found)


def test_a_model_with_a_block_trains_and_reads_as_yaml() -> None:
    base = tiny_model()
    encoder = dataclasses.replace(base.encoders["image"], tokenizer=dataclasses.replace(STEM, strides=(2, 2, 1)))
    spec = ModelSpec({"image": base.stacks["image"]}, {"image": encoder})
    assert parse(ModelSpec, to_data(spec), "model") == spec
    with torch.device("meta"):
        model = spec.build()
    model.to_empty(device="cpu")
    model.initialise(0)
    again = spec.build()
    again.initialise(0)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    model(tiny_batch(["a", "b"])._replace(text=None)).embedding["image"].square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dataclasses.replace(SPEC, cell=0), "MobileViTBlockSpec.cell must be at least 1, but is 0."),
        (
            lambda: dataclasses.replace(
                SPEC, stack=StackSpec(16, 1, dataclasses.replace(LAYER, cross=AttentionSpec(4)))
            ),
            "MobileViTBlockSpec.stack must be one whose layers read no memory (LayerSpec.cross), but is StackSpec(",
        ),
        (
            lambda: dataclasses.replace(STEM, blocks=(SPEC,)),
            "ConvolutionalStemSpec.blocks must be none, or a block or None for each of the 2 channels, but is (Mobile",
        ),
        (
            lambda: dataclasses.replace(STEM, blocks=(None, COARSE)).build(10)(pictures(40, 48)),
            "MobileViTBlockSpec.cell is 4, which does not divide its map of 10x12: hand in pictures of another size",
        ),
        (
            lambda: MobileViTBlockSpec(StackSpec(16, 1, LayerSpec(feedforward=MixtureOfExpertsSpec()))),
            "MobileViTBlockSpec.stack must be one without experts or halting, whose losses a tokenizer cannot hand on",
        ),
        (
            lambda: MobileViTBlockSpec(StackSpec(16, 2, halting=HaltingSpec())),
            "MobileViTBlockSpec.stack must be one without experts or halting, whose losses a tokenizer cannot hand on",
        ),
        (
            lambda: MobileViTBlockSpec(StackSpec(16, 1, LayerSpec(MambaSpec()))),
            "A block over a map needs a mixer that lets a token see those after it, but MobileViTBlockSpec.stack.layer",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        make()
