"""Depthwise convolutions against peers that have them, what a state holds, and neighbours that are missing."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from contract import randomise
from timm.models.pvt_v2 import MlpWithDepthwiseConv
from torch import Tensor
from torch.testing import assert_close
from torchaudio.models.conformer import _ConvolutionModule

from mmformer.errors import InputError
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.canvas import make_canvas
from mmformer.nn.convolution import ConvolutionSpec, DepthwiseSpec, GridConvolutionSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.mask import Mask
from mmformer.nn.mixer import MixerSpec, View
from mmformer.nn.norm import LayerNormSpec
from mmformer.nn.packing import pack
from mmformer.nn.stack import Stack, StackSpec
from mmformer.nn.state import counted
from mmformer.tokenizers.tokenizer import grid_tokens
from mmformer.types import SPECIAL, Tokens

WIDTH = 12


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stack(*mixers: MixerSpec, width: int = WIDTH) -> Stack:
    layers = tuple(LayerSpec(mixer, feedforward=None) for mixer in mixers)
    return randomise(StackSpec(width, len(layers), pattern=layers).build()).eval()


def grid(rows: int, columns: int, batch: int = 2, seed: int = 0) -> Tokens:
    return grid_tokens(drawn(batch, rows * columns, WIDTH, seed=seed), rows, columns)


def view(tokens: Tokens, causal: bool = False) -> View:
    mask = Mask(causal, valid=tokens.valid, pos=tokens.pos)
    canvas = make_canvas(mask, (1, 2), tokens.x.shape[1], tokens.x.device)
    assert canvas is not None
    return View(mask, canvases={(1, 2): canvas})


def test_a_wide_grid_convolution_is_the_feed_forward_of_pvt_v2() -> None:
    torch.manual_seed(0)
    peer = MlpWithDepthwiseConv(WIDTH, 4 * WIDTH).eval()
    ours = GridConvolutionSpec(ratio=4.0).build(WIDTH)
    ours.load_state_dict({
        "up.weight": peer.fc1.weight,
        "up.bias": peer.fc1.bias,
        "kernel.weight": peer.dwconv.weight,
        "kernel.bias": peer.dwconv.bias,
        "down.weight": peer.fc2.weight,
        "down.bias": peer.fc2.bias,
    })  # fmt: skip
    tokens = grid(5, 3)
    assert_close(ours(tokens.x, view(tokens), None, False)[0], peer(tokens.x, [5, 3]), atol=1e-5, rtol=1e-5)


def test_a_gated_convolution_is_conformers_module() -> None:
    """torchaudio's begins with the layer's norm, and its BatchNorm, which nobody has trained, does nothing."""
    torch.manual_seed(0)
    peer = _ConvolutionModule(WIDTH, 2 * WIDTH, depthwise_kernel_size=7, bias=True).eval()
    first, _, depthwise, _, _, last, _ = peer.sequential
    peer.sequential[3].eps = 1e-12
    ours = ConvolutionSpec(2.0, gated=True, activation="silu", before=3, after=3).build(WIDTH)
    ours.load_state_dict({
        "up.weight": first.weight[..., 0],
        "up.bias": first.bias,
        "kernel.weight": depthwise.weight[:, :, None],
        "kernel.bias": depthwise.bias,
        "down.weight": last.weight[..., 0],
        "down.bias": last.bias,
    })  # fmt: skip
    x = drawn(2, 10, WIDTH)
    found = ours(peer.layer_norm(x), View(Mask()), None, False)[0]
    assert_close(found, peer(x), atol=1e-5, rtol=1e-5)


def test_a_bare_convolution_is_pytorchs() -> None:
    """Dilated and causal, as WaveNet's; and over a grid, as a conditional positional encoding."""
    line = randomise(ConvolutionSpec(None, activation=None, before=2, after=0, dilation=4).build(WIDTH))
    x = drawn(2, 20, WIDTH)
    padded = torch.nn.functional.pad(x.transpose(1, 2), (8, 0))
    expected = torch.nn.functional.conv1d(
        padded, line.kernel.weight[:, :, 0], line.kernel.bias, dilation=4, groups=WIDTH
    )
    assert_close(line(x, View(Mask(causal=True)), None, False)[0], expected.transpose(1, 2))
    plane = randomise(GridConvolutionSpec(None, activation=None, rows=2, columns=1, dilation=2).build(WIDTH))
    tokens = grid(6, 4)
    image = tokens.x.transpose(1, 2).reshape(2, WIDTH, 6, 4)
    kernel = plane.kernel
    expected = torch.nn.functional.conv2d(image, kernel.weight, kernel.bias, padding=(4, 2), dilation=2, groups=WIDTH)
    assert_close(plane(tokens.x, view(tokens), None, False)[0], expected.flatten(2).transpose(1, 2))


