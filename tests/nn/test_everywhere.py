"""What is particular to tokens that stand everywhere: whom they see, blocks, and who may not have them."""

from __future__ import annotations

import pytest
import torch
from contract import randomise
from torch import Tensor, nn
from torch.testing import assert_close

from mmformer.errors import InputError
from mmformer.models.decoder import DecoderSpec
from mmformer.models.encoder import EncoderSpec
from mmformer.models.logits import text_logits, text_of
from mmformer.models.model import Model, ModelSpec
from mmformer.nn import blocked, everywhere
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.everywhere import EverywhereSpec, GlobalAttentionSpec, knows_everywhere
from mmformer.nn.layer import LayerSpec
from mmformer.nn.pattern import AllOfSpec, AnyOfSpec, GlobalSpec, WindowSpec
from mmformer.nn.stack import StackSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.types import Batch, Tokens

WIDTH = 16
PATTERN = AnyOfSpec((WindowSpec(2, 2), EverywhereSpec()))


def chosen(length: int, *which: int) -> Tensor:
    """1 L A: a text, some of whose tokens stand everywhere."""
    pos = torch.zeros(1, length, 3, dtype=torch.int64)
    pos[0, :, 0] = torch.arange(length)
    pos[0, list(which), 1:] = -1
    return pos


def run(stack: nn.Module, x: Tensor, pos: Tensor) -> Tensor:
    made: Tensor = stack(Tokens(x, pos.expand(len(x), -1, -1))).tokens.x
    return made


def test_without_any_it_is_attention_under_the_pattern() -> None:
    ours = randomise(StackSpec(WIDTH, 1, LayerSpec(GlobalAttentionSpec(4, PATTERN))).build()).double()
    plain = StackSpec(WIDTH, 1, LayerSpec(AttentionSpec(4, pattern=WindowSpec(2, 2)))).build().double()
    own = ours.state_dict()
    plain.load_state_dict({name: value for name, value in own.items() if "global" not in name})
    x = torch.randn(2, 12, WIDTH, dtype=torch.float64)
    assert_close(run(ours, x, chosen(12)), run(plain, x, chosen(12)), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(run(ours, x, chosen(12, 5)), run(plain, x, chosen(12)))


def test_with_the_same_projections_it_is_the_pattern_alone() -> None:
    ours = randomise(StackSpec(WIDTH, 1, LayerSpec(GlobalAttentionSpec(4, PATTERN))).build()).double()
    plain = StackSpec(WIDTH, 1, LayerSpec(AttentionSpec(4, pattern=PATTERN))).build().double()
    own = ours.state_dict()
    for kind in ("weight", "bias"):
        q, kv = own[f"layers.0.mixer.qkv.{kind}"].split((WIDTH, 2 * WIDTH))
        own |= {f"layers.0.mixer.global_q.{kind}": q, f"layers.0.mixer.global_kv.{kind}": kv}
    ours.load_state_dict(own)
    plain.load_state_dict({name: value for name, value in own.items() if "global" not in name})
    x, pos = torch.randn(2, 12, WIDTH, dtype=torch.float64), chosen(12, 0, 7)
    assert_close(run(ours, x, pos), run(plain, x, pos), rtol=1e-12, atol=1e-12)


def test_rows_that_choose_different_numbers() -> None:
    stack = randomise(StackSpec(WIDTH, 2, LayerSpec(GlobalAttentionSpec(4, PATTERN))).build()).double()
    x, places = torch.randn(3, 12, WIDTH, dtype=torch.float64), ((), (3,), (0, 6, 11))
    together = run(stack, x, torch.cat([chosen(12, *each) for each in places]))
    alone = torch.cat([run(stack, x[i : i + 1], chosen(12, *each)) for i, each in enumerate(places)])
    assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_blocks_and_compiled_graphs_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = randomise(StackSpec(WIDTH, 2, LayerSpec(GlobalAttentionSpec(4, PATTERN))).build()).double()
    x, pos = torch.randn(2, 200, WIDTH, dtype=torch.float64), chosen(200, 0, 1, 90)
    whole = run(stack, x, pos)
    with monkeypatch.context() as patch:
        patch.setattr(blocked, "BLOCK", 16)
        patch.setattr(blocked, "LEAST", 64)
        assert_close(run(stack, x, pos), whole, rtol=1e-12, atol=1e-12)
    monkeypatch.setattr(everywhere, "_most", lambda marked: marked.shape[1])  # what a compiled graph does
    assert_close(run(stack, x, pos), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("mixer", "knows"),
    [
        (GlobalAttentionSpec(4, WindowSpec()), True),
        (AttentionSpec(4, pattern=AllOfSpec((WindowSpec(), PATTERN))), True),
        (AttentionSpec(4, pattern=AnyOfSpec((WindowSpec(), GlobalSpec()))), False),
        (AttentionSpec(4), False),
    ],
)
def test_which_mixers_know_of_them(mixer: AttentionSpec, knows: bool) -> None:
    assert knows_everywhere(mixer) == knows
    model = encoding(mixer)
    ids = torch.arange(12)[None] % 9
    text = text_of(ids, everywhere=torch.arange(12)[None] == 4)
    if knows:
        outputs = [model(Batch((), {}, text=each)).tokens["text"].x for each in (text, text_of(ids))]
        assert not torch.allclose(*outputs)
    else:
        with pytest.raises(InputError, match="the encoder's mixers know no such tokens: take GlobalAttentionSpec"):
            model(Batch((), {}, text=text))


def encoding(mixer: AttentionSpec) -> Model:
    tokenizer = TextTokensSpec(None, rows=9, end=False, context_length=12)
    spec = ModelSpec({"text": StackSpec(WIDTH, 1, LayerSpec(mixer))}, {"text": EncoderSpec(tokenizer, "text")})
    model = spec.build().eval()
    randomise(model)
    return model


def test_a_decoder_has_none() -> None:
    spec = ModelSpec(
        {"text": StackSpec(WIDTH, 1, LayerSpec(AttentionSpec(4)))},
        decoders={"text": DecoderSpec(TextTokensSpec(None, rows=9), "text")},
    )
    text = text_of(torch.zeros(1, 4, dtype=torch.int64), everywhere=torch.ones(1, 4))
    with pytest.raises(InputError, match="'text' reads ids alone, but global_mask was handed in"):
        text_logits(spec.build(), None, text, None, {})
    words = "needs a mixer that lets a token see itself and those before it alone, but .* is GlobalAttentionSpec"
    with pytest.raises(InputError, match=words):
        StackSpec(WIDTH, 1, LayerSpec(GlobalAttentionSpec(4, PATTERN))).build()(
            Tokens(torch.zeros(1, 4, WIDTH), chosen(4)), causal=True
        )


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"global_mask must have the shape of ids, \(1, 4\), but is bool of shape"):
        text_of(torch.zeros(1, 4, dtype=torch.int64), everywhere=torch.ones(1, 3, dtype=torch.bool))
