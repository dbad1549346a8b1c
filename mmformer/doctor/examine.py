"""All that is looked at, on one machine or on the several that a job has."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import torch

from mmformer import collectives
from mmformer.data.sources import DataSpec
from mmformer.doctor import disk, group, machine, shards
from mmformer.doctor.finding import Finding


def examine(data: DataSpec | None, output: Path, processes: int | None) -> list[Finding]:
    """Look at everything.

    Args:
        data: what the run reads; None: no set is looked at.
        output: where it would write.
        processes: how many are tried on this machine, where none were started; None: one a GPU, and at least 2.

    Returns:
        The findings; an empty list in all processes of a job but the first, unless they do not find each other.
    """
    own = group.place(os.environ)
    if own is None:
        tried = processes or max(2, torch.cuda.device_count())
        return [*_here(data, output), *(group.alone(tried) if tried > 1 else [])]
    mine = _here(data, output) if own.local_rank == 0 else []
    named = [finding._replace(check=f"{socket.gethostname()}: {finding.check}") for finding in mine]
    try:
        with group.joined(own):
            every = collectives.gather_values(named)
            shared = group.together(own, disk.existing(output))
    except RuntimeError as error:  # of PyTorch's, where a process is not there, or is lost
        return [*named, group.lost(own.world, str(error).splitlines()[0])]
    return [*(finding for found in every for finding in found), *shared] if own.rank == 0 else []


def _here(data: DataSpec | None, output: Path) -> list[Finding]:
    """What each machine is looked at for by itself."""
    found = [*machine.versions(), *machine.devices()]
    found += [machine.shared_memory(0 if data is None else data.workers), machine.open_files(), machine.clock()]
    found += disk.writes(output)
    return found if data is None else [*found, *shards.reachable(data)]
