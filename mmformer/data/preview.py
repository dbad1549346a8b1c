"""What samples look like, as a set has them and as a run reads them in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mmformer.data.collate import Collate, Sample
from mmformer.data.contact_sheet import Tile, draw_spectrum
from mmformer.data.dataset import MixedDataset
from mmformer.data.decode import DECODERS, decode_image
from mmformer.data.manifest import Manifest
from mmformer.data.mixture import Mixture
from mmformer.data.samples import RawSample
from mmformer.data.shards import ShardReader
from mmformer.data.sound import Sound, decode_sound
from mmformer.data.sources import DataSpec
from mmformer.data.statistics import readable, texts_of
from mmformer.errors import InputError
from mmformer.tokenizers.text import TextEncoder
from mmformer.types import Audio, Batch


def raw_tiles(
    manifest: Manifest,
    split: str,
    number: int,
    fields: Sequence[str] = (),
    tokens: Callable[[str], int] | None = None,
) -> list[Tile]:
    """Samples of a split, evenly spread over it, as they are.

    Args:
        manifest: the set.
        split: the split.
        number: of samples, at most.
        fields: dotted paths in the json member to texts; empty: where sets usually have them.
        tokens: counts those of a text; None: characters are counted.

    Raises:
        InputError: there is no such split, or a shard is damaged. A damaged sample has a tile that says so.
    """
    reader = ShardReader(manifest, split)
    number = min(number, len(reader))
    return [_raw_tile(reader[place * len(reader) // number], fields, tokens) for place in range(number)]


def training_rows(
    spec: DataSpec, encoders: Mapping[str, TextEncoder], seed: int, number: int, draws: int
) -> list[list[Tile]]:
    """The first samples of a run: each as it is read, and then as several epochs might augment it.

    Where sources of several kinds take turns, each kind has as many.

    Args:
        spec: the data of the run.
        encoders: of its texts.
        seed: of the run.
        number: of samples.
        draws: of each.

    Raises:
        InputError: the data cannot be read.
    """
    dataset, collate = MixedDataset(spec, seed), Collate(spec, encoders, seed, training=True)
    rows = []
    for start in _first_positions(dataset.mixture, number):
        first, (source, place) = dataset.place(start)
        # The same sample at further positions of the run: other augmentations, other captions.
        positions = [first + draw * len(dataset) for draw in range(draws)]
        samples = [dataset.sources[source].sample(place, each)._replace(source=source) for each in positions]
        batch = collate(samples)
        rate = 0 if batch.audio is None else batch.audio.rate
        drawn = [_drawn_tile(sample, batch, row) for row, sample in enumerate(samples)]
        rows.append([_read_tile(samples[0], rate), *drawn])
    return rows


def _first_positions(mixture: Mixture, number: int) -> list[int]:
    """The first positions of every kind of update: so many of all together, and about as many of each."""
    kinds = len(mixture.members)
    found: dict[int, list[int]] = {kind: [] for kind in range(kinds)}
    update = 0
    while min(map(len, found.values())) < -(-number // kinds):
        first = update * mixture.batch_size
        found[mixture.kind(update)] += range(first, first + mixture.batch_size)
        update += 1
    return [position for own in found.values() for position in own[: -(-number // kinds)]][:number]


def _raw_tile(raw: RawSample, fields: Sequence[str], tokens: Callable[[str], int] | None) -> Tile:
    raw, damaged = readable(raw)
    picture = spectrum = None
    facts = []
    for extension, data in raw.members.items():
        decoder, name = DECODERS.get(extension.rsplit(".", 1)[-1]), f"{raw.key}.{extension}"
        try:
            if decoder is decode_image and picture is None:
                picture = decode_image(data, name)
                facts.append(f"{extension} {picture.shape[1]} x {picture.shape[0]}")
            elif decoder is decode_sound and spectrum is None:
                sound = decode_sound(data, name)
                spectrum = draw_spectrum(sound)
                facts.append(f"{extension} {_seconds(sound)}")
        except InputError:
            damaged.append(extension)
    facts += [f"{extension} damaged" for extension in damaged]
    texts = texts_of(raw, fields)
    notes = [", ".join(facts) or ", ".join(raw.members)]
    if texts:
        more = f", and {len(texts) - 1} more" if len(texts) > 1 else ""
        length = f"{len(texts[0])} characters" if tokens is None else f"{tokens(texts[0])} tokens"
        notes.append(f"{length}{more}")
    return Tile(raw.key, picture, spectrum, texts[0] if texts else "", notes)


def _read_tile(sample: Sample, rate: int) -> Tile:
    """Before it is augmented."""
    spectrum = None if sample.audio is None else draw_spectrum(Sound(sample.audio, rate))
    labels = [f"{name}: {label}" for name, label in sample.labels.items()]
    facts = [] if sample.image is None else [f"{sample.image.shape[1]} x {sample.image.shape[0]}"]
    facts += [] if sample.audio is None else [_seconds(Sound(sample.audio, rate))]
    return Tile(sample.key, sample.image, spectrum, "", [", ".join(facts), *labels])


def _drawn_tile(sample: Sample, batch: Batch, row: int) -> Tile:
    picture = None if batch.image is None else _pixels(batch.picture(row))
    notes = []
    for name, text in (("text", batch.text), ("target", batch.target)):
        if text is not None:
            notes.append(f"{name}: {int(text.lengths[row])} tokens")
    written = " | ".join(text for text in dict.fromkeys((sample.text, sample.target)) if text)
    return Tile(
        f"position {sample.position}",
        picture,
        None if batch.audio is None else _spectrum(batch.audio, row),
        written,
        [", ".join(notes)] if notes else [],
    )


def _pixels(image: Tensor) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = image.permute(1, 2, 0).numpy()  # H W 3
    return pixels


def _spectrum(audio: Audio, row: int) -> NDArray[np.uint8]:
    samples = audio.samples[row, : int(audio.lengths[row])].numpy()
    return draw_spectrum(Sound(samples, audio.rate), None if audio.hidden is None else audio.hidden[row].numpy())


def _seconds(sound: Sound) -> str:
    return f"{len(sound.samples) / sound.rate:.2f} s at {sound.rate:,} Hz"
