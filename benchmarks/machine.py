"""What a number was measured on and with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path


def describe() -> str:
    """One line: processor, cores, Python and the libraries that set the numbers."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "pytorch-lightning", "sentencepiece"))
    cores = len(os.sched_getaffinity(0))
    return (
        f"{names[0] if names else platform.processor()}, {cores} cores, Python {platform.python_version()}, {libraries}"
    )


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []
