"""Hashed attention over rows of several chunks: its meaning, what it knows of later tokens, its gradient, its draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lsh_reference import hashed_attention
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

import mmformer.nn.sorted
from mmformer.nn.lsh import LSHAttention, LSHAttentionSpec
from mmformer.nn.mask import Mask
from mmformer.nn.mixer import View
from mmformer.nn.sorted import attend_in_order, make_order

BATCH, LENGTH, WIDTH = 2, 150, 12
SPEC = LSHAttentionSpec(heads=2, buckets=6, rounds=2, window=5)
VALID = torch.arange(LENGTH) % 7 != torch.arange(BATCH)[:, None]
SEGMENT = (torch.arange(LENGTH) * torch.tensor([[1], [3]]) // 40) % 3
CAUSAL = Mask(causal=True)
PADDED = Mask(valid=VALID)
PACKED = Mask(query_segment=SEGMENT, key_segment=SEGMENT)
MASKS = {
    "full": Mask(),
    "causal": CAUSAL,
    "prefix": CAUSAL._replace(prefix=torch.tensor([100, 3])),
    "padded": PADDED,
    "causal_padded": PADDED._replace(causal=True),
    "packed": PACKED,
    "all": PACKED._replace(causal=True, prefix=torch.tensor([90, 0]), valid=VALID),
}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmformer.nn.sorted, "CHUNK", 8)


def built(spec: LSHAttentionSpec = SPEC) -> LSHAttention:
    torch.manual_seed(0)
    return spec.build(WIDTH).double().eval()


def tokens() -> Tensor:
    return torch.randn(BATCH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def mixed(mixer: LSHAttention, x: Tensor, mask: Mask) -> Tensor:
    y, state, aux = mixer(x, View(mask), None, False)
    assert (state, aux) == (None, {})
    return y


@pytest.mark.parametrize("name", MASKS)
def test_rows_of_many_chunks_are_what_loops_say(name: str) -> None:
    mixer, x, mask = built(), tokens(), MASKS[name]
    dense = mask.dense(LENGTH, LENGTH)
    allowed = torch.ones(BATCH, 1, LENGTH, LENGTH, dtype=torch.bool) if dense is None else dense
    allowed = allowed.expand(BATCH, 1, LENGTH, LENGTH)[:, 0].numpy()
    shared, value = mixer.shared_value(x).detach().chunk(2, dim=-1)
    expected = np.zeros((BATCH, LENGTH, WIDTH))
    for b in range(BATCH):
        for head in range(2):
            part = slice(6 * head, 6 * head + 6)
            queries, values = shared[b, :, part].numpy(), value[b, :, part].numpy()
            expected[b, :, part] = hashed_attention(SPEC, head, queries, values, allowed[b])
    assert_close(mixed(mixer, x, mask), mixer.out(torch.from_numpy(expected)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cut", [1, 64, 149])
def test_later_tokens_do_not_move_what_is_seen(cut: int) -> None:
    """Nor do they move it into other chunks: in Reformer's order they would."""
    mixer, x = built(), tokens()
    other = torch.cat((x[:, :cut], -3 * x[:, cut:].flip(1)), dim=1)
    change = (mixed(mixer, other, CAUSAL) - mixed(mixer, x, CAUSAL)).abs().amax((0, 2))
    assert change[:cut].amax() <= 1e-14
    assert change[cut:].amin() > 1e-7
    assert (mixed(mixer, other, Mask()) - mixed(mixer, x, Mask())).abs()[:, :cut].amax() > 1e-7


@pytest.mark.parametrize("name", ["causal", "prefix", "causal_padded", "all"])
def test_calls_that_go_on_give_what_one_gives(name: str) -> None:
    mixer, x, mask = built(), tokens(), MASKS[name]
    expected, parts, state, at = mixed(mixer, x, mask), [], None, 0
    for to in (100, 101, 102, 130, LENGTH):
        seen = Mask(True, mask.prefix)
        if mask.valid is not None:
            seen = seen._replace(valid=mask.valid[:, :to])
        if mask.key_segment is not None:
            seen = seen._replace(query_segment=mask.key_segment[:, at:to], key_segment=mask.key_segment[:, :to])
        y, state, _ = mixer(x[:, at:to], View(seen), state, True)
        parts.append(y)
        at = to
    assert_close(torch.cat(parts, dim=1), expected, rtol=1e-12, atol=1e-12)


