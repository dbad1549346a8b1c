"""What the stack itself does: one view a pass, states that beams reorder, intermediates, and what layers ask for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import nn_reference
import pytest
import torch
from contract import Case, Inputs, make_inputs, make_stack, randomise
from contract_checks import decode
from torch import Tensor, nn
from torch.testing import assert_close

from mmformer.nn.attention import AttentionSpec
from mmformer.nn.cache import KeyValue
from mmformer.nn.feedforward import FeedForwardSpec, GELUFeedForwardSpec, SwiGLUFeedForwardSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.mask import Mask
from mmformer.nn.mixer import Mixer, MixerSpec, State, View
from mmformer.nn.norm import RMSNormSpec
from mmformer.nn.position import LearnedPositionSpec
from mmformer.nn.rotary import RotaryPositionSpec
from mmformer.nn.stack import Stack, StackSpec
from mmformer.nn.state import StackState
from mmformer.types import Aux, LossTerm, Tokens

CASE = Case(
    mixer="attention_grouped",
    position="rotary",
    order="causal",
    padded=True,
    packed=False,
    norm="layer_norm",
    placement="pre",
    feedforward="gelu",
    cross="other_width",
    extras=False,
)


def equal(actual: Tensor, expected: Tensor) -> None:
    assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def piece(inputs: Inputs, start: int, stop: int) -> Inputs:
    return inputs._replace(tokens=Tokens(*(None if t is None else t[:, start:stop] for t in inputs.tokens)))


def reordered(state: StackState, order: Tensor) -> StackState:
    """Every tensor of a state has the samples first: what beam search does to it."""

    def each(value: object) -> object:
        if isinstance(value, Tensor):
            return value[order]
        if isinstance(value, tuple):
            values = [each(member) for member in value]
            return type(value)(*values) if hasattr(value, "_fields") else tuple(values)
        return value

    result = each(state)
    assert isinstance(result, StackState)
    return result


def test_a_state_is_reordered_sample_by_sample() -> None:
    stack, inputs, order = make_stack(CASE.spec), make_inputs(CASE), torch.tensor([2, 0, 0])
    state = piece(inputs, 0, 5).run(stack, state=stack.empty_state()).state
    assert state is not None
    memory = Tokens(*(None if t is None else t[order] for t in inputs.memory or ()))
    chosen = Inputs(Tokens(*(None if t is None else t[order] for t in inputs.tokens)), True, None, memory)
    expected = chosen(stack)[:, 5:]
    rest = piece(chosen, 5, 9)
    equal(rest.run(stack, state=reordered(state, order)).tokens.x, expected)


def test_a_state_holds_one_pair_of_keys_and_values_for_each_mixer_and_is_not_changed() -> None:
    stack, inputs = make_stack(CASE.spec), make_inputs(CASE)
    first = piece(inputs, 0, 5).run(stack, state=stack.empty_state()).state
    assert first is not None
    assert len(first.layers) == 2
    before = [layer.mixer.key.clone() for layer in first.layers]
    second = piece(inputs, 5, 9).run(stack, state=first).state
    assert second is not None
    for layer, key in zip(first.layers, before, strict=True):
        assert isinstance(layer.mixer, KeyValue)
        assert layer.mixer.key.shape == (3, 2, 5, 8)
        assert torch.equal(layer.mixer.key, key)
    for old, new in zip(first.layers, second.layers, strict=True):
        assert new.mixer.key.shape == (3, 2, 9, 8)
        assert new.cross.key is old.cross.key  # memory is projected once
    assert second.pos.shape == (3, 9, 3)


@pytest.mark.parametrize("padded_call", [0, 1])
def test_padding_in_one_call_only(padded_call: int) -> None:
    """Validity may be given in some calls only; the others' tokens are all real."""
    case = CASE.__class__(**{**CASE.__dict__, "cross": "none", "padded": False})
    stack, inputs = make_stack(case.spec), make_inputs(case)
    valid = torch.ones(3, 9, dtype=torch.bool)
    valid[:, [1] if padded_call == 0 else [6]] = False
    expected = inputs._replace(tokens=inputs.tokens._replace(valid=valid))(stack)
    state, outputs = stack.empty_state(), []
    for call, (start, stop) in enumerate(((0, 5), (5, 9))):
        part = piece(inputs, start, stop)
        if call == padded_call:
            part = part._replace(tokens=part.tokens._replace(valid=valid[:, start:stop]))
        output = part.run(stack, state=state)
        assert output.state is not None
        state = output.state
        outputs.append(output.tokens.x)
    equal(torch.cat(outputs, dim=1), expected)


