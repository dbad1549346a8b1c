"""Pools against loops over samples and tokens, with padding, special tokens and empty samples."""

from __future__ import annotations

import nn_reference
import numpy as np
import pytest
import torch
from contract import POOLS, WIDTH, concrete_specs, randomise
from torch.testing import assert_close

from mmformer.nn.pool import (
    AttentionPoolSpec,
    ClassTokenPoolSpec,
    FirstPoolSpec,
    JoinedPoolSpec,
    LastPoolSpec,
    MeanPoolSpec,
    Pool,
    PoolSpec,
)
from mmformer.types import Tokens

Array = np.ndarray

SPECIAL, SECOND, PLACE = (-1, -1, -1), (-2, -2, -2), (2, 0, 0)
POS = torch.tensor(
    [
        [SPECIAL, PLACE, PLACE, SECOND, PLACE, PLACE],
        [PLACE, PLACE, PLACE, PLACE, PLACE, PLACE],
        [SPECIAL, SECOND, PLACE, PLACE, PLACE, SPECIAL],
        [SPECIAL, PLACE, PLACE, PLACE, PLACE, PLACE],
        [SPECIAL, PLACE, PLACE, PLACE, PLACE, PLACE],
    ]
)
VALID = torch.tensor(
    [
        [1, 1, 1, 1, 1, 0],  # padded on the right
        [0, 0, 1, 1, 0, 1],  # on the left, and a hole
        [1, 1, 1, 1, 1, 1],
        [1, 0, 0, 0, 0, 0],  # nothing but a class token
        [0, 0, 0, 0, 0, 0],  # nothing at all
    ]
).bool()


def class_token(spec: ClassTokenPoolSpec, module: Pool, x: Array, pos: Array, valid: Array) -> Array:
    return x[spec.index : spec.index + spec.number].mean(0)


def first(spec: FirstPoolSpec, module: Pool, x: Array, pos: Array, valid: Array) -> Array:
    for token, place, real in zip(x, pos, valid, strict=True):
        if real and place[0] >= 0:
            return token
    return x[0]  # a sample with nothing real: anything finite


def joined(spec: JoinedPoolSpec, module: Pool, x: Array, pos: Array, valid: Array) -> Array:
    return np.concatenate([MEANINGS[type(pool)](pool, module, x, pos, valid) for pool in spec.pools])


def mean(spec: MeanPoolSpec, module: Pool, x: Array, pos: Array, valid: Array) -> Array:
    total, count = np.zeros(x.shape[1]), 0
    for token, place, real in zip(x, pos, valid, strict=True):
        if real and place[0] >= 0:
            total, count = total + token, count + 1
    return total / count if count else total


def last(spec: LastPoolSpec, module: Pool, x: Array, pos: Array, valid: Array) -> Array:
    for token, real in zip(x[::-1], valid[::-1], strict=True):
        if real:
            return token
    return x[0]  # a sample with nothing real: anything finite


def attention(spec: AttentionPoolSpec, module: Pool, x: Array, pos: Array, valid: Array) -> Array:
    query = nn_reference.array(module.query)
    _, y = nn_reference.attention(spec.attention, module.attention, query, x[None], valid[None, None])
    if spec.feedforward is None:
        return y[0, 0]
    normed = nn_reference.NORMS[type(spec.norm)](spec.norm, module.norm, y[0, 0])
    return y[0, 0] + nn_reference.fed(spec.feedforward, module.feedforward, None)(normed[None, None])[0, 0]


MEANINGS = {
    ClassTokenPoolSpec: class_token,
    FirstPoolSpec: first,
    JoinedPoolSpec: joined,
    MeanPoolSpec: mean,
    LastPoolSpec: last,
    AttentionPoolSpec: attention,
}


def test_every_pool_has_a_meaning() -> None:
    missing = {spec.__name__ for spec in concrete_specs(PoolSpec) - set(MEANINGS)}
    assert not missing, f"{missing} has no meaning in loops: add it to MEANINGS in tests/nn/test_pools.py."


def make_tokens(valid: torch.Tensor | None, dtype: torch.dtype = torch.float64) -> Tokens:
    x = torch.randn(*POS.shape[:2], WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Tokens(x.to(dtype), POS, valid)


def make_pool(name: str) -> Pool:
    pool = randomise(POOLS[name].build(WIDTH)).double()
    assert isinstance(pool, Pool)
    return pool


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("name", POOLS)
def test_pool_is_its_loops(name: str, padded: bool) -> None:
    pool, tokens = make_pool(name), make_tokens(VALID if padded else None)
    valid = VALID.numpy() if padded else np.ones(VALID.shape, dtype=bool)
    meaning = MEANINGS[type(POOLS[name])]
    expected = [
        meaning(POOLS[name], pool, *sample) for sample in zip(tokens.x.numpy(), POS.numpy(), valid, strict=True)
    ]
    assert_close(pool(tokens), torch.from_numpy(np.array(expected)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in POOLS if not POOLS[name].special])
def test_what_padding_holds_does_not_matter(name: str) -> None:
    pool, tokens = make_pool(name), make_tokens(VALID)
    garbage = torch.where(VALID[..., None], tokens.x, 1e30 * torch.randn_like(tokens.x))
    content = VALID & (POS[..., 0] >= 0)
    some = content.any(dim=1)  # without anything real, the first and the last pool may return anything finite
    changed = pool(tokens._replace(x=garbage))
    assert bool(changed.isfinite().all())
    assert_close(changed[some], pool(tokens)[some], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", POOLS)
def test_gradients_are_finite_and_reach_every_parameter(name: str) -> None:
    """Also where a sample is empty."""
    pool, tokens = make_pool(name), make_tokens(VALID)
    x = tokens.x.clone().requires_grad_()
    weight = torch.randn(
        len(VALID), POOLS[name].embedding_width(WIDTH), dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    (pool(tokens._replace(x=x)) * weight).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    for parameter_name, parameter in pool.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert bool(parameter.grad.isfinite().all()), parameter_name
        assert bool(parameter.grad.any()), parameter_name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", POOLS)
def test_dtype_is_kept(name: str, dtype: torch.dtype) -> None:
    pool = POOLS[name].build(WIDTH).to(dtype)
    pooled = pool(make_tokens(VALID, dtype))
    assert (pooled.dtype, pooled.shape) == (dtype, (len(VALID), POOLS[name].embedding_width(WIDTH)))
    assert bool(pooled.isfinite().all())


def test_pools_say_what_they_must_find() -> None:
    needed = {name: spec.special for name, spec in POOLS.items() if spec.special}
    assert needed == {"class_token": 1, "second_token": 2, "special_tokens": 2}
    assert {name for name, spec in POOLS.items() if spec.reads_first} == {*needed, "first", "joined"}
    assert JoinedPoolSpec((ClassTokenPoolSpec(index=2), MeanPoolSpec())).special == 3
    assert not JoinedPoolSpec((LastPoolSpec(), MeanPoolSpec())).reads_first
