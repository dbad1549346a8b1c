"""``mmformer translate``, ``transcribe`` and ``generate``: what a model writes of texts, of sounds, and of nothing."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from mmformer.cli import bundles
from mmformer.cli.arguments import Parser, check_replaces
from mmformer.cli.bundles import load
from mmformer.cli.generating import WAYS, add_generation, generation
from mmformer.cli.inputs import SOUNDS, find, read_all_lines
from mmformer.cli.output import print_json, print_pairs, progress, visible
from mmformer.errors import InputError


def run(command: str, words: Sequence[str]) -> int:
    """Run ``mmformer COMMAND WORDS``; the exit code.

    Raises:
        InputError: wrong words, or what they name cannot be used.
    """
    return bundles.run(command, words, *_COMMANDS[command])


def _add_translate(parser: Parser) -> None:
    parser.description = (
        f"Translate texts with a model whose decoder reads a text: {WAYS}.\n"
        "Each text, or each line of a file, becomes a line; an empty line stays one."
    )
    parser.epilog = """examples:
  mmformer translate BUNDLE "A dog runs."
  mmformer translate BUNDLE --from book.en --beams 5 --output book.de
  cat book.en | mmformer translate BUNDLE --from - --json"""
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="what to translate")
    parser.add_argument("--from", dest="file", metavar="FILE", help="a text on each line; - reads what is piped in")
    parser.add_argument("--output", metavar="FILE", help="write the translations there, one a line")
    parser.add_argument("--overwrite", action="store_true", help="replace the file that is there")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="what each translation begins with")
    add_generation(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")


def _translate(args: argparse.Namespace) -> int:
    texts, output = _texts(args), None if args.output is None else Path(args.output)
    if output is None and args.overwrite:
        raise InputError("--overwrite replaces what is in --output, which is not given.")
    if output is not None:
        if args.json:
            raise InputError("--json prints and --output writes lines: give one.")
        check_replaces(output, args.overwrite)
    way, model = generation(args), load(args)
    spec = way(model.transforms.generation)
    there = [place for place, text in enumerate(texts) if text]
    if not there:
        raise InputError("There is nothing to translate: all texts are empty.")
    written = [""] * len(texts)
    with progress("translating", len(there), args.batch_size) as done:
        found = model.translate(
            [texts[place] for place in there], prompt=args.prompt, spec=spec, decoder=args.decoder, progress=done
        )
    for place, text in zip(there, found, strict=True):
        written[place] = text
    if args.json:
        print_json({"text": text, "translation": translation} for text, translation in zip(texts, written, strict=True))
        return 0
    lines = "".join(f"{visible(text)}\n" for text in written)
    if output is None:
        print(lines, end="")
    else:
        output.write_text(lines, encoding="utf-8")
    return 0


def _texts(args: argparse.Namespace) -> list[str]:
    """What is to be translated.

    Raises:
        InputError: there is nothing, or it is given twice.
    """
    if bool(args.texts) == (args.file is not None):
        raise InputError("translate needs texts or --from FILE, and not both.")
    return args.texts or read_all_lines(args.file)


def _add_transcribe(parser: Parser) -> None:
    parser.description = f"Write down what sounds say, with a model whose decoder reads them: {WAYS}.\n{SOUNDS}"
    parser.epilog = """examples:
  mmformer transcribe BUNDLE word.wav
  mmformer transcribe BUNDLE calls/ --beams 5 --json
  mmformer transcribe WHISPER word.wav --prompt '<|de|><|translate|><|notimestamps|>'"""
    parser.add_argument("sounds", metavar="SOUND", nargs="+", help="a file, a folder or a pattern")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="what each transcript begins with")
    add_generation(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _transcribe(args: argparse.Namespace) -> int:
    sounds, way = find("audio", args.sounds), generation(args)
    model = load(args)
    spec = way(model.transforms.generation)
    with progress("transcribing", len(sounds), args.batch_size) as done:
        written = model.transcribe(sounds, prompt=args.prompt, spec=spec, decoder=args.decoder, progress=done)
    if args.json:
        print_json({"audio": sound, "text": text} for sound, text in zip(sounds, written, strict=True))
    else:
        print_pairs(("sound", "text"), list(zip(sounds, written, strict=True)))
    return 0


def _add_generate(parser: Parser) -> None:
    parser.description = f"Write texts with a language model, a decoder that reads nothing: {WAYS}."
    parser.epilog = """examples:
  mmformer generate BUNDLE "Once upon a time" --max-length 50
  mmformer generate BUNDLE "Once upon a time" --temperature 0.8 --top-p 0.95 --seed 7
  mmformer generate BUNDLE "The sea" "The moon" --beams 4 --json"""
    parser.add_argument("prompts", metavar="PROMPT", nargs="*", help="what a text begins with (default: nothing)")
    add_generation(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the texts")


def _generate(args: argparse.Namespace) -> int:
    prompts, way = args.prompts or [""], generation(args)
    model = load(args)
    spec = way(model.transforms.generation)
    with progress("writing", len(prompts), args.batch_size) as done:
        written = model.generate(prompts, spec=spec, decoder=args.decoder, progress=done)
    if args.json:
        print_json({"prompt": prompt, "text": text} for prompt, text in zip(prompts, written, strict=True))
    else:
        print("\n\n".join("\n".join(map(visible, text.split("\n"))) for text in written))
    return 0


_COMMANDS: dict[str, tuple[Callable[[Parser], None], Callable[[argparse.Namespace], int]]] = {
    "translate": (_add_translate, _translate),
    "transcribe": (_add_transcribe, _transcribe),
    "generate": (_add_generate, _generate),
}