def test_kernels_begin_as_pytorchs() -> None:
    torch.manual_seed(3)
    ours = GridConvolutionSpec(None).build(4096).kernel
    peer = torch.nn.Conv2d(4096, 4096, 3, groups=4096)
    for one, other in ((ours.weight, peer.weight), (ours.bias, peer.bias)):
        assert one.shape == other.shape
        assert_close(one.std(), other.std(), rtol=0.05, atol=0)
        assert_close(one.abs().max(), other.abs().max(), rtol=0.01, atol=0)


@pytest.mark.parametrize("dilation", [1, 3])
def test_the_state_holds_what_is_still_read(dilation: int) -> None:
    """However much went before: a decoder's memory does not grow."""
    mixer = ConvolutionSpec(before=2, after=0, dilation=dilation)
    built, x = stack(mixer), drawn(2, 30, WIDTH)
    pos = torch.stack((torch.arange(30), *torch.zeros(2, 30, dtype=torch.int64)), -1).expand(2, -1, -1)
    whole = built(Tokens(x, pos), causal=True).tokens.x
    state, sizes, made = built.empty_state(), [], []
    for at in range(30):
        output = built(Tokens(x[:, at : at + 1], pos[:, at : at + 1]), causal=True, state=state)
        state = output.state
        assert state is not None
        sizes.append(state.layers[0].mixer[0].shape[1])
        made.append(output.tokens.x)
    assert sizes == [min(at + 1, 2 * dilation) for at in range(30)]
    assert_close(torch.cat(made, 1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("after", [0, 2])
def test_padding_may_come_later(after: int) -> None:
    """A state that holds only what is still read goes on among tokens some of which are not valid."""
    built, x = stack(ConvolutionSpec(before=2, after=after, dilation=2), AttentionSpec(2)), drawn(2, 14, WIDTH)
    pos = torch.stack((torch.arange(14), *torch.zeros(2, 14, dtype=torch.int64)), -1).expand(2, -1, -1)
    valid = torch.ones(2, 14, dtype=torch.bool)
    valid[0, 10], valid[1, 9:12] = False, False
    whole = built(Tokens(x, pos, valid), causal=True).tokens.x
    first = built(Tokens(x[:, :9], pos[:, :9]), causal=True, state=built.empty_state())
    second = built(Tokens(x[:, 9:], pos[:, 9:], valid[:, 9:]), causal=True, state=first.state)
    found = torch.cat((first.tokens.x, second.tokens.x), 1)
    assert_close(found[valid], whole[valid], atol=1e-5, rtol=1e-5)


def test_patches_that_are_missing_are_zeros() -> None:
    """As after patch dropout: in any order, neighbours are those of the grid, not those of the row."""
    mixer, tokens = randomise(GridConvolutionSpec().build(WIDTH)), grid(4, 5, batch=1)
    keep = torch.tensor([17, 3, 4, 8, 0, 9, 19, 13])
    some = Tokens(tokens.x[:, keep], tokens.pos[:, keep])
    there = torch.zeros(20, dtype=torch.bool).index_fill(0, keep, True)
    holed = tokens._replace(valid=there[None])
    found = mixer(some.x, view(some), None, False)[0]
    assert_close(found, mixer(tokens.x, view(holed), None, False)[0][:, keep])
    lone = Tokens(tokens.x[:, :1], tokens.pos[:, :1])
    assert_close(mixer(lone.x, view(lone), None, False)[0][:, 0], mixer(tokens.x, view(holed), None, False)[0][:, 0])


def test_special_tokens_and_texts_read_themselves() -> None:
    """One row of a class token, two registers, a picture and a text: the picture's patches are as they are alone."""
    mixer, picture = randomise(GridConvolutionSpec().build(WIDTH)), grid(3, 3)
    others = drawn(2, 7, WIDTH, seed=1)
    special = (SPECIAL - torch.arange(3))[None, :, None].expand(2, -1, 3)
    text = torch.stack((torch.arange(5, 9), *torch.zeros(2, 4, dtype=torch.int64)), -1).expand(2, -1, -1)
    x = torch.cat((others[:, :3], picture.x, others[:, 3:]), 1)
    row = Tokens(x, torch.cat((special, picture.pos, text), 1))
    found = mixer(x, view(row), None, False)[0]
    assert_close(found[:, 3:12], mixer(picture.x, view(picture), None, False)[0])
    alone = [
        mixer(x[:, i : i + 1], view(Tokens(x[:, i : i + 1], row.pos[:, i : i + 1])), None, False)[0] for i in range(16)
    ]
    for i in (0, 1, 2, 12, 13, 14, 15):
        assert_close(found[:, i], alone[i][:, 0])


@pytest.mark.parametrize("mixer", [GridConvolutionSpec(ratio=2.0), ConvolutionSpec(before=1, after=2)], ids=str)
def test_pictures_of_sizes_of_their_own_share_rows(mixer: MixerSpec) -> None:
    """Packed, a picture is what it is alone."""
    built = stack(mixer, AttentionSpec(2), mixer)
    sizes = [(3, 4), (2, 2), (1, 5), (2, 1)]
    pictures = [grid(*size, batch=1, seed=seed) for seed, size in enumerate(sizes)]
    x, pos = drawn(4, 12, WIDTH, seed=9), torch.zeros(4, 12, 3, dtype=torch.int64)
    valid = torch.zeros(4, 12, dtype=torch.bool)
    for index, picture in enumerate(pictures):
        length = picture.x.shape[1]
        x[index, :length], pos[index, :length], valid[index, :length] = picture.x[0], picture.pos[0], True
    packed = pack(Tokens(x, pos, valid))
    assert packed.tokens.x.shape[0] < 4
    together = packed.unpack(built(packed.tokens).tokens.x)
    padded = built(Tokens(x, pos, valid)).tokens.x
    for index, picture in enumerate(pictures):
        alone = built(picture).tokens.x[0]
        assert_close(together[index, valid[index]], alone, atol=1e-5, rtol=1e-5)
        assert_close(padded[index, valid[index]], alone, atol=1e-5, rtol=1e-5)


def test_a_grid_convolution_cannot_decode() -> None:
    built = stack(AttentionSpec(2), GridConvolutionSpec())
    with pytest.raises(
        InputError, match="This pass needs a mixer that lets a token see itself and those before it alone"
    ):
        built(grid(2, 2), causal=True)


@pytest.mark.parametrize("value", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("mixer", [ConvolutionSpec(), GridConvolutionSpec()], ids=lambda mixer: type(mixer).__name__)
def test_gradients_are_those_of_float64(mixer: Any, value: torch.dtype) -> None:
    """Under autocast, too, and through padding."""
    tokens = grid(3, 4)
    tokens = tokens._replace(valid=torch.arange(12)[None] < torch.tensor([[12], [7]]))
    gradients = []
    for dtype in (value, torch.float64):
        built = stack(dataclasses.replace(mixer)).to(torch.float32 if dtype == torch.bfloat16 else dtype)
        x = tokens.x.to(next(built.parameters()).dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = built(tokens._replace(x=x)).tokens.x
        (y.double() * drawn(*y.shape, seed=5) * tokens.valid[..., None]).sum().backward()
        gradients.append(torch.cat([p.grad.double().flatten() for p in built.parameters()]))
    tolerance = 0.05 if value == torch.bfloat16 else 1e-5
    assert (gradients[0] - gradients[1]).norm() <= tolerance * gradients[1].norm()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, of what its compiler uses
@pytest.mark.parametrize("mixer", [ConvolutionSpec(), GridConvolutionSpec(norm=LayerNormSpec())], ids=str)
def test_compiles_to_one_graph(mixer: DepthwiseSpec) -> None:
    """With padding, so that tokens are laid out."""
    built, tokens = randomise(mixer.build(WIDTH)), grid(3, 4)
    mask = Mask(valid=torch.arange(12)[None] < torch.tensor([[12], [7]]), pos=tokens.pos)
    mask = mask._replace(order=counted(mask.valid, None))
    canvas = make_canvas(mask, mixer.lays_out or (), 12, tokens.x.device)
    assert canvas is not None
    seen = View(mask, canvases={mixer.lays_out or (): canvas})
    compiled = torch.compile(built, fullgraph=True, backend="aot_eager")
    gradients = []
    for module in (built, compiled):
        y = module(tokens.x, seen, None, False)[0]
        gradients.append([y, *torch.autograd.grad(y.square().sum(), list(built.parameters()))])
    assert_close(*gradients)
