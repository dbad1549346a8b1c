"""``mmformer merge``: adapters of a run, or of peft, merged into the weights of a bundle."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmformer.cli import arguments


def run(command: str, words: Sequence[str]) -> int:
    """Run ``mmformer merge WORDS``; the exit code.

    Raises:
        InputError: wrong words, or the adapter cannot be merged into the model.
    """
    return arguments.run(_add_parser, command, words)


def _add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "merge",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Merge adapters into a bundle of the model that they were trained on: the adapters/ of a run's "
        "output, or an adapter that peft trained (LoRA, rsLoRA, DoRA, IA3).",
        epilog="examples:\n  mmformer merge bundles/gpt2 runs/poems/adapters bundles/poet\n"
        "  mmformer merge bundles/gpt2 downloads/songs bundles/singer",
    )
    parser.add_argument(
        "bundle", type=Path, metavar="BUNDLE", help="the folder of a bundle; for peft, of a model of transformers"
    )
    adapter = "adapters/ of a run, or a folder with adapter_config.json and adapter_model.safetensors"
    parser.add_argument("adapter", type=Path, metavar="ADAPTER", help=adapter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder to write the new bundle to")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that is there")
    parser.set_defaults(run=_merge)


def _merge(args: argparse.Namespace) -> int:
    arguments.check_free(args.folder, args.overwrite)
    from mmformer.adapters.file import SPECS
    from mmformer.interop.merging import merge_adapter
    from mmformer.surgery.merging import merge_own

    merge = merge_own if (args.adapter / SPECS).is_file() else merge_adapter
    changed = merge(args.bundle, args.adapter, args.folder)
    told = "changes no parameter: was it trained?"
    if changed:
        told = f"is merged into {len(changed)} parameters, such as {changed[0]}"
    print(f"{args.folder}: {args.adapter.name} {told}")
    return 0
