"""Content-dependent relative positions: clipping, what is learned of which distance, and no tensor for each pair."""

from __future__ import annotations

import pytest
import torch
from contract import randomise
from torch import Tensor
from torch.testing import assert_close

from mmformer.nn.attention import AttentionSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.mask import Mask
from mmformer.nn.mixer import View
from mmformer.nn.shaw import ShawAttention, ShawAttentionSpec
from mmformer.nn.stack import StackSpec
from mmformer.types import Tokens


def mixer(**options: object) -> ShawAttention:
    built = ShawAttentionSpec(heads=4, **options).build(32)
    return randomise(built).double().eval()  # type: ignore[return-value]


def mixed(built: ShawAttention, x: Tensor, mask: Mask | None = None) -> Tensor:
    return built(x, View(mask or Mask()), None, False)[0]


def tokens(length: int) -> Tensor:
    return torch.randn(2, length, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_without_vectors_it_is_attention() -> None:
    built, x = mixer(), tokens(9)
    plain = AttentionSpec(heads=4).build(32).double().eval()
    plain.load_state_dict({name: value for name, value in built.state_dict().items() if "vectors" not in name})
    assert built.key_vectors is not None
    assert built.value_vectors is not None
    with torch.no_grad():
        built.key_vectors.zero_()
        built.value_vectors.zero_()
    for mask in (Mask(), Mask(causal=True)):
        assert_close(mixed(built, x, mask), plain(x, View(mask), None, False)[0], rtol=1e-12, atol=1e-12)


def test_one_vector_for_all_distances_of_keys_is_seen_by_none() -> None:
    """It adds the same to all scores of a query."""
    built, x = mixer(relative_values=False), tokens(9)
    assert built.key_vectors is not None
    with torch.no_grad():
        built.key_vectors.copy_(built.key_vectors[0].expand_as(built.key_vectors))
        expected = mixed(built, x)
        built.key_vectors.zero_()
    assert_close(mixed(built, x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_a_vector_is_that_of_its_distance_and_the_last_ones_of_all_beyond(causal: bool) -> None:
    """Which queries move when one vector of a distance does."""
    length, distance = 9, 3
    built, x = mixer(distance=distance), tokens(length)
    before = mixed(built, x, Mask(causal))
    for name in ("key_vectors", "value_vectors"):
        vectors = getattr(built, name)
        for index in range(2 * distance + 1):
            offset = index - distance
            with torch.no_grad():
                vectors[index] += 1
                moved = (mixed(built, x, Mask(causal)) - before).abs().amax((0, 2)) > 1e-9
                vectors[index] -= 1
            step = (torch.arange(length) - torch.arange(length)[:, None]).clamp(-distance, distance)  # from i to j
            ends = (step == offset).any(1).nonzero().flatten().tolist()
            seeing = [i for i in ends if not causal or offset <= 0]
            # A query that sees keys at this distance only gives them all of its weight, whatever is added to the keys.
            alone = [0] if causal and offset == 0 and name == "key_vectors" else []
            assert moved.nonzero().flatten().tolist() == [i for i in seeing if i not in alone], (name, offset)


def test_distances_pass_over_padding_and_other_segments() -> None:
    stack = StackSpec(32, 2, LayerSpec(ShawAttentionSpec(heads=4, distance=2))).build()
    randomise(stack).double().eval()
    x = tokens(8)
    segment = torch.tensor([[0, 1, 0, 1, 0, 0, 1, 0]] * 2)
    valid = torch.tensor([[1, 1, 0, 1, 1, 1, 1, 1]] * 2).bool()
    pos = torch.zeros(2, 8, 3, dtype=torch.int64)
    together = stack(Tokens(x, pos, valid, segment)).tokens.x
    for number in (0, 1):
        own = (segment[0] == number) & valid[0]
        assert_close(stack(Tokens(x[:, own], pos[:, own])).tokens.x, together[:, own], rtol=1e-12, atol=1e-12)


def test_no_tensor_has_a_vector_for_each_pair() -> None:
    """The largest that a pass makes is one of scores, however wide the heads are."""
    length, heads, width = 64, 2, 128
    built, sizes = ShawAttentionSpec(heads=heads, distance=4).build(width), []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                sizes.append(out.numel())
            return out

    x = torch.randn(1, length, width, requires_grad=True)
    with Sizes():
        mixed(built, x, Mask(causal=True)).sum().backward()
    assert max(sizes) <= max(heads * length**2, 3 * width * width)
