"""What every family has to show, against the reference with random weights: the way in, the numbers, the way out."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mmformer
from mmformer.errors import InputError
from mmformer.generation.beam import BeamSpec
from mmformer.generation.decoding import Decoding
from mmformer.generation.generation import GenerationSpec
from mmformer.generation.sampling import GreedySpec
from mmformer.interop.exporting import export_model
from mmformer.interop.family import Library
from mmformer.interop.importing import import_model, open_source
from mmformer.interop.rules import to_theirs
from mmformer.models.logits import text_of
from mmformer.models.model import Model
from mmformer.predictor import Predictor
from mmformer.types import Batch

SHALLOW, DEEP = 1e-5, 1e-4
"""Tolerances of outputs of a few layers, and of as many as were published, relative to their largest; a contract, never
loosened."""


def randomise(model: nn.Module, seed: int = 0, size: float = 1.0) -> None:
    """Draw every parameter and buffer of weights anew: gains and biases of 1 and 0 would hide mistakes.

    Matrices that are larger, by ``size``, let what enters make more of a difference.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            drawn = torch.randn(value.shape, generator=generator)
            value.copy_(drawn * size * value.shape[-1] ** -0.5 if value.ndim > 1 else 0.5 + 0.5 * drawn)


GRADIENT = 1e-4
"""The same of a parameter's gradient, relative to its largest, or to a thousandth of the largest of all if that is
more."""

MEASURED: list[tuple[str, float]] = []
"""What a test compared, and by how much it differed: ``docs/systems.md`` is made of it (``conftest.py``)."""

_KEPT = tempfile.TemporaryDirectory(prefix="imported-")
_MADE: dict[tuple[str, str, tuple[tuple[str, int], ...]], tuple[str, Path, Predictor]] = {}

IMPORTED: list[str] = []
"""What it imported: "hf gpt2 (GPT2LMHeadModel)"."""


def close(
    ours: Tensor, theirs: Tensor, tolerance: float = SHALLOW, varied: bool = True, measured: str = "outputs"
) -> float:
    """Refuse outputs that differ; returns by how much they do, over the largest of theirs."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    assert torch.isfinite(theirs).all()
    largest = float(theirs.abs().max())
    error = float((ours - theirs).abs().max()) / largest
    told = not varied or float(theirs.float().std()) > 0.01 * largest
    assert told, "the reference says the same everywhere: nothing would be shown"
    MEASURED.append((measured, error))
    assert error <= tolerance, f"off by {error:.2e} of the largest"
    return error


class Case(NamedTuple):
    """A reference, in evaluation mode, and where it was saved."""

    reference: Any
    folder: Path


def saved(reference: Any, folder: Path, size: float = 1.0) -> Case:
    """A transformers model with random weights, as it saves itself."""
    randomise(reference, size=size)
    reference.eval().save_pretrained(folder)
    return Case(reference, folder)


def imported(case: Case, bundle: Path, library: str = "hf") -> Predictor:
    """A case's model by way of a bundle, which is made once for a folder: every test gets a copy of its own."""
    files = sorted(case.folder.iterdir()) if case.folder.is_dir() else [case.folder]
    changed = tuple((path.name, path.stat().st_mtime_ns) for path in files)
    key = (library, str(case.folder), changed)
    if key not in _MADE:
        made = import_model(f"{library}:{case.folder}", bundle)
        kept = Path(tempfile.mkdtemp(dir=_KEPT.name)) / "bundle"
        shutil.copytree(bundle, kept)
        _MADE[key] = (made.family, kept, mmformer.load(bundle))
    family, kept, model = _MADE[key]
    if not bundle.exists():
        shutil.copytree(kept, bundle)
    IMPORTED.append(family)
    return copy.deepcopy(model)


def weights_of(folder: Path) -> dict[str, Tensor]:
    """As a folder of transformers has them."""
    return load_file(folder / "model.safetensors")


