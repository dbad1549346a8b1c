"""``mmformer classify``, ``retrieve`` and ``embed``: a bundle on files, folders and patterns of pictures, and on texts.

What can be refused without the model is refused before torch is loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmformer.cli.arguments import Parser, check_replaces
from mmformer.cli.inputs import PICTURES, find_pictures, is_file, read_lines, split_list
from mmformer.errors import InputError

if TYPE_CHECKING:
    from mmformer.predictor import Predictor


def run(command: str, words: Sequence[str]) -> int:
    """Run ``mmformer COMMAND WORDS``; the exit code.

    Raises:
        InputError: wrong words, or what they name cannot be used.
    """
    add_arguments, do = {
        "classify": (_add_classify, _classify),
        "retrieve": (_add_retrieve, _retrieve),
        "embed": (_add_embed, _embed),
    }[command]
    parser = Parser(prog=f"mmformer {command}", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", metavar="BUNDLE", help="the folder bundle/ that a run's output ends with")
    add_arguments(parser)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    batch = "pictures or texts that are computed at once (default: %(default)s)"
    parser.add_argument("--batch-size", type=_positive, default=64, metavar="N", help=batch)
    # Intermixed: in `retrieve BUNDLE --images folder/ "a red heart"` an option stands between the positional words.
    return do(parser.parse_intermixed_args(list(words)))


def _add_classify(parser: Parser) -> None:
    parser.description = f"Say which labels fit pictures best.\n{PICTURES}"
    parser.epilog = """examples:
  mmformer classify BUNDLE cat.png --labels "cat,dog,pizza"
  mmformer classify BUNDLE shots/ --labels-file animals.txt --template "a photo of a {}" --template "a drawing of a {}"
  mmformer classify BUNDLE 'shots/*.jpg' --json        # the classes that the bundle's own head knows"""
    parser.add_argument("inputs", metavar="PICTURE", nargs="+", help="a file, a folder or a pattern")
    labels = parser.add_mutually_exclusive_group()
    among = "choose among these, with commas between them (default: the classes that the bundle's head knows)"
    labels.add_argument("--labels", action="append", metavar="LIST", help=among)
    labels.add_argument("--labels-file", metavar="FILE", help="choose among these, one a line")
    templates = parser.add_mutually_exclusive_group()
    prompt = "a prompt with {} for the label; give several to average them (default: {})"
    templates.add_argument("--template", action="append", metavar="TEXT", help=prompt)
    templates.add_argument("--templates-file", metavar="FILE", help="prompts, one a line")
    parser.add_argument("--head", metavar="NAME", help="whose classes, where the bundle has several heads")
    _add_output(parser, "labels to show for each picture")


def _add_retrieve(parser: Parser) -> None:
    parser.description = f"Find the pictures, or texts, that are most like a text or a picture.\n{PICTURES}"
    parser.epilog = """examples:
  mmformer retrieve BUNDLE --images shots/ "a red heart" "two dogs"
  mmformer retrieve BUNDLE --images shots/ --images 'more/*.png' --image like_this.png
  mmformer retrieve BUNDLE --texts "cat,dog,pizza" --image cat.png"""
    parser.add_argument("queries", metavar="TEXT", nargs="*", help="what to look for; or else --image")
    like = "look for what is like these"
    parser.add_argument("--image", nargs="+", action="extend", default=[], metavar="PICTURE", help=like)
    among = parser.add_mutually_exclusive_group()
    one = "look among these; one word, but the option may be given several times"
    among.add_argument("--images", action="append", metavar="PICTURE", help=one)
    _add_texts(among, "look among these")
    _add_output(parser, "finds to show for each query")


