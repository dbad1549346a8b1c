"""Steps that a device has recorded write what steps write that it was asked for one by one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import tape
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from writers import EOS, KINDS, WORDS, decoding, memory, prompts

from mmformer.generation import captured as capturing
from mmformer.generation import decoding as stepping
from mmformer.generation import packs as packing
from mmformer.generation.beam import BeamSpec
from mmformer.generation.captured import Captured
from mmformer.generation.decoding import Decoding
from mmformer.generation.generation import GenerationSpec, Written
from mmformer.generation.sampling import GreedySpec, SamplingSpec
from mmformer.models.decoder import DecoderSpec
from mmformer.models.encoder import EncoderSpec
from mmformer.models.model import Model, ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.bias import ALiBiPositionSpec, RelativeBucketPositionSpec
from mmformer.nn.feedforward import SwiGLUFeedForwardSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.mamba import MambaSpec
from mmformer.nn.pattern import WindowSpec
from mmformer.nn.position import LearnedPositionSpec, PositionSpec, SinusoidalPositionSpec
from mmformer.nn.rotary import RotaryPositionSpec
from mmformer.nn.stack import StackSpec
from mmformer.tokenizers.image import ImagePatchesSpec
from mmformer.types import Text, Tokens

FIRST = 2
"""The step that is recorded first."""
LONG = replace(WORDS, context_length=48)
SPECS = {
    "greedy": GreedySpec(max_length=13),
    "sampled": SamplingSpec(max_length=13, temperature=1.5),
    "beams": BeamSpec(max_length=13, beams=3, stop="full"),
}


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each step had that went through a recording, of which there is a new one every few ids."""
    taken, step = list[int](), Captured.step

    def watched(self: Captured, ids: torch.Tensor) -> torch.Tensor:
        taken.append(len(ids))
        return step(self, ids)

    monkeypatch.setattr(Captured, "step", watched)
    monkeypatch.setattr(capturing, "can_record", lambda device: True)
    monkeypatch.setattr(capturing, "recorded", tape.recorded)
    monkeypatch.setattr(capturing, "_REFUSED", set())
    monkeypatch.setattr(packing, "can_pack", lambda weights, rows: False)  # as where no CPU is
    monkeypatch.setattr(stepping, "PATIENCE", FIRST)
    monkeypatch.setattr(capturing, "PLACES", 3)
    monkeypatch.setattr(capturing, "ALIGNED", 1)
    return taken


def same(some: list[Written], others: list[Written]) -> None:
    assert [text.ids for text in some] == [text.ids for text in others]
    for one, other in zip(some, others, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-4)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("kind", KINDS)
