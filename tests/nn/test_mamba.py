"""What is particular to Mamba: equality to transformers' own, its start, its state, both directions, and hybrids."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from contract import Inputs, make_stack, randomise
from contract_checks import decode
from tiny import VOCABULARY
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from mmformer.errors import InputError
from mmformer.models.decoder import DecoderSpec
from mmformer.models.encoder import EncoderSpec
from mmformer.models.model import ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.mamba import Mamba, MambaSpec
from mmformer.nn.mask import Mask
from mmformer.nn.mixer import View
from mmformer.nn.rotary import RotaryPositionSpec
from mmformer.nn.stack import StackSpec
from mmformer.tokenizers.image import ImagePatchesSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.types import Tokens

WIDTH = 24


def row(length: int, batch: int = 2, width: int = WIDTH, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, length, width, dtype=dtype, generator=torch.Generator().manual_seed(length))


def mixed(mamba: nn.Module, x: Tensor, mask: Mask | None = None) -> Tensor:
    return mamba(x, View(mask or Mask(causal=True)), None, False)[0]


def copied(peer: Any, spec: MambaSpec) -> Mamba:
    """A mixer of transformers' weights."""
    mamba = spec.build(peer.hidden_size)
    own = mamba.forwards
    pairs = [
        (mamba.enter.weight, peer.in_proj.weight),
        (mamba.out.weight, peer.out_proj.weight),
        (own.kernel, peer.conv1d.weight[:, 0].T),
        (own.select.weight, peer.x_proj.weight),
        (own.step, peer.dt_proj.weight),
        (own.step_bias, peer.dt_proj.bias),
        (own.log_decay, peer.A_log),
        (own.skip, peer.D),
    ]
    pairs += [(own.kernel_bias, peer.conv1d.bias)] if spec.convolution_bias else []
    pairs += [(mamba.enter.bias, peer.in_proj.bias), (mamba.out.bias, peer.out_proj.bias)] if spec.bias else []
    with torch.no_grad():
        for parameter, value in pairs:
            parameter.copy_(value)
    assert len(list(mamba.parameters())) == len(pairs) == len(list(peer.parameters()))
    return mamba


