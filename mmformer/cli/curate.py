"""``mmformer curate``: filters that write a set without some of its samples, over the same shards."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mmformer.cli import arguments
from mmformer.cli.bundles import positive
from mmformer.cli.output import print_pairs, progress
from mmformer.errors import InputError

if TYPE_CHECKING:
    from mmformer.curation.candidates import Place
    from mmformer.curation.curate import Curated
    from mmformer.curation.embedding import Embedder
    from mmformer.curation.filter import Filter
    from mmformer.curation.likeness import Likeness

_DESCRIPTION = """\
Filters of a set of shards. OUT becomes a folder with a manifest and indexes of its own over the shards of SHARDS, which
are left as they are and where they are; removed.tsv says what was removed and why. OUT may be the SHARDS of the next.
"""

_EXAMPLES = """examples:
  mmformer curate duplicates photos photos-once --by image
  mmformer curate captions photos-once photos-said --text json:title --words 2: --repeats 10 --language en
  mmformer curate agreement photos-said photos-true --bundle BUNDLE --text json:title --keep 0.8
  mmformer curate leakage photos --by image text
  mmformer curate leakage photos photos-fair --by image --held-out benchmark --against test
"""

_LIKENESSES = ("exact", "image", "text", "embedding")


def run(command: str, words: Sequence[str]) -> int:
    """Run ``mmformer curate WORDS``; the exit code.

    Raises:
        InputError: wrong words, or what they name cannot be used.
    """
    return arguments.run(add_parser, command, words)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``curate`` and its filters to the command line."""
    family = subparsers.add_parser(
        "curate", description=_DESCRIPTION, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    filters = family.add_subparsers(metavar="FILTER", required=True)
    for name, (what, add, make) in _FILTERS.items():
        parser = filters.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
        parser.add_argument("shards", metavar="SHARDS", help="a folder of shards, or a URL of one")
        optional = {"nargs": "?", "help": "the folder to write; without it, leaks are only listed"}
        written = {"help": "the folder to write, which is not there yet"}
        parser.add_argument("out", metavar="OUT", **(optional if name == "leakage" else written))  # type: ignore[arg-type]
        parser.add_argument("--split", default="train", help="the split to filter (default: %(default)s)")
        add(parser)
        parser.set_defaults(run=_run, make=make)


def _run(args: argparse.Namespace) -> int:
    from mmformer.curation.curate import curate
    from mmformer.data.remote import open_manifest

    made: Filter = args.make(args)
    total = sum(shard.samples for shard in open_manifest(args.shards).split(args.split))
    with progress(made.name, total, batch_size=64) as done:
        curated = curate(args.shards, args.out, made, args.split, done, getattr(args, "workers", None))
    _print(args, curated)
    return 0


def _print(args: argparse.Namespace, curated: Curated) -> None:
    if args.out is None and curated.reasons:
        print_pairs(("sample", "reason"), [(key, f"{found.reason}: {found.detail}") for key, found in curated.removed])
    if curated.reasons:
        print_pairs(("reason", "samples"), [(reason, f"{number:,}") for reason, number in curated.reasons.items()])
    repeated = f", in {curated.rows:,} rows" if curated.rows > curated.kept else ""
    said = f"{curated.kept:,} of {len(curated.keys):,} samples of the split '{args.split}'"
    print(f"{args.out}: {said} are left{repeated}" if args.out else f"{args.shards}: {said} are like none elsewhere")


def _duplicates(args: argparse.Namespace) -> Filter:
    from mmformer.curation.duplicates import Duplicates

    return Duplicates(_likenesses(args), args.scores)


def _add_duplicates(parser: argparse.ArgumentParser) -> None:
    _add_likenesses(parser)
    parser.add_argument("--scores", metavar="TABLE", help="a scores.tsv: the best of those that are alike stays")


def _leakage(args: argparse.Namespace) -> Filter:
    from mmformer.curation.leakage import Leakage

    return Leakage(_likenesses(args), tuple(args.against), args.held_out)


def _add_leakage(parser: argparse.ArgumentParser) -> None:
    _add_likenesses(parser)
    parser.add_argument(
        "--against", nargs="+", default=[], metavar="SPLIT", help="held-out splits (default: all others)"
    )
    parser.add_argument(
        "--held-out", default="", metavar="SHARDS", help="the set that these are of (default: the same)"
    )


def _captions(args: argparse.Namespace) -> Filter:
    from mmformer.curation.captions import Captions

    given = ("characters", "words", "letters", "match", "avoid", "repeats", "certainty")
    options = {name: value for name in given if (value := getattr(args, name)) is not None}
    if args.certainty is not None and not args.language:
        raise InputError("--certainty is of --language: say which languages are wanted.")
    return Captions(_place("text", args.text), languages=tuple(args.language), **options)


def _add_captions(parser: argparse.ArgumentParser) -> None:
    _add_place(parser, "text")
    parser.add_argument("--characters", type=_span, metavar="FROM:TO", help="how long: 3:200, 3: or :200")
    parser.add_argument("--words", type=_span, metavar="FROM:TO", help="how many words")
    parser.add_argument("--letters", type=float, metavar="SHARE", help="the least share of letters, 0 to 1")
    parser.add_argument("--match", metavar="REGEX", help="what has to be found in it")
    parser.add_argument("--avoid", metavar="REGEX", help="what must not be found in it")
    parser.add_argument("--repeats", type=positive, metavar="N", help="remove captions that more than N samples have")
    parser.add_argument("--language", nargs="+", action="extend", default=[], metavar="CODE", help="wanted, such as en")
    certainty = "remove captions that are less probably in one of the languages (default: 0.01)"
    parser.add_argument("--certainty", type=float, metavar="P", help=certainty)


def _agreement(args: argparse.Namespace) -> Filter:
    from mmformer.curation.agreement import Agreement
    from mmformer.curation.scores import Cut

    first, second = args.between
    for kind in ("image", "audio", "text"):
        if kind not in args.between and getattr(args, kind) is not None:
            raise InputError(f"--{kind} is not compared: the sides are {first} and {second} (--between).")
    sides = (_place(kind, getattr(args, kind)) for kind in args.between)
    return Agreement(_embedder(args), Cut(args.keep, args.least), *sides)


def _add_agreement(parser: argparse.ArgumentParser) -> None:
    kinds = ("image", "audio", "text")
    what = "what is compared: two of image, audio and text (default: image text)"
    parser.add_argument("--between", nargs=2, choices=kinds, default=("image", "text"), metavar="KIND", help=what)
    for kind in kinds:
        _add_place(parser, kind)
    _add_cut(parser)
    _add_embedder(parser, required=True)


def _best(args: argparse.Namespace) -> Filter:
    from mmformer.curation.best import Best
    from mmformer.curation.scores import Cut

    place = None if args.by is None else _place("number", args.by)
    return Best(Cut(args.keep, args.least, args.lowest), args.scores, place)


def _add_best(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--scores", metavar="TABLE", help="a scores.tsv with the columns key, split and score")
    source.add_argument("--by", metavar="json:FIELD", help="a number in every sample")
    parser.add_argument("--lowest", action="store_true", help="low scores are the good ones")
    _add_cut(parser)


def _balance(args: argparse.Namespace) -> Filter:
    from mmformer.curation.balance import Balance

    return Balance(args.most, args.least, _place("label", args.label), args.seed)


def _add_balance(parser: argparse.ArgumentParser) -> None:
    _add_place(parser, "label")
    parser.add_argument("--most", type=positive, metavar="N", help="samples of one class at most, chosen at random")
    parser.add_argument("--least", type=positive, metavar="N", help="rows of one class at least, by repeating samples")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (default: %(default)s)")


_FILTERS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], Filter]]] = {
    "duplicates": ("of samples that are alike, keep one", _add_duplicates, _duplicates),
    "captions": ("remove samples by length, language and more of their captions", _add_captions, _captions),
    "agreement": ("keep samples whose picture and text a model finds alike", _add_agreement, _agreement),
    "balance": ("make classes of similar size", _add_balance, _balance),
    "best": ("keep the samples of the best scores", _add_best, _best),
    "leakage": ("find samples that are like one of another split", _add_leakage, _leakage),
}

