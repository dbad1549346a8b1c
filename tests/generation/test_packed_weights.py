"""Writing with weights that are packed for it: the same texts, and a model that stays as it is."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import nn
from writers import KINDS, decoding, prompts

from mmformer.generation import packs as packing
from mmformer.generation.beam import BeamSpec
from mmformer.generation.decoding import PATIENCE, Decoding, Progress
from mmformer.generation.generation import GenerationSpec
from mmformer.generation.packs import Packed, Packs
from mmformer.generation.sampling import GreedySpec
from mmformer.nn import prepacked
from mmformer.nn.prepacked import PackedLinear
from mmformer.types import Text


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="PyTorch without MKL")
@pytest.mark.parametrize(
    ("dtype", "processor"), [(torch.float32, "intel"), (torch.float32, "other"), (torch.bfloat16, "other")]
)
@pytest.mark.parametrize("spec", [GreedySpec(max_length=12), BeamSpec(12, beams=2)], ids=["greedy", "beams"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_weights_write_the_same(
    kind: str, spec: GenerationSpec, dtype: torch.dtype, processor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Searches end one after the other, so that there are fewer rows than were packed for."""
    monkeypatch.setattr(prepacked, "_processor", lambda: processor)
    steps, held = list[int](), list[Packed | None]()
    step = Decoding.step

    def watched(self: Decoding, ids: torch.Tensor, progress: Progress) -> Any:
        made = step(self, ids, progress)
        steps.append(len(ids))
        held.append(self._packed)
        return made

    monkeypatch.setattr(Decoding, "step", watched)
    made, prompt = decoding(kind, small=12), prompts(6, ragged=True)
    with autocast(dtype):
        packed = spec.write(made, prompt)
    assert held[: PATIENCE - 1] == [None] * (PATIENCE - 1), "short texts are not worth it"
    last = held[-1]
    assert last is not None
    assert any(isinstance(part, PackedLinear) for part in last.stack.modules())
    assert not any(isinstance(part, PackedLinear) for part in made.stack.modules())
    assert steps[-1] < steps[PATIENCE - 1] or isinstance(spec, GreedySpec), "some searches have ended"
    monkeypatch.setattr(packing, "can_pack", lambda weights, rows: False)
    with autocast(dtype):
        plain = spec.write(decoding(kind, small=12), prompt)
    assert held[-1] is None
    if dtype == torch.float32:
        assert [text.ids for text in packed] == [text.ids for text in plain]
    for one, other in zip(packed, plain, strict=True):  # in bfloat16, near ties may fall either way
        assert one.score == pytest.approx(other.score, abs=1e-4 if dtype == torch.float32 else 0.5)


@pytest.fixture
def exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 in MKL's order, as on Intel's processors: one that is for a number of rows."""
    monkeypatch.setattr(prepacked, "_processor", lambda: "intel")


def autocast(dtype: torch.dtype) -> AbstractContextManager[object]:
    return torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32)


def test_weights_that_changed_are_seen_when_a_text_begins() -> None:
    made, prompt, spec = decoding("cross", 4), prompts(4, ragged=False), GreedySpec(12, 12)
    before = spec.write(made, prompt)
    with torch.no_grad():
        made.decoder.output.weight.neg_()  # type: ignore[union-attr]
    after = spec.write(made, prompt)
    fresh = Decoding.__new__(Decoding)
    fresh.__dict__ = {**made.__dict__, "_packed": None}
    assert [text.ids for text in after] == [text.ids for text in spec.write(fresh, prompt)]
    assert [text.ids for text in after] != [text.ids for text in before]


def test_a_step_has_a_gradient_where_one_is_wanted() -> None:
    made, prompt = decoding("cross", 4), prompts(4, ragged=False)
    with torch.no_grad():
        expected, _ = made.step(torch.full((4,), 7), made.begin(prompt)[1])
    logits, _ = made.step(torch.full((4,), 7), made.begin(Text(prompt.ids, prompt.lengths))[1])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    weight = next(part.weight for part in made.stack.modules() if isinstance(part, nn.Linear))
    (gradient,) = torch.autograd.grad(logits.clamp(min=-9).sum(), [weight])
    assert gradient.abs().max() > 0


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="PyTorch without MKL")
@pytest.mark.usefixtures("exactly")
def test_what_was_packed_is_there_for_the_next_batch_of_its_kind() -> None:
    packs, prompt, spec = Packs(), prompts(4, ragged=False), GreedySpec(12, 12)
    first = decoding("alone", 4)
    first._packs = packs
    expected = spec.write(first, prompt)
    assert packs.held(first.decoder, 4) is None, "a gradient may be wanted"
    with torch.no_grad():
        packed = packs.held(first.decoder, 4)
        assert packed is first._packed
        assert packed is not None
        assert packs.held(first.decoder, 5) is packs.held(decoding("alone", 4).decoder, 4) is None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert packs.held(first.decoder, 4) is None
    again = Decoding.__new__(Decoding)
    again.__dict__ = {**first.__dict__, "_packed": None}
    steps = list[Packed | None]()
    begin, step = Decoding.begin, Decoding.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoding, "begin", lambda self, *given: (begin(self, *given), steps.append(self._packed))[0])
        patch.setattr(Decoding, "step", lambda self, *given: (step(self, *given), steps.append(self._packed))[0])
        assert [text.ids for text in spec.write(again, prompt)] == [text.ids for text in expected]
    assert steps == [packed] * 12, "from the prompt on"


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="PyTorch without MKL")
@pytest.mark.usefixtures("exactly")
def test_texts_that_end_early_do_not_change_what_is_packed_for() -> None:
    """The next batch has as many rows as this one had at first."""
    packs, asked, first = Packs(), list[int](), decoding("alone", 8)
    first._packs = packs
    of = Packed.of
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Packed, "of", staticmethod(lambda *given: (asked.append(given[2]), of(*given))[1]))
        _, progress = first.begin(prompts(8, ragged=False))
        _, progress = first.step(torch.full((8,), 7), progress)
        going = torch.arange(5)
        fewer, progress = first.select(going), progress.take(going, going)
        for _ in range(PATIENCE - 1):
            _, progress = fewer.step(torch.full((5,), 7), progress)
        assert asked == [8]
        assert packs.held(first.decoder, 8) is fewer._packed
        assert packs.held(first.decoder, 5) is None


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="PyTorch without MKL")
def test_onednns_order_is_for_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacked, "_processor", lambda: "other")
    packs, made = Packs(), decoding("alone", 4)
    with torch.no_grad():
        packed = packs.pack(made.decoder, made.stack, 4)
        assert packed is not None
        assert packs.held(made.decoder, 1) is packs.held(made.decoder, 256) is packed
        assert packs.held(made.decoder, 257) is None
