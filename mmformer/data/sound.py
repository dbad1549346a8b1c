"""Sounds from bytes to samples: decoded by libsndfile, mixed to one channel, resampled.

The rate is the file's own; what it is resampled to is the transform's. WAV, FLAC, Ogg (Vorbis, Opus) and MP3 are read.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmformer.errors import InputError, describe_bytes
from mmformer.spec import require

if TYPE_CHECKING:  # the command line asks this file what ends like a sound, and must not wait for PyTorch
    from torchaudio.transforms import Resample

MAX_SAMPLES = 360_000_000
"""More, of all channels together, are refused by what the header declares; so many take 1.5 GB while they are decoded:
an hour of stereo at 48 kHz."""

LOUDEST = 16.0
"""Mixing, resampling and lossy formats take floats a little above 1; what is above this was never scaled to it."""

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
        require(0 < self.seconds < math.inf, self, "seconds", "positive and finite")

    @property
    def most(self) -> int:
        """How many samples are kept at most."""
        return _first(self.seconds, self.rate)

    def __call__(self, sound: Sound) -> NDArray[np.float32]:
        """The samples of a sound at this rate: S, float32."""
        kept = sound.samples[: _first(self.seconds, sound.rate)]
        if sound.rate == self.rate:
            return kept.copy()  # a view would keep all of a long sound
        import torch

        resampled: NDArray[np.float32] = resampler(sound.rate, self.rate)(torch.from_numpy(kept)).numpy()
        return resampled


def _first(seconds: float, rate: int) -> int:
    """How many samples so many seconds have; 1 at least."""
    return max(1, int(seconds * rate))


@lru_cache(maxsize=32)
def resampler(old: int, new: int) -> Resample:
    """From one rate to another; its filters take longer to make than to apply."""
    from torchaudio.transforms import Resample

    return Resample(*_terms(old, new))


def _terms(old: int, new: int) -> tuple[int, int]:
    """Two rates, as terms that resampling takes: its filters have as many numbers as the product of the terms.

    Rates in use have small terms (441 and 160 from 44,100 to 16,000). Between odd ones, which would take gigabytes,
    stands the nearest ratio of terms up to 1000: off by 0.05 % at most, a hundredth of a semitone.
    """
    low, high = sorted((old, new))
    ratio = Fraction(high, low).limit_denominator(max(1, 1000 * low // high))
    terms = ratio.numerator, ratio.denominator
    return terms if old == high else terms[::-1]


def decode_sound(data: bytes | bytearray, name: str, seconds: float | None = None, place: float = 0.0) -> Sound:
    """The sound in a WAV, FLAC, Ogg or MP3 file, its channels averaged.

    Args:
        data: the file's bytes.
        name: what to call it in an error: its path, or key and extension.
        seconds: the rest of a longer sound is not decoded; None: all of it is.
        place: where in a longer sound these seconds lie: from 0, they begin it, to 1, they end it.

    Raises:
        InputError: it is none of these formats, damaged, empty, too long, or of values that are no sound.
    """
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.format not in _FORMATS:
                raise InputError(
                    f"{name}: a sound of format {file.format}; WAV, FLAC, Ogg and MP3 are read. Convert it."
                )
            rate = file.samplerate
            wanted = file.frames if seconds is None else min(file.frames, _first(seconds, rate))
            if wanted * file.channels > MAX_SAMPLES:
                raise InputError(
                    f"{name}: declares {file.frames:,} samples of {file.channels} channels, but at most "
                    f"{MAX_SAMPLES:,} values are decoded. Cut it first."
                )
            if begin := int(place * (file.frames - wanted)):
                file.seek(begin)
            samples = file.read(wanted, dtype="float32", always_2d=True)  # S channels
    except (soundfile.SoundFileError, OSError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise _damaged(name, data, getattr(error, "error_string", str(error)).rstrip(".")) from error
    if len(samples) < wanted:
        raise _damaged(name, data, f"it declares {wanted:,} samples, but has {len(samples):,}")
    if (riff := _riff_length(data)) is not None and riff > len(data):
        raise _damaged(name, data, f"it declares {riff:,} bytes")
    if not len(samples):
        raise InputError(f"{name}: there is no sample in this sound. Replace it or leave it out.")
    return Sound(mix(samples, 1, name), rate)


def sound_length(data: bytes) -> tuple[int, int] | None:
    """Samples of each channel and samples a second, as a sound's header declares them; None: it is no sound."""
    import soundfile

    try:
        info = soundfile.info(io.BytesIO(data))
    except (soundfile.SoundFileError, OSError, ValueError, TypeError):
        return None
    return int(info.frames), int(info.samplerate)


def mix(samples: NDArray[np.floating], channels: int, name: str) -> NDArray[np.float32]:
    """The average over the axis of channels.

    Raises:
        InputError: some values are no numbers, or far above 1.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what comes of those is looked for below
        mixed = np.ascontiguousarray(samples.mean(axis=channels), dtype=np.float32)
        loudest = np.abs(mixed).max()
    if not np.isfinite(loudest):
        raise InputError(f"{name}: some samples are NaN or infinite. Replace it or leave it out.")
    if loudest > LOUDEST:
        raise InputError(
            f"{name}: samples of floats must lie within -1 and 1, but span {mixed.min():g} to {mixed.max():g}: "
            f"divide them by the range of the integers that they were, such as 32768."
        )
    return mixed


def _damaged(name: str, data: bytes | bytearray, reason: str) -> InputError:
    # libsndfile's own words, without soundfile's prefix, which names a buffer by its address.
    return InputError(
        f"{name}: not a whole WAV, FLAC, Ogg or MP3 sound ({describe_bytes(data)}): {reason}. "
        "Replace it or leave it out."
    )


def _riff_length(data: bytes | bytearray) -> int | None:
    """The bytes that a WAV file says it has, which libsndfile does not compare with those that are there.

    None where it does not say: programs that write into a pipe put 0 or a number near the largest.
    """
    if len(data) < 8 or data[:4] != b"RIFF":
        return None
    length = int.from_bytes(data[4:8], "little")
    return length + 8 if 0 < length < 0x7FFF_0000 else None
