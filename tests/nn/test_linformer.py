"""Linformer: softmax attention when it projects nothing away, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mmformer.errors import InputError
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.linformer import Linformer, LinformerSpec
from mmformer.nn.mask import Mask
from mmformer.nn.mixer import View
from mmformer.nn.rotary import RotaryPositionSpec
from mmformer.nn.stack import Stack, StackSpec
from mmformer.types import Tokens


def stack(length: int = 8, **options: object) -> Stack:
    torch.manual_seed(0)
    return StackSpec(16, 1, LayerSpec(LinformerSpec(2, length, 4)), **options).build().eval()


def tokens(length: int) -> Tokens:
    x = torch.randn(2, length, 16, generator=torch.Generator().manual_seed(0))
    return Tokens(x, torch.zeros(2, length, 3, dtype=torch.int64))


@pytest.mark.parametrize("sharing", ["none", "heads", "keys_and_values"])
def test_sums_of_one_place_each_are_softmax_attention(sharing: str) -> None:
    length = 6
    linformer = LinformerSpec(4, length, length, sharing).build(16).double()  # type: ignore[arg-type]
    attention = AttentionSpec(heads=4).build(16).double()
    attention.load_state_dict(linformer.state_dict(), strict=False)
    with torch.no_grad():
        # In any order: to which of them a place belongs does not matter.
        for name in ("key_sums", "value_sums"):
            if getattr(linformer, name) is not None:
                getattr(linformer, name).copy_(torch.eye(length)[[3, 1, 0, 5, 4, 2]])
    x = torch.randn(2, length, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, expected = (module(x, View(Mask()), None, False)[0] for module in (linformer, attention))
    assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("sharing", "sums"), [("none", 2 * 4), ("heads", 2), ("keys_and_values", 1)])
def test_what_is_shared_is_held_once(sharing: str, sums: int) -> None:
    module = LinformerSpec(4, 32, 8, sharing).build(16)  # type: ignore[arg-type]
    own = [parameter for name, parameter in module.named_parameters() if name.endswith("_sums")]
    assert sum(parameter.numel() for parameter in own) == sums * 8 * 32


def test_sums_over_a_full_row_vary_as_what_they_sum() -> None:
    torch.manual_seed(0)
    module = LinformerSpec(heads=2, length=256, projected=64).build(64)
    x = torch.randn(1, 2, 256, 32)
    assert float(module._summed(module.key_sums, x).detach().std()) == pytest.approx(1, rel=0.05)


def test_padding_anywhere_is_as_if_it_were_not_there() -> None:
    module = stack()
    alone = tokens(3)
    valid = torch.tensor([[False, True, True, False, True, False, False]]).expand(2, -1)
    x = torch.full((2, 7, 16), 1e6)
    x[valid] = alone.x.flatten(0, 1)
    padded = Tokens(x, torch.zeros(2, 7, 3, dtype=torch.int64), valid)
    assert_close(module(padded).tokens.x[valid].view(2, 3, 16), module(alone).tokens.x)


def of(module: Stack) -> Linformer:
    mixer = module.layers[0].mixer
    assert isinstance(mixer, Linformer)
    return mixer


def test_a_row_without_real_tokens_gets_nothing() -> None:
    module, x = stack(), tokens(5)
    valid = torch.tensor([[True] * 5, [False] * 5])
    y: Tensor = of(module)(x.x, View(Mask(valid=valid)), None, False)[0]
    assert torch.equal(y[1], of(module).out.bias.expand(5, -1))
    assert not torch.allclose(y[0], y[1])


def test_a_longer_row_is_refused() -> None:
    stack()(tokens(8))
    words = r"Linformer sums over 8 places, but a row has 9 tokens: raise LinformerSpec\.length, or shorten the input\."
    with pytest.raises(InputError, match=words):
        stack()(tokens(9))


def test_what_it_cannot_is_refused_with_what_could() -> None:
    take = "LinformerSpec.*, which does not: take .*AttentionSpec.*LinearAttentionSpec.*PerformerSpec"
    with pytest.raises(InputError, match=f"lets a token see itself and those before it alone.*{take}"):
        stack()(tokens(8), causal=True)
    with pytest.raises(InputError, match=f"keeps the segments of a row apart.*{take}"):
        stack()(tokens(8)._replace(segment=torch.zeros(2, 8, dtype=torch.int64)))
    with pytest.raises(InputError, match=f"has queries and keys to rotate.*{take}"):
        stack(position=RotaryPositionSpec())
    with pytest.raises(InputError, match=f"reads a memory.*{take}"):
        LayerSpec(cross=LinformerSpec())
