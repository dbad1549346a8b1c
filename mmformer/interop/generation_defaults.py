"""How the folders of transformers say that texts are written where nobody asks for another way: read both ways.

``generate`` takes it from generation_config.json, or where there is none from config.json, to which transformers 4
wrote it. Ids that end texts, or that are never written, are special ids (``interop/ids.py``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mmformer.errors import InputError
from mmformer.generation.beam import BeamSpec, Stop
from mmformer.generation.generation import GenerationSpec
from mmformer.generation.sampling import GreedySpec, SamplingSpec
from mmformer.interop.checkpoint import read_json, write_json
from mmformer.interop.family import SPECIAL, Family
from mmformer.models.model import ModelSpec

FILE = "generation_config.json"

STOPS: Mapping[bool | str | None, Stop] = {None: "likely", False: "likely", True: "full", "never": "certain"}
"""What ``early_stopping`` is with us; of two that are alike, the last is written."""

TAKEN = (
    *("max_length", "max_new_tokens", "min_length", "min_new_tokens", "repetition_penalty", "no_repeat_ngram_size"),
    *("do_sample", "temperature", "top_k", "top_p", "num_beams", "length_penalty", "early_stopping"),
    "forced_eos_token_id",
)

IDS = (*SPECIAL.values(), "suppress_tokens", "begin_suppress_tokens", "bad_words_ids")
"""What a generation_config.json says besides, where a config says it alone."""

UNTAKEN: Mapping[str, Any] = {
    **{"forced_bos_token_id": None, "min_p": 0.0, "top_h": None, "typical_p": 1.0, "epsilon_cutoff": 0.0},
    **{"eta_cutoff": 0.0, "encoder_no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0},
    **{"exponential_decay_length_penalty": None, "renormalize_logits": False, "sequence_bias": None},
    **{"guidance_scale": 1.0, "watermarking_config": None, "num_return_sequences": 1, "penalty_alpha": None},
    **{"num_beam_groups": 1, "diversity_penalty": 0.0, "constraints": None, "force_words_ids": None},
    **{"stop_strings": None, "max_time": None, "dola_layers": None, "token_healing": False},
    "return_timestamps": False,
}
"""What we have no way to write by, and what each key is where it changes nothing."""


def unasked(family: Family, config: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """What ``generate`` reads of a folder, without what is null there; nothing, where a family's class does not."""
    if family.library != "hf" or not family.unasked:
        return {}
    file = None if folder is None else folder / FILE
    said = read_json(file) if file is not None and file.is_file() else _in_config(config, (*TAKEN, *UNTAKEN, *IDS))
    return {key: value for key, value in said.items() if value is not None}


def read_defaults(
    family: Family, config: Mapping[str, Any], folder: Path | None, model: ModelSpec, notes: list[str]
) -> GenerationSpec | None:
    """How a folder's texts are written; None: the likeliest ids, as far as the model can, or it writes none.

    Where an end is forced, a text is cut one id earlier; among beams, it is weighed without that end.

    Args:
        notes: what cannot be taken is added.
    """
    if not model.decoders or family.library != "hf":
        return None
    if not family.unasked and folder is not None and (folder / FILE).is_file():
        notes.append(f"{FILE} is not followed: {family.name} of transformers does not read it either")
    said = unasked(family, config, folder)
    left = [key for key, neutral in UNTAKEN.items() if said.get(key, neutral) != neutral]
    try:
        spec, also_left = _spec(said)
    except InputError as error:
        notes.append(f"texts are not written as its folder says: {error}")
        return None
    told = (f"{key} {said[key]!r}" for key in (*left, *also_left))
    notes += [f"it says {each} of writing texts, for which there is nothing here: they may differ" for each in told]
    return None if spec == GreedySpec() else spec


def write_folder_defaults(
    folder: Path, family: Family, config: Mapping[str, Any], model: ModelSpec, spec: GenerationSpec | None
) -> str:
    """Have a folder say how texts are written, where it does not say it as it is; what cannot be said, or ""."""
    if read_defaults(family, config, folder, model, []) == spec:
        return ""
    if not family.unasked:
        return f"how it writes where nobody asks stays behind: {family.name} of transformers reads that nowhere"
    file = folder / FILE
    before = read_json(file) if file.is_file() else _in_config(config, IDS)
    write_json(file, {key: value for key, value in before.items() if key not in TAKEN} | _said(spec or GreedySpec()))
    return ""


def _said(spec: GenerationSpec) -> dict[str, Any]:
    """What a generation_config.json says of a way to write."""
    names = {"max_length": "max_new_tokens", "total_length": "max_length", "min_length": "min_new_tokens"}
    names |= {"total_min_length": "min_length", "no_repeat_ngram": "no_repeat_ngram_size"}
    names |= {"repetition_penalty": "repetition_penalty"}
    changed = {ours: getattr(spec, ours) for ours in names if getattr(spec, ours) != getattr(GreedySpec(), ours)}
    said = {names[ours]: value for ours, value in changed.items()}
    if isinstance(spec, SamplingSpec):
        said |= {"do_sample": True, "temperature": spec.temperature, "top_k": spec.top_k or 0, "top_p": spec.top_p}
    if isinstance(spec, BeamSpec):
        stops = {ours: theirs for theirs, ours in STOPS.items()}
        said |= {"num_beams": spec.beams, "length_penalty": spec.length_penalty, "early_stopping": stops[spec.stop]}
    return said


def _spec(said: Mapping[str, Any]) -> tuple[GenerationSpec, list[str]]:
    """The way to write, and the keys that it does not follow.

    Raises:
        InputError: a value that there cannot be.
    """
    left: list[str] = []
    common: dict[str, Any] = {"no_repeat_ngram": said.get("no_repeat_ngram_size", 0)}
    forced = _listed(said.get("forced_eos_token_id"))
    if not set(forced) <= set(_listed(said.get("eos_token_id"))):
        left.append("forced_eos_token_id")
    if "max_new_tokens" in said:
        common["max_length"] = said["max_new_tokens"] - bool(forced)
    elif "max_length" in said:
        common["total_length"] = said["max_length"] - bool(forced)
    if "min_new_tokens" in said:
        common["min_length"] = said["min_new_tokens"]
    elif "min_length" in said:
        common["total_min_length"] = said["min_length"]
    beams, drawn, penalty = said.get("num_beams", 1), said.get("do_sample", False), said.get("repetition_penalty", 1.0)
    if beams == 1:
        common["repetition_penalty"] = penalty
    elif penalty != 1:  # of log-probabilities there, of logits here
        left.append("repetition_penalty")
    if drawn and beams > 1:
        left.append("do_sample")
    if beams > 1:
        stop = _stop(said.get("early_stopping"))
        return BeamSpec(beams=beams, length_penalty=said.get("length_penalty", 1.0), stop=stop, **common), left
    if drawn:
        free = {name: said.get(name, 1.0) for name in ("temperature", "top_p")}
        return SamplingSpec(top_k=said.get("top_k", 50) or None, **free, **common), left
    return GreedySpec(**common), left


def _stop(value: Any) -> Stop:
    for theirs, ours in STOPS.items():
        if value == theirs:
            return ours
    raise InputError(f"its early_stopping is {value!r}, but must be true, false or 'never'.")


def _listed(ids: Any) -> list[Any]:
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def _in_config(config: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """What a config says, or the one inside it of what writes."""
    inner: Mapping[str, Any] = next(
        (config[key] for key in ("decoder", "generator", "text_config") if config.get(key)), {}
    )
    said = {key: inner[key] for key in keys if inner.get(key) is not None}
    return said | {key: config[key] for key in keys if config.get(key) is not None}
