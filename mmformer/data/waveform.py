"""Sounds as people have them: files, bytes, arrays and tensors with their rate."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mmformer.data.sound import Sound, decode_sound, mix
from mmformer.errors import InputError

Waveform = str | os.PathLike[str] | bytes | bytearray | tuple[NDArray[Any] | Tensor, int]
"""A path, a file's bytes, or (samples, rate): samples S or channels S, floats from -1 to 1, int16 or int32.

Channels are averaged.
"""

Waveforms = Sequence[Waveform]
"""Several."""

_MUST = "a sound must be a path, bytes, or (samples, rate)"


def listed_sounds(audio: Waveform | Waveforms) -> tuple[bool, list[Waveform]]:
    """Whether one sound was given, and the sounds as a list."""
    if isinstance(audio, str | os.PathLike | bytes | bytearray) or _is_pair(audio):
        return True, [cast(Waveform, audio)]
    if isinstance(audio, np.ndarray | Tensor):
        raise InputError(f"{_MUST}, but is an array alone: say how many samples a second it has, (array, 16000).")
    if not isinstance(audio, Sequence):
        raise InputError(f"{_MUST}, or a list of them, but is {type(audio).__name__}.")
    return False, list(cast(Waveforms, audio))


def read_sound(sound: Waveform, name: str, seconds: float | None = None) -> Sound:
    """Any sound, its channels averaged.

    Args:
        sound: of which files are decoded only so far as they are wanted.
        name: what to call it in an error, where it is no file.
        seconds: that are wanted; None: all.

    Raises:
        InputError: a file that is missing or cannot be decoded, or an array that is no sound.
    """
    if isinstance(sound, str | os.PathLike):
        try:
            data = Path(sound).read_bytes()
        except (OSError, ValueError) as error:  # a ValueError for a path that holds a null character
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"{sound}: the sound cannot be read: {reason}.") from error
        return decode_sound(data, str(sound), seconds)
    if isinstance(sound, bytes | bytearray):
        return decode_sound(sound, name, seconds)
    if not _is_pair(sound):
        array = isinstance(sound, np.ndarray | Tensor)
        hint = ": say how many samples a second it has, (array, 16000)" if array else ""
        raise InputError(f"{name}: {_MUST}, but is {type(sound).__name__}{hint}.")
    samples, rate = sound
    if isinstance(samples, Tensor):
        samples = samples.detach().cpu()
        # NumPy has no bfloat16
        samples = (samples.float() if samples.is_floating_point() else samples).numpy()
    return Sound(_from_array(np.asarray(samples), name), _checked_rate(rate, name))


def _is_pair(sound: object) -> bool:
    return isinstance(sound, tuple) and len(sound) == 2 and isinstance(sound[0], np.ndarray | Tensor)


def _checked_rate(rate: object, name: str) -> int:
    if isinstance(rate, bool) or not isinstance(rate, int | np.integer) or rate < 1:
        raise InputError(f"{name}: the rate must be a whole number of samples a second, but is {rate!r}.")
    return int(rate)


def _from_array(samples: np.ndarray, name: str) -> NDArray[np.float32]:
    if samples.ndim not in (1, 2) or not samples.size:
        raise InputError(f"{name}: samples must be S or channels S, but their shape is {samples.shape}.")
    if samples.ndim == 2 and samples.shape[0] > samples.shape[1]:
        raise InputError(
            f"{name}: samples must be S or channels S, but their shape {samples.shape} has more channels than samples: "
            f"hand in its transpose."
        )
    if samples.dtype in (np.int16, np.int32):
        samples = samples.astype(np.float64) / (np.iinfo(samples.dtype).max + 1)
    elif not np.issubdtype(samples.dtype, np.floating):
        raise InputError(f"{name}: samples must be floats, int16 or int32, but are {samples.dtype}.")
    return mix(np.atleast_2d(samples), 0, name)