def test_where_all_hash_alike_it_is_attention_to_all_but_oneself() -> None:
    mixer, lengths = built(LSHAttentionSpec(2, window=LENGTH)), torch.rand(BATCH, LENGTH, 1, dtype=torch.float64) + 0.1
    x = lengths * torch.randn(WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    shared, value = (half.unflatten(-1, (2, 6)).transpose(1, 2) for half in mixer.shared_value(x).chunk(2, dim=-1))
    others = ~torch.eye(LENGTH, dtype=torch.bool)
    y = F.scaled_dot_product_attention(shared, F.normalize(shared, dim=-1), value, others, scale=1.0)
    assert_close(mixed(mixer, x, Mask()), mixer.out(y.transpose(1, 2).flatten(2)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [2, 7, 8, 9, 16, 17])
def test_chunks_of_any_size_are_one(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, x = built(), tokens()[:, :length].requires_grad_()
    cut = mixed(mixer, x, Mask())
    (gradient,) = torch.autograd.grad(cut.sin().sum(), x)
    monkeypatch.setattr(mmformer.nn.sorted, "CHUNK", 64)
    whole = mixed(mixer, x, Mask())
    assert_close(cut, whole, rtol=1e-13, atol=1e-13)
    assert_close(gradient, torch.autograd.grad(whole.sin().sum(), x)[0], rtol=1e-12, atol=1e-12)


def test_one_token_sees_itself() -> None:
    mixer, x = built(), tokens()[:, :1]
    assert_close(mixed(mixer, x, CAUSAL), mixer.out(mixer.shared_value(x)[..., WIDTH:]))


@pytest.mark.parametrize(("before", "after", "early"), [(3, 0, False), (3, 3, False), (2, 2, True)])
def test_gradients_are_those_of_differences(before: int, after: int, early: bool) -> None:
    length, draw = 19, torch.Generator().manual_seed(0)
    triple = [torch.randn(2, length, 3, dtype=torch.float64, generator=draw, requires_grad=True) for _ in range(3)]
    order = make_order(torch.randint(0, 3, (2, 1, length), generator=draw), Mask(), 3)
    seen = (torch.arange(length) < 7).expand(2, -1) if early else None
    assert torch.autograd.gradcheck(lambda *x: attend_in_order(*x, order, seen, before, after), triple)


def test_rows_apart_are_rows_together(monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, x = built(), tokens()
    together = mixed(mixer, x, MASKS["all"])
    monkeypatch.setattr(mmformer.nn.sorted, "PAIRS", 1)
    assert_close(mixed(mixer, x, MASKS["all"]), together, rtol=1e-14, atol=1e-14)


def test_training_draws_anew_from_the_stream_of_dropout() -> None:
    mixer, x = built().train(), tokens()

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return mixed(mixer, x, CAUSAL)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.allclose(drawn(1), drawn(2))
    mixer.eval()
    assert torch.equal(drawn(1), drawn(2))


def test_half_precision_hashes_in_single() -> None:
    mixer, x = built().float(), tokens().float()
    with torch.autocast("cpu", torch.bfloat16):
        y = mixed(mixer, x, CAUSAL)
    assert y.dtype == torch.bfloat16
    same = (y.float() - mixed(mixer, x, CAUSAL)).abs().amax(-1) < 0.02
    assert same.float().mean() > 0.9  # a vector that was rounded may fall into another bucket
    y.float().sum().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in mixer.parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler uses what it deprecates
def test_it_compiles_as_one_graph() -> None:
    mixer, x = built(), tokens()
    compiled = torch.compile(mixer, fullgraph=True)
    y = compiled(x, View(CAUSAL), None, False)[0]
    assert_close(y, mixed(mixer, x, CAUSAL), rtol=1e-10, atol=1e-10)
    y.sum().backward()
