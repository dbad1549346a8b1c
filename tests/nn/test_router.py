"""Routers: who is chosen, who finds room, and what they ask for, against loops over tokens."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from feedforward_reference import gates_of
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmformer.nn.router import (
    ExpertChoiceSpec,
    Router,
    RouterSpec,
    Routing,
    TokenChoice,
    TokenChoiceSpec,
    rebalance,
    take_excess,
)

EXPERTS, WIDTH = 4, 8
VALID = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0, 0]]).bool()
SWITCH = TokenChoiceSpec(top=1, renormalise=False)
SPECS: dict[str, RouterSpec] = {
    "switch": SWITCH,
    "mixtral": TokenChoiceSpec(),
    "top_two_of_all": TokenChoiceSpec(renormalise=False),
    "deepseek": TokenChoiceSpec(top=3, scores="sigmoid", balance_loss=0.0, balance_rate=0.001),
    "expert_choice": ExpertChoiceSpec(capacity=1.5),
}


def make(spec: RouterSpec, seed: int = 0) -> Router:
    router = spec.build(WIDTH, EXPERTS).double()
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(seed))
    return router


def tokens(seed: int = 1) -> Tensor:
    return torch.randn(*VALID.shape, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def dense(routing: Routing) -> Tensor:
    """Rows, tokens, experts: the gate of each token in each expert; 0 where it is not taken."""
    gates = torch.zeros(VALID.numel(), EXPERTS, dtype=routing.gate.dtype)
    start = 0
    for expert, end in enumerate(routing.ends.tolist()):
        taken = routing.token[start:end]
        assert len(taken.unique()) == len(taken), "an expert has a token once"
        gates[taken, expert] = routing.gate[start:end].detach()
        start = end
    return gates.view(*VALID.shape, EXPERTS)


def by_hand(spec: RouterSpec, router: Router, x: Tensor, valid: Tensor) -> Tensor:
    rows = zip(x.numpy(), valid.tolist(), strict=True)
    return torch.stack([torch.from_numpy(gates_of(spec, router, row, real, EXPERTS)) for row, real in rows])


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("training", [False, True])
def test_gates_are_those_of_the_formula(name: str, training: bool) -> None:
    router, x = make(SPECS[name]).train(training), tokens()
    for valid in (VALID, torch.ones_like(VALID)):
        routing = router(x, valid)
        torch.testing.assert_close(dense(routing), by_hand(SPECS[name], router, x, valid))
        assert bool(routing.aux) == training
    torch.testing.assert_close(dense(router(x, None)), dense(routing))


def test_a_softmax_over_the_chosen_logits_is_what_renormalised_scores_are() -> None:
    """Mixtral says it the one way, GShard the other."""
    router, x = make(TokenChoiceSpec()), tokens()
    logits = x @ router.weight.t()
    best = logits.topk(2, dim=-1)
    expected = torch.zeros_like(logits).scatter(-1, best.indices, best.values.softmax(-1))
    torch.testing.assert_close(dense(router(x, None)), expected.detach())


# ------------------------------------------------------------------------------------------------- what is asked for


@pytest.mark.parametrize("name", ["switch", "mixtral", "top_two_of_all"])
def test_balance_loss_is_switch_transformers_row_by_row(name: str) -> None:
    spec = SPECS[name]
    assert isinstance(spec, TokenChoiceSpec)
    router, x = make(spec).train(), tokens()
    term = router(x, VALID).aux["balance"]
    scores = (x @ router.weight.t()).softmax(-1)
    losses = []
    for row in range(2):  # the third has no tokens
        real = [t for t in range(VALID.shape[1]) if VALID[row, t]]
        loss = 0.0
        for expert in range(EXPERTS):
            chosen = sum(expert in scores[row, t].topk(spec.top).indices for t in real)
            mean = sum(float(scores[row, t, expert].detach()) for t in real) / len(real)
            loss += EXPERTS * chosen / (len(real) * spec.top) * mean
        losses.append(loss)
    assert term.items == 2
    assert float(term.total.detach()) == pytest.approx(0.01 * sum(losses), rel=1e-6)


def test_balance_loss_is_smallest_where_experts_are_chosen_evenly() -> None:
    router, x = make(SWITCH).train(), torch.eye(WIDTH, dtype=torch.float64)[None, :EXPERTS].repeat(3, 2, 1)[:, :7]
    x = torch.cat((x, torch.eye(WIDTH, dtype=torch.float64)[None, 3:4].repeat(3, 1, 1)), dim=1)  # each expert twice
    with torch.no_grad():
        router.weight.zero_()[:, :EXPERTS].fill_diagonal_(0.1)
        even = router(x, None).aux["balance"]
        router.weight.zero_()[0] = 0.1
        uneven = router(x, None).aux["balance"]
    assert float(even.total / even.items) == pytest.approx(0.01)
    assert float(uneven.total / uneven.items) > 0.0105


@pytest.mark.parametrize("spec", [TokenChoiceSpec(z_loss=0.5), ExpertChoiceSpec(z_loss=0.5)])
def test_z_loss_is_the_mean_square_of_the_normaliser(spec: RouterSpec) -> None:
    router, x = make(spec).train(), tokens()
    term = router(x, VALID).aux["router_z"]
    squares = [
        float((x[b, t] @ router.weight.detach().t()).exp().sum().log() ** 2) for b, t in VALID.nonzero().tolist()
    ]
    assert term.items == len(squares) == VALID.sum()
    assert float(term.total.detach()) == pytest.approx(0.5 * sum(squares), rel=1e-6)


def test_no_weight_no_loss() -> None:
    assert make(TokenChoiceSpec(balance_loss=0.0, z_loss=0.0)).train()(tokens(), VALID).aux == {}


@pytest.mark.parametrize("name", SPECS)
def test_what_tokens_that_are_not_real_hold_changes_nothing(name: str) -> None:
    router, x = make(SPECS[name]).train(), tokens()
    garbage = torch.where(VALID[..., None], x, 1e30)
    one, two = router(x, VALID), router(garbage, VALID)
    assert torch.equal(dense(one), dense(two))
    for key, term in one.aux.items():
        assert torch.equal(term.total, two.aux[key].total) and torch.equal(term.items, two.aux[key].items)
    loss = two.gate[: two.ends[-1]].sum() + sum(term.total for term in two.aux.values())
    (gradient,) = torch.autograd.grad(loss, router.weight)
    assert bool(gradient.isfinite().all())


# ------------------------------------------------------------------------------------------------------- capacity


@pytest.mark.parametrize("capacity", [0.3, 0.8, 1.0, 1.7])
@pytest.mark.parametrize("top", [1, 2])
def test_an_expert_takes_the_first_that_choose_it(top: int, capacity: float) -> None:
    spec = TokenChoiceSpec(top=top, renormalise=top > 1, capacity=capacity)
    router, x = make(spec).train(), tokens()
    routing, dropped, all_choices = router(x, VALID), 0, 0
    found, chosen = dense(routing), by_hand(spec, router, x, VALID)
    for row in range(len(VALID)):
        room = math.ceil(capacity * top * int(VALID[row].sum()) / EXPERTS)
        for expert in range(EXPERTS):
            takers = [t for t in range(VALID.shape[1]) if chosen[row, t, expert] > 0]
            dropped, all_choices = dropped + len(takers[room:]), all_choices + len(takers)
            torch.testing.assert_close(found[row, takers[:room], expert], chosen[row, takers[:room], expert])
            assert bool((found[row, takers[room:], expert] == 0).all())
    term = routing.aux["dropped"]
    assert (int(term.total), int(term.items)) == (dropped, all_choices)
    assert not term.minimised and not term.total.requires_grad
    assert dropped > 0 or capacity > 1


def test_nothing_is_dropped_in_evaluation() -> None:
    tight, free = make(TokenChoiceSpec(capacity=0.3)).eval(), make(TokenChoiceSpec()).eval()
    assert torch.equal(dense(tight(tokens(), VALID)), dense(free(tokens(), VALID)))


@pytest.mark.parametrize("places", [1, 2])
def test_places_are_a_number_in_evaluation_too(places: int) -> None:
    spec = TokenChoiceSpec(top=1, renormalise=False, places=places)
    router, x = make(spec).eval(), tokens()
    found, chosen, taken = dense(router(x, VALID)), by_hand(spec, router, x, VALID), 0
    for row, expert in itertools.product(range(len(VALID)), range(EXPERTS)):
        takers = [t for t in range(VALID.shape[1]) if chosen[row, t, expert] > 0]
        taken += len(takers)
        torch.testing.assert_close(found[row, takers[:places], expert], chosen[row, takers[:places], expert])
    assert int((found > 0).sum(1).max()) == places and int((found > 0).sum()) < taken
    dropped = router.train()(x, VALID).aux["dropped"]
    assert int(dropped.total) == taken - int((found > 0).sum())
    assert spec.abilities == TokenChoiceSpec().abilities - {"cache", "packing"}


def test_later_tokens_take_no_room_of_earlier_ones() -> None:
    router, x = make(TokenChoiceSpec(capacity=0.8)).train(), tokens()
    changed = torch.cat((x[:, :4], tokens(seed=5)[:, 4:]), dim=1)
    assert torch.equal(dense(router(x, None))[:, :4], dense(router(changed, None))[:, :4])


@pytest.mark.parametrize("spec", [TokenChoiceSpec(capacity=0.6), ExpertChoiceSpec(capacity=1.0)])
def test_a_row_is_routed_as_it_is_alone(spec: RouterSpec) -> None:
    """Room is counted for each row by its own real tokens."""
    router, x = make(spec).train(), tokens()
    real = VALID[1]
    together, alone = dense(router(x, VALID))[1, real], router(x[1:2, real], None)
    gates, start = torch.zeros(int(real.sum()), EXPERTS, dtype=torch.float64), 0
    for expert, end in enumerate(alone.ends.tolist()):
        gates[alone.token[start:end], expert], start = alone.gate[start:end].detach(), end
    assert torch.equal(together, gates)


def test_experts_are_evenly_loaded_where_they_choose() -> None:
    router = make(ExpertChoiceSpec(capacity=0.7)).train()
    routing = router(tokens(), VALID)
    taken = dense(routing) > 0
    for row in range(len(VALID)):
        number = math.ceil(0.7 * int(VALID[row].sum()) / EXPERTS)
        assert taken[row].sum(0).tolist() == [number] * EXPERTS
    term = routing.aux["dropped"]
    assert int(term.items) == VALID.sum()
    assert int(term.total) == int((VALID & ~taken.any(-1)).sum()) > 0


# ------------------------------------------------------------------------------------------ balance without a loss


def test_balance_changes_the_choice_and_not_the_gate() -> None:
    router, x = make(SPECS["deepseek"]).eval(), tokens()
    assert isinstance(router, TokenChoice) and router.balance is not None
    with torch.no_grad():
        router.balance.copy_(torch.tensor([10.0, 0.0, 0.0, -10.0]))
    gates = dense(router(x, None))
    assert bool((gates[..., 0] > 0).all()) and bool((gates[..., 3] == 0).all())
    scores = (x @ router.weight.t()).sigmoid()[..., :3].detach()
    torch.testing.assert_close(gates[..., :3], scores / scores.sum(-1, keepdim=True))


def excess(router: Router, x: Tensor) -> Tensor:
    """How much oftener than the mean each expert is chosen, times their number."""
    load = (dense(router(x, VALID)) > 0).sum((0, 1)).double()
    return EXPERTS * load - load.sum()


def test_the_gradient_of_the_balance_is_the_load_above_the_mean() -> None:
    """Of all micro-batches together, once each also where a layer is run again, and whatever the loss is."""
    for again in (False, True):
        router = make(SPECS["deepseek"]).train()
        assert isinstance(router, TokenChoice) and router.balance is not None
        with torch.no_grad():
            router(tokens(), VALID)  # as when embeddings are gathered beforehand: it counts for nothing
        for seed, scale in ((1, 1.0), (2, 1e-3)):

            def run(x: Tensor) -> Tensor:
                return router(x, VALID).gate.square().sum()  # noqa: B023

            x = tokens(seed).requires_grad_()
            (scale * (checkpoint(run, x, use_reentrant=False) if again else run(x))).backward()
        assert router.balance.grad is not None
        torch.testing.assert_close(router.balance.grad, excess(router, tokens(1)) + excess(router, tokens(2)))


@pytest.mark.parametrize("experts", [3, 5, 7])
def test_experts_that_are_chosen_as_often_as_the_mean_stay(experts: int) -> None:
    """To the bit, whatever share of the batch each of three processes had, over which gradients are averaged."""
    spec = TokenChoiceSpec(top=1, renormalise=False, scores="sigmoid", balance_rate=0.5)
    router, model = spec.build(WIDTH, experts), nn.ModuleList()
    model.append(router)
    assert isinstance(router, TokenChoice) and router.balance is not None
    with torch.no_grad():
        router.weight.copy_(torch.eye(WIDTH)[:experts])
    chosen = torch.randperm(9 * experts, generator=torch.Generator().manual_seed(0)) % experts  # each nine times
    mean = torch.zeros(experts)
    for share in torch.eye(WIDTH)[chosen].split([2, 6, 9 * experts - 8]):
        router(share[None], None).gate.sum().backward()
        ((_, excess),) = take_excess(model)
        mean += excess / 3
    rebalance([(router, mean)], 3)
    assert torch.equal(router.balance.detach(), torch.zeros(experts))


def test_rebalancing_makes_loads_even() -> None:
    spec = TokenChoiceSpec(top=1, renormalise=False, scores="sigmoid", balance_rate=0.02)
    router, model = make(spec).train(), nn.ModuleList()
    model.append(router)
    assert isinstance(router, TokenChoice) and router.balance is not None
    with torch.no_grad():
        router.balance.zero_()
    x = torch.randn(8, 64, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def load() -> Tensor:
        return router(x, None).ends.diff(prepend=torch.tensor([0])) / x[..., 0].numel()

    before = load()
    for update in range(40):
        router(x, None).gate.sum().backward()
        gradient, start = router.balance.grad, router.balance.detach().clone()
        rebalance(take_excess(model))
        if update == 0:
            assert gradient is not None
            torch.testing.assert_close(router.balance.detach(), start - 0.02 * gradient.sign())
        assert router.balance.grad is None
    assert float(before.max()) > 0.35
    assert float((load() - 0.25).abs().max()) < 0.03
    assert router.weight.grad is not None, "only balances are moved"


# ---------------------------------------------------------------------------------------------------- precision, noise


def test_jitter_is_for_training_and_for_the_router() -> None:
    router, x = make(TokenChoiceSpec(jitter=0.1)), torch.ones(2, 50, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        router.weight.zero_()[0, 0] = 1.0
    torch.testing.assert_close(router.eval().logits(x)[..., 0], torch.ones(2, 50, dtype=torch.float64))
    noisy = router.train().logits(x)[..., 0].detach()
    assert 0.9 <= float(noisy.min()) < 0.92 and 1.08 < float(noisy.max()) <= 1.1
    torch.manual_seed(0)
    first = router.logits(x)
    torch.manual_seed(0)
    assert torch.equal(first, router.logits(x))


@pytest.mark.parametrize("name", SPECS)
def test_routers_work_in_float32_under_autocast(name: str) -> None:
    router, x = make(SPECS[name]).float(), tokens().float()
    expected = router(x, VALID)
    with torch.autocast("cpu", torch.bfloat16):
        routing = router(x, VALID)
    assert routing.gate.dtype == torch.float32
    assert torch.equal(routing.gate, expected.gate) and torch.equal(routing.token, expected.token)
    assert router(x.bfloat16(), VALID).gate.dtype == torch.float32
