"""Training states on the disk: one process writes a file, several write a folder, in which each has its part."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save

from mmformer.errors import InputError
from mmformer.training.sealing import Content, content_of

REST = "meta.pt"
"""What is no tensor of the model or its optimizer, in a folder; the first process writes it."""


def write_state(state: dict[str, Any], path: Path) -> None:
    """Write a state as torch does, but fail with what the disk said.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("wb") as file:
        teller = _Teller(file)
        try:
            torch.save(state, teller)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        except RuntimeError as error:
            raise teller.error or error from None


class _Teller:
    """A file that remembers why it could not be written to: torch says only that it could not."""

    def __init__(self, file: Any) -> None:
        self.file, self.error = file, None  # type: Any, OSError | None

    def write(self, data: Any) -> int:
        try:
            return int(self.file.write(data))
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self.file.flush()


def write_part(state: dict[str, Any], folder: Path, group: dist.ProcessGroup) -> dict[str, Content]:
    """Write this process's part of a state, in the layout that Lightning has for it; the content of all parts.

    Args:
        group: of all processes, used for nothing else at the time. Each reads what it wrote: the disk may be far away.

    Raises:
        OSError: one of the processes cannot write; all raise it.
        InputError: the first process does not find what others wrote.
    """
    rank = dist.get_rank(group)
    rest = {name: value for name, value in state.items() if name not in ("state_dict", "optimizer_states")}
    tensors = {"state_dict": state["state_dict"]}
    tensors |= {f"optimizer_{place}": each for place, each in enumerate(state["optimizer_states"])}
    try:
        save(tensors, checkpoint_id=folder, process_group=group)
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        raise next((cause for cause in causes if isinstance(cause, OSError)), RuntimeError(str(causes[0]))) from None
    if rank == 0:
        write_state(rest, folder / REST)
    contents = {path.name: content_of(path) for path in folder.iterdir() if _owner(path.name) == rank}
    told: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(told, contents, group=group)
    everything = {name: content for part in told for name, content in part.items()}
    if rank == 0:
        _check_there(folder, everything)
    return everything


def _check_there(folder: Path, contents: Mapping[str, Content]) -> None:
    """Refuse a folder that is another one on other machines, in which they wrote their parts."""
    for name, content in contents.items():
        try:
            with (folder / name).open("rb") as file:  # opened, because file servers' clients remember sizes a while
                size = os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            size = None
        if size != content.size:
            found = "is not here" if size is None else f"has {size:,} bytes here"
            raise InputError(
                f"{folder.parent}: process {_owner(name)} wrote {content.size:,} bytes to {folder.name}/{name}, which "
                f"{found}: all machines have to share the folder that --output names. No checkpoint was made."
            )


def _owner(name: str) -> int:
    """Who wrote a file: a part has its process's number, ``__1_0.distcp``, and what belongs to none is the first's."""
    return int(name[2:].partition("_")[0]) if name.startswith("__") else 0
