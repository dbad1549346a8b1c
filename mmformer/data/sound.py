"""Sounds from bytes to samples: decoded by libsndfile, mixed to one channel, resampled.

The rate is the file's own; what it is resampled to is the transform's. WAV, FLAC, Ogg (Vorbis, Opus) and MP3 are read.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmformer.errors import InputError, describe_bytes
from mmformer.spec import require

MAX_SECONDS = 3600.0
"""Longer sounds are refused by what their header declares, before they are decoded."""

_FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3", "RF64", "W64")


class Sound(NamedTuple):
    """One sound, decoded."""

    samples: NDArray[np.float32]  # S, one channel, -1 to 1
    rate: int  # samples a second


@dataclass(frozen=True)
class AudioTransformSpec:
    """What makes a sound of any rate and length into one that the model reads. A bundle carries it.

    Attributes:
        rate: samples a second that it is resampled to.
        seconds: longer sounds are cut to their first so many.
    """

    rate: int = 16_000
    seconds: float = 10.0

    def __post_init__(self) -> None:
        require(self.rate >= 1, self, "rate", "at least 1 sample a second")
        require(self.seconds > 0, self, "seconds", "positive")

    def __call__(self, sound: Sound) -> NDArray[np.float32]:
        """The samples of a sound at this rate: S, float32."""
        kept = sound.samples[: max(1, int(self.seconds * sound.rate))]
        if sound.rate == self.rate:
            return kept.copy()  # a view would keep all of a long sound
        import torch
        from torchaudio.functional import resample

        resampled: NDArray[np.float32] = resample(torch.from_numpy(kept), *_terms(sound.rate, self.rate)).numpy()
        return resampled


def _terms(old: int, new: int) -> tuple[int, int]:
    """Two rates, as terms that resampling takes: its filters have as many numbers as the product of the terms.

    Rates in use have small terms (441 and 160 from 44,100 to 16,000). Between odd ones, which would take gigabytes,
    stands the nearest ratio of terms up to 1000: off by 0.05 % at most, a hundredth of a semitone.
    """
    low, high = sorted((old, new))
    ratio = Fraction(high, low).limit_denominator(max(1, 1000 * low // high))
    terms = ratio.numerator, ratio.denominator
    return terms if old == high else terms[::-1]


def decode_sound(data: bytes, name: str, max_seconds: float = MAX_SECONDS) -> Sound:
    """The sound in a WAV, FLAC, Ogg or MP3 file, its channels averaged.

    Args:
        data: the file's bytes.
        name: what to call it in an error: its path, or key and extension.
        max_seconds: the length, as the header declares it, above which it is not decoded.

    Raises:
        InputError: it is none of these formats, damaged, empty, too long, or soundfile is not installed.
    """
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.format not in _FORMATS:
                raise InputError(
                    f"{name}: a sound of format {file.format}; WAV, FLAC, Ogg and MP3 are read. Convert it."
                )
            seconds = file.frames / file.samplerate
            if seconds > max_seconds:
                raise InputError(
                    f"{name}: declares {seconds:,.0f} seconds, but at most {max_seconds:,.0f} are read. Cut it first."
                )
            samples, rate, declared = file.read(dtype="float32", always_2d=True), file.samplerate, file.frames
    except (soundfile.SoundFileError, OSError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise _damaged(name, data, getattr(error, "error_string", str(error)).rstrip(".")) from error
    if len(samples) < declared:
        raise _damaged(name, data, f"it declares {declared:,} samples, but has {len(samples):,}")
    if (riff := _riff_length(data)) is not None and riff > len(data):
        raise _damaged(name, data, f"it declares {riff:,} bytes")
    if not len(samples):
        raise InputError(f"{name}: there is no sample in this sound. Replace it or leave it out.")
    if not np.isfinite(samples).all():
        raise InputError(f"{name}: some samples are NaN or infinite. Replace it or leave it out.")
    return Sound(np.ascontiguousarray(samples.mean(axis=1)), rate)


def _damaged(name: str, data: bytes, reason: str) -> InputError:
    # libsndfile's own words, without soundfile's prefix, which names a buffer by its address.
    return InputError(
        f"{name}: not a whole WAV, FLAC, Ogg or MP3 sound ({describe_bytes(data)}): {reason}. "
        "Replace it or leave it out."
    )


def _riff_length(data: bytes) -> int | None:
    """The bytes that a WAV file says it has, which libsndfile does not compare with those that are there.

    None where it does not say: programs that write into a pipe put 0 or a number near the largest.
    """
    if len(data) < 8 or data[:4] != b"RIFF":
        return None
    length = int.from_bytes(data[4:8], "little")
    return length + 8 if 0 < length < 0x7FFF_0000 else None
