"""A run's folder: what is there already, what may go on from it, what may take its place."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from mmformer.config import parse, read_yaml, to_data
from mmformer.errors import InputError
from mmformer.files import PARTIAL, tidy
from mmformer.training.checkpoint import (
    Found,
    newest_checkpoint,
    remove_unfinished,
    set_aside,
    step_of,
    whole_checkpoints,
)
from mmformer.training.lock import LOCK, FolderLock
from mmformer.training.run import RunSpec

MAY_CHANGE = (
    "trainer.max_steps",
    "trainer.accelerator",
    "trainer.log_every_n_steps",
    "trainer.enable_progress_bar",
    "checkpoint",
    "divergence",
    "evaluation",
    "early_stopping",
    "logging",
    "watchdog",
    "data.validation",
    "data.test",
    "data.evaluation_batch_size",
    "data.on_damage",
    "data.most_skipped",
    "data.copies",
    "parallel",
    "data.workers",
    "data.cache_mib",
)
"""What a resumed run may say differently: anything else would make it another run from there on."""


def check_new(output: Path, overwrite: bool) -> None:
    """Refuse a folder that a new run may not use; nothing is changed yet.

    Raises:
        InputError: it is a file, holds a run (and ``overwrite`` is false), or holds something else.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file, but must be a folder for the run's output: name another with --output.")
    if not output.exists() or all(_is_left(path) for path in output.iterdir()):
        return
    if not (output / "config.yaml").exists():
        raise InputError(f"{output}: holds something that is not a run's output: name another folder (--output DIR).")
    if holds_work(output) and not overwrite:
        raise InputError(
            f"{output}: a run's output is there already: go on with it (--resume), replace it (--overwrite), "
            f"or name another folder (--output DIR)."
        )


def check_resumed(run: RunSpec, output: Path) -> Path:
    """The state that a run goes on from: of the newest checkpoint that is as it was written.

    Newer ones, which are damaged, are told and set aside. The first process alone looks, and tells the others
    (``MeshStrategy.of_first``): what each finds by itself might be another one.

    Raises:
        InputError: there is none, none can be read now, or this run is not the one that wrote it.
    """
    found = newest_checkpoint(output)
    if found.newest is None:
        told = "".join(f"{state.parent.name} is damaged ({wrong}); " for state, wrong in found.damaged.items())
        raise InputError(
            f"{output}: there is no whole checkpoint to resume from: {told}start the run without --resume, and set "
            f"--checkpoint.every_steps so that there will be one."
        )
    _check_same(run, output)
    done = step_of(found.newest)
    if run.trainer.max_steps < done:
        raise InputError(
            f"{output}: trainer.max_steps is {run.trainer.max_steps}, but {done} updates are done already "
            f"({found.newest.parent}): set it to {done} or more."
        )
    for folder in (output, output / "top"):
        tidy(folder)
    remove_unfinished(output)  # of a large model, the disk may have no room for another one beside it
    _tell_damaged(found)
    set_aside(found.damaged)
    return found.newest


def _tell_damaged(found: Found) -> None:
    assert found.newest is not None
    for state, wrong in found.damaged.items():
        print(
            f"mmformer: {state.parent} is damaged: {wrong}. It is set aside as {state.parent.name}.damaged, and the "
            f"run goes on from {found.newest.parent.name}.",
            file=sys.stderr,
        )


def _check_same(run: RunSpec, output: Path) -> None:
    """Refuse to go on with another run than the one whose folder it is."""
    saved = output / "config.yaml"
    before, now = _leaves(to_data(parse(RunSpec, read_yaml(saved), str(saved)))), _leaves(to_data(run))
    changed = [
        f"{key}: {before.get(key, 'absent')} before, {now.get(key, 'absent')} now"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key) and not any(key == may or key.startswith(f"{may}.") for may in MAY_CHANGE)
    ]
    if changed:
        raise InputError(
            f"{output}: this is another run than the one to resume ({saved}): {'; '.join(changed[:4])}. Resume it as "
            f"it was (--output {output} --resume, and nothing else), or start the new one in another folder."
        )


def begin(output: Path, overwrite: bool, lock: FolderLock) -> None:
    """Make the folder of a new run, and take its lock; what a former run left is removed only now.

    Raises:
        InputError: it cannot be written to, or another run does.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock.take()
        left = [path for path in output.iterdir() if path.name != LOCK]
        if not overwrite and not (output / "config.yaml").exists():
            left = [path for path in left if _is_left(path)]
        # By its configuration a folder is a run's: it goes last, for this may be killed.
        for path in sorted(left, key=lambda path: path.name == "config.yaml"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as error:
        raise InputError(
            f"{output}: the folder cannot be made: {error.strerror}: name another with --output."
        ) from error


def _is_left(path: Path) -> bool:
    """Whether this is all that a run leaves that was killed while it wrote its first file."""
    return path.name == LOCK or (path.name.startswith(".config.yaml.") and path.name.endswith(PARTIAL))


def holds_work(output: Path) -> bool:
    """Whether a folder has anything that training made: what a start that failed leaves is not worth keeping."""
    return bool(whole_checkpoints(output)) or (output / "bundle").exists() or (output / "best").exists()


def _leaves(data: Any, key: str = "") -> dict[str, Any]:
    """Nested plain data by dotted keys."""
    if isinstance(data, dict) and data:
        parts = [_leaves(value, f"{key}.{name}" if key else str(name)) for name, value in data.items()]
        return {name: value for part in parts for name, value in part.items()}
    if isinstance(data, list) and data:
        parts = [_leaves(value, f"{key}.{place}") for place, value in enumerate(data)]
        return {name: value for part in parts for name, value in part.items()}
    return {key: data}