def test_recorded_steps_write_the_same(
    kind: str, spec: GenerationSpec, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of prompts and inputs of different lengths, whose texts end one after the other."""
    prompt = prompts(6, ragged=True)
    recorded = spec.write(decoding(kind, small=5), prompt)
    assert steps
    assert len(set(steps)) > 1, "rows have ended"
    monkeypatch.setattr(capturing, "can_record", lambda device: False)
    number = len(steps)
    same(recorded, spec.write(decoding(kind, small=5), prompt))
    assert len(steps) == number


POSITIONS: dict[str, PositionSpec] = {
    "none": PositionSpec(),
    "learned": LearnedPositionSpec(sizes=(48,)),
    "waves": SinusoidalPositionSpec(),
    "rotary": RotaryPositionSpec(),
    "alibi": ALiBiPositionSpec(),
    "buckets": RelativeBucketPositionSpec(bidirectional=False),
}


def language_model(position: PositionSpec, layer: LayerSpec) -> Model:
    spec = ModelSpec({"words": StackSpec(16, 2, layer, position)}, {}, {"writer": DecoderSpec(LONG, "words")})
    made = spec.build().eval()
    made.initialise(0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.35)
    return made


@pytest.mark.parametrize("position", POSITIONS.values(), ids=POSITIONS)
def test_any_position_and_grouped_normalised_heads(
    position: PositionSpec, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    attention = AttentionSpec(4, key_value_heads=2, qk_norm=True)
    made, prompt = language_model(position, LayerSpec(attention, SwiGLUFeedForwardSpec())), prompts(4, ragged=True)
    spec = GreedySpec(max_length=40, min_length=40)
    recorded = spec.write(Decoding(made, "writer", {}, 4), prompt)
    assert len(steps) == 39 - len(range(0, 39, 3 + FIRST - 1)), "between two recordings are as many as before the first"
    monkeypatch.setattr(capturing, "can_record", lambda device: False)
    same(recorded, spec.write(Decoding(made, "writer", {}, 4), prompt))


def test_rows_that_have_ended_stay_within_the_positions(steps: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A long prompt's row is full long before the others are."""
    monkeypatch.setattr(capturing, "PLACES", 64)
    made = language_model(LearnedPositionSpec(sizes=(48,)), LayerSpec(AttentionSpec(2)))
    lengths = torch.tensor([1, 2, 1, 40])
    prompt = Text(torch.arange(160).view(4, 40) % 50 + 4, lengths)
    spec = GreedySpec()
    decoder: Any = made.decoders["writer"]
    decoder.tokenizer.unwritten = [EOS]
    recorded = spec.write(Decoding(made, "writer", {}, 4), prompt)
    assert set(steps) == {4, 3, 2}
    monkeypatch.setattr(capturing, "can_record", lambda device: False)
    same(recorded, spec.write(Decoding(made, "writer", {}, 4), prompt))


def test_what_was_held_stays_as_it_was(steps: list[int]) -> None:
    made = decoding("cross", 4)
    with torch.inference_mode():
        logits, progress = made.begin(prompts(4, ragged=True))
        for _ in range(FIRST - 1):
            logits, progress = made.step(logits.argmax(1), progress)
        ids = logits.argmax(1)
        first, recorded = made.step(ids, progress)
        assert isinstance(recorded, Captured)
        again, _ = made.step(ids, progress)
        assert torch.equal(first, again)
        assert torch.equal(made.memory["image"].x, memory(4)["image"].x)


def test_where_a_device_cannot_record_ids_are_written_all_the_same(
    steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(run: Callable[[], None], device: torch.device) -> Callable[[], object]:
        raise RuntimeError("operation not permitted when stream is capturing")

    prompt, spec = prompts(4, ragged=True), GreedySpec(12, 12)
    monkeypatch.setattr(capturing, "recorded", refuses)
    with pytest.warns(UserWarning, match="not permitted when stream is capturing") as told:
        written = spec.write(decoding("cross", 4), prompt)
        spec.write(decoding("cross", 4), prompt)
    assert len(told) == 1, "it is asked once"
    assert len(steps) == 1
    monkeypatch.setattr(capturing, "can_record", lambda device: False)
    same(written, spec.write(decoding("cross", 4), prompt))


def test_where_there_is_no_room_for_it_ids_are_written_all_the_same(
    steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        tried.append(True)
        raise torch.OutOfMemoryError

    tried: list[bool] = []
    prompt, spec = prompts(4, ragged=True), GreedySpec(12, 12)
    monkeypatch.setattr(capturing, "_fixed", full)
    written = spec.write(decoding("cross", 4), prompt)
    assert tried == [True]
    monkeypatch.setattr(capturing, "can_record", lambda device: False)
    same(written, spec.write(decoding("cross", 4), prompt))


def test_what_was_recorded_in_another_mode_is_not_done_again(steps: list[int]) -> None:
    made = decoding("cross", 4)
    seen, held = [], []
    for mode in (torch.inference_mode, torch.no_grad):
        with torch.inference_mode():
            logits, progress = made.begin(prompts(4, ragged=True))
            for _ in range(FIRST):
                logits, progress = made.step(logits.argmax(1), progress)
        assert isinstance(progress, Captured)
        ids = logits.argmax(1).clone()
        with mode():
            logits, progress = made.step(ids.clone(), progress)
        seen.append(logits.detach())
        held.append(isinstance(progress, Captured))
    assert held == [True, False]
    assert torch.allclose(seen[0], seen[1], atol=1e-5)


def test_no_more_places_than_ids_that_may_be_written(steps: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention reads them all."""
    monkeypatch.setattr(capturing, "PLACES", 256)
    made = Decoding(language_model(PositionSpec(), LayerSpec(AttentionSpec(2))), "writer", {}, 2)
    with torch.inference_mode():
        prompt = prompts(2, ragged=False)
        logits, progress = made.begin(prompt)
        for _ in range(LONG.context_length - 1):
            logits, progress = made.step(logits.argmax(1), progress)
    assert isinstance(progress, Captured)
    held = progress._progress.stack.pos
    assert held is not None
    assert held.shape[1] == prompt.ids.shape[1] + LONG.context_length - 1
    assert len(steps) == LONG.context_length - FIRST, "recorded once"


def mixed(mixer: Any) -> Model:
    return language_model(PositionSpec(), LayerSpec(mixer))


def hooked() -> Model:
    made = mixed(AttentionSpec(2))
    first = made.stack_of("words").layers[0]
    assert isinstance(first, nn.Module)
    first.register_forward_hook(lambda *_: None)
    return made


@pytest.mark.parametrize(
    "make",
    [lambda: mixed(MambaSpec()), lambda: mixed(AttentionSpec(2, pattern=WindowSpec(4))), hooked],
    ids=["mamba", "pattern", "hook"],
)
def test_what_is_more_than_softmax_attention_is_not_recorded(make: Callable[[], Model], steps: list[int]) -> None:
    GreedySpec(12, 12).write(Decoding(make(), "writer", {}, 2), prompts(2, ragged=False))
    assert not steps


def test_nothing_is_recorded_on_a_cpu() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = decoding("cross", 4)
        with torch.inference_mode():
            logits, progress = made.begin(prompts(4, ragged=True))
            for _ in range(stepping.PATIENCE + 1):
                logits, progress = made.step(logits.argmax(1), progress)
    assert not isinstance(progress, Captured)


class Alone(TorchDispatchMode):
    """Refuses what has a device wait for the host, or the host for it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        kinds = {tensor.device.type for tensor in tape.tensors((args, kwargs, made)) if tensor.ndim}
        if len(kinds) > 1 or func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError(f"{func} would not be recorded")
        return made


@pytest.mark.parametrize("position", POSITIONS.values(), ids=POSITIONS)
def test_a_step_asks_nothing_of_the_host(
    position: PositionSpec, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device that is made up: its tensors have no data, so that a question to them is refused."""

    def recorded(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
        assert device.type == "cuda"
        with Alone():
            run()
        return run

    monkeypatch.setattr(capturing, "recorded", recorded)
    with torch.no_grad(), FakeTensorMode(), torch.device("cuda"):
        layer = LayerSpec(AttentionSpec(2), SwiGLUFeedForwardSpec(), AttentionSpec(2))
        spec = ModelSpec(
            {"image": StackSpec(16, 1), "words": StackSpec(16, 2, layer, position)},
            {"image": EncoderSpec(ImagePatchesSpec(patch=8), "image")},
            {"writer": DecoderSpec(LONG, "words", {"image": "cross"}, logit_bias=True)},
        )
        made = spec.build().eval()
        x, pos = torch.randn(3, 5, 16), torch.zeros(3, 5, 3, dtype=torch.int64)
        read = {"image": Tokens(x, pos, torch.ones(3, 5, dtype=torch.bool))}
        ids = torch.ones(3, 2, dtype=torch.int64)
        prompt = Text(ids, torch.full((3,), 2), torch.ones(3, 2, dtype=torch.bool))
        writing = Decoding(made, "writer", read, 3)
        logits, progress = writing.begin(prompt)
        for _ in range(3):
            logits, progress = writing.step(logits.argmax(1), progress)
    assert len(steps) == 3 - FIRST + 1
