"""A device that is measured: its own rates, and seconds of what it is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch


class Device(NamedTuple):
    """What is measured on."""

    name: str
    products: float  # FLOP/s of matrix products in bfloat16
    copies: float  # bytes a second, read and written
    small: bool

    def seconds(self, call: Callable[[], object]) -> float:
        self.wait()
        began = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        if self.name == "cuda":
            torch.cuda.synchronize()

    def best(self, call: Callable[[], object], times: int = 10) -> float:
        call()
        return min(self.seconds(call) for _ in range(times))

    def raised(self, call: Callable[[], object]) -> float:
        """MiB by which a call raises what is allocated; not a number where nobody counts."""
        if self.name != "cuda":
            return float("nan")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


def measured(name: str, small: bool) -> Device:
    """A device with its rates."""
    device, size = Device(name, 0.0, 0.0, small), 512 if small else 8192
    a, b = (torch.randn(size, size, device=name, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(2**22 if small else 2**30, dtype=torch.uint8, device=name)
    target = torch.empty_like(source)
    products = 2 * size**3 / device.best(lambda: torch.mm(a, b))
    return device._replace(products=products, copies=2 * source.numel() / device.best(lambda: target.copy_(source)))


def compared(
    device: Device, ours: Callable[[], object], theirs: Callable[[], object]
) -> tuple[list[float], list[float]]:
    """Seconds of both, in the order A B B A, eight times each; the first calls are not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    for call in (ours, theirs, ours, theirs):
        call()
    for _ in range(1 if device.small else 4):
        for which in (0, 1, 1, 0):
            times[which].append(device.seconds((ours, theirs)[which]))
    return times
