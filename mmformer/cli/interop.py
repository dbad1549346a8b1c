"""``mmformer import`` and ``mmformer export``: models from elsewhere, and back."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmformer.cli import arguments

_SOURCES = """  hf:FOLDER    a folder of transformers' (config.json, model.safetensors …), or a name on the hub"""


def run(command: str, words: Sequence[str]) -> int:
    """Run ``mmformer import WORDS`` or ``mmformer export WORDS``; the exit code.

    Raises:
        InputError: wrong words, or what they name cannot be used.
    """
    return arguments.run(_add_import if command == "import" else _add_export, command, words)


def _add_import(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "import",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"Make a bundle of a model from elsewhere. SOURCE is one of\n{_SOURCES}",
        epilog="example:\n  mmformer import hf:models/gpt2 bundles/gpt2",
    )
    parser.add_argument("source", metavar="SOURCE", help="what to import")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")
    parser.set_defaults(run=_import)


def _import(args: argparse.Namespace) -> int:
    arguments.check_free(args.bundle, args.overwrite)
    from mmformer.interop.importing import import_model

    imported = import_model(args.source, args.bundle)
    print(f"{args.bundle}: {imported.family}, {imported.parameters:,} parameters")
    for note in imported.notes:
        print(f"  {note}")
    return 0


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "export",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Write a bundle's model as another library opens it.",
        epilog="example:\n  mmformer export bundles/gpt2 models/gpt2-again --to hf",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the folder of a bundle")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder to write")
    parser.add_argument("--to", required=True, metavar="LIBRARY", help="hf")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that is there")
    parser.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> int:
    arguments.check_free(args.folder, args.overwrite)
    from mmformer.interop.exporting import export_model

    print(f"{args.folder}: {export_model(args.bundle, args.to, args.folder)}")
    return 0