_PLACES = {
    "image": ("MEMBER", "the member with the picture, such as jpg (default: the first picture)"),
    "audio": ("MEMBER", "the member with the sound, such as wav (default: the first sound)"),
    "text": ("MEMBER", "where the text is, such as json:title (default: txt, or json:caption)"),
    "label": ("MEMBER", "where the class is, such as json:category (default: cls, or json:label)"),
}


def _add_place(parser: argparse._ActionsContainer, kind: str) -> None:
    metavar, what = _PLACES[kind]
    parser.add_argument(f"--{kind}", metavar=metavar, help=what)


def _place(kind: str, word: str | None) -> Place:
    from mmformer.curation.candidates import Place

    return Place.parse(kind, word or "")


def _add_cut(parser: argparse.ArgumentParser) -> None:
    cut = parser.add_mutually_exclusive_group(required=True)
    cut.add_argument("--keep", type=float, metavar="FRACTION", help="how many stay, of 1")
    cut.add_argument("--least", type=float, metavar="SCORE", help="the least score that stays")


def _add_embedder(parser: argparse._ActionsContainer, required: bool = False) -> None:
    parser.add_argument("--bundle", required=required, metavar="BUNDLE", help="the model to judge by")
    what = "which to embed with, where the bundle has several of one modality; one for each"
    parser.add_argument("--encoder", action="append", metavar="NAME", help=what)
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument("--batch-size", type=positive, metavar="N", help="computed at once (default: 64)")