def check_same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    """Names, precisions and values, to the bit."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype and torch.equal(value, second[name]), name


def otherwise(case: Case, folder: Path, state: Mapping[str, Tensor], *beside: str) -> Case:
    """The same with weights as other versions keep them, and the files beside its config that are named."""
    folder.mkdir(exist_ok=True)
    save_file(dict(state), folder / "model.safetensors", {"format": "pt"})
    for name in ("config.json", *beside):
        (folder / name).write_bytes((case.folder / name).read_bytes())
    return Case(case.reference, folder)


def check_round_trip(
    case: Case, bundle: Path, folder: Path, load: Callable[[Path], nn.Module] | None = None, library: Library = "hf"
) -> nn.Module:
    """What went in comes out to the bit, with its config, and the reference opens it; returns the opened one.

    Args:
        load: opens a folder; None: the reference's class does.
    """
    export_model(bundle, library, folder)
    check_same(weights_of(case.folder), weights_of(folder))
    configs = [json.loads((where / "config.json").read_text()) for where in (case.folder, folder)]
    assert configs[0] == configs[1]
    again = (load or type(case.reference).from_pretrained)(folder).eval()
    own, opened = case.reference.state_dict(), again.state_dict()
    assert own.keys() == opened.keys()
    assert all(torch.equal(own[name], opened[name]) for name in own)
    return again


def check_refused(
    case: Case, folder: Path, change: Mapping[str, Any], told: str, group: str | None = None, beside: Sequence[str] = ()
) -> None:
    """A config that says something else is refused with both sides, and nothing is left.

    Args:
        change: what it says, in a group of its own where one is named.
        beside: files that lie beside the config and the weights.
    """
    config = json.loads((case.folder / "config.json").read_text())
    (config if group is None else config[group]).update(change)
    for name in ("model.safetensors", *beside):
        (folder / name).write_bytes((case.folder / name).read_bytes())
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=told):
        import_model(f"hf:{folder}", folder / "bundle")
    assert not (folder / "bundle").exists()


def check_gradients(ours: Tensor, model: Model, theirs: Tensor, case: Case, kind: str = "hf") -> None:
    """The gradient of one function of the outputs, on every parameter: ours, as the family's rules write them, and
    theirs."""
    for module in (model, case.reference):
        module.zero_grad()
    weights = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(2))
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    found = open_source(f"{kind}:{case.folder}")
    own = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    rules = [rule for rule in found.family.weights(found.said, found.layout) if not rule.optional]
    written = to_theirs(rules, own, strict=False)
    wanted = {name: value.grad for name, value in case.reference.named_parameters() if value.grad is not None}
    wanted = _as_saved(case.reference, wanted) if kind == "hf" else wanted
    assert wanted
    largest = max(float(value.abs().max()) for value in wanted.values())
    for name, gradient in wanted.items():
        # Sums that nearly cancel hold rounding: a key's bias, say, moves nothing. It is measured by what is larger.
        scale = max(float(gradient.abs().max()), 1e-3 * largest)
        error = float((written[name] - gradient).abs().max()) / scale
        MEASURED.append(("gradients", error))
        assert error <= GRADIENT, f"the gradient of {name} is off by {error:.2e}"


def _as_saved(reference: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A transformers model's tensors by the names that files have for them, which some of its parameters have not."""
    from transformers.core_model_loading import revert_weight_conversion

    saved: dict[str, Tensor] = revert_weight_conversion(reference, tensors)
    return saved


def written(model: Model, spec: GenerationSpec, prompt: Tensor, read: Batch | None = None) -> list[list[int]]:
    """The ids that a decoder puts after a prompt, of what else it reads."""
    (name,) = model.decoders
    with torch.no_grad():
        memory = {} if read is None else model(read, decode=False).tokens
        return [each.ids for each in spec.write(Decoding(model, name, memory, rows=len(prompt)), text_of(prompt))]


def ended(rows: Tensor, eos: int) -> list[list[int]]:
    """What ``generate`` gives, without the end and what follows it."""
    return [row[: row.index(eos)] if eos in row else row for row in rows.tolist()]


def check_writing(
    model: Model,
    reference: Any,
    prompt: Tensor,
    eos: int = 2,
    length: int = 9,
    beams: int = 3,
    read: Batch | None = None,
    **given: Tensor,
) -> None:
    """Greedy and by beams, a decoder writes what ``generate`` does, id for id.

    Args:
        read: what else ours reads.
        given: the same for the reference.
    """
    options = {"max_new_tokens": length, "do_sample": False, "pad_token_id": eos, "eos_token_id": eos, **given}
    for spec, more in (
        (GreedySpec(max_length=length), {}),
        (BeamSpec(beams=beams, max_length=length), {"num_beams": beams}),
    ):
        mask = torch.ones_like(prompt)
        theirs = reference.generate(input_ids=prompt, attention_mask=mask, **options, **more)[:, prompt.shape[1] :]
        assert written(model, spec, prompt, read) == ended(theirs, eos)