def _add_embed(parser: Parser) -> None:
    parser.description = (
        f"Write embeddings of pictures and texts: float32, of unit length, by path or text.\n{PICTURES}"
    )
    parser.epilog = """examples:
  mmformer embed BUNDLE --images shots/ --output shots.npz        # numpy.load("shots.npz")["shots/cat.png"]
  mmformer embed BUNDLE --images a.png b.png --texts "cat,dog" --output both.jsonl
  mmformer embed BUNDLE --texts-file names.txt --json"""
    files = "files, folders or patterns"
    parser.add_argument("--images", nargs="+", action="extend", default=[], metavar="PICTURE", help=files)
    _add_texts(parser.add_mutually_exclusive_group(), "texts")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--output", metavar="FILE", help=f"the file to write, {' or '.join(_WRITERS)}")
    output.add_argument("--json", action="store_true", help="print them as JSON instead")
    parser.add_argument("--overwrite", action="store_true", help="replace the file that is there")


def _add_texts(group: argparse._MutuallyExclusiveGroup, what: str) -> None:
    group.add_argument("--texts", action="append", metavar="LIST", help=f"{what}, with commas between them")
    group.add_argument("--texts-file", metavar="FILE", help=f"{what}, one a line")


def _add_output(parser: Parser, what: str) -> None:
    parser.add_argument("--top", type=_positive, default=5, metavar="N", help=f"{what} (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _classify(args: argparse.Namespace) -> int:
    labels = _listed(args.labels, "--labels", args.labels_file)
    templates = args.template if args.templates_file is None else read_lines(args.templates_file)
    if labels is None and templates is not None:
        raise InputError("A template is for labels, but there are none: give --labels or --labels-file too.")
    if labels is not None and args.head is not None:
        raise InputError(f"--head {args.head} means that head's own classes: give either --head or labels.")
    pictures = find_pictures(args.inputs)
    model = _load(args)
    with _progress("classifying", len(pictures), args.batch_size) as done:
        answers = model.classify(
            pictures, labels, templates=templates or ("{}",), head=args.head, top=args.top, progress=done
        )
    named = list(zip(map(str, pictures), answers, strict=True))
    if args.json:
        _print_json(
            {
                "image": name,
                "label": next(iter(answer)),
                "probabilities": {label: _short(value) for label, value in answer.items()},
            }
            for name, answer in named
        )
    else:
        groups = [
            (name, [(label, f"{100 * value:.1f} %") for label, value in answer.items()]) for name, answer in named
        ]
        _print_table(("picture", "label", "probability"), groups)
    return 0


def _retrieve(args: argparse.Namespace) -> int:
    texts = _listed(args.texts, "--texts", args.texts_file)
    if texts is None and args.images is None:
        raise InputError("retrieve needs what to look among: --images, --texts or --texts-file.")
    if bool(args.queries) == bool(args.image):
        what = "either a TEXT or an --image, not both" if args.queries else "what to look for: a TEXT or an --image"
        raise InputError(f"retrieve needs {what}.")
    path = next((query for query in args.queries if query.endswith("/") or (Path(query).suffix and is_file(query))), "")
    if path:  # the shell made several words of a pattern, say, of which --images takes the first
        raise InputError(
            f"'{path}' is a path, but stands where a text to look for is expected. To look among several files or "
            "folders, repeat --images or put a pattern in quotes; to look for what is like a picture, use --image."
        )
    kind = "image" if texts is None else "text"
    candidates = [str(path) for path in find_pictures(args.images)] if texts is None else texts
    queries = args.queries or [str(path) for path in find_pictures(args.image)]
    asked = {"text" if args.queries else "image": queries, f"{kind}s": candidates}
    model = _load(args)
    with _progress("searching", len(candidates), args.batch_size) as done:
        found = model.retrieve(**asked, top=args.top, progress=done)
    named = list(zip(queries, found, strict=True))
    if args.json:
        _print_json(
            {
                "query": query,
                "matches": [{kind: candidates[match.candidate], "score": _short(match.score)} for match in matches],
            }
            for query, matches in named
        )
    else:
        groups = [
            (query, [(candidates[match.candidate], f"{match.score:.3f}") for match in matches])
            for query, matches in named
        ]
        _print_table(("query", "picture" if kind == "image" else "text", "similarity"), groups)
    return 0


class _Embedded(NamedTuple):
    kind: str  # image or text
    key: str  # its path, or itself
    vector: np.ndarray

    def plain(self) -> dict[str, Any]:
        return {self.kind: self.key, "embedding": [_short(value) for value in self.vector.tolist()]}


def _embed(args: argparse.Namespace) -> int:
    texts = _listed(args.texts, "--texts", args.texts_file) or []
    if not texts and not args.images:
        raise InputError("embed needs --images, --texts or --texts-file.")
    if args.output is None and not args.json:
        raise InputError(f"embed needs a file to write, --output FILE ({', '.join(_WRITERS)}), or --json to print.")
    target = None if args.output is None else _checked_output(Path(args.output), args.overwrite)
    pictures = find_pictures(args.images)
    keys = [*map(str, pictures), *texts]
    _check_keys(keys, target.suffix if target else "")
    model = _load(args)
    vectors: list[np.ndarray] = []
    with _progress("embedding", len(keys), args.batch_size) as done:
        if pictures:
            vectors += list(model.embed(image=pictures, progress=done).numpy())
        if texts:
            vectors += list(model.embed(text=texts, progress=done).numpy())
    kinds = ["image"] * len(pictures) + ["text"] * len(texts)
    rows = [_Embedded(*row) for row in zip(kinds, keys, vectors, strict=True)]
    if target is None:
        _print_json(row.plain() for row in rows)
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
    if len(set(keys)) < len(keys):
        raise InputError("One of the texts is the path of one of the pictures: write them into two files.")


def _listed(lists: list[str] | None, option: str, file: str | None) -> list[str] | None:
    """The texts of a pair of options; those that are not labels need no twins."""
    if lists is None and file is None:
        return None
    texts = split_list(lists, option) if lists is not None else read_lines(str(file))
    return texts if option == "--labels" else list(dict.fromkeys(texts))


def _positive(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, but is '{word}'")
    return int(word)


def _load(args: argparse.Namespace) -> Predictor:
    from mmformer.predictor import load

    return load(args.bundle, args.device, args.batch_size)


@contextmanager
def _progress(what: str, total: int, batch_size: int) -> Iterator[Callable[[int], object]]:
    """A bar where someone watches and there is more than one batch to watch."""
    from tqdm import tqdm

    off = None if total > batch_size else True
    with tqdm(total=total, desc=what, disable=off, leave=False, file=sys.stderr) as bar:
        yield bar.update


def _short(value: float) -> float:
    """A float32 with the digits that it has."""
    return float(f"{value:.9g}")


def _print_json(rows: Iterable[dict[str, Any]]) -> None:
    """One document, a list, with a line for each of its objects."""
    print("[" + ",\n ".join(map(json.dumps, rows)) + "]")


def _print_table(columns: tuple[str, str, str], groups: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> None:
    """Rows in groups; the name of a group stands at its first row, or above the table where there is only one."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Text, not strings: brackets in a name would be read as markup.
    alone = len(groups) == 1
    table = Table()
    for column in columns[alone:]:
        table.add_column(column, justify="right" if column == columns[-1] else "left", overflow="fold")
    for name, rows in groups:
        for place, row in enumerate(rows):
            first = () if alone else (name if place == 0 else "",)
            table.add_row(*(Text(_visible(cell)) for cell in (*first, *row)))
        if any(len(rows) > 1 for _, rows in groups):
            table.add_section()
    # Where it is not a terminal that reads, lines need not be folded.
    console = Console(width=None if sys.stdout.isatty() else 1000)
    if alone:
        console.print(Text(_visible(groups[0][0])))
    console.print(table)


def _visible(text: str) -> str:
    """Without what a terminal would obey or could not show."""
    joiners = "\u200c\u200d"
    return "".join(c if c.isprintable() or c in joiners else c.encode("unicode_escape").decode() for c in text)