def test_a_padded_prompt_goes_on_as_an_unpadded_one() -> None:
    """Prompts of different lengths, padded on the right, then one token at a time at each sample's own place."""
    stack = make_stack(StackSpec(32, 2, LayerSpec(AttentionSpec(4, 2, qk_norm=True)), RotaryPositionSpec()))
    draw = torch.Generator().manual_seed(0)
    lengths, prompt, more = [2, 4, 1], 4, 3
    x = torch.randn(3, prompt + more, 32, dtype=torch.float64, generator=draw)
    valid = torch.tensor([[place < length or place >= prompt for place in range(prompt + more)] for length in lengths])
    pos = torch.zeros(3, prompt + more, 3, dtype=torch.int64)
    pos[..., 0] = valid.cumsum(dim=1) - 1
    batched = decode(stack, Inputs(Tokens(x, pos, valid), causal=True), (prompt, 1, 1, 1))
    for b, length in enumerate(lengths):
        keep = valid[b]
        places = torch.zeros(1, length + more, 3, dtype=torch.int64)
        places[0, :, 0] = torch.arange(length + more)
        alone = Inputs(Tokens(x[b : b + 1, keep], places), causal=True)
        equal(batched[b, keep], alone(stack)[0])


def test_the_position_is_asked_once_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    stack, calls = StackSpec(32, 3, LayerSpec(AttentionSpec(4))).build(), []
    for hook in ("embed", "rotary", "bias"):
        monkeypatch.setattr(
            stack.position, hook, lambda *a, h=hook: (calls.append(h), a[0] if h == "embed" else None)[1]
        )
    make_inputs(CASE, torch.float32)._replace(memory=None)(stack)
    assert sorted(calls) == ["bias", "embed", "rotary"]


@pytest.mark.parametrize("position", ["rotary", "relative_bucket"])
def test_what_all_layers_may_look_at_is_made_once_and_means_what_each_would_make(
    position: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = dataclasses.replace(CASE, position=position, mixer="attention", packed=True)
    stack, inputs, calls, lower = make_stack(case.spec), make_inputs(case), [], Mask.sdpa
    monkeypatch.setattr(Mask, "sdpa", lambda *args: (calls.append(1), lower(*args))[1])
    once = inputs(stack)
    assert len(calls) == 2, "of its own tokens and of the memory"
    stack.viewing.lowers_own = stack.viewing.lowers_memory = False
    equal(once, inputs(stack))
    assert len(calls) == 2 + 2 * stack.spec.depth


@pytest.mark.parametrize("mixer", ["attention_window", "linear"])
def test_pairs_that_no_layer_weighs_are_not_made(mixer: str) -> None:
    case = dataclasses.replace(CASE, mixer=mixer, position="nowhere", cross="none")
    stack, inputs, views = make_stack(case.spec), make_inputs(case), list[View]()
    run = stack._run
    stack._run = lambda x, view, *rest: (views.append(view), run(x, view, *rest))[1]  # type: ignore[method-assign]
    inputs(stack)
    assert views[0].lowered is None


def test_intermediates_are_what_left_each_layer() -> None:
    stack, inputs = make_stack(CASE.spec), make_inputs(CASE)
    seen: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda *arguments: seen.append(arguments[2][0])) for layer in stack.layers]
    output = inputs.run(stack, intermediates=(1, 0))
    for hook in hooks:
        hook.remove()
    assert sorted(output.intermediates) == [0, 1]
    assert all(torch.equal(output.intermediates[index], seen[index]) for index in (0, 1))
    assert torch.equal(stack.norm(seen[1]), output.tokens.x)
    assert list(inputs.run(stack, intermediates=[1]).intermediates) == [1]


def test_layers_share_nothing() -> None:
    stack = StackSpec(32, 3, LayerSpec(AttentionSpec(4))).build()
    assert len({parameter.data_ptr() for parameter in stack.parameters()}) == len(list(stack.parameters()))
    weights = [layer.mixer.qkv.weight for layer in stack.layers]
    assert not any(torch.equal(weights[0], other) for other in weights[1:])


