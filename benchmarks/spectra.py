"""Sounds to batches of log-mel spectra beside torchaudio's and transformers' own, called clip by clip; equal values.

    python -m benchmarks.spectra

2,000 clips of 5 seconds at 16 kHz, of which 200 are different, in batches of 32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchaudio
from torch import Tensor
from torch.nn import functional as F

from benchmarks.beside import Row, Work, main
from mmformer.tokenizers.audio import SpectrogramPatchesSpec
from mmformer.tokenizers.kaldi import KaldiFilterbankSpec
from mmformer.tokenizers.spectrogram import SpectrogramSpec
from mmformer.types import Audio

RATE, SECONDS, CLIPS, DIFFERENT, BATCH = 16_000, 5, 2_000, 200, 32


def compared(spec: SpectrogramSpec, theirs: Callable[[Tensor], Tensor]) -> Work:
    """All clips by both; the values of the first batch are compared."""
    clips = torch.randn(DIFFERENT, RATE * SECONDS, generator=torch.Generator().manual_seed(0)) / 10
    batches = [clips[first % DIFFERENT :][:BATCH] for first in range(0, CLIPS, BATCH)]

    def one(batch: Tensor) -> Tensor:
        return spec.spectrogram(Audio(batch, torch.full((len(batch),), batch.shape[1]), RATE))[0]

    def ours() -> None:
        for batch in batches:
            one(batch)

    def its() -> None:
        for batch in batches:
            torch.stack([theirs(clip) for clip in batch])

    mine, other = one(batches[0]), torch.stack([theirs(clip) for clip in batches[0]])
    return Work(ours, its, float((mine - other).abs().max() / other.abs().max()))


def log_mel() -> Work:
    """Our own spectrum is torchaudio's MelSpectrogram, with clips filled up for the last frame."""
    spec = SpectrogramPatchesSpec()
    missing = (spec.frames_of(SECONDS) - 1) * spec.hop + spec.window - RATE * SECONDS
    mel = torchaudio.transforms.MelSpectrogram(
        RATE, n_fft=spec.window, hop_length=spec.hop, f_min=spec.lowest, n_mels=spec.bands, center=False
    )

    def theirs(clip: Tensor) -> Tensor:
        values: Tensor = (mel(F.pad(clip, (0, missing))).clamp(min=1e-5).log().T - spec.mean) / spec.std
        return values

    return compared(spec, theirs)


def kaldi() -> Work:
    """Of the audio spectrogram transformer: transformers' extractor goes through torchaudio's Kaldi, too."""
    import transformers

    made: Any = transformers.ASTFeatureExtractor
    extractor = made(max_length=498)
    spec = SpectrogramPatchesSpec(
        bands=128,
        lowest=20.0,
        mean=extractor.mean,
        std=2 * extractor.std,
        frames=498,
        spectrum=KaldiFilterbankSpec(),
    )

    def theirs(clip: Tensor) -> Tensor:
        values: Tensor = extractor(clip.numpy(), sampling_rate=RATE, return_tensors="pt")["input_values"][0]
        return values

    return compared(spec, theirs)


ROWS = [
    Row(
        f"spectra_{name}",
        f"{CLIPS:,} sounds of {SECONDS} s to {what}",
        peer,
        CLIPS,
        "clips",
        3.0,
        1e-4,
        partial(make),
        because,
        dtype=None,
    )
    for name, what, peer, make, because in (
        (
            "log_mel",
            "log-mel spectra of 64 bands, torchaudio clip by clip",
            "torchaudio",
            log_mel,
            "powers without the magnitude's root; of each 32 bands, only the frequencies that they read; a batch's "
            "logarithms at once",
        ),
        (
            "kaldi",
            "Kaldi's filterbanks of 128 bands, as AST reads them, transformers clip by clip",
            "transformers",
            kaldi,
            "filters are made once, not for each clip; of each 32 bands, only frequencies that they read; a batch's "
            "logarithms at once",
        ),
    )
]

if __name__ == "__main__":
    main(ROWS)
