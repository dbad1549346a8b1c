"""What of a process is in memory."""

from __future__ import annotations

import resource
from pathlib import Path


def resident() -> int:
    """Bytes of this process that are in memory, those of mapped files among them."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    """The most that there were of this program.

    A process that was started has the most of the one that started it in its ``ru_maxrss``: not in this.
    """
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def own_pages() -> float:
    """MiB that this process alone has written."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024
