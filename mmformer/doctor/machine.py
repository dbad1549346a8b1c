"""One machine by itself: versions, devices, memory that processes share, limits."""

from __future__ import annotations

import importlib
import os
import resource
import shutil
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
from packaging.requirements import Requirement

from mmformer.doctor.finding import Finding

_IMPORTED = ("torchvision", "torchaudio", "pytorch_lightning", "sentencepiece", "soundfile", "timm")
"""Packages with parts of their own that are compiled, or that fit one torch alone: having them does not say that they
import."""
_SHARED = 256 * 2**20
_FILES = 1024
_TOLERANCE = 2e-2


def versions() -> list[Finding]:
    """Whether the installed packages are those that mmformer asks for, and import."""
    found = []
    python = ".".join(map(str, sys.version_info[:3]))
    known = (3, 11) <= sys.version_info[:2] <= (3, 13)
    found.append(Finding("python", "ok" if known else "fault", python, "" if known else "Use Python 3.11 to 3.13."))
    asked = [Requirement(line) for line in requires("mmformer") or []]
    needed = [one for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = [problem for one in needed if (problem := _problem(one))]
    named = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "torchaudio", "pytorch-lightning"))
    fix = "Install what requirements.lock says: make install."
    said = f"{len(needed)} as asked for: {named}" if not wrong else "; ".join(wrong)
    found.append(Finding("packages", "fault" if wrong else "ok", said, fix if wrong else ""))
    broken = [problem for name in _IMPORTED if (problem := _import(name))]
    if broken:
        found.append(Finding("imports", "fault", "; ".join(broken), fix))
    return found


def _problem(asked: Requirement) -> str:
    try:
        there = version(asked.name)
    except PackageNotFoundError:
        return f"{asked.name} is not installed"
    return (
        "" if asked.specifier.contains(there, prereleases=True) else f"{asked.name} is {there}, not {asked.specifier}"
    )


def _import(name: str) -> str:
    try:
        importlib.import_module(name)
    except Exception as error:  # noqa: BLE001  # whatever a package's own code raises
        return f"{name} does not import: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""


def devices() -> list[Finding]:
    """What there is to compute on, and whether it computes right: a product in bfloat16 beside one in float64."""
    if not torch.cuda.is_available():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        said = f"no GPU; {cores} CPU cores, PyTorch uses {torch.get_num_threads()} threads"
        if torch.version.cuda is None:
            return [Finding("devices", "ok", f"{said}; this PyTorch is built without CUDA"), _computes("cpu")]
        return [Finding("devices", "ok", said), _computes("cpu")]
    found = []
    for index in range(torch.cuda.device_count()):
        name, device = torch.cuda.get_device_name(index), f"cuda:{index}"
        free, total = torch.cuda.mem_get_info(index)
        taken = free < 0.9 * total
        said = f"{name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
        fix = "Another program holds its memory: nvidia-smi says which." if taken else ""
        found += [Finding(device, "warning" if taken else "ok", said, fix), _computes(device)]
    return found


def _computes(device: str) -> Finding:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator, dtype=torch.float64) for _ in range(2))
    exact = a @ b
    try:
        made = (a.to(device, torch.bfloat16) @ b.to(device, torch.bfloat16)).double().cpu()
    except RuntimeError as error:
        return Finding(f"{device} computes", "fault", str(error).splitlines()[0], "Look at its driver (dmesg).")
    off = float((made - exact).norm() / exact.norm())
    right = off < _TOLERANCE
    said = f"a product in bfloat16 is off by {off:.1e} of its norm"
    return Finding(f"{device} computes", "ok" if right else "fault", said, "" if right else "Take this device out.")


def shared_memory(workers: int) -> Finding:
    """Where loaders' processes hand over batches; containers often have 64 MiB."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding("shared memory", "ok", "this system has no /dev/shm")
    usage = shutil.disk_usage(folder)
    needed = _SHARED * max(1, workers)
    said = f"{usage.free / 2**30:.1f} of {usage.total / 2**30:.1f} GiB free in /dev/shm"
    if usage.free >= needed:
        return Finding("shared memory", "ok", said)
    fix = f"{workers} loader processes may need {needed / 2**30:.1f} GiB: docker run --shm-size, or data.workers 0."
    return Finding("shared memory", "warning" if usage.free >= _SHARED else "fault", said, fix)


def open_files() -> Finding:
    """How many files a process may open: each shard of a set is one, and each tensor that a worker hands over."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    enough = limit == resource.RLIM_INFINITY or limit >= _FILES
    said = "any number" if limit == resource.RLIM_INFINITY else f"{limit} for each process"
    return Finding("open files", "ok" if enough else "warning", said, "" if enough else f"ulimit -n {_FILES} or more.")


def clock() -> Finding:
    """Whether the time of day goes on as time does, and is after what is installed was made."""
    began, wall = time.monotonic(), time.time()
    time.sleep(0.2)
    drift = (time.time() - wall) - (time.monotonic() - began)
    made = Path(torch.__file__).stat().st_mtime
    said = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    if time.time() < made - 86_400:
        there = f"{datetime.fromtimestamp(made, UTC):%Y-%m-%d}"
        return Finding("clock", "fault", f"{said}, before PyTorch was installed ({there})", "Set it (chrony, ntpd).")
    if abs(drift) > 0.05:
        return Finding("clock", "warning", f"{said}; it jumped by {drift:+.2f} s while looked at", "Look at its NTP.")
    return Finding("clock", "ok", said)
