"""A bundle with an adapter of another library merged into its weights."""

from __future__ import annotations

from pathlib import Path

from mmformer.bundle import load_bundle, save_bundle
from mmformer.interop.exporting import expressed
from mmformer.interop.origin import files_of_changed, read_origin
from mmformer.interop.peft_adapter import with_adapter
from mmformer.interop.rules import to_ours, to_theirs


def merge_adapter(bundle: Path, adapter: Path, folder: Path) -> list[str]:
    """Write a bundle that has a peft adapter merged into another one's weights; the parameters that changed.

    Raises:
        InputError: the bundle's model is none of transformers', or the adapter cannot be merged into it.
    """
    model, transforms = load_bundle(bundle)
    origin = read_origin(bundle)
    family, layout, config = expressed(model, "hf", origin, str(bundle))
    rules, state = family.weights(config, layout), model.state_dict()
    absent = [name for rule in rules if rule.optional for name in rule.theirs]
    theirs = with_adapter(to_theirs(rules, state, absent), adapter)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    ours, _ = to_ours(rules, theirs, shapes, str(bundle))
    changed = [name for name in state if not state[name].equal(ours[name])]
    model.load_state_dict(ours)
    card = (bundle / "README.md").read_text(encoding="utf-8").rstrip()
    card += f"\n\n## Merged\n\nThe peft adapter {adapter.name} is merged into {len(changed)} parameters.\n"
    save_bundle(folder, model, transforms, card, files_of_changed(bundle))
    return changed