@pytest.mark.parametrize(
    "spec",
    [MambaSpec(), MambaSpec(expand=3, states=5, convolution=2, rank=7, bias=True, convolution_bias=False)],
    ids=["default", "other"],
)
@pytest.mark.filterwarnings("ignore")  # transformers': there are no kernels for this machine
def test_it_is_transformers_mamba(spec: MambaSpec) -> None:
    """Outputs and gradients, with its weights moved away from where they begin."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: no peer to equal")
    modeling = pytest.importorskip("transformers.models.mamba.modeling_mamba")
    config = transformers.MambaConfig(
        hidden_size=WIDTH,
        state_size=spec.states,
        expand=spec.expand,
        conv_kernel=spec.convolution,
        time_step_rank=spec.rank or math.ceil(WIDTH / 16),
        use_bias=spec.bias,
        use_conv_bias=spec.convolution_bias,
    )
    torch.manual_seed(0)
    peer = modeling.MambaMixer(config, 0)
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    mamba, x = copied(peer, spec), row(75)
    actual, expected = mixed(mamba, x), peer(x)
    assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(actual)
    gradient = torch.autograd.grad((expected * weight).sum(), [peer.in_proj.weight, peer.A_log, peer.dt_proj.bias])
    own = mamba.forwards
    made = torch.autograd.grad((actual * weight).sum(), [mamba.enter.weight, own.log_decay, own.step_bias])
    assert_close(made, gradient, rtol=1e-4, atol=1e-5)


def test_it_begins_as_the_paper_says() -> None:
    """Decays of 1 to N in every channel, and steps evenly in their logarithm between the two of the spec."""
    torch.manual_seed(0)
    own = MambaSpec(states=4, steps=(0.01, 0.1)).build(512).forwards
    assert_close(own.log_decay.exp(), torch.tensor([1.0, 2, 3, 4]).expand(1024, 4))
    exponents = F.softplus(own.step_bias).log10().sort().values
    assert_close(exponents, torch.linspace(-2, -1, 1024), rtol=0, atol=0.05)
    assert_close(own.skip, torch.ones(1024))


def test_its_state_does_not_grow() -> None:
    stack = make_stack(StackSpec(WIDTH, 2, LayerSpec(MambaSpec(states=3))), torch.float32)
    sizes = []
    for length in (1, 2, 40):
        tokens = Tokens(row(length), torch.zeros(2, length, 3, dtype=torch.int64))
        state = stack(tokens, causal=True, state=stack.empty_state()).state
        sizes.append([[part.shape for part in layer.mixer] for layer in state.layers])
    assert sizes[0] == sizes[1] == sizes[2] == [[(2, 3, 2 * WIDTH), (2, 3, 2 * WIDTH)]] * 2


def test_a_sample_without_valid_tokens_gives_zero() -> None:
    mamba = randomise(MambaSpec(bias=True).build(WIDTH))
    valid = torch.tensor([[True, True, True], [False, False, False]])
    y = mixed(mamba, row(3), Mask(causal=True, valid=valid))
    assert y[0].all()
    assert not y[1].any()


def test_the_two_directions_are_one_another_reversed() -> None:
    """A row read backwards, with the two parts exchanged, gives what the row gave, backwards."""
    mamba = randomise(MambaSpec(bidirectional=True).build(WIDTH)).double()
    x = row(37, dtype=torch.float64)
    y = mixed(mamba, x, Mask())
    mamba.forwards, mamba.backwards = mamba.backwards, mamba.forwards
    assert_close(mixed(mamba, x.flip(1), Mask()).flip(1), y, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(mixed(mamba, x, Mask()), y)


def hybrid() -> StackSpec:
    mamba = LayerSpec(MambaSpec(states=4), None)
    return StackSpec(WIDTH, 6, pattern=(mamba, mamba, LayerSpec(AttentionSpec(heads=2))), position=RotaryPositionSpec())


def test_a_hybrid_writes_token_by_token_what_it_reads_at_once() -> None:
    """Two Mamba layers, then one of attention, which alone is rotated."""
    stack, length = make_stack(hybrid()), 21
    pos = torch.zeros(2, length, 3, dtype=torch.int64)
    pos[..., 0] = torch.arange(length)
    inputs = Inputs(Tokens(row(length, dtype=torch.float64), pos), causal=True)
    for calls in ((1,) * length, (17, 1, 1, 2)):
        assert_close(decode(stack, inputs, calls), inputs(stack), rtol=1e-6, atol=1e-6)  # rotations are float32
    assert [type(layer.mixer) is Mamba for layer in stack.layers] == [True, True, False] * 2


def test_a_model_that_could_not_run_it_is_refused() -> None:
    """When it is made, not at its first batch."""
    image, text = ImagePatchesSpec(patch=8), TextTokensSpec(VOCABULARY, context_length=16)
    words = r"model.encoders.e needs a mixer that lets a token see those after it, but .* is MambaSpec\("
    with pytest.raises(InputError, match=words):
        ModelSpec({"s": hybrid()}, {"e": EncoderSpec(image, "s")})
    ModelSpec({"s": hybrid()}, {"e": EncoderSpec(image, "s", causal=True)})
    ModelSpec({"s": hybrid()}, {}, {"d": DecoderSpec(text, "s")})
    both = StackSpec(WIDTH, 1, LayerSpec(MambaSpec(bidirectional=True)))
    ModelSpec({"s": both}, {"e": EncoderSpec(image, "s", packed=True)})
    with pytest.raises(InputError, match=r"model.decoders.d needs a mixer that lets a token see itself and those"):
        ModelSpec({"s": both}, {}, {"d": DecoderSpec(text, "s")})


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("case", ["plain", "padded", "packed"])
def test_it_is_traced_in_one_graph(case: str, bidirectional: bool) -> None:
    mamba, x = MambaSpec(states=3, bidirectional=bidirectional).build(WIDTH), row(40)
    segment = torch.arange(40).expand(2, -1) // 13
    mask = {
        "plain": Mask(),
        "padded": Mask(valid=torch.arange(40) < torch.tensor([[40], [31]])),
        "packed": Mask(query_segment=segment, key_segment=segment),
    }[case]._replace(causal=not bidirectional)
    torch.compiler.reset()
    results = []
    for run in (mamba, torch.compile(mamba, fullgraph=True, backend="aot_eager")):
        y = mixed(run, x, mask)
        results.append((y, torch.autograd.grad(y.square().sum(), [*mamba.parameters()])))
    assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)
