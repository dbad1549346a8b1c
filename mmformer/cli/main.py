"""``mmformer COMMAND …``: finds the command, runs it, and turns what went wrong into one message.

Nothing heavy is imported here: help and unknown commands answer before torch would have been loaded.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mmformer.errors import CutWarning, InputError, OtherProcessError, nearest

COMMANDS: dict[str, tuple[str, str, str]] = {
    # name: (module, group, what it does)
    "fit": ("train", "Train", "train a model from a YAML file"),
    "find-lr": ("train", "Train", "try learning rates for a run, and suggest one"),
    "validate": ("train", "Train", "measure a run's model on its validation split"),
    "test": ("train", "Train", "measure a run's model on its test split"),
    "plan": ("cost", "Train", "what a run costs on some devices, before it starts"),
    "profile": ("cost", "Train", "where the time of a run's updates goes"),
    "classify": ("classify", "Use a trained model", "name what is in pictures, by any labels"),
    "caption": ("caption", "Use a trained model", "write what pictures or sounds are"),
    "translate": ("write", "Use a trained model", "translate texts"),
    "transcribe": ("write", "Use a trained model", "write down what sounds say"),
    "generate": ("write", "Use a trained model", "write texts with a language model"),
    "retrieve": ("retrieve", "Use a trained model", "find pictures, sounds or texts by any of them"),
    "similarity": ("similarity", "Use a trained model", "compare pictures, sounds and texts"),
    "embed": ("embed", "Use a trained model", "write embeddings of pictures, sounds or texts"),
    "evaluate": ("evaluate", "Measure a trained model", "measure a model on data of your own, with a report"),
    "import": ("interop", "Exchange", "make a bundle of a model of another library"),
    "export": ("interop", "Exchange", "write a model as another library opens it"),
    "merge": ("merge", "Prepare", "merge adapters, of a run or of peft, into a model"),
    "edit": ("edit", "Prepare", "change a model: picture size, patches, words; drop parts of it"),
    "shards": ("shards", "Prepare", "build sets of samples of your data; index, check and look at sets"),
    "vocabulary": ("vocabulary", "Prepare", "train a text vocabulary, or look into one"),
    "curate": ("curate", "Prepare", "leave out duplicates, bad captions and other samples of little use"),
    "parts": ("parts", "Prepare", "list what a stack can be made of: mixers, positions, feed-forwards …"),
    "doctor": ("doctor", "Start", "look at a machine, or a job's machines, before a run does"),
    "init": ("init", "Start", "start a project: a run file to change, places for data, what to do next"),
}

GROUPS = {
    "Start": "mmformer init birds --task clip",
    "Prepare": "mmformer shards build --images pictures/ --captions captions.csv data",
    "Train": "mmformer fit --config configs/runs/emoji_quickstart.yaml",
    "Measure a trained model": "mmformer evaluate BUNDLE --data data/emoji --data.text json:names.en",
    "Exchange": "mmformer import hf:models/gpt2 bundles/gpt2",
    "Use a trained model": 'mmformer retrieve BUNDLE --images pictures/ "a red heart"',
}
"""What commands are for, in the order of the overview, each with an example."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0, 2 for what the user has to act on, 1 for a defect, 130 for an interruption."""
    code = _told(arguments)
    joined = sys.modules.get("mmformer.training.processes")
    if joined is not None:
        joined.leave(code)
    return code


def _told(arguments: Sequence[str] | None) -> int:
    """Run a command, and say what went wrong."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"mmformer {version('mmformer')}")
        return 0
    try:
        with plain_warnings():
            return run(words)
    except InputError as error:
        if debug:
            raise
        print(f"mmformer: {plain(str(error))}", file=sys.stderr)
        return 2
    except OtherProcessError as error:
        return error.code
    except KeyboardInterrupt:
        if debug:
            raise
        print("mmformer: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, `head` say, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # whatever it is, it is told in one line
        if debug:
            raise
        expected = isinstance(error, OSError) and error.errno is not None
        print(f"mmformer: {denied(error) if expected else unexpected(error)}", file=sys.stderr)  # type: ignore[arg-type]
        return 2 if expected else 1


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Inside, what a user is warned of is told as an error is: in one line, and once."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", CutWarning)
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
            if issubclass(category, CutWarning):
                print(f"mmformer: {message}", file=sys.stderr)
            else:
                shown(message, category, *rest)

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def run(words: Sequence[str]) -> int:
    """Dispatch to the command's module.

    Raises:
        InputError: there is no such command.
    """
    name, *rest = words
    if name not in COMMANDS:
        raise InputError(
            f"there is no command '{name}'.{nearest(name, COMMANDS)} The commands are {', '.join(COMMANDS)}; "
            f"mmformer --help says what they do."
        )
    module = importlib.import_module(f"mmformer.cli.{COMMANDS[name][0]}")
    code: int = module.run(name, rest)
    return code


def overview() -> str:
    """The top-level help."""
    lines = ["usage: mmformer COMMAND ...", "", "Train and use multimodal Transformers.", ""]
    for group, example in GROUPS.items():
        lines.append(f"{group}:")
        lines += [f"  {name:<12}{what}" for name, (_, own, what) in COMMANDS.items() if own == group]
        lines += [f"    {example}", ""]
    lines += [
        "BUNDLE is the folder bundle/ in a run's output, such as runs/emoji_quickstart/bundle.",
        "mmformer COMMAND --help says more; --debug shows a traceback where something fails.",
        "Files under configs/ and tokenizers/ come with mmformer; a file of yours of the same name, in",
        "the folder that the command is called in, goes before them.",
    ]
    return "\n".join(lines)


def denied(error: OSError) -> str:
    """What the machine refused: a path and the reason, with the fix of the commonest."""
    fixes = {
        errno.ENOSPC: " Make room there, or write elsewhere.",
        errno.EDQUOT: " Make room there, or write elsewhere.",
        errno.EFBIG: " Raise the limit on the size of files (ulimit -f), or write elsewhere.",
        errno.EACCES: " Change its permissions, or name another path.",
        errno.EPERM: " Change its permissions, or name another path.",
        errno.EROFS: " Name another path.",
    }
    path = next((os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)), "")
    return f"{path}{': ' if path else ''}{error.strerror}.{fixes.get(error.errno or 0, '')}"


def unexpected(error: Exception) -> str:
    """An error that nobody foresaw, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "Original Traceback" in str(error):
        lines = lines[-1:]  # the rest is where, in a loader's worker process
    message = " ".join(lines) or "no message"
    return (
        f"unexpected {type(error).__name__}: {message} (a defect, or something mmformer does not check yet); "
        "--debug shows where"
    )


def plain(message: str) -> str:
    """The message alone, where a loader's worker process wrapped it in its traceback."""
    marker = "InputError: "
    return message.rpartition(marker)[2].strip() if "Original Traceback" in message and marker in message else message
