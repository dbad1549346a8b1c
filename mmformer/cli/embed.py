"""``mmformer embed``: embeddings of pictures, sounds and texts, into a file."""

from __future__ import annotations

import argparse
import json
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmformer.cli import bundles
from mmformer.cli.arguments import Parser, check_replaces
from mmformer.cli.bundles import add_encoder, add_texts, listed, load
from mmformer.cli.inputs import PICTURES, SOUNDS, find
from mmformer.cli.output import print_json, progress, short
from mmformer.errors import InputError


def run(command: str, words: Sequence[str]) -> int:
    """Run ``mmformer embed WORDS``; the exit code.

    Raises:
        InputError: wrong words, or what they name cannot be used.
    """
    return bundles.run(command, words, _add_embed, _embed)


def _add_embed(parser: Parser) -> None:
    parser.description = (
        "Write embeddings of pictures, sounds and texts: float32, of unit length, by path or text.\n"
        f"{PICTURES}\n{SOUNDS}"
    )
    parser.epilog = """examples:
  mmformer embed BUNDLE --images shots/ --output shots.npz        # numpy.load("shots.npz")["shots/cat.png"]
  mmformer embed BUNDLE --images a.png b.png --texts "cat,dog" --output both.jsonl
  mmformer embed BUNDLE --audio calls/ --output calls.safetensors
  mmformer embed BUNDLE --texts-file names.txt --json"""
    files = "files, folders or patterns"
    parser.add_argument("--images", nargs="+", action="extend", default=[], metavar="PICTURE", help=files)
    # Called audio as in Python, and sounds as in the other commands.
    parser.add_argument("--audio", "--sounds", nargs="+", action="extend", default=[], metavar="SOUND", help=files)
    add_texts(parser.add_mutually_exclusive_group(), "texts")
    add_encoder(parser)
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--output", metavar="FILE", help=f"the file to write, {' or '.join(_WRITERS)}")
    output.add_argument("--json", action="store_true", help="print them as JSON instead")
    parser.add_argument("--overwrite", action="store_true", help="replace the file that is there")


class _Embedded(NamedTuple):
    kind: str  # image, audio or text
    key: str  # its path, or itself
    vector: np.ndarray

    def plain(self) -> dict[str, Any]:
        return {self.kind: self.key, "embedding": [short(value) for value in self.vector.tolist()]}


def _embed(args: argparse.Namespace) -> int:
    texts = listed(args.texts, "--texts", args.texts_file) or []
    if not texts and not args.images and not args.audio:
        raise InputError("embed needs --images, --audio, --texts or --texts-file.")
    if args.output is None and not args.json:
        raise InputError(f"embed needs a file to write, --output FILE ({', '.join(_WRITERS)}), or --json to print.")
    target = None if args.output is None else _checked_output(Path(args.output), args.overwrite)
    given: dict[str, list[str]] = {
        "image": find("image", args.images),
        "audio": find("audio", args.audio),
        "text": texts,
    }
    keys = [key for values in given.values() for key in values]
    _check_keys(keys, target.suffix if target else "")
    model = load(args)
    rows: list[_Embedded] = []
    with progress("embedding", len(keys), args.batch_size) as done:
        for kind, values in given.items():
            vectors: Any = model.embed(**{kind: values}, progress=done).numpy() if values else []
            rows += [_Embedded(kind, *pair) for pair in zip(values, vectors, strict=True)]
    if target is None:
        print_json(row.plain() for row in rows)
        return 0
    partial = target.with_name(target.name + ".partial")
    try:
        _WRITERS[target.suffix](partial, rows)
        partial.replace(target)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror}.") from error
    finally:
        partial.unlink(missing_ok=True)
    print(f"{target}: {len(rows):,} embeddings of {len(rows[0].vector)} numbers")
    return 0


def _write_npz(path: Path, rows: Sequence[_Embedded]) -> None:
    # numpy.savez takes the names as keyword arguments, some of which are its own.
    with zipfile.ZipFile(path, "w") as archive:
        for row in rows:
            with archive.open(zipfile.ZipInfo(f"{row.key}.npy"), "w") as member:
                np.lib.format.write_array(member, row.vector, allow_pickle=False)


def _write_safetensors(path: Path, rows: Sequence[_Embedded]) -> None:
    from safetensors.numpy import save

    path.write_bytes(save({row.key: row.vector for row in rows}))


def _write_jsonl(path: Path, rows: Sequence[_Embedded]) -> None:
    with path.open("w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row.plain()) + "\n")


_LONGEST_NAME = 65_000
"""Bytes; a zip file counts a name's in 16 bits."""

_WRITERS: dict[str, Callable[[Path, Sequence[_Embedded]], None]] = {
    ".npz": _write_npz,
    ".safetensors": _write_safetensors,
    ".jsonl": _write_jsonl,
}


def _checked_output(target: Path, overwrite: bool) -> Path:
    if target.suffix not in _WRITERS:
        raise InputError(f"--output {target}: its name must end with {', '.join(_WRITERS)}, not '{target.suffix}'.")
    if not target.parent.is_dir():
        raise InputError(f"--output {target}: there is no folder {target.parent}. Create it first.")
    if target.is_dir() or not os.access(target.parent, os.W_OK):
        raise InputError(f"--output {target}: it is a folder, or lies in one that cannot be written to.")
    check_replaces(target, overwrite)
    return target


def _check_keys(keys: Sequence[str], suffix: str) -> None:
    """Refuse what could not be told apart in a file, or not be written as its key."""
    for key in keys:
        if not key.isprintable() and any("\ud800" <= character <= "\udfff" for character in key):
            raise InputError(f"{key!r} is not valid Unicode: rename the file, or write the text in UTF-8.")
        if key == "__metadata__" and suffix == ".safetensors":
            raise InputError(f"safetensors keeps the name {key} for itself: leave it out, or write another format.")
        if suffix == ".npz" and len(key.encode()) > _LONGEST_NAME:
            raise InputError(f"An .npz file has no room for a key as long as '{key[:40]}…': write .jsonl instead.")
    twice = [key for key, times in Counter(keys).items() if times > 1]
    if twice:
        raise InputError(f"'{twice[0]}' is there as values of two modalities: write them into two files.")
