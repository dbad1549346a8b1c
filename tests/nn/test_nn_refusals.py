"""What nn refuses, and that the message names the field, what was found, and the way out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from mmformer.errors import InputError
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.block_sparse import BlockSparseSpec
from mmformer.nn.convolution import ConvolutionSpec, GridConvolutionSpec
from mmformer.nn.feedforward import GELUFeedForwardSpec, GLUFeedForwardSpec, SwiGLUFeedForwardSpec
from mmformer.nn.halting import HaltingSpec
from mmformer.nn.initialisation import (
    DeepNormInitialisationSpec,
    GPT2InitialisationSpec,
    T5InitialisationSpec,
    TruncatedNormalInitialisationSpec,
)
from mmformer.nn.layer import LayerSpec
from mmformer.nn.linear_attention import LinearAttentionSpec
from mmformer.nn.linformer import LinformerSpec
from mmformer.nn.lsh import LSHAttentionSpec
from mmformer.nn.mamba import MambaSpec
from mmformer.nn.mixer import Mixer, MixerSpec
from mmformer.nn.moe import MixtureOfExpertsSpec
from mmformer.nn.norm import LayerNormSpec, RMSNormSpec
from mmformer.nn.pattern import (
    AllOfSpec,
    AnyOfSpec,
    ChunksSpec,
    GlobalSpec,
    NeighbourhoodSpec,
    StridedSpec,
    WindowSpec,
)
from mmformer.nn.perceiver import PerceiverResamplerSpec
from mmformer.nn.performer import PerformerSpec
from mmformer.nn.pool import AttentionPoolSpec, ClassTokenPoolSpec, JoinedPoolSpec, LastPoolSpec
from mmformer.nn.random_blocks import RandomBlocksSpec
from mmformer.nn.resampler import AttentionResamplerSpec
from mmformer.nn.router import ExpertChoiceSpec, TokenChoiceSpec
from mmformer.nn.sharing import SharingSpec
from mmformer.nn.stack import Stack, StackSpec
from mmformer.types import Tokens

NAN = float("nan")


@dataclass(frozen=True)
class HeadlessSpec(MixerSpec):
    """A mixer that mixes and can nothing else."""

    abilities = frozenset()  # type: ignore[assignment]

    def build(self, width: int, memory_width: int | None = None) -> Mixer:
        raise AssertionError("refused before it is built")


SPECS: list[tuple[Callable[[], object], str]] = [
    (lambda: ConvolutionSpec(ratio=0.0), "ConvolutionSpec.ratio must be None or positive, but is 0.0."),
    (lambda: ConvolutionSpec(None, gated=True), "ConvolutionSpec.gated must be false without projections (ratio None)"),
    (lambda: ConvolutionSpec(activation="tanh"), "ConvolutionSpec.activation must be None, 'gelu' or 'silu', but is"),
    (lambda: ConvolutionSpec(dropout=1.0), "ConvolutionSpec.dropout must be at least 0 and below 1, but is 1.0."),
    (lambda: ConvolutionSpec(before=-1), "ConvolutionSpec.before must be at least 0, but is -1."),
    (lambda: ConvolutionSpec(after=-1), "ConvolutionSpec.after must be at least 0, but is -1."),
    (lambda: ConvolutionSpec(before=0, after=0), "ConvolutionSpec.after must be at least 1 where before is 0"),
    (lambda: ConvolutionSpec(dilation=0), "ConvolutionSpec.dilation must be at least 1, but is 0."),
    (lambda: GridConvolutionSpec(rows=-1), "GridConvolutionSpec.rows must be at least 0, but is -1."),
    (lambda: GridConvolutionSpec(columns=-1), "GridConvolutionSpec.columns must be at least 0, but is -1."),
    (lambda: GridConvolutionSpec(rows=0, columns=0), "GridConvolutionSpec.columns must be at least 1 where rows is 0"),
    (lambda: GridConvolutionSpec(dilation=0), "GridConvolutionSpec.dilation must be at least 1, but is 0."),
    (lambda: GridConvolutionSpec(axes=(1, 1)), "GridConvolutionSpec.axes must be two of 0 to 2, but is (1, 1)."),
    (lambda: AttentionSpec(heads=0), "AttentionSpec.heads must be at least 1, but is 0."),
    (lambda: AttentionSpec(8, key_value_heads=3), "AttentionSpec.key_value_heads must be a divisor of heads (8), but"),
    (lambda: AttentionSpec(8, key_value_heads=16), "key_value_heads must be a divisor of heads (8), but is 16."),
    (lambda: AttentionSpec(8, key_value_heads=0), "key_value_heads must be a divisor of heads (8), but is 0."),
    (lambda: AttentionSpec(8, key_value_heads=-8), "key_value_heads must be a divisor of heads (8), but is -8."),
    (lambda: AttentionSpec(dropout=1.0), "AttentionSpec.dropout must be at least 0 and below 1, but is 1.0."),
    (lambda: AttentionSpec(dropout=-0.1), "AttentionSpec.dropout must be at least 0 and below 1, but is -0.1."),
    (lambda: AttentionSpec(dropout=NAN), "AttentionSpec.dropout must be at least 0 and below 1, but is nan."),
    (lambda: LinearAttentionSpec(heads=0), "LinearAttentionSpec.heads must be at least 1, but is 0."),
    (lambda: PerformerSpec(features=0), "PerformerSpec.features must be at least 1, but is 0."),
    (lambda: PerformerSpec(redraw=0), "PerformerSpec.redraw must be None or at least 1, but is 0."),
    (lambda: PerformerSpec(seed=-1), "PerformerSpec.seed must be from 0 to 2^31 - 1, but is -1."),
    (lambda: LinformerSpec(length=0), "LinformerSpec.length must be at least 1, but is 0."),
    (lambda: LinformerSpec(length=8, projected=9), "LinformerSpec.projected must be from 1 to length (8), but is 9."),
    (lambda: LinformerSpec(dropout=1.0), "LinformerSpec.dropout must be at least 0 and below 1, but is 1.0."),
    (lambda: LSHAttentionSpec(heads=0), "LSHAttentionSpec.heads must be at least 1, but is 0."),
    (lambda: LSHAttentionSpec(buckets=7), "LSHAttentionSpec.buckets must be even and at least 2, but is 7."),
    (lambda: LSHAttentionSpec(buckets=0), "LSHAttentionSpec.buckets must be even and at least 2, but is 0."),
    (lambda: LSHAttentionSpec(rounds=0), "LSHAttentionSpec.rounds must be at least 1, but is 0."),
    (lambda: LSHAttentionSpec(window=0), "LSHAttentionSpec.window must be at least 1, but is 0."),
    (lambda: LSHAttentionSpec(seed=-1), "LSHAttentionSpec.seed must be from 0 to 2^31 - 1, but is -1."),
    (lambda: LayerSpec(dropout=1.0), "LayerSpec.dropout must be at least 0 and below 1, but is 1.0."),
    (lambda: LayerSpec(placement="mid"), "LayerSpec.placement must be 'pre', 'post', 'sandwich' or 'deep', but is"),
    (lambda: LayerSpec(branch_scale=0.0), "LayerSpec.branch_scale must be positive, but is 0.0."),
    (
        lambda: LayerSpec(placement="deep", skip_scale=2.0),
        "LayerSpec.skip_scale must be 1 where placement is 'deep', which follows from the stack's depth, but is 2.0.",
    ),
    (lambda: LayerSpec(placement="deep", branch_scale=0.5), "LayerSpec.branch_scale must be 1 where placement is"),
    (
        lambda: StackSpec(16, 2, LayerSpec(placement="deep"), initialisation=GPT2InitialisationSpec()),
        "StackSpec.initialisation must be one that goes with the norms' placement: DeepNorm's with 'deep', and any",
    ),
    (
        lambda: StackSpec(16, 2, initialisation=DeepNormInitialisationSpec()),
        "StackSpec.initialisation must be one that goes with the norms' placement",
    ),
    (
        lambda: StackSpec(16, 2, pattern=(LayerSpec(), LayerSpec(placement="deep"))),
        "StackSpec.pattern must be of layers whose placement is 'deep', or of none that is",
    ),
    (lambda: GPT2InitialisationSpec(std=0.0), "GPT2InitialisationSpec.std must be positive, but is 0.0."),
    (lambda: TruncatedNormalInitialisationSpec(std=0.0), "TruncatedNormalInitialisationSpec.std must be positive"),
    (lambda: T5InitialisationSpec(factor=0.0), "T5InitialisationSpec.factor must be positive, but is 0.0."),
    (lambda: T5InitialisationSpec(head_width=0), "head_width must be None or at least 1, but is 0."),
    (lambda: SharingSpec(distinct=0), "SharingSpec.distinct must be at least 1, but is 0."),
    (lambda: SharingSpec(order="cycle"), "SharingSpec.order must be left out with one distinct layer, which has but"),
    (lambda: SharingSpec(2, order="back"), "SharingSpec.order must be 'sequence' or 'cycle', but is 'back'."),
    (lambda: StackSpec(16, 2, sharing=SharingSpec(2)), "StackSpec.sharing must be of fewer distinct layers than depth"),
    (
        lambda: StackSpec(16, 4, pattern=(LayerSpec(), LayerSpec()), sharing=SharingSpec(1)),
        "StackSpec.pattern must be no longer than sharing.distinct, 1, but is",
    ),
    (lambda: HaltingSpec(threshold=1.0), "HaltingSpec.threshold must be above 0 and below 1, but is 1.0."),
    (lambda: HaltingSpec(ponder_cost=0.0), "HaltingSpec.ponder_cost must be positive: nothing else makes tokens halt"),
    (lambda: StackSpec(16, 1, halting=HaltingSpec()), "StackSpec.halting must be None where there is one layer"),
    (lambda: StackSpec(16, 1, input_dropout=1.0), "StackSpec.input_dropout must be at least 0 and below 1, but is 1"),
    (
        lambda: StackSpec(16, 1, embedding_dropout=0.1),
        "StackSpec.embedding_dropout must be 0 without an input_norm, but is 0.1.",
    ),
    (lambda: LayerSpec(layer_scale=0.0), "LayerSpec.layer_scale must be None or positive, but is 0.0."),
    (
        lambda: LayerSpec(gated=True, layer_scale=0.1),
        "LayerSpec.gated must be false beside layer_scale or parallel, or",
    ),
    (lambda: LayerSpec(gated=True, parallel=True), "LayerSpec.gated must be false beside layer_scale or parallel, or"),
    (
        lambda: LayerSpec(gated=True, placement="deep"),
        "LayerSpec.gated must be false beside layer_scale or parallel, or",
    ),
    (lambda: WindowSpec(before=-1), "WindowSpec.before must be at least 0, but is -1."),
    (lambda: WindowSpec(after=-1), "WindowSpec.after must be at least 0, but is -1."),
    (lambda: WindowSpec(dilation=0), "WindowSpec.dilation must be at least 1, but is 0."),
    (lambda: ChunksSpec(size=0), "ChunksSpec.size must be at least 1, but is 0."),
    (lambda: GlobalSpec(tokens=0), "GlobalSpec.tokens must be at least 1, but is 0."),
    (lambda: BlockSparseSpec(size=0), "BlockSparseSpec.size must be at least 1, but is 0."),
    (lambda: BlockSparseSpec(whole=-1), "BlockSparseSpec.whole must be at least 0, but is -1."),
    (lambda: BlockSparseSpec(first=0), "BlockSparseSpec.first must be at least 1, but is 0."),
    (lambda: StridedSpec(stride=0), "StridedSpec.stride must be at least 1, but is 0."),
    (lambda: RandomBlocksSpec(size=0), "RandomBlocksSpec.size must be at least 1, but is 0."),
    (lambda: RandomBlocksSpec(blocks=0), "RandomBlocksSpec.blocks must be at least 1, but is 0."),
    (lambda: RandomBlocksSpec(seed=-1), "RandomBlocksSpec.seed must be from 0 to 2^31 - 1, but is -1."),
    (lambda: NeighbourhoodSpec(rows=-1), "NeighbourhoodSpec.rows must be at least 0, but is -1."),
    (lambda: NeighbourhoodSpec(columns=-1), "NeighbourhoodSpec.columns must be at least 0, but is -1."),
    (lambda: NeighbourhoodSpec(axes=(1, 1)), "NeighbourhoodSpec.axes must be two of 0 to 2, but is (1, 1)."),
    (lambda: AllOfSpec((WindowSpec(),)), "AllOfSpec.patterns must be two or more, but is (WindowSpec("),
    (lambda: AnyOfSpec(()), "AnyOfSpec.patterns must be two or more, but is ()."),
    (
        lambda: LayerSpec(cross=AttentionSpec(pattern=WindowSpec())),
        "A reader of memory needs a mixer that reads a memory, but LayerSpec.cross is AttentionSpec(",
    ),
    (lambda: LayerSpec(placement="post", parallel=True), "LayerSpec.parallel must be false, unless placement is 'pre'"),
    (lambda: LayerSpec(feedforward=None, parallel=True), "LayerSpec.parallel must be false, unless"),
    (lambda: LayerSpec(skip_scale=0.0), "LayerSpec.skip_scale must be positive, but is 0.0."),
    *(
        (lambda spec=spec: spec(), "StackSpec.reversible must be false, unless each layer is a mixer and a feedforward")
        for spec in (
            lambda: StackSpec(16, 2, LayerSpec(placement="post"), reversible=True),
            lambda: StackSpec(16, 2, LayerSpec(skip_scale=2.0), reversible=True),
            lambda: StackSpec(16, 2, LayerSpec(feedforward=None), reversible=True),
            lambda: StackSpec(16, 2, LayerSpec(cross=AttentionSpec()), reversible=True),
            lambda: StackSpec(16, 2, LayerSpec(parallel=True), reversible=True),
            lambda: StackSpec(16, 4, sharing=SharingSpec(step_signal=True), reversible=True),
            lambda: StackSpec(16, 2, halting=HaltingSpec(), reversible=True),
        )
    ),
    (lambda: StackSpec(16, 1, drop_path=0.1), "StackSpec.drop_path must be 0 where there is one layer, the first"),
    (
        lambda: StackSpec(16, 2, LayerSpec(dropout=0.1), pattern=(LayerSpec(),)),
        "StackSpec.layer must be left out where there is a pattern",
    ),
    (lambda: StackSpec(16, 1, pattern=(LayerSpec(), LayerSpec())), "StackSpec.pattern must be no longer than depth, 1"),
    (lambda: MambaSpec(expand=0), "MambaSpec.expand must be at least 1, but is 0."),
    (lambda: MambaSpec(states=0), "MambaSpec.states must be at least 1, but is 0."),
    (lambda: MambaSpec(convolution=0), "MambaSpec.convolution must be at least 1, but is 0."),
    (lambda: MambaSpec(rank=0), "MambaSpec.rank must be None or at least 1, but is 0."),
    (lambda: MambaSpec(steps=(0.1, 0.01)), "MambaSpec.steps must be two positive numbers, the smaller one first, but"),
    (lambda: MambaSpec(steps=(0.0, 0.1)), "MambaSpec.steps must be two positive numbers, the smaller one first, but"),
    (lambda: LayerSpec(cross=MambaSpec()), "A reader of memory needs a mixer that reads a memory, but LayerSpec.cross"),
    (lambda: GELUFeedForwardSpec(dropout=1.0), "GELUFeedForwardSpec.dropout must be at least 0 and below 1, but is 1"),
    (lambda: GELUFeedForwardSpec(ratio=0.0), "GELUFeedForwardSpec.ratio must be positive, but is 0.0."),
    (lambda: SwiGLUFeedForwardSpec(ratio=NAN), "SwiGLUFeedForwardSpec.ratio must be positive, but is nan."),
    (lambda: SwiGLUFeedForwardSpec(multiple=0), "SwiGLUFeedForwardSpec.multiple must be at least 1, but is 0."),
    (
        lambda: GELUFeedForwardSpec(approximate="erf"),
        "GELUFeedForwardSpec.approximate must be 'none', 'tanh' or 'sigmoid', but is 'erf'.",
    ),
    (lambda: GLUFeedForwardSpec(gate="tanh"), "GLUFeedForwardSpec.gate must be 'gelu', 'gelu_tanh', 'relu', 'sigmoid'"),
    (lambda: MixtureOfExpertsSpec(1), "MixtureOfExpertsSpec.experts must be at least 2, but is 1."),
    (
        lambda: MixtureOfExpertsSpec(expert=MixtureOfExpertsSpec()),
        "MixtureOfExpertsSpec.expert must be a feed-forward without experts, but is MixtureOfExpertsSpec(",
    ),
    (
        lambda: MixtureOfExpertsSpec(shared=MixtureOfExpertsSpec()),
        "MixtureOfExpertsSpec.shared must be None or a feed-forward without experts, but is MixtureOfExpertsSpec(",
    ),
    (
        lambda: MixtureOfExpertsSpec(4, router=TokenChoiceSpec(top=5)),
        "TokenChoiceSpec.top must be at most the number of experts, 4, but is 5.",
    ),
    (
        lambda: MixtureOfExpertsSpec(4, router=ExpertChoiceSpec(capacity=4.5)),
        "ExpertChoiceSpec.capacity must be at most the number of experts, 4, but is 4.5.",
    ),
    (lambda: TokenChoiceSpec(top=0), "TokenChoiceSpec.top must be at least 1, but is 0."),
    (lambda: TokenChoiceSpec(top=1), "TokenChoiceSpec.renormalise must be false where top is 1: the gate would be 1"),
    (lambda: TokenChoiceSpec(scores="linear"), "TokenChoiceSpec.scores must be 'softmax' or 'sigmoid', but is"),
    (lambda: TokenChoiceSpec(capacity=0.0), "TokenChoiceSpec.capacity must be None or positive, but is 0.0."),
    (lambda: TokenChoiceSpec(places=0), "TokenChoiceSpec.places must be None or at least 1, but is 0."),
    (lambda: TokenChoiceSpec(capacity=1.0, places=2), "TokenChoiceSpec.capacity must be None where there are places"),
    (lambda: TokenChoiceSpec(balance_loss=-1.0), "TokenChoiceSpec.balance_loss must be at least 0, but is -1.0."),
    (lambda: TokenChoiceSpec(balance_rate=-1.0), "TokenChoiceSpec.balance_rate must be at least 0, but is -1.0."),
    (lambda: TokenChoiceSpec(jitter=1.0), "TokenChoiceSpec.jitter must be at least 0 and below 1, but is 1.0."),
    (lambda: TokenChoiceSpec(z_loss=-1.0), "TokenChoiceSpec.z_loss must be at least 0, but is -1.0."),
    (lambda: ExpertChoiceSpec(capacity=0.0), "ExpertChoiceSpec.capacity must be positive, but is 0.0."),
    (lambda: LayerNormSpec(eps=0.0), "LayerNormSpec.eps must be positive, but is 0.0."),
    (lambda: RMSNormSpec(eps=-1.0), "RMSNormSpec.eps must be positive, but is -1.0."),
    (lambda: StackSpec(0, 1), "StackSpec.width must be at least 1, but is 0."),
    (lambda: StackSpec(8, 0), "StackSpec.depth must be at least 1, but is 0."),
    (
        lambda: StackSpec(8, 1, memory_width=8),
        "StackSpec.memory_width must be None when the layers have no cross mixer",
    ),
    (
        lambda: StackSpec(8, 1, LayerSpec(cross=AttentionSpec()), memory_width=0),
        "StackSpec.memory_width must be at least 1, but is 0.",
    ),
    (
        lambda: AttentionPoolSpec(norm=RMSNormSpec()),
        "AttentionPoolSpec.norm must be left alone when there is no feedforward to normalise for, but is RMSNormSpec(",
    ),
    (lambda: ClassTokenPoolSpec(index=-1), "ClassTokenPoolSpec.index must be at least 0, but is -1."),
    (lambda: ClassTokenPoolSpec(number=0), "ClassTokenPoolSpec.number must be at least 1, but is 0."),
    (lambda: JoinedPoolSpec((LastPoolSpec(),)), "JoinedPoolSpec.pools must be two or more, but is (LastPoolSpec(),)."),
    (lambda: AttentionResamplerSpec(queries=0), "AttentionResamplerSpec.queries must be at least 1, but is 0."),
    (
        lambda: AttentionResamplerSpec(queries=1, class_query=True),
        "AttentionResamplerSpec.queries must be at least 2, but is 1.",
    ),
    (lambda: AttentionResamplerSpec(width=0), "AttentionResamplerSpec.width must be None or at least 1, but is 0."),
    (lambda: PerceiverResamplerSpec(queries=0), "PerceiverResamplerSpec.queries must be at least 1, but is 0."),
    (lambda: PerceiverResamplerSpec(depth=0), "PerceiverResamplerSpec.depth must be at least 1, but is 0."),
    (
        lambda: PerceiverResamplerSpec(attention=AttentionSpec(pattern=WindowSpec())),
        "PerceiverResamplerSpec.attention must be one without a pattern: queries stand nowhere, but is AttentionSpec(",
    ),
    (
        lambda: PerceiverResamplerSpec(feedforward=MixtureOfExpertsSpec()),
        "PerceiverResamplerSpec.feedforward must be a feed-forward without experts, but is MixtureOfExpertsSpec(",
    ),
    (
        lambda: AttentionPoolSpec(feedforward=MixtureOfExpertsSpec()),
        "AttentionPoolSpec.feedforward must be None or a feed-forward without experts, but is MixtureOfExpertsSpec(",
    ),
]


@pytest.mark.parametrize(("make", "words"), SPECS, ids=[words.split(",")[0][:60] for _, words in SPECS])
def test_spec_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        make()


BUILDS: list[tuple[Callable[[], object], str]] = [
    (
        lambda: StackSpec(20, 1, LayerSpec(AttentionSpec(heads=8))).build(),
        "AttentionSpec.heads must divide the stack's width, but 8 heads do not divide 20: "
        "take 10 heads, or a width that is a multiple of 8.",
    ),
    (
        lambda: StackSpec(24, 1, LayerSpec(AttentionSpec(8), cross=AttentionSpec(heads=7))).build(),
        "7 heads do not divide 24: take 6 heads, or a width that is a multiple of 7.",
    ),
    (
        lambda: AttentionPoolSpec().build(20),
        "8 heads do not divide 20",
    ),
    (
        lambda: LayerSpec(cross=HeadlessSpec()),
        "A reader of memory needs a mixer that reads a memory, but LayerSpec.cross is HeadlessSpec(), which does not",
    ),
]


@pytest.mark.parametrize(("build", "words"), BUILDS, ids=[words[:60] for _, words in BUILDS])
def test_build_is_refused(build: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        build()


def tokens(length: int = 3, segment: bool = False) -> Tokens:
    pos = torch.zeros(2, length, 3, dtype=torch.int64)
    return Tokens(torch.zeros(2, length, 16), pos, None, pos[..., 0] if segment else None)


def plain(**options: object) -> Stack:
    return StackSpec(16, 2, LayerSpec(AttentionSpec(2), **options)).build()


def able() -> Stack:
    """One whose second mixer can nothing."""

    class Built(HeadlessSpec):
        def build(self, width: int, memory_width: int | None = None) -> Mixer:
            return AttentionSpec(2).build(width)

    return StackSpec(16, 2, pattern=(LayerSpec(AttentionSpec(2)), LayerSpec(Built()))).build()


PASSES: list[tuple[Callable[[], object], str]] = [
    (
        lambda: plain(cross=AttentionSpec(2))(tokens()),
        "This stack's layers have a cross mixer, but no memory was handed in.",
    ),
    (
        lambda: plain()(tokens(), memory=tokens()),
        "Memory was handed in, but this stack's layers have no cross mixer: set LayerSpec.cross.",
    ),
    (
        lambda: plain()(tokens(), prefix=torch.tensor([1, 1])),
        "A prefix means something only in a causal pass: hand in causal=True.",
    ),
    (lambda: able()(tokens(), causal=True), "This pass needs a mixer that lets a token see itself and those before it"),
    (
        lambda: able()(tokens()._replace(valid=torch.ones(2, 3, dtype=torch.bool))),
        "This pass needs a mixer that passes over tokens that are not valid, but StackSpec.layer.mixer is",
    ),
    (
        lambda: StackSpec(16, 1, LayerSpec(MambaSpec())).build()(tokens()),
        "This pass needs a mixer that lets a token see those after it, but StackSpec.layer.mixer is MambaSpec(",
    ),
    (
        lambda: StackSpec(16, 1, LayerSpec(MambaSpec(bidirectional=True))).build()(tokens(), causal=True),
        "This pass needs a mixer that lets a token see itself and those before it alone, but",
    ),
    (lambda: able()(tokens(segment=True)), "needs a mixer that keeps the segments of a row apart"),
    (
        lambda: plain()(tokens(), intermediates=[0, 2, -1]),
        "Intermediates [2, -1] were asked for, but the layers are 0 to 1.",
    ),
]


@pytest.mark.parametrize(("run", "words"), PASSES, ids=[words[:40] for _, words in PASSES])
def test_pass_is_refused(run: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        run()


@pytest.mark.parametrize("first", [True, False])
def test_segments_in_some_calls_only_are_refused(first: bool) -> None:
    stack = plain()
    state = stack(tokens(segment=first), causal=True, state=stack.empty_state()).state
    with pytest.raises(InputError, match="Either all calls that go on from one another have segments, or none has"):
        stack(tokens(1, segment=not first), causal=True, state=state)


def test_a_state_belongs_to_a_causal_pass() -> None:
    stack = StackSpec(width=8, depth=1, layer=LayerSpec(mixer=AttentionSpec(heads=2))).build()
    tokens = Tokens(torch.zeros(1, 2, 8), torch.zeros(1, 2, 3, dtype=torch.long))
    with pytest.raises(InputError, match=r"state goes on from earlier tokens.*causal=True"):
        stack(tokens, state=stack.empty_state())


def test_a_prefix_comes_with_the_first_call_and_is_remembered() -> None:
    stack = StackSpec(width=8, depth=1, layer=LayerSpec(mixer=AttentionSpec(heads=2))).build().eval()
    torch.manual_seed(0)
    pos = torch.zeros(1, 4, 3, dtype=torch.long)
    x, prefix = torch.randn(1, 4, 8), torch.tensor([2])
    whole = stack(Tokens(x, pos), causal=True, prefix=prefix).tokens.x
    first = stack(Tokens(x[:, :3], pos[:, :3]), causal=True, prefix=prefix, state=stack.empty_state())
    second = stack(Tokens(x[:, 3:], pos[:, 3:]), causal=True, state=first.state)
    torch.testing.assert_close(torch.cat((first.tokens.x, second.tokens.x), 1), whole)
    plain = stack(Tokens(x[:, :3], pos[:, :3]), causal=True, state=stack.empty_state())
    with pytest.raises(InputError, match="prefix belongs to the first"):
        stack(Tokens(x[:, 3:], pos[:, 3:]), causal=True, prefix=prefix, state=plain.state)
