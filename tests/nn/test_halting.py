"""Adaptive computation time: which states leave, what others see of a token that has halted, and what is left out."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from contract import Case, Inputs, make_inputs, make_stack, randomise
from contract_checks import CHECKS, Check, decode
from torch import Tensor
from torch.testing import assert_close

from mmformer.nn.attention import AttentionSpec
from mmformer.nn.halting import HaltingSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.mask import Mask
from mmformer.nn.mixer import View
from mmformer.nn.sharing import SharingSpec
from mmformer.nn.stack import Stack, StackSpec
from mmformer.types import Tokens

LAYER = LayerSpec(AttentionSpec(4))
ELSEWHERE = {"shapes", "reference", "one_token", "sight", "sight_of_memory"}
"""Checks that know of two layers which all tokens go through; what they check is checked below."""


class Halted(Case):
    """A point of the contract's space whose tokens halt, after one to four applications."""

    @property
    def spec(self) -> StackSpec:
        return dataclasses.replace(super().spec, depth=4, sharing=SharingSpec(), halting=HaltingSpec(0.9))


CASES = [
    Halted("attention_grouped", "rotary", "causal", True, False, "layer_norm", "pre", "gelu", "other_width", False),
    Halted("attention_pattern", "learned", "prefix", True, True, "rms_norm", "post", "swiglu", "none", False),
    Halted("attention", "sinusoidal", "full", False, True, "layer_norm", "sandwich", "gelu", "none", True),
]


@pytest.mark.parametrize(
    ("check", "case"), [(check, case) for check in CHECKS for case in CASES if str(check) not in ELSEWHERE], ids=str
)
def test_halting_holds_the_contract(check: Check, case: Halted) -> None:
    for taken in check.cases([case]):
        check(taken)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_cases_above_halt_at_different_times(case: Halted) -> None:
    applications = make_inputs(case).run(make_stack(case.spec)).aux["applications"]
    assert 1.05 < float(applications.total / applications.items) < 3.95


def halting_stack(threshold: float = 0.6, depth: int = 4) -> Stack:
    stack = StackSpec(32, depth, LAYER, sharing=SharingSpec(), halting=HaltingSpec(threshold)).build()
    return randomise(stack).double().eval()


def by_hand(stack: Stack, x: Tensor, valid: Tensor | None) -> tuple[Tensor, list[list[int]], float]:
    """Each token by itself: the means of its states, how many there were, and the sum of the ponder costs."""
    spec, halting = stack.spec, stack.halting
    assert spec.halting is not None and halting is not None
    batch, length, _ = x.shape
    chances: list[list[list[float]]] = [[[] for _ in range(length)] for _ in range(batch)]
    means, cost = torch.zeros_like(x), 0.0
    real = torch.ones(batch, length, dtype=torch.bool) if valid is None else valid
    done = ~real
    for step in range(spec.depth):
        after, _, _ = stack.layers[0](x, View(Mask(valid=valid)), None, None)
        x = x.clone()
        for b in range(batch):
            for i in range(length):
                if done[b, i]:
                    continue
                own, x[b, i] = chances[b][i], after[b, i]
                score = float(after[b, i] @ halting.weight[0]) + float(halting.bias)
                own.append(1 / (1 + math.exp(-score)))
                if sum(own) >= spec.halting.threshold or step == spec.depth - 1:
                    done[b, i] = True
                    own[-1] = 1 - sum(own[:-1])
                    cost += len(own) + own[-1]
                means[b, i] += own[-1] * after[b, i]
    return means, [[len(own) for own in row] for row in chances], cost


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("threshold", [0.1, 0.6, 0.99])
def test_what_leaves_is_the_mean_of_the_states(threshold: float, padded: bool) -> None:
    stack, tokens = halting_stack(threshold), make_inputs(CASES[0]).tokens
    tokens = tokens if padded else tokens._replace(valid=None)
    with torch.no_grad():
        output = stack(tokens)
        means, steps, cost = by_hand(stack, tokens.x, tokens.valid)
    real = torch.ones(3, 9, dtype=torch.bool) if tokens.valid is None else tokens.valid
    assert_close(output.tokens.x[real], stack.norm(means)[real], rtol=1e-12, atol=1e-12)
    taken = {number for row in steps for number in row if number}
    assert len(taken) > 1, f"tokens differ in how many applications they take, {taken}"
    ponder, applications = output.aux["ponder"], output.aux["applications"]
    assert_close(ponder.total.double(), torch.tensor(0.01 * cost).double(), rtol=1e-5, atol=0)
    assert float(applications.total) == sum(map(sum, steps))
    assert (ponder.minimised, applications.minimised) == (True, False)
    assert float(ponder.items) == float(applications.items) == float(real.sum())