@dataclass(frozen=True)
class AskingSpec(MixerSpec):
    """For these tests: a mixer that changes nothing and asks for something to be minimised."""

    abilities = frozenset({"bidirectional", "cross"})  # type: ignore[assignment]

    def build(self, width: int, memory_width: int | None = None) -> Asking:
        return Asking()


class Asking(Mixer):
    def forward(self, x: Tensor, view: View, state: State | None, keep: bool) -> tuple[Tensor, State | None, Aux]:
        items = torch.tensor(float(x.shape[1]))
        return 0 * x, None, {"balance": LossTerm(x.mean(), items)}


def test_what_layers_ask_for_adds_up_over_layers_and_is_not_stored() -> None:
    layer = LayerSpec(AskingSpec(), None, cross=AskingSpec())
    stack = StackSpec(16, 3, layer, final_norm=False).build()
    tokens = Tokens(torch.randn(2, 5, 16), torch.zeros(2, 5, 3, dtype=torch.int64))
    for _ in range(2):
        aux = stack(tokens, memory=tokens).aux
        assert sorted(aux) == ["balance", "cross_balance"]
        expected = 3 * stack.layers[0].mixer_residual.enter(tokens.x).mean()
        for term in aux.values():
            assert_close(term.total, expected)
            assert float(term.items) == 15.0


def test_dropout_acts_in_training_only_and_follows_the_seed() -> None:
    layer = LayerSpec(AttentionSpec(4, dropout=0.2), GELUFeedForwardSpec(dropout=0.2), dropout=0.2)
    stack = StackSpec(32, 2, layer).build()
    inputs = make_inputs(CASE, torch.float32)._replace(memory=None)

    def run(training: bool, seed: int) -> Tensor:
        torch.manual_seed(seed)
        return inputs(stack.train(training))

    assert torch.equal(run(False, 0), run(False, 1))
    assert torch.equal(run(True, 0), run(True, 0))
    assert not torch.equal(run(True, 0), run(True, 1))


def test_a_layer_scale_is_where_the_gains_start() -> None:
    stack = StackSpec(32, 2, LayerSpec(AttentionSpec(4), layer_scale=1e-3)).build()
    gains = [parameter for name, parameter in stack.named_parameters() if name.endswith("gain")]
    assert len(gains) == 4
    assert all(torch.equal(gain, torch.full((32,), 1e-3)) for gain in gains)
    inputs = make_inputs(CASE, torch.float32)._replace(memory=None)
    before = inputs.run(stack, intermediates=[1]).intermediates[1]  # hardly moved from what came in
    assert 0 < float((before - inputs.tokens.x).detach().abs().max()) < 0.02


@pytest.mark.parametrize(
    "spec",
    [
        GELUFeedForwardSpec(),
        GELUFeedForwardSpec(approximate="tanh"),
        GELUFeedForwardSpec(bias=False),
        SwiGLUFeedForwardSpec(),
        SwiGLUFeedForwardSpec(bias=True),
    ],
    ids=str,
)
def test_feedforward_is_its_loops(spec: FeedForwardSpec) -> None:
    module, x = randomise(spec.build(32)).double(), make_inputs(CASE).tokens.x
    meaning = nn_reference.FEEDFORWARDS[type(spec)]
    equal(module(x)[0], torch.from_numpy(meaning(spec, module, x.numpy(), None)))


def test_hidden_widths() -> None:
    assert GELUFeedForwardSpec().hidden(96) == 384
    assert SwiGLUFeedForwardSpec().hidden(96) == 256
    assert SwiGLUFeedForwardSpec().hidden(100) == 272  # 266.7, rounded up to a multiple of 8
    assert SwiGLUFeedForwardSpec(multiple=64).hidden(96) == 256
    assert GELUFeedForwardSpec(ratio=0.01).hidden(16) == 8  # never nothing
    gelu, swiglu = GELUFeedForwardSpec(bias=False), SwiGLUFeedForwardSpec()
    count = [sum(p.numel() for p in spec.build(96).parameters()) for spec in (gelu, swiglu)]
    assert count[0] == count[1]


