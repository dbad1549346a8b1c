"""Every spec builds on the meta device, and what it builds can be allocated and initialised afterwards."""

from __future__ import annotations

import pytest
import torch
from contract import POOLS, WIDTH, Case, covering_array, few_are_fast, make_inputs
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.nn.attention import AttentionSpec
from mmformer.types import Tokens

META = torch.device("meta")
CASES = few_are_fast(covering_array())


def build(made: Case | str) -> nn.Module:
    """A stack, or the pool of a name."""
    return made.spec.build() if isinstance(made, Case) else POOLS[made].build(WIDTH)


def state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, also those that a state dict leaves out."""
    return {name: t.detach() for name, t in (*module.named_parameters(), *module.named_buffers())}


def spread(made: Case | str, key: str, meta: bool) -> float:
    """The standard deviation of what a parameter is given, over several draws."""
    drawn = []
    for seed in range(3 + 10 * meta, 11 + 10 * meta):
        torch.manual_seed(seed)
        with META if meta else torch.device("cpu"):
            module = build(made)
        for part in module.to_empty(device="cpu").modules() if meta else ():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
        drawn.append(state(module)[key])
    return float(torch.stack(drawn).std())


@pytest.mark.parametrize("made", [*CASES, *POOLS], ids=str)
def test_built_on_meta_then_initialised_is_built(made: Case | str) -> None:
    """``reset_parameters`` of every module that has it leaves nothing as it was allocated."""
    with META:
        module = build(made)
    assert all(tensor.is_meta for tensor in state(module).values())
    module.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in state(module).values():
            tensor.fill_(float("nan") if tensor.is_floating_point() else -(2**31))
    torch.manual_seed(0)
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    torch.manual_seed(1)
    expected = state(build(made))
    torch.manual_seed(2)
    another = state(build(made))
    assert state(module).keys() == expected.keys()
    for key, tensor in state(module).items():
        other = expected[key]
        assert (tensor.shape, tensor.dtype) == (other.shape, other.dtype), key
        assert bool(tensor.isfinite().all()), f"{key} was not initialised"
        if not torch.equal(other, another[key]):  # drawn at random, from the same distribution
            assert not torch.equal(tensor, other), f"{key} is not drawn"
            ratio, few = float(tensor.std() / other.std()), tensor.numel() < 64
            if not few and not 0.75 < ratio < 1.33:  # of few numbers by chance: so asked of many
                ratio = spread(made, key, meta=True) / spread(made, key, meta=False)
            assert few or 0.75 < ratio < 1.33, f"{key} is spread {ratio:.2f} times as wide"
        else:
            assert torch.equal(tensor, other), key


def to_meta(tokens: Tokens | None) -> Tokens | None:
    return None if tokens is None else Tokens(*(None if t is None else t.to(META) for t in tokens))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_is_made_on_another_device(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks, tables and biases are made where the tokens are: whole passes and cached ones, with meta as the device."""
    attend, devices = F.scaled_dot_product_attention, set()

    def spy(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, **more: object) -> Tensor:
        devices.update(t.device for t in (query, key, value, attn_mask) if t is not None)
        return attend(query, key, value, attn_mask=attn_mask, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    with META:
        stack = case.spec.build()
    inputs = make_inputs(case, torch.float32)
    prefix = None if inputs.prefix is None else inputs.prefix.to(META)
    inputs = inputs._replace(tokens=to_meta(inputs.tokens), prefix=prefix, memory=to_meta(inputs.memory))
    output = inputs.run(stack)
    if inputs.causal:
        state = inputs.run(stack, state=stack.empty_state()).state
        output = inputs.run(stack, state=state)
    assert output.tokens.x.is_meta
    assert devices <= {META}
    assert devices or not isinstance(case.spec.layer.mixer, AttentionSpec), "the spy has seen softmax attention"
