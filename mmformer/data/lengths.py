"""How long samples are, as headers declare it: neither pictures nor sounds are decoded for it."""

from __future__ import annotations

from mmformer.data.buckets import Field
from mmformer.data.decode import decode, image_size
from mmformer.data.inputs import AudioInputSpec, ImageInputSpec, TextInputSpec
from mmformer.data.samples import Samples
from mmformer.data.seeding import generator
from mmformer.data.sound import sound_length
from mmformer.data.sources import SourceSpec
from mmformer.errors import InputError

_STREAMS = {"text": "caption", "target": "target"}
"""What captions are drawn from."""


def length(source: SourceSpec, field: Field, reader: Samples, part: int, row: int, seed: int, position: int) -> int:
    """The length of what training reads of a sample; 0: it has no such thing, or none that can be read.

    Args:
        source: says how it is read.
        field: that of Batch: pictures count their pixels once they are resized, sounds their samples once they are
            resampled, texts their characters.
        reader: of the source's samples.
        part: that the sample is in.
        row: its number there.
        seed: of the source's order.
        position: what is random of the sample is drawn for it.
    """
    spec = getattr(source, field)
    try:
        if isinstance(spec, ImageInputSpec):
            return _picture(spec, reader, part, row)
        if isinstance(spec, AudioInputSpec):
            return _sound(spec, spec.heard(seed, position), reader, part, row)
        if isinstance(spec, TextInputSpec):
            raw = reader.read(part, row, [spec.member])
            value = decode(spec.member, raw.members[spec.member], raw.key)
            caption, random = spec.training_caption or spec.caption, generator(seed, _STREAMS[field], position)
            return len(caption.choose(value, random, raw.key))
    except (InputError, KeyError):  # told, or skipped, once it is read
        pass
    return 0


def _picture(spec: ImageInputSpec, reader: Samples, part: int, row: int) -> int:
    raw = reader.read(part, row, spec.members if len(spec.members) == 1 else None)
    size = image_size(raw.members[spec.choose(raw.members)])
    if size is None:
        return 0
    height, width = spec.transform.target(*size)
    return height * width


def _sound(spec: AudioInputSpec, member: str, reader: Samples, part: int, row: int) -> int:
    found = sound_length(reader.read(part, row, [member]).members[member])
    if found is None:
        return 0
    samples, rate = found
    return min(spec.transform.most, samples * spec.transform.rate // rate)
