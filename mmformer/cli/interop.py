"""``mmformer import`` and ``mmformer export``: models from elsewhere, and back."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmformer.cli import arguments
from mmformer.errors import InputError

_SOURCES = """  hf:FOLDER           transformers: config.json, model.safetensors and what lies beside them
  open_clip:FOLDER    open_clip: open_clip_config.json and open_clip_model.safetensors
  timm:FOLDER         timm: config.json and model.safetensors
  FILE.safetensors    what export --to safetensors wrote; or CLIP's weights by OpenAI's names, which say what it is
In place of a FOLDER, a NAME on the hub, owner/name, where huggingface_hub is installed and a network is there."""


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
        epilog="examples:\n  mmformer import hf:models/gpt2 bundles/gpt2\n  mmformer import --list",
    )
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="what to import")
    parser.add_argument("bundle", nargs="?", type=Path, metavar="BUNDLE", help="the folder to write")
    parser.add_argument("--list", action="store_true", help="print the systems that can be imported, and end")
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")
    parser.set_defaults(run=_import)


def _import(args: argparse.Namespace) -> int:
    if args.list:
        return _list()
    if args.source is None or args.bundle is None:
        raise InputError(
            "mmformer import takes a SOURCE and a BUNDLE, such as hf:models/gpt2 bundles/gpt2; --list says more."
        )
    arguments.check_free(args.bundle, args.overwrite)
    from mmformer.interop import single_file
    from mmformer.interop.importing import import_model

    file = Path(args.source)
    if file.is_file() and single_file.is_bundle(file):
        single_file.read_file(file, args.bundle)
        print(f"{args.bundle}: the bundle that was in {file}")
        return 0
    imported = import_model(args.source, args.bundle)
    print(f"{args.bundle}: {imported.family}, {imported.parameters:,} parameters")
    for note in imported.notes:
        print(f"  {note}")
    return 0


def _list() -> int:
    from mmformer.interop.systems import systems

    for system in systems():
        print(f"configs/models/{system.file}  {system.title} ({system.size} parameters)")
        for name in system.classes:
            print(f"    {name}")
    return 0


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "export",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Write a bundle's model as another library opens it.",
        epilog="example:\n  mmformer export bundles/gpt2 models/gpt2-again --to hf",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the folder of a bundle")
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="the folder to write; with --to safetensors the file"
    )
    parser.add_argument(
        "--to",
        required=True,
        metavar="LIBRARY",
        help="hf, open_clip, timm, or safetensors: the whole bundle as one file",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that is there")
    parser.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> int:
    arguments.check_free(args.folder, args.overwrite)
    if args.to == "safetensors":
        from mmformer.interop.single_file import write_file

        if args.folder.is_dir():
            raise InputError(f"{args.folder} is a folder, but with --to safetensors a file is written: name one.")
        write_file(args.bundle, args.folder)
        print(f"{args.folder}: the bundle, in one file")
        return 0
    from mmformer.interop.exporting import export_model

    print(f"{args.folder}: {export_model(args.bundle, args.to, args.folder)}")
    return 0
