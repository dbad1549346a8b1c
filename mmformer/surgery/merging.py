"""A bundle with adapters, which were trained on it here, merged into its weights."""

from __future__ import annotations

from pathlib import Path

from mmformer.adapters.file import WEIGHTS, read_adapters, with_adapters
from mmformer.bundle import load_bundle, read_state, save_bundle
from mmformer.data.tar import file_sha256
from mmformer.errors import InputError
from mmformer.interop.origin import files_of_changed


def merge_own(bundle: Path, adapters: Path, folder: Path) -> list[str]:
    """Write a bundle that has a run's adapters merged into the one that they were trained on; what changed.

    Raises:
        InputError: they were trained on another one, or do not fit it.
    """
    spec, found = read_adapters(adapters), file_sha256(bundle / "model.safetensors")
    if spec.base != found:
        raise InputError(
            f"{adapters} were trained on weights with the SHA-256 {spec.base:.12}…, but {bundle} has {found:.12}…: "
            f"name the bundle that the run began with (initial.path)."
        )
    model, transforms = load_bundle(bundle)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole = with_adapters(model, spec, read_state(adapters / WEIGHTS), str(adapters))
    after = whole.state_dict()
    changed = [name for name in before if not before[name].equal(after[name])]
    card = (bundle / "README.md").read_text(encoding="utf-8").rstrip()
    card += f"\n\n## Merged\n\nThe adapters of a run are merged into {len(changed)} parameters.\n"
    save_bundle(folder, whole, transforms, card, files_of_changed(bundle))
    return changed
