"""Names spoken by espeak-ng, as Opus in Ogg: 16 kHz, mono, the same bytes each time."""

from __future__ import annotations

import hashlib
import io
import struct
import subprocess
from dataclasses import dataclass

import numpy as np
import soundfile
from numpy.typing import NDArray

RATE = 16_000  # Hz
ESPEAK_RATE = 22_050  # Hz
LEVEL = 0.97  # libsndfile's scale from 256 kbit/s (0) to 6 (1): about 13; from 0.99 on, Opus drops all above 4 kHz
SILENCE = 30  # of 32,768: what espeak-ng appends stays below
TAIL = RATE // 20  # samples kept after the last sound
VOICES = (
    "en-us",
    "en-us+m3",
    "en-us+f2",
    "en-us+f4",
    "en-gb",
    "en-gb+m7",
    "en-gb+f3",
    "en-gb-scotland",
    "en-gb-scotland+f1",
    "en-gb-x-rp+m1",
    "en-gb-x-gbcwmd+f2",
    "en-029",
)
SPEEDS = (130, 140, 150, 160, 170, 180, 190)  # words a minute
_SERIAL = 1  # of the Ogg stream; libsndfile draws one from the clock


@dataclass(frozen=True)
class Speaker:
    """How a clip is spoken."""

    voice: str  # espeak-ng's name: an accent, and a variant of the voice
    rate: int  # words a minute


def speakers(concept: str, clips: int) -> list[Speaker]:
    """A voice and a speed for each clip of a concept, by hash; its clips have different voices."""
    free, chosen = list(VOICES), []
    for clip in range(clips):
        digest = hashlib.sha256(f"speech:{concept}:{clip}".encode()).digest()
        voice = free.pop(int.from_bytes(digest[:4], "big") % len(free))
        chosen.append(Speaker(voice, SPEEDS[int.from_bytes(digest[4:8], "big") % len(SPEEDS)]))
    return chosen


def speak(text: str, speaker: Speaker) -> bytes:
    """An Ogg file of the text, spoken."""
    command = ["espeak-ng", "-v", speaker.voice, "-s", str(speaker.rate), "--stdout", "--", text]
    wav = subprocess.run(command, check=True, capture_output=True).stdout
    sound, rate = soundfile.read(io.BytesIO(wav), dtype="int16")
    if rate != ESPEAK_RATE or sound.ndim != 1:
        raise RuntimeError(f"espeak-ng gave {rate} Hz, {sound.ndim} axes, for {speaker}")
    sound = _resample(sound)
    loud = np.flatnonzero(np.abs(sound.astype(np.int32)) > SILENCE)
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", RATE, 1, format="OGG", subtype="OPUS", compression_level=LEVEL) as file:
        file.write(sound[: int(loud[-1]) + TAIL])
    return _fixed_ogg(buffer.getvalue())


def decode(ogg: bytes) -> tuple[NDArray[np.int16], int]:
    """Samples and rate in Hz."""
    samples, rate = soundfile.read(io.BytesIO(ogg), dtype="int16")
    return samples, int(rate)


def _resample(sound: NDArray[np.int16]) -> NDArray[np.int16]:
    """From 22,050 to 16,000 Hz (441 to 320) by cutting the spectrum at 8 kHz; silence behind keeps the ends apart."""
    blocks = -(-len(sound) // 441) + 10
    spectrum = np.fft.rfft(np.pad(sound.astype(np.float64), (0, blocks * 441 - len(sound))))
    length = blocks * 320
    slower = np.fft.irfft(spectrum[: length // 2 + 1], length) * (320 / 441)
    return np.clip(np.rint(slower), -32768, 32767).astype(np.int16)


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x04C11DB7 if value & 0x80000000 else 0)
        table.append(value & 0xFFFFFFFF)
    return tuple(table)


_CRC = _crc_table()


def _crc(page: bytes) -> int:
    """Ogg's checksum of a page whose checksum field is zero."""
    value = 0
    for byte in page:
        value = ((value << 8) & 0xFFFFFFFF) ^ _CRC[(value >> 24) ^ byte]
    return value


def _fixed_ogg(data: bytes) -> bytes:
    """The same stream with a constant serial number, and without the 760 bytes of padding after its comments."""
    pages, at = [], 0
    while at < len(data):
        flags, granule, _, number, _, count = struct.unpack_from("<xBqIIIB", data, at + 4)
        lacing = data[at + 27 : at + 27 + count]
        start = at + 27 + count
        at = start + sum(lacing)
        body = data[start:at]
        if body.startswith(b"OpusTags"):
            vendor = struct.unpack_from("<I", body, 8)[0]
            body = body[: 12 + vendor] + bytes(4)  # no comments
            lacing = bytes([len(body)])
        head = struct.pack("<4sxBqIIIB", b"OggS", flags, granule, _SERIAL, number, 0, len(lacing)) + lacing
        page = bytearray(head + body)
        page[22:26] = struct.pack("<I", _crc(head + body))
        pages.append(bytes(page))
    return b"".join(pages)
