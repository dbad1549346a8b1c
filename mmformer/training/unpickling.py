"""Checkpoints as data alone: what torch.distributed.checkpoint unpickles of a folder is looked at before.

A pickle calls whatever it names. One file, and each process's part of a folder, torch reads as tensors and plain values
when it is told to; the folder's table of contents, ``.metadata``, it unpickles whatever it is told.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mmformer.errors import InputError

_METADATA = ".metadata"
_TABLE = "torch.distributed.checkpoint.metadata"
_OWN = (
    *("Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "BytesStorageMetadata"),
    *("MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"),
)
ALLOWED = frozenset(
    {
        *((_TABLE, name) for name in _OWN),
        *(("torch.distributed.checkpoint.filesystem", name) for name in ("_StorageInfo", "_StoragePrefix")),
        ("torch.serialization", "_get_layout"),
        ("torch", "Size"),
        ("collections", "OrderedDict"),
        *(("pathlib", name) for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath")),
        *(("torch", name) for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
    }
)
"""What a table of contents may name: its own classes, sizes, types and paths. None of them does more when called."""

_FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch's own switch: what it loads is data, even where it is told otherwise


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


@contextmanager
def as_data(state: Path) -> Iterator[None]:
    """Inside, torch loads a checkpoint, and runs nothing of it.

    Args:
        state: the file, or the folder of parts.

    Raises:
        InputError: its table of contents names anything else than what such a table has.
    """
    if state.is_dir():
        check_metadata(state)
    before = os.environ.get(_FORCED)
    os.environ[_FORCED] = "1"
    try:
        yield
    except pickle.UnpicklingError as error:
        raise _refused(state, error) from error
    finally:
        if before is None:
            del os.environ[_FORCED]
        else:
            os.environ[_FORCED] = before


def check_metadata(folder: Path) -> None:
    """Refuse a folder of parts whose table of contents would run something, or names files outside of it.

    Raises:
        InputError: it does, or cannot be read.
    """
    file = folder / _METADATA
    try:
        with file.open("rb") as opened:
            table = _Unpickler(opened).load()
        places = [str(info.relative_path) for info in table.storage_data.values()]
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}.") from error
    except Exception as error:  # a damaged pickle may make its classes raise anything
        raise _refused(file, error) from error
    if outside := next((place for place in places if Path(place).name != place), None):
        raise InputError(f"{file} names {outside}, which is not beside it: it is not what mmformer wrote.")


def _refused(where: object, error: Exception) -> InputError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(
        f"{where} is damaged, or not a checkpoint of mmformer's: {reason.rstrip('.')}. Code in such files is never "
        f"run; go on from another checkpoint, or hand weights on as a bundle."
    )
