"""What a config of transformers says of special ids, for models that were made here or have other words now."""

from __future__ import annotations

import dataclasses
from typing import Any

from mmformer.interop.family import Family
from mmformer.interop.origin import Origin
from mmformer.interop.source import families_of
from mmformer.models.model import ModelSpec
from mmformer.tokenizers.text import TextTokensSpec


def id_config(spec: ModelSpec, family: Family, layout: str) -> dict[str, Any]:
    """The special ids of a family's text, those of a decoder where it has one; none where it has no text.

    Those that there are not are null: transformers' own defaults may be beyond the table. Families whose configs hold
    others, which say ids of their own, are left to those.
    """
    nested = bool(family.special) or any("." in key for field in family.fields for key in field.keys)
    paths = sorted((path for path in family.text if family.has(path, layout)), key=lambda path: "decoders." not in path)
    if not paths or nested:
        return {}
    kind, name, _ = paths[0].split(".")
    tokenizer = getattr(spec, kind)[name].tokenizer
    assert isinstance(tokenizer, TextTokensSpec)
    ids = tokenizer.words().ids
    config: dict[str, Any] = {
        "pad_token_id": ids.pad,
        "bos_token_id": ids.bos,
        "eos_token_id": ids.eos[0] if len(ids.eos) == 1 else list(ids.eos) or None,
    }
    if family.text_end is not None:  # which says of it what its pool looks for
        del config["eos_token_id"]
    several = {"suppress_tokens": list(ids.unwritten), "begin_suppress_tokens": list(ids.unwritten_first)}
    config |= {key: value or None for key, value in several.items() if value or key in family.defaults}
    return config | ({} if ids.start is None else {"decoder_start_token_id": ids.start})


def with_ids(origin: Origin, spec: ModelSpec) -> Origin:
    """An origin whose config says the special ids that a spec's vocabulary has."""
    family = next((family for family in families_of("hf") if family.name == origin.family), None)
    if origin.library != "hf" or family is None:
        return origin
    return dataclasses.replace(origin, config=origin.config | id_config(spec, family, origin.layout))
