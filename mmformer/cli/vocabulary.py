"""``mmformer vocabulary``: train a vocabulary on text files or on the captions in shards, and look at what it does."""

from __future__ import annotations

import argparse
import glob
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmformer.cli import arguments
from mmformer.errors import InputError

_EXAMPLES = """examples:
  mmformer vocabulary train book.txt articles/ 'more/*.txt' --output english.model --size 16384
  mmformer vocabulary train data/emoji --fields 'names.*' 'keywords.*' --output emoji.model --size 8192
"""


def run(command: str, words: Sequence[str]) -> int:
    """Run ``mmformer vocabulary WORDS``; the exit code.

    Raises:
        InputError: wrong words, or what they name cannot be used.
    """
    return arguments.run(add_parser, command, words)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``vocabulary`` and its own commands to the command line."""
    family = subparsers.add_parser("vocabulary", help="train a text vocabulary, or see how one cuts a text")
    commands = family.add_subparsers(metavar="COMMAND", required=True)
    train = commands.add_parser(
        "train",
        help="learn a vocabulary from text",
        description="Learn a SentencePiece BPE vocabulary that writes any text as ids and back without loss.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="a UTF-8 text file, a folder or pattern of .txt files, or a folder of shards with its manifest.json",
    )
    train.add_argument("--output", required=True, metavar="FILE", help="the .model file to write")
    train.add_argument("--overwrite", action="store_true", help="replace the file that is there")
    train.add_argument("--size", required=True, type=int, metavar="N", help="pieces in all")
    train.add_argument("--special", nargs="+", action="extend", default=[], metavar="NAME", help="more special tokens")
    train.add_argument("--coverage", type=float, metavar="SHARE", help="share of characters with a piece of their own")
    train.add_argument("--no-prefix-space", action="store_true", help="learn from lines without a space before them")
    train.add_argument("--split", default="train", help="the split to read from shards (default: %(default)s)")
    train.add_argument("--extension", default="json", help="the member to read from shards (default: %(default)s)")
    train.add_argument(
        "--fields",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATH",
        help="what to read from a json member: keys joined by dots, * for every key (quote it); all texts below count",
    )
    train.set_defaults(run=_train)
    encode = commands.add_parser("encode", help="print the pieces and ids of texts")
    encode.add_argument(
        "vocabulary", metavar="FILE", help="a .model file, or a bundle's .zip of a model from elsewhere"
    )
    encode.add_argument("texts", metavar="TEXT", nargs="+")
    encode.set_defaults(run=_encode)


def _train(args: argparse.Namespace) -> int:
    from mmformer.tokenizers.vocabulary import VocabularySpec

    options: dict[str, Any] = {} if args.coverage is None else {"character_coverage": args.coverage}
    options |= {"size": args.size, "special": tuple(args.special), "prefix_space": not args.no_prefix_space}
    spec = VocabularySpec(**options)
    target = Path(args.output)
    if not target.parent.is_dir():
        raise InputError(f"--output {target}: there is no folder {target.parent}. Create it first.")
    arguments.check_replaces(target, args.overwrite)
    counted = _Counted(text for given in args.inputs for text in _texts(given, args))
    vocabulary = spec.train(counted)
    vocabulary.save(target)
    print(f"{target}: {len(vocabulary):,} pieces from {counted.texts:,} texts of {counted.characters:,} characters")
    print(f"special tokens: {' '.join(f'{name}={index}' for name, index in vocabulary.specials.items())}")
    print(f"fingerprint: {vocabulary.fingerprint}")
    return 0


def _encode(args: argparse.Namespace) -> int:
    from mmformer.tokenizers.opening import open_vocabulary

    vocabulary = open_vocabulary(args.vocabulary)
    for ids in vocabulary.encode_many(args.texts):
        print(f"{len(ids)} tokens: {' '.join(map(repr, vocabulary.pieces(ids)))}")
        print(" ".join(map(str, ids)))
    return 0


class _Counted:
    """Texts on their way to the trainer, counted, with a progress bar where someone watches."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.texts = self.characters = 0

    def __iter__(self) -> Iterator[str]:
        from tqdm import tqdm

        for text in tqdm(self._texts, desc="reading", unit=" texts", disable=None, leave=False, file=sys.stderr):
            self.texts += 1
            self.characters += len(text)
            yield text


def _texts(given: str, args: argparse.Namespace) -> Iterator[str]:
    """The texts of one INPUT."""
    path = Path(given)
    if path.name == "manifest.json" and path.is_file():
        path = path.parent
    if (path / "manifest.json").is_file():
        yield from _captions(path, args.split, args.extension, args.fields)
        return
    if path.is_dir():
        files = sorted(path.rglob("*.txt"))
    elif path.exists():
        files = [path]
    else:
        # pathlib's own patterns must be relative
        found = glob.glob(given, recursive=True)  # noqa: PTH207
        files = [name for name in map(Path, sorted(found)) if name.is_file()]
    if not files:
        kind = "folder has no .txt file and no manifest.json" if path.is_dir() else "names no file or folder"
        raise InputError(f"INPUT {given} {kind}. Give text files, or a folder of shards with its manifest.json.")
    for file in files:
        yield from _file_lines(file)


def _file_lines(file: Path) -> Iterator[str]:
    number = 0
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}, line {number}: not UTF-8 text ({error.reason}). Convert it to UTF-8.") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}.") from error


def _captions(folder: Path, split: str, extension: str, fields: list[str]) -> Iterator[str]:
    """The texts in one member of every sample of a split."""
    from mmformer.data.decode import decode
    from mmformer.data.fields import select
    from mmformer.data.manifest import Manifest
    from mmformer.data.shards import ShardReader

    reader = ShardReader(Manifest.load(folder), split)
    found, value = 0, None
    for shard, count in enumerate(reader.counts):
        for row in range(count):
            raw = reader.read(shard, row, [extension])
            if extension not in raw.members:
                continue
            value = decode(extension, raw.members[extension], f"{folder}: {raw.key}.{extension}")
            if not isinstance(value, str) and not fields:
                raise InputError(f"{folder}: say what to read from .{extension} with --fields; {_known(value)}.")
            for text in select(value, fields):
                found += 1
                yield text
    if not found:
        wanted = f"--fields {' '.join(fields)} selects no text" if fields else "there is no text"
        hint = f"a sample has no .{extension} member: name another --extension" if value is None else _known(value)
        raise InputError(f"{folder}: {wanted} in the .{extension} members of split '{split}'; {hint}.")


def _known(value: Any) -> str:
    if not isinstance(value, dict):
        return f"a sample holds {json.dumps(value, ensure_ascii=False):.80}"
    return f"a sample has the fields {', '.join(f'{k}.*' if isinstance(v, dict) else k for k, v in value.items())}"
