"""What lies beside a model's config and weights: its vocabulary, how it reads pictures, its special ids."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mmformer.config import parse, to_data
from mmformer.data.image_transform import ImageTransformSpec
from mmformer.errors import InputError
from mmformer.interop import plain
from mmformer.interop.fields import complete
from mmformer.interop.ids import read_ids
from mmformer.interop.pictures import PictureReading, folder_pictures
from mmformer.interop.source import Found
from mmformer.interop.vocabularies import FoundVocabulary, from_folder
from mmformer.models.decoder import DecoderSpec
from mmformer.models.model import ModelSpec
from mmformer.tokenizers.archive import Side
from mmformer.tokenizers.special import SpecialIds


def with_texts(spec: ModelSpec, found: Found, scratch: Path, notes: list[str]) -> ModelSpec:
    """The spec with the folder's vocabulary in its text tokenizers; where it has none, with the special ids alone.

    Args:
        scratch: a folder for the vocabularies' files, until they are in the bundle.
        notes: what is to be told is added.

    Raises:
        InputError: the vocabulary cannot be read exactly, has more pieces than the model's table has rows, or ends
            texts with another id than the one that they are read at.
    """
    data = to_data(spec)
    for path in [path for path in found.family.text if found.family.has(path, found.layout)]:
        side: Side = "target" if path.startswith("decoders.") else "source"
        vocabulary = None if found.folder is None else from_folder(found.folder, found.family.clean, side)
        if vocabulary is None:
            vocabulary = found.vocabulary
        rows = plain.get(data, f"{path}.rows")
        decoder = spec.decoders[path.split(".")[1]] if path.startswith("decoders.") else None
        known = SpecialIds() if vocabulary is None else vocabulary.ids
        ids = read_ids(found, known, rows, decoder is not None, notes)
        if vocabulary is None:
            plain.put(data, f"{path}.ids", to_data(_with_end(ids, path, rows, found)))
            continue
        _require_rows(vocabulary, rows, found)
        file = scratch / f"{side}.zip"
        file.write_bytes(vocabulary.content)
        said = {
            "vocabulary": str(file),
            "ids": to_data(ids if decoder is None else _prompted(ids, vocabulary.before, decoder)),
            "begin": vocabulary.begin and decoder is None,
            # A decoder puts its first id before a text itself, and learns to end it.
            "end": vocabulary.end or decoder is not None,
            "prefix_space": False,
        }
        for name, value in said.items():
            plain.put(data, f"{path}.{name}", value)
    if found.family.text and not list(scratch.iterdir()):
        own = "; put bpe_simple_vocab_16e6.txt.gz of open_clip beside it for texts"
        own = own if found.family.library == "open_clip" else ""
        notes.append(f"no vocabulary was found: the bundle takes ids only{own}")
    made = parse(ModelSpec, data, found.where)
    _require_end(made, found)
    return made


def with_pictures(spec: ModelSpec, found: Found, notes: list[str]) -> tuple[ModelSpec, ImageTransformSpec | None]:
    """The spec whose encoder of pictures normalises them as the files beside the model say, and what goes before it."""
    family = found.family
    if family.picture is None or not family.has(family.picture, found.layout):
        return spec, None
    reading = found.pictures or (None if found.folder is None else folder_pictures(found.folder))
    if reading is None:
        notes.append("nothing says how pictures are prepared: the bundle takes normalised values only")
        return spec, None
    data = to_data(spec)
    if family.resizes is not None:
        patch = plain.get(data, f"{family.picture}.patch")
        plain.put(data, f"{family.resizes}.sizes", [side // patch for side in reading.transform.size])
        plain.put(data, f"{family.picture}.remainder", reading.transform.size[0] % patch)
    _require_size(reading, data, found)
    for name, value in (("mean", reading.mean), ("std", reading.std)):
        plain.put(data, f"{family.picture}.{name}", list(value))
    return parse(ModelSpec, data, found.where), reading.transform


def _with_end(ids: SpecialIds, path: str, rows: int, found: Found) -> SpecialIds:
    """With the id at which the family's pool reads a text, for a vocabulary that is not there to say it."""
    end = found.family.text_end
    looked_for = end.read(complete(found.said, found.family.defaults)) if end and end.path == path else None
    if looked_for is None or not 0 <= looked_for < rows:
        return ids
    return dataclasses.replace(ids, eos=(looked_for,))


def _require_end(spec: ModelSpec, found: Found) -> None:
    """Refuse a vocabulary that ends texts with an id that the family's pool does not look for."""
    end = found.family.text_end
    if end is None or not found.family.has(end.path, found.layout):
        return
    config = complete(found.said, found.family.defaults)
    if not end.agrees(config, spec):
        raise InputError(
            f"{found.where} has texts read at the id {end.read(config)}, but the vocabulary beside it ends them with "
            f"{end.of(spec)}: they do not belong together."
        )


def _prompted(ids: SpecialIds, before: tuple[int, ...], decoder: DecoderSpec) -> SpecialIds:
    """A decoder's special ids: one that reads something begins with its start, whatever its library puts first."""
    begins = not decoder.reads or before[:1] == (ids.first,)
    told = ids.prompt is None and begins and before != (ids.first,)
    return dataclasses.replace(ids, prompt=before) if told else ids


def _require_rows(vocabulary: FoundVocabulary, rows: int, found: Found) -> None:
    if vocabulary.size > rows:
        raise InputError(
            f"{found.where} has a table of {rows} rows, but the vocabulary beside it has {vocabulary.size} pieces: "
            f"they do not belong together."
        )


def _require_size(reading: PictureReading, data: Any, found: Found) -> None:
    """Refuse a preparation for another size than the model has positions for, as far as a stack says it."""
    tokenizer = plain.get(data, found.family.picture or "")["init_args"]
    encoder = plain.get(data, ".".join((found.family.picture or "").split(".")[:2]))
    position = plain.get(data, f"stacks.{encoder['stack']}.position")
    if position["class_path"] != "LearnedPositionSpec" or position["init_args"]["axes"] != [1, 2]:
        return
    asked = tuple(side * tokenizer["patch"] + tokenizer["remainder"] for side in position["init_args"]["sizes"])
    if reading.transform.size != asked:
        raise InputError(
            f"{found.where} is for pictures of {asked[0]}x{asked[1]}, but the files beside it make them "
            f"{reading.transform.size[0]}x{reading.transform.size[1]}: they do not belong together."
        )