def _embedder(args: argparse.Namespace) -> Embedder:
    from mmformer.curation.embedding import Embedder

    given = {"encoders": tuple(args.encoder or ()), "device": args.device, "batch_size": args.batch_size}
    return Embedder(args.bundle, **{name: value for name, value in given.items() if value is not None})


def _add_likenesses(parser: argparse.ArgumentParser) -> None:
    by = "exact: the same bytes; image: they look the same; text: most of it is the same; embedding: by a model"
    parser.add_argument("--by", nargs="+", choices=_LIKENESSES, default=["exact"], metavar="LIKENESS", help=by)
    members = "compare these alone, such as jpg (default: all members)"
    processes = "processes that look at pictures and texts (default: one a core)"
    parser.add_argument("--workers", metavar="N", type=positive, help=processes)
    exact = parser.add_argument_group("--by exact")
    exact.add_argument("--members", nargs="+", metavar="MEMBER", help=members)
    pictures = parser.add_argument_group("--by image")
    _add_place(pictures, "image")
    pictures.add_argument("--distance", type=int, metavar="BITS", help="of 64 that hashes may differ in (default: 6)")
    pictures.add_argument("--colour", type=float, metavar="N", help="of 255 that colours may differ by (default: 16)")
    texts = parser.add_argument_group("--by text")
    _add_place(texts, "text")
    texts.add_argument("--jaccard", type=float, metavar="SHARE", help="least share of pieces in common (default: 0.8)")
    embeddings = parser.add_argument_group("--by embedding")
    embeddings.add_argument("--embed", metavar="KIND[:MEMBER]", help="image, audio:wav or text:json:title, for example")
    embeddings.add_argument("--cosine", type=float, metavar="C", help="least similarity (default: 0.95)")
    _add_embedder(embeddings)


_OF_LIKENESS = {
    "exact": ("members",),
    "image": ("image", "distance", "colour"),
    "text": ("text", "jaccard"),
    "embedding": ("embed", "cosine", "bundle", "encoder", "device", "batch_size"),
}
"""Likeness -> the options that are its own."""


def _likenesses(args: argparse.Namespace) -> tuple[Likeness, ...]:
    """What ``--by`` names, in its order.

    Raises:
        InputError: one is named twice, or there is an option of one that is not named.
    """
    if len(set(args.by)) < len(args.by):
        raise InputError(f"--by {' '.join(args.by)}: name each once.")
    for likeness, options in _OF_LIKENESS.items():
        for name in options:
            if likeness not in args.by and getattr(args, name) is not None:
                raise InputError(f"--{name.replace('_', '-')} is of --by {likeness}, but --by is {' '.join(args.by)}.")
    if args.workers is not None and not {"image", "text"} & set(args.by):
        raise InputError(f"--workers is of --by image and --by text, but --by is {' '.join(args.by)}.")
    return tuple(_likeness(name, args) for name in args.by)


def _likeness(name: str, args: argparse.Namespace) -> Likeness:
    from mmformer.curation.embedding import EmbeddingLikeness
    from mmformer.curation.likeness import ExactLikeness
    from mmformer.curation.picture_likeness import PictureLikeness
    from mmformer.curation.text_likeness import TextLikeness

    def given(*names: str) -> dict[str, Any]:
        return {name: value for name in names if (value := getattr(args, name)) is not None}

    if name == "image":
        return PictureLikeness(_place("image", args.image), **given("distance", "colour"))
    if name == "text":
        return TextLikeness(_place("text", args.text), **given("jaccard"))
    if name == "embedding":
        if args.bundle is None or args.embed is None:
            raise InputError(
                "--by embedding needs a model, --bundle BUNDLE, and what it embeds, such as --embed image."
            )
        kind, _, where = args.embed.partition(":")
        if kind not in ("image", "audio", "text"):
            raise InputError(f"--embed {args.embed}: begins with image, audio or text.")
        return EmbeddingLikeness(_embedder(args), _place(kind, where), **given("cosine"))
    return ExactLikeness(tuple(args.members or ()))


def _span(word: str) -> tuple[int, int | None]:
    """``3:200``, ``3:`` or ``:200``."""
    least, colon, most = word.partition(":")
    if not colon or any(part and not part.isdecimal() for part in (least, most)) or word == ":":
        raise argparse.ArgumentTypeError(f"must be a range such as 3:200, 3: or :200, but is '{word}'")
    return int(least or 0), int(most) if most else None
