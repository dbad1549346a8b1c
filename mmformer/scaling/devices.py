"""Accelerators as their makers publish them: what they compute at most, and how much they hold."""

from __future__ import annotations

import re
from typing import NamedTuple

from mmformer.errors import InputError, nearest


class Device(NamedTuple):
    """One accelerator."""

    name: str
    memory: float  # bytes, as published (1 GB = 10⁹)
    bfloat16: float  # FLOP/s at most: dense products, without sparsity
    float32: float  # FLOP/s at most, outside tensor cores (TF32 is not float32)

    def peak(self, precision: str) -> float:
        """FLOP/s at most, by ``trainer.precision``."""
        return self.bfloat16 if precision.startswith("bf16") else self.float32


class Devices(NamedTuple):
    """Several of one kind."""

    number: int
    device: Device

    def __str__(self) -> str:
        return f"{self.number}x{self.device.name}"


_PUBLISHED = (
    # name, GB, TFLOP/s in bfloat16 and in float32
    ("A10", 24, 125, 31.2),  # NVIDIA A10 Tensor Core GPU datasheet
    ("A100-40GB", 40, 312, 19.5),  # NVIDIA A100 Tensor Core GPU datasheet
    ("A100", 80, 312, 19.5),  # the same, SXM
    ("B200", 180, 2250, 75),  # NVIDIA HGX B200 specifications, an eighth of a board
    ("H100", 80, 989.4, 66.9),  # NVIDIA H100 Tensor Core GPU architecture whitepaper, SXM5
    ("H200", 141, 989, 67),  # NVIDIA H200 Tensor Core GPU datasheet, SXM
    ("L4", 24, 121, 30.3),  # NVIDIA L4 Tensor Core GPU datasheet
    ("L40S", 48, 362, 91.6),  # NVIDIA L40S datasheet
    ("MI300X", 192, 1307.4, 163.4),  # AMD Instinct MI300X data sheet
    ("RTX3090", 24, 71, 35.6),  # NVIDIA GA102 whitepaper, sums in float32
    ("RTX4090", 24, 165.2, 82.6),  # NVIDIA Ada GPU architecture whitepaper, sums in float32
)
"""Where the maker gives figures with sparsity too, those without."""

DEVICES = {name.lower(): Device(name, gb * 1e9, bf16 * 1e12, fp32 * 1e12) for name, gb, bf16, fp32 in _PUBLISHED}


def read_devices(text: str) -> Devices:
    """``64xH200`` or ``H200``.

    Raises:
        InputError: no number of devices, or none that is known.
    """
    found = re.fullmatch(r"(?:(\d+)\s*[x×])?\s*(\S+)", text.strip(), re.IGNORECASE)
    number = int(found[1] or 1) if found else 0
    known = ", ".join(device.name for device in DEVICES.values())
    if found is None or number < 1:
        raise InputError(
            f"devices are a number and a name, such as 8xH100, but were given as '{text}'. Known: {known}."
        )
    if found[2].lower() not in DEVICES:
        raise InputError(f"there is no device '{found[2]}'.{nearest(found[2].lower(), DEVICES)} Known: {known}.")
    return Devices(number, DEVICES[found[2].lower()])
