"""Several processes: whether they find each other, add up right and fast, and agree on the time and on versions.

Where torchrun or SLURM started this program, its processes are those; otherwise some are started here, on this machine
alone.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from mmformer import collectives
from mmformer.doctor.finding import Finding

_FLOATS = 16 * 2**20
_ROUNDS = 5
_WAIT = 60
_APART = 1.0


class Place(NamedTuple):
    """Which of the processes this is."""

    rank: int
    world: int
    local_rank: int


def place(environment: Mapping[str, str]) -> Place | None:
    """Which process torchrun or SLURM started this as; None: they did not."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return Place(int(environment["RANK"]), int(environment["WORLD_SIZE"]), int(environment.get("LOCAL_RANK", 0)))
    if "SLURM_PROCID" in environment and int(environment.get("SLURM_NTASKS", 1)) > 1 and "MASTER_ADDR" in environment:
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
        return Place(*(int(environment[name]) for name in names))
    return None


@contextmanager
def joined(own: Place) -> Iterator[None]:
    """Inside, this process is one of a group: over NCCL where each has a GPU, over gloo elsewhere."""
    device = _device(own)
    os.environ.setdefault("MASTER_PORT", "29500")
    options: dict[str, Any] = {"rank": own.rank, "world_size": own.world, "timeout": timedelta(seconds=_WAIT)}
    if device.type == "cuda":
        torch.cuda.set_device(device)
        options["device_id"] = device
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", **options)
    try:
        yield
    finally:
        dist.destroy_process_group()


def together(own: Place, output: Path | None) -> list[Finding]:
    """What a group finds; every process of it has to ask, inside ``joined``."""
    device = _device(own)
    found = [_sums(device), _times(), _alike(device)]
    if output is not None and own.world > 1:
        found.append(_shared(own, output))
    return found


def alone(processes: int) -> list[Finding]:
    """The same with so many processes of this machine, which are started and end here."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "mmformer.doctor.group"],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        said = [process.communicate(timeout=2 * _WAIT) for process in started]
    except subprocess.TimeoutExpired:
        return [lost(processes, f"no answer in {2 * _WAIT} s")]
    finally:
        for process in started:
            with process:  # which closes its pipes, too
                process.kill()
    if any(process.returncode for process in started):
        errors = [lines[-1] for _, error in said if (lines := error.strip().splitlines())]
        return [lost(processes, errors[0] if errors else "they ended without a word")]
    return [Finding(*line.split("\t")) for line in said[0][0].splitlines()]  # type: ignore[arg-type]


def lost(processes: int, why: str) -> Finding:
    """What there is to say where processes do not meet."""
    fix = "Look at the firewall, and at NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME, which name the network to take."
    return Finding("all-reduce", "fault", f"{processes} processes do not find each other: {why}", fix)


def _device(own: Place) -> torch.device:
    each = torch.cuda.is_available() and own.local_rank < torch.cuda.device_count()
    return torch.device("cuda", own.local_rank) if each else torch.device("cpu")


def _sums(device: torch.device) -> Finding:
    """The sum of 64 MiB of each process, whose value is known."""
    world, rank = collectives.world_size(), collectives.rank()
    seconds, right = [], True
    for _ in range(_ROUNDS):
        values = torch.full((_FLOATS,), float(rank + 1), device=device)
        collectives.barrier()
        began = time.monotonic()
        dist.all_reduce(values)
        right &= bool((values == world * (world + 1) / 2).all())  # which waits for the device
        seconds.append(time.monotonic() - began)
    everywhere = not collectives.any_rank(not right, device)
    # Each process sends and takes 2 (n - 1) / n of the whole (nccl-tests, "bus bandwidth").
    rate = 2 * (world - 1) / world * 4 * _FLOATS / min(seconds) / 2**30
    said = f"{world} processes over {dist.get_backend()}: 64 MiB in {1000 * min(seconds):.1f} ms, {rate:.1f} GiB/s"
    if everywhere:
        return Finding("all-reduce", "ok", said)
    return Finding("all-reduce", "fault", f"{said}; the sum is wrong", "Take machines out until it is right.")


def _times() -> Finding:
    """All say the time after a barrier."""
    collectives.barrier()
    clocks = collectives.gather_values(time.time())
    hosts = collectives.gather_values(socket.gethostname())
    apart = max(clocks) - min(clocks)
    number = len(set(hosts))
    said = f"{number} machine{'s' * (number > 1)}, {apart:.2f} s apart"
    if apart < _APART:
        return Finding("clocks", "ok", said)
    late = hosts[clocks.index(min(clocks))]
    return Finding("clocks", "warning", said, f"Set them (chrony, ntpd); {late} is the latest.")


def _alike(device: torch.device) -> Finding:
    """Whether all have the same packages and the same kind of device."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    own = (sys.version.split()[0], version("torch"), version("pytorch-lightning"), version("mmformer"), kind)
    every = dict(zip(collectives.gather_values(socket.gethostname()), collectives.gather_values(own), strict=True))
    if len(set(every.values())) == 1:
        return Finding("machines alike", "ok", f"Python {own[0]}, torch {own[1]}, {kind}")
    said = "; ".join(f"{host}: {', '.join(what)}" for host, what in every.items())
    return Finding("machines alike", "fault", said, "Use one environment, and one kind of device, everywhere.")


def _shared(own: Place, output: Path) -> Finding:
    """Whether what the first writes is there for all."""
    mark = output / f".mmformer-doctor-{collectives.gather_values(os.getpid())[0]}"
    if own.rank == 0:
        mark.write_text("here", encoding="utf-8")
    collectives.barrier()
    there = collectives.gather_values((socket.gethostname(), mark.is_file()))
    collectives.barrier()
    if own.rank == 0:
        mark.unlink()
    absent = sorted({host for host, seen in there if not seen})
    if not absent:
        return Finding("output everywhere", "ok", f"{output} is one folder for all")
    fix = "Name a folder that all machines share with --output."
    return Finding("output everywhere", "fault", f"{output}: what one writes is not there on {', '.join(absent)}", fix)


def _main() -> None:
    own = place(os.environ)
    assert own is not None, "started by alone()"
    with joined(own):
        found = together(own, None)
    if own.rank == 0:
        print("\n".join("\t".join(finding) for finding in found))


if __name__ == "__main__":
    _main()