def test_no_memory_token_is_as_no_memory() -> None:
    """A memory of length 0, and one in which nothing is valid, add the reader's bias only."""
    stack = randomise(StackSpec(32, 1, LayerSpec(AttentionSpec(4), cross=AttentionSpec(4))).build()).double().eval()
    assert isinstance(stack, Stack)
    inputs = make_inputs(CASE)._replace(memory=None)
    pos = torch.zeros(3, 4, 3, dtype=torch.int64)
    nothing = torch.zeros(3, 4, 32, dtype=torch.float64)
    blind = inputs._replace(memory=Tokens(nothing, pos, torch.zeros(3, 4, dtype=torch.bool)))(stack)
    equal(inputs._replace(memory=Tokens(nothing[:, :0], pos[:, :0]))(stack), blind)


def test_a_pattern_repeats_its_layers() -> None:
    one, two = LayerSpec(AttentionSpec(4)), LayerSpec(AttentionSpec(2), SwiGLUFeedForwardSpec(), norm=RMSNormSpec())
    hybrid = StackSpec(32, 5, pattern=(one, one, two), position=LearnedPositionSpec()).build()
    assert [layer.mixer.heads for layer in hybrid.layers] == [4, 4, 2, 4, 4]
    fed = [type(layer.feedforward.spec).__name__[:4] for layer in hybrid.layers]
    assert fed == ["GELU", "GELU", "SwiG", "GELU", "GELU"]
    assert isinstance(hybrid.norm, nn.LayerNorm), "the first layer's"
    same = StackSpec(32, 3, pattern=(one,), position=RotaryPositionSpec()).build()
    plain = StackSpec(32, 3, one, RotaryPositionSpec()).build()
    plain.load_state_dict(same.state_dict())
    inputs = make_inputs(CASE, torch.float32)
    assert torch.equal(same(inputs.tokens).tokens.x, plain(inputs.tokens).tokens.x)


def test_some_layers_of_a_pattern_may_read_memory() -> None:
    alone, reader = LayerSpec(AttentionSpec(4)), LayerSpec(AttentionSpec(4), cross=AttentionSpec(4))
    stack = randomise(StackSpec(32, 4, pattern=(alone, reader)).build())
    tokens = make_inputs(CASE, torch.float32).tokens
    memory = tokens._replace(x=tokens.x + 1)
    whole = stack(tokens, memory=memory, intermediates=range(4)).intermediates
    other = stack(tokens, memory=tokens, intermediates=range(4)).intermediates
    assert [bool(torch.equal(whole[i], other[i])) for i in range(4)] == [True, False, False, False]


def test_branches_are_skipped_by_chance_more_often_the_later() -> None:
    spec = StackSpec(32, 3, LayerSpec(AttentionSpec(4)), drop_path=0.8, final_norm=False)
    stack = randomise(spec.build())
    x = torch.randn(4000, 1, 32, generator=torch.Generator().manual_seed(0))
    tokens = Tokens(x, torch.zeros(4000, 1, 3, dtype=torch.int64))
    torch.manual_seed(0)
    with torch.no_grad():
        seen = stack.train()(tokens, intermediates=range(3)).intermediates
        layer = stack.layers[2]
        y, _, _ = layer.mixer(layer.mixer_residual.enter(seen[1]), View(Mask()), None, False)
        mixed = [layer.mixer_residual.leave(seen[1], y, 0.8) - seen[1] for _ in range(5)]
    before = [x, seen[0], seen[1]]
    for index, chance in enumerate((0.0, 0.4, 0.8)):
        both = (seen[index] == before[index]).all(-1).double().mean().item()  # mixer and feed-forward
        assert both == pytest.approx(chance**2, abs=0.03)
    added = torch.stack(mixed)  # 5 B 1 D
    kept = added.abs().sum(-1) > 0
    assert_close(added[kept], (y / 0.2).expand_as(added)[kept])
    assert kept.double().mean().item() == pytest.approx(0.2, abs=0.02)
    whole = dataclasses.replace(spec, drop_path=0.0).build()
    whole.load_state_dict(stack.state_dict())
    assert torch.equal(stack.eval()(tokens).tokens.x, whole.eval()(tokens).tokens.x)
