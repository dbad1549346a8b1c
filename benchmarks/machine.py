"""What a number was measured on and with."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path


def describe() -> str:
    """One line: processor, cores, Python and the libraries that set the numbers."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "pytorch-lightning", "sentencepiece"))
    cores = len(os.sched_getaffinity(0))
    return f"{_processor()}, {cores} cores, Python {platform.python_version()}, {libraries}"


def kind() -> str:
    """The kind of processor, as a folder may be called: two words at most, "amd_epyc"."""
    words = re.sub(r"\([^)]*\)", " ", _processor()).lower().split()
    return "_".join(re.sub(r"\W", "", word) for word in words[:2]) or "unknown"


def _processor() -> str:
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []
