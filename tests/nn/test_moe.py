"""Mixtures of experts as a whole: equal to a peer's, the same when layers run again, refused where they must be."""

from __future__ import annotations

import pytest
import torch
from contract import randomise
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmformer.errors import InputError
from mmformer.nn.feedforward import GELUFeedForwardSpec, SwiGLUFeedForwardSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.moe import MixtureOfExperts, MixtureOfExpertsSpec
from mmformer.nn.router import ExpertChoiceSpec, TokenChoiceSpec
from mmformer.nn.stack import StackSpec
from mmformer.types import Tokens

SWITCH = TokenChoiceSpec(top=1, renormalise=False, capacity=0.5, balance_rate=0.001)


def make(spec: MixtureOfExpertsSpec, width: int = 16) -> MixtureOfExperts:
    module = randomise(spec.build(width)).double()
    assert isinstance(module, MixtureOfExperts)
    return module


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_equals_mixtrals() -> None:
    mixtral = pytest.importorskip(
        "transformers.models.mixtral.modeling_mixtral", reason="transformers is not installed: no peer to equal"
    )
    config = mixtral.MixtralConfig(hidden_size=24, intermediate_size=40, num_local_experts=5, num_experts_per_tok=2)
    torch.manual_seed(0)
    peer = mixtral.MixtralSparseMoeBlock(config)
    expert = SwiGLUFeedForwardSpec(ratio=40 / 24)
    ours = MixtureOfExpertsSpec(5, expert, TokenChoiceSpec(top=2)).build(24)
    assert isinstance(ours, MixtureOfExperts)
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.normal_(std=0.2)
        ours.router.weight.copy_(peer.gate.weight)
        for index in range(5):
            if hasattr(peer.experts, "gate_up_proj"):  # stacked since transformers 5
                ours.experts.up.weight[index] = peer.experts.gate_up_proj[index]
                ours.experts.down.weight[index] = peer.experts.down_proj[index]
            else:
                theirs = peer.experts[index]
                ours.experts.up.weight[index] = torch.cat((theirs.w1.weight, theirs.w3.weight))
                ours.experts.down.weight[index] = theirs.w2.weight
    x = tokens(2, 9, 24).float()
    theirs = peer(x)
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    torch.testing.assert_close(ours(x)[0], theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("router", [TokenChoiceSpec(), SWITCH, ExpertChoiceSpec()], ids=lambda r: type(r).__name__)
def test_equal_experts_are_one(router: TokenChoiceSpec | ExpertChoiceSpec) -> None:
    """Where all experts have the same weights, a token's output is one feed-forward's, times its gates' sum."""
    module = make(MixtureOfExpertsSpec(4, GELUFeedForwardSpec(), router)).eval()
    dense = GELUFeedForwardSpec().build(16).double()
    with torch.no_grad():
        for linear, grouped in ((dense.up, module.experts.up), (dense.down, module.experts.down)):
            for name in ("weight", "bias"):
                getattr(grouped, name).copy_(getattr(linear, name).expand_as(getattr(grouped, name)))
    x = tokens(3, 7, 16)
    routing = module.router(x, None)
    gates = torch.zeros(21, dtype=torch.float64)
    used = slice(0, int(routing.ends[-1]))
    gates.index_add_(0, routing.token[used], routing.gate[used].detach())
    torch.testing.assert_close(module(x)[0], gates.view(3, 7, 1) * dense(x)[0])


def test_run_again_in_the_backward_pass_it_gives_the_same_gradients_once() -> None:
    module, x = make(MixtureOfExpertsSpec(4, router=SWITCH)).train(), tokens(3, 7, 16)

    def loss(x: Tensor) -> Tensor:
        y, aux = module(x)
        return y.square().sum() + sum(term.total for term in aux.values() if term.minimised)

    found = []
    for again in (False, True):
        module.zero_grad()
        leaf = x.clone().requires_grad_()
        (checkpoint(loss, leaf, use_reentrant=False) if again else loss(leaf)).backward()
        found.append([leaf.grad, *(parameter.grad for parameter in module.parameters())])
    for one, two in zip(*found, strict=True):
        assert one is not None and float(one.abs().max()) > 0
        assert torch.equal(one, two)


def test_layers_add_up_what_they_ask_for() -> None:
    layer = LayerSpec(feedforward=MixtureOfExpertsSpec(4, router=TokenChoiceSpec(capacity=1.0)))
    stack = randomise(StackSpec(16, 3, layer).build()).double()
    x, valid = tokens(2, 6, 16), torch.ones(2, 6, dtype=torch.bool)
    valid[1, 4:] = False
    given = Tokens(x, torch.zeros(2, 6, 3, dtype=torch.int64), valid)
    aux = stack.train()(given).aux
    items = {name: int(term.items) for name, term in aux.items()}
    assert items == {"router_z": 3 * 10, "balance": 3 * 2, "dropped": 3 * 2 * 10}
    assert {name: term.minimised for name, term in aux.items()} == {"router_z": True, "balance": True, "dropped": False}
    assert stack.eval()(given).aux == {}


def test_experts_that_choose_are_refused_where_later_tokens_must_not_count() -> None:
    stack = StackSpec(16, 1, LayerSpec(feedforward=MixtureOfExpertsSpec(router=ExpertChoiceSpec())))
    given = Tokens(tokens(1, 3, 16).float(), torch.zeros(1, 3, 3, dtype=torch.int64))
    asked = {
        "lets a token see itself and those before it alone": {"causal": True},
        "keeps the segments of a row apart": {"tokens": given._replace(segment=torch.zeros(1, 3, dtype=torch.int64))},
    }
    for ability, how in asked.items():
        with pytest.raises(
            InputError, match=f"needs a router that {ability}, but StackSpec.layer.feedforward."
        ) as error:
            stack.build()(**{"tokens": given, **how})
        assert str(error.value).endswith("which does not: take TokenChoiceSpec.")
    assert stack.build()(given).tokens.x.shape == (1, 3, 16)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, of what its compiler uses
@pytest.mark.parametrize("router", [TokenChoiceSpec(), SWITCH, ExpertChoiceSpec()], ids=lambda r: type(r).__name__)
def test_compiles_to_one_graph(router: TokenChoiceSpec | ExpertChoiceSpec) -> None:
    module, x = make(MixtureOfExpertsSpec(4, router=router)).train(), tokens(3, 7, 16)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    found = []
    for run in (module, compiled):
        module.zero_grad()
        y, aux = run(x)
        (y.square().sum() + aux["router_z"].total).backward()
        found.append([y.detach(), *(p.grad for p in module.parameters())])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)
