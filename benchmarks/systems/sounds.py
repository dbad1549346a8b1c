"""Systems that read sounds. Their features are made in the pass, ours and theirs."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.systems.case import DEEP, SHORT, Case, case, logits, transformers_model
from mmformer.types import Audio, Batch

RATE = 16_000


def _sounds(seconds: float) -> Audio:
    samples = 0.1 * torch.randn(2, int(seconds * RATE), generator=torch.Generator().manual_seed(3))
    return Audio(samples, torch.full((2,), samples.shape[1]), RATE)


def _extractor(name: str) -> Any:
    import transformers

    return getattr(transformers, f"{name}FeatureExtractor")()


def _heard(extractor: Any, audio: Audio) -> Any:
    """What an extractor of transformers makes of sounds."""
    return extractor([sound.numpy() for sound in audio.samples], sampling_rate=RATE, return_tensors="pt")


@case
def ast() -> Case:
    extractor, audio = _extractor("AST"), _sounds(10.24)
    return Case(
        transformers_model("AST", "ForAudioClassification", extractor, num_labels=527, **DEEP),
        "2 sounds of 10.24 s",
        lambda m: (m(**_heard(extractor, audio)).logits,),
        lambda m: (m(Batch((), {}, audio=audio)).logits["classes"],),
    )


@case
def whisper() -> Case:
    """The tiny one, which has four layers."""
    extractor, audio, ids = _extractor("Whisper"), _sounds(30.0), SHORT[:2]
    return Case(
        transformers_model("Whisper", "ForConditionalGeneration", extractor),
        "2 sounds of 30 s, 2 × 64 written",
        lambda m: (m(**_heard(extractor, audio), decoder_input_ids=ids, use_cache=False).logits,),
        lambda m: logits(m, ids, audio=audio),
    )
