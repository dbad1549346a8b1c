"""Reversible stacks: their meaning, the gradient of plain autograd with all that is random, and what they keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract import randomise
from torch import Tensor
from torch.testing import assert_close

from mmformer.errors import InputError
from mmformer.nn import stack as stack_module
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.bias import RelativeBucketPositionSpec
from mmformer.nn.feedforward import GELUFeedForwardSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.lsh import LSHAttentionSpec
from mmformer.nn.moe import MixtureOfExpertsSpec
from mmformer.nn.position import PositionSpec
from mmformer.nn.rotary import MixedRotaryPositionSpec
from mmformer.nn.run import Ran
from mmformer.nn.sharing import SharingSpec
from mmformer.nn.stack import Stack, StackOutput, StackSpec
from mmformer.types import Tokens

BATCH, LENGTH, WIDTH, DEPTH = 3, 9, 16, 6
DROPPED = LayerSpec(AttentionSpec(2, dropout=0.1), GELUFeedForwardSpec(2.0, dropout=0.2), dropout=0.2)
EXPERTS = LayerSpec(AttentionSpec(2), MixtureOfExpertsSpec(4), placement="sandwich", layer_scale=0.5, branch_scale=0.7)
HASHED = LayerSpec(LSHAttentionSpec(2, buckets=4, window=2))
STACKS: dict[str, StackSpec] = {
    "plain": StackSpec(WIDTH, DEPTH, reversible=True),
    "dropped": StackSpec(WIDTH, DEPTH, DROPPED, drop_path=0.4, reversible=True),
    "experts": StackSpec(WIDTH, DEPTH, EXPERTS, reversible=True),
    "hashed_anew": StackSpec(WIDTH, DEPTH, HASHED, MixedRotaryPositionSpec(), reversible=True),
    "learned_bias": StackSpec(WIDTH, DEPTH, DROPPED, RelativeBucketPositionSpec(), reversible=True),
    "learned_rotation": StackSpec(WIDTH, DEPTH, DROPPED, MixedRotaryPositionSpec(), reversible=True),
    "shared": StackSpec(WIDTH, DEPTH, DROPPED, sharing=SharingSpec(2), reversible=True),
    "pattern": StackSpec(WIDTH, DEPTH, position=PositionSpec(), pattern=(DROPPED, EXPERTS), reversible=True),
}


def built(spec: StackSpec) -> Stack:
    stack = randomise(spec.build()).double().train()
    assert isinstance(stack, Stack)
    return stack


def tokens(valid: bool = True) -> Tokens:
    x = torch.randn(BATCH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pos = torch.arange(LENGTH)[None, :, None].expand(BATCH, LENGTH, 3)
    return Tokens(x.requires_grad_(), pos, torch.arange(LENGTH) < torch.tensor([[9], [5], [7]]) if valid else None)


def plainly(x: Tensor, steps: Any, view: Any, past: Any, intermediates: Any) -> Ran:
    """The two streams by the formula, for autograd to go back through."""
    one, two, aux, kept = x, x, {}, {}
    for step in steps:
        layer = step.layer
        y, _, asked = layer.mixer(layer.mixer_residual.enter(two), view, None, False)
        one = layer.mixer_residual.leave(one, y, step.drop_path)
        y, more = layer.feedforward(layer.feedforward_residual.enter(one), view.mask.valid)
        two = layer.feedforward_residual.leave(two, y, step.drop_path)
        for name, term in (*asked.items(), *more.items()):
            aux[name] = aux[name].plus(term) if name in aux else term
        if step.place in intermediates:
            kept[step.place] = (one + two) / 2
    return Ran((one + two) / 2, (), aux, kept)


def passed(stack: Stack, **more: Any) -> tuple[StackOutput, list[Tensor], Tensor]:
    """The output, the gradients of a loss that everything takes part in, and what is drawn next."""
    torch.manual_seed(5)
    read = tokens()
    output = stack(read, intermediates=(2, 3), **more)
    total = output.tokens.x[read.valid].sin().sum() + sum(x.cos().sum() for x in output.intermediates.values())
    total = total + sum(3 * term.total for term in output.aux.values() if term.minimised)
    gradients = torch.autograd.grad(total, [read.x, *stack.parameters()])
    return output, list(gradients), torch.rand(3)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", STACKS)
def test_the_gradient_is_that_of_the_formula(name: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = built(STACKS[name])
    output, gradients, drawn = passed(stack, causal=causal)
    monkeypatch.setattr(stack_module, "run_reversibly", plainly)
    plain, expected, then = passed(stack, causal=causal)
    assert_close(output.tokens.x, plain.tokens.x, rtol=1e-12, atol=1e-12)
    assert_close(output.intermediates, plain.intermediates, rtol=1e-12, atol=1e-12)
    assert output.aux.keys() == plain.aux.keys()
    for term, other in zip(output.aux.values(), plain.aux.values(), strict=True):
        assert_close((term.total, term.items), (other.total, other.items), rtol=1e-6, atol=0)
        assert term.minimised == other.minimised
    names = ["x", *(name for name, _ in stack.named_parameters())]
    for name, gradient, wanted in zip(names, gradients, expected, strict=True):
        close = 1e-4 if name == "position.rate" else 1e-10  # its tables are float32, and gradients are added there
        assert_close(gradient, wanted, rtol=close, atol=close, msg=lambda words, of=name: f"{of}: {words}")
    assert torch.equal(drawn, then), "the backward pass leaves no trace in what is drawn"


def test_without_a_gradient_it_is_the_same_function() -> None:
    stack = built(STACKS["plain"]).eval()
    with_gradient = stack(tokens(), intermediates=(1,))
    with torch.no_grad():
        without = stack(tokens(), intermediates=(1,))
    assert torch.equal(with_gradient.tokens.x, without.tokens.x)
    assert torch.equal(with_gradient.intermediates[1], without.intermediates[1])


@pytest.mark.parametrize("name", ["plain", "learned_bias", "hashed_anew"])
def test_calls_that_go_on_give_what_one_gives(name: str) -> None:
    stack, read = built(STACKS[name]).eval(), tokens(valid=False)
    expected = stack(read, causal=True).tokens.x
    state, parts = stack.empty_state(), []
    for part in (slice(0, 4), slice(4, 5), slice(5, LENGTH)):
        output = stack(Tokens(read.x[:, part], read.pos[:, part]), causal=True, state=state)
        state = output.state
        parts.append(output.tokens.x)
    assert_close(torch.cat(parts, dim=1), expected, rtol=1e-12, atol=1e-12)


def test_what_is_kept_does_not_grow_with_depth() -> None:
    def kept(depth: int, reversible: bool) -> int:
        """Bytes of activations that autograd keeps, those of one storage once."""
        stack, found = built(StackSpec(WIDTH, depth, reversible=reversible)), {}
        weights = {parameter.untyped_storage().data_ptr() for parameter in stack.parameters()}

        def pack(x: Tensor) -> Tensor:
            storage = x.untyped_storage()
            if storage.data_ptr() not in weights:
                found[storage.data_ptr()] = storage.nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            stack(tokens()).tokens.x.sum()
        return sum(found.values())

    assert kept(2, True) == kept(8, True)
    assert kept(8, False) > 3 * kept(2, False) > 3 * kept(2, True)


def test_half_precision_is_computed_again_in_half_precision() -> None:
    stack, seen = built(STACKS["plain"]).float(), []
    for layer in stack.layers:
        layer.mixer.out.register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    read = tokens()
    with torch.autocast("cpu", torch.bfloat16):
        output = stack(read._replace(x=read.x.detach().float()))
    output.tokens.x.float().sum().backward()
    assert seen == 2 * DEPTH * [torch.bfloat16]
    assert all(bool(p.grad.isfinite().all()) for p in stack.parameters() if p.grad is not None)


def test_frozen_layers_pass_the_gradient_on() -> None:
    stack = built(STACKS["plain"])
    for layer in stack.layers[1:4]:
        layer.requires_grad_(False)
    stack(tokens()).tokens.x.sin().sum().backward()
    trained = [layer.mixer.out.weight.grad is not None for layer in stack.layers]
    assert trained == [True, False, False, False, True, True]


def test_its_layers_run_together() -> None:
    with pytest.raises(InputError, match="layers run together: run them all"):
        built(STACKS["plain"])(tokens(), span=range(0, 2))