@pytest.mark.parametrize(("bias", "steps"), [(50.0, 1), (-50.0, 4)])
def test_one_application_or_all_of_them(bias: float, steps: int) -> None:
    """A token that is sure at once leaves as it is; one that never is leaves as the last application made it."""
    stack, tokens = halting_stack(), make_inputs(CASES[2]).tokens._replace(segment=None)
    with torch.no_grad():
        assert stack.halting is not None
        stack.halting.weight.zero_()
        stack.halting.bias.fill_(bias)
    plain = StackSpec(32, steps, LAYER, sharing=SharingSpec() if steps > 1 else None).build().double()
    plain.load_state_dict({name: value for name, value in stack.state_dict().items() if "halting" not in name})
    output = stack(tokens)
    assert_close(output.tokens.x, plain(tokens).tokens.x, rtol=1e-12, atol=1e-12)
    assert_close(output.aux["ponder"].total, torch.tensor(0.01 * 27 * (steps + 1)))


def calls(stack: Stack, run: Inputs, **more: object) -> int:
    made: list[int] = []
    hook = stack.layers[0].register_forward_hook(lambda *_: made.append(1))
    run.run(stack, **more)
    hook.remove()
    return len(made)


def test_nothing_is_computed_once_all_have_halted() -> None:
    """In evaluation alone, and without a state, which later tokens go on from; the outputs are the same."""
    stack, inputs = halting_stack(0.5, depth=6), make_inputs(CASES[0])._replace(memory=None)
    with torch.no_grad():
        assert stack.halting is not None
        stack.halting.weight.zero_()
        stack.halting.bias.fill_(-0.5)  # 0.38 an application: done after two
    assert calls(stack, inputs) == 2
    assert calls(stack, inputs, state=stack.empty_state()) == 6
    stopped = inputs.run(stack, intermediates=range(6))
    stack.may_stop = False
    assert calls(stack, inputs) == 6
    whole = inputs.run(stack, intermediates=range(6))
    real = inputs.tokens.valid
    assert torch.equal(stopped.tokens.x[real], whole.tokens.x[real])
    assert stopped.aux == whole.aux
    for index in range(6):
        assert torch.equal(stopped.intermediates[index][real], whole.intermediates[index][real])
    stack.may_stop = True
    assert calls(stack.train(), inputs) == 6


def test_padding_does_not_keep_a_stack_going() -> None:
    stack, tokens = halting_stack(0.5), make_inputs(CASES[0]).tokens
    output = stack(tokens._replace(valid=torch.zeros(3, 9, dtype=torch.bool)))
    assert calls(stack, Inputs(tokens._replace(valid=torch.zeros(3, 9, dtype=torch.bool)))) == 0
    assert float(output.aux["ponder"].total) == float(output.aux["ponder"].items) == 0


def test_a_token_is_the_same_whatever_the_rest_of_its_batch_needs() -> None:
    stack, inputs = make_stack(CASES[0].spec), make_inputs(CASES[0])
    assert inputs.memory is not None
    together = inputs(stack)
    for b in range(3):
        alone = Inputs(
            Tokens(*(None if t is None else t[b : b + 1] for t in inputs.tokens)),
            True,
            None,
            Tokens(*(None if t is None else t[b : b + 1] for t in inputs.memory)),
        )
        assert_close(alone(stack)[0], together[b], rtol=1e-12, atol=1e-12)


def test_a_halted_token_is_seen_by_later_calls_in_every_application() -> None:
    stack, inputs = halting_stack(0.3), make_inputs(CASES[0])._replace(memory=None)
    for chunks in ((4, 5), (1,) * 9):
        assert_close(decode(stack, inputs, chunks), inputs(stack), rtol=1e-12, atol=1e-12)


def test_the_cost_makes_tokens_halt_sooner() -> None:
    """By its gradient alone: the chances before the last application grow, until tokens take one less."""
    spec = StackSpec(32, 6, LAYER, sharing=SharingSpec(), halting=HaltingSpec(ponder_cost=1.0))
    torch.manual_seed(0)
    stack, tokens = spec.build(), make_inputs(CASES[0], torch.float32).tokens
    assert stack.halting is not None
    with torch.no_grad():
        stack.halting.bias.fill_(-1.0)
    optimizer = torch.optim.SGD([stack.halting.weight, stack.halting.bias], lr=0.3)
    costs = []
    for _ in range(25):
        total, items, _ = stack(tokens).aux["ponder"]
        costs.append(float(total.detach() / items))
        optimizer.zero_grad()
        (total / items).backward()
        optimizer.step()
    assert costs[0] > 4 and costs[-1] < 2.5
    assert float(stack.halting.bias.detach()) > -1
