"""Special ids of texts as the folders of transformers say them, read both ways."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from mmformer.interop.family import SPECIAL, Family
from mmformer.interop.fields import complete, find, put
from mmformer.interop.generation_defaults import unasked
from mmformer.interop.origin import Origin
from mmformer.interop.source import Found, families_of
from mmformer.interop.whisper_prompt import begin_of
from mmformer.models.model import ModelSpec
from mmformer.tokenizers.special import SpecialIds
from mmformer.tokenizers.text import TextTokensSpec

OTHERS = ("bad_words_ids", "forced_bos_token_id", "forced_eos_token_id", "forced_decoder_ids")
"""Keys of configs that have ids too; what is ours of them is said by other keys."""


def read_ids(found: Found, own: SpecialIds, rows: int, writes: bool, notes: list[str]) -> SpecialIds:
    """A vocabulary's special ids, with what the files beside a model say.

    What is written ends where ``generate`` stops, if they say where, whatever the vocabulary puts after a text.

    Args:
        own: what the vocabulary says by itself.
        rows: of the table; ids beyond it are none.
        writes: whether texts are written, or only read.
        notes: what cannot be taken is added.
    """
    said, config = unasked(found.family, found.config, found.folder), complete(found.said, found.family.defaults)

    def inside(key: str, value: Any) -> tuple[int, ...]:
        listed = [] if value is None else value if isinstance(value, list) else [value]
        outside = [index for index in listed if not 0 <= index < rows]
        told = [f"{key} {index} is beyond the table of {rows} rows: there is no such token" for index in outside[:1]]
        notes.extend(note for note in told if note not in notes)
        return tuple(index for index in listed if index not in outside)

    def known(key: str, value: Any) -> tuple[int, ...]:
        return tuple(dict.fromkeys(inside(key, value)))

    def ids(name: str) -> tuple[int, ...]:
        key, place = SPECIAL[name], found.family.special.get(name)
        value = said.get(key)
        return known(key, find(config, place) if value is None and place is not None else value)

    def one(name: str) -> int | None:
        return next(iter(ids(name)), None)

    ends = (ids("eos") or own.eos) if writes else (own.eos or ids("eos"))
    made = SpecialIds(
        pad=one("pad") if own.pad is None else own.pad,
        bos=one("bos") if own.bos is None else own.bos,
        eos=tuple(sorted(ends, key=lambda index: index not in own.eos)),  # the first is what ends a text in training
        mask=own.mask,
    )
    if not writes:
        return made
    words = [word for word in said.get("bad_words_ids") or () if word not in [[end] for end in ends]]
    if several := [word for word in words if len(word) != 1]:
        notes.append(f"bad_words_ids has {several[0]}, but ids are banned one by one here: such words may be written")
    banned = known("bad_words_ids", [word[0] for word in words if len(word) == 1])
    start = one("start")
    prompt, languages = begin_of(said, found.config, start, notes)
    return dataclasses.replace(
        made,
        start=start,
        unwritten=tuple(dict.fromkeys([*banned, *known("suppress_tokens", said.get("suppress_tokens"))])),
        unwritten_first=known("begin_suppress_tokens", said.get("begin_suppress_tokens")),
        prompt=None if prompt is None else inside("an id that texts begin with,", prompt),  # some may be repeated
        languages=known("lang_to_id", languages),
    )


def with_special(config: Mapping[str, Any], spec: ModelSpec, family: Family, layout: str) -> dict[str, Any]:
    """A config that says the special ids of a family's text, those of a decoder where it has one.

    Those that there are not are null: transformers' own defaults may be beyond the table. A spec may have fewer parts
    than the layout, which is what it was before an edit.
    """
    whole: dict[str, Any] = copy.deepcopy(dict(config))
    places = [path.split(".")[:2] for path in family.text if family.has(path, layout)]
    places.sort()  # decoders first
    parts = [getattr(spec, kind)[name] for kind, name in places if name in getattr(spec, kind)]
    if not parts:
        return whole
    tokenizer = parts[0].tokenizer
    assert isinstance(tokenizer, TextTokensSpec)
    ids = tokenizer.words().ids
    said: dict[str, Any] = {
        "pad": ids.pad,
        "bos": ids.bos,
        "eos": ids.eos[0] if len(ids.eos) == 1 else list(ids.eos) or None,
        "start": ids.start if "bos" in family.special else ids.first,  # BLIP's has one key for both
    }
    for name, key in family.special.items():
        if name != "start" or said[name] is not None:
            put(whole, key, said[name])
    several = {"suppress_tokens": list(ids.unwritten), "begin_suppress_tokens": list(ids.unwritten_first)}
    if family.unasked:
        whole |= {key: value or None for key, value in several.items() if value or key in family.defaults}
    return whole


def with_ids(origin: Origin, spec: ModelSpec) -> Origin:
    """An origin whose config says the special ids that a spec's vocabulary has, and none of another's."""
    family = next((family for family in families_of("hf") if family.name == origin.family), None)
    if origin.library != "hf" or family is None:
        return origin
    config = with_special(origin.config, spec, family, origin.layout)
    return dataclasses.replace(origin, config=config | {key: None for key in OTHERS if config.get(key) is not None})
