"""``mmformer init``: the beginning of a project of one's own."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mmformer import resources
from mmformer.cli import arguments
from mmformer.errors import InputError
from mmformer.files import whole_folder

_EXAMPLES = """examples:
  mmformer init flowers --task classify
  mmformer init birdsong --task audio-text
"""


class Task(NamedTuple):
    """What a project may be for."""

    what: str
    raw: str  # the folder that what the user has goes to


TASKS = {
    "clip": Task("find pictures by texts, and texts by pictures", "raw/pictures"),
    "caption": Task("write what pictures are", "raw/pictures"),
    "classify": Task("tell classes of pictures apart", "raw"),
    "audio-text": Task("find sounds by texts, and texts by sounds", "raw/sounds"),
}


def run(command: str, words: Sequence[str]) -> int:
    """Run ``mmformer init WORDS``; the exit code.

    Raises:
        InputError: wrong words, or a folder that is in use.
    """
    return arguments.run(add_parser, command, words)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``init`` to the command line."""
    init = subparsers.add_parser(
        "init",
        description="Start a project: a folder with a run file to change, places for data, and what to do next.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    init.add_argument("folder", metavar="DIR", help="the folder to make; it may be there, if it is empty")
    tasks = "; ".join(f"{name}: {task.what}" for name, task in TASKS.items())
    init.add_argument("--task", choices=TASKS, default="clip", help=f"{tasks} (default: %(default)s)")
    init.set_defaults(run=_init)


def _init(args: argparse.Namespace) -> int:
    folder = Path(args.folder).absolute()
    if folder.is_dir():
        if any(folder.iterdir()):
            raise InputError(f"{args.folder}: this folder has something in it: name another one, or an empty one.")
        _write(folder, args.task)
    elif folder.exists():
        raise InputError(f"{args.folder} is a file: name a folder.")
    else:
        with whole_folder(folder) as partial:
            _write(partial, args.task)
    print(f"{args.folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    print(f"What to do next is in {Path(args.folder) / 'README.md'}.")
    return 0


def _write(folder: Path, task: str) -> None:
    projects = resources.FOLDER / "projects"
    shutil.copyfile(projects / "gitignore", folder / ".gitignore")
    for file in sorted((projects / task).iterdir()):
        shutil.copyfile(file, folder / file.name)
    (folder / TASKS[task].raw).mkdir(parents=True)
