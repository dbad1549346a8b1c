"""Pictures, sounds and lists of texts as people name them on a command line."""

from __future__ import annotations

import glob
import sys
from collections.abc import Sequence
from pathlib import Path

from mmformer.data.decode import DECODERS, decode_image
from mmformer.data.sound import decode_sound
from mmformer.errors import InputError, nearest_file

WORDS = {"image": "picture", "audio": "sound", "text": "text"}
"""What a value of a modality is called."""

PICTURES = "A picture is a file, a folder (all in it and below), or a pattern in quotes such as 'shots/*.png'."
SOUNDS = "A sound is a file, a folder (all in it and below), or a pattern in quotes such as 'calls/*.wav'."
"""For a command's help."""

SUFFIXES = {
    modality: tuple(f".{extension}" for extension, decoder in DECODERS.items() if decoder is decode)
    for modality, decode in (("image", decode_image), ("audio", decode_sound))
}
"""How the names of pictures and sounds end."""


def find(modality: str, given: Sequence[str]) -> list[str]:
    """The paths that files, folders and patterns name, each once, in this order; the files of a folder are sorted.

    A file that is named itself is taken whatever its name; a folder or a pattern gives what has one of the suffixes.
    Hidden files are left out of folders.

    Raises:
        InputError: no such file, or a folder or pattern that gives none.
    """
    kind, suffixes = WORDS[modality], SUFFIXES[modality]
    found: dict[Path, None] = {}
    for name in given:
        path = Path(name)
        if is_file(name):
            found[path] = None
        elif _exists(path):
            found |= dict.fromkeys(_in_folder(path, kind, suffixes))
        elif glob.has_magic(name):
            found |= dict.fromkeys(_matches(name, kind, suffixes))
        else:
            raise InputError(f"{name}: there is no such file or folder.{nearest_file(path)}")
    return [str(path) for path in found]


def is_file(name: str) -> bool:
    """Whether a word is a file's name; a long text is none."""
    try:
        return Path(name).is_file()
    except OSError:
        return False


def split_list(lists: Sequence[str], option: str) -> list[str]:
    """The texts between the commas of some arguments, without the white space around them.

    Raises:
        InputError: there are none.
    """
    texts = [text.strip() for part in lists for text in part.split(",")]
    if not any(texts):
        raise InputError(f"{option} is empty: write it as {option} 'cat,dog,pizza'.")
    return [text for text in texts if text]


def read_lines(path: str) -> list[str]:
    """The texts in a file, one a line, without empty lines and white space around them.

    Raises:
        InputError: no such file, one that is not UTF-8, or nothing in it.
    """
    texts = [line for line in read_all_lines(path) if line]
    if not texts:
        raise InputError(f"{path}: there is nothing in it; write one a line.")
    return texts


def read_all_lines(path: str) -> list[str]:
    """The lines of a file, or of what is piped in where it is ``-``, without white space around them, empty ones among
    them. Newlines end them, and nothing else that Unicode knows does.

    Raises:
        InputError: no such file, or one that is not UTF-8.
    """
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason}). Convert it to UTF-8.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.{nearest_file(path)}") from error
    return [line.strip() for line in text.removesuffix("\n").split("\n")]


def _in_folder(folder: Path, kind: str, suffixes: tuple[str, ...]) -> list[Path]:
    found = [path for path in sorted(folder.rglob("*")) if _is_one(path, suffixes) and not _hidden(path, folder)]
    if not found:
        raise InputError(f"{folder}: there is no {kind} ({', '.join(suffixes)}) in this folder or below it.")
    return found


def _matches(pattern: str, kind: str, suffixes: tuple[str, ...]) -> list[Path]:
    # pathlib's own patterns must be relative
    matches = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207
    named = [path for path in matches if _is_one(path, suffixes)]
    if not named:
        found = f"{len(matches)} files or folders, but none is a {kind} ({', '.join(suffixes)})"
        raise InputError(f"The pattern '{pattern}' matches {found if matches else 'nothing'}.")
    return named


def _is_one(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.suffix.lower() in suffixes and path.is_file()


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long, for one
        return False
