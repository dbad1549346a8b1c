"""A sample's members: read, checked by decoding, and converted where a set is to have one format."""

from __future__ import annotations

import io
from typing import NamedTuple

from mmformer.data.building.draft import KIND, Draft, Span, Unusable
from mmformer.data.decode import MAX_PIXELS, decode, decode_image, image_size, most_bytes
from mmformer.data.sound import decode_sound, sound_length
from mmformer.errors import InputError

_PICTURES = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}
_SOUNDS = {"wav": "WAV", "flac": "FLAC", "ogg": "OGG"}

FORMATS = {"image": tuple(_PICTURES), "sound": tuple(_SOUNDS)}
"""What can be converted to."""


class Treatment(NamedTuple):
    """What is done to members on their way into a shard."""

    decode: bool = True  # once, so that what cannot be is left out
    image: str | None = None  # the format of all pictures; None: the files' own bytes
    sound: str | None = None


def make_members(draft: Draft, treatment: Treatment) -> dict[str, bytes]:
    """A sample's members as they go into its shard.

    Raises:
        Unusable: one of them is damaged, empty or too large.
    """
    members: dict[str, bytes] = {}
    for extension, member in draft.members.items():
        name = f"{draft.key}.{extension}"
        if isinstance(member, Span) and member.length > most_bytes(extension):
            raise Unusable("file that is too long", f"{name} has {member.length:,} bytes")
        data = member.read() if isinstance(member, Span) else member
        if treatment.decode and isinstance(member, Span):
            check_member(extension, data, name)
        wanted = {"image": treatment.image, "sound": treatment.sound}.get(KIND.get(extension, "")) or extension
        if wanted in members:
            raise Unusable("two members of one format", f"{name} would be a second .{wanted}")
        members[wanted] = data if wanted == extension else _converted(data, name, wanted)
    return members


def check_member(extension: str, data: bytes, name: str) -> None:
    """Refuse what training would stumble on.

    Raises:
        Unusable: it is empty, declares too many pixels or no samples, or cannot be decoded.
    """
    kind = KIND.get(extension.rsplit(".", 1)[-1])
    if not data:
        raise Unusable("empty file", f"{name} has no bytes")
    if kind == "image" and (size := image_size(data)) is not None and size[0] * size[1] > MAX_PIXELS:
        raise Unusable("picture that is too large", f"{name} declares {size[1]}x{size[0]} pixels; {_LIMIT}")
    if kind == "sound" and (length := sound_length(data)) is not None and not length[0]:
        raise Unusable("sound without samples", f"{name} declares none")
    try:
        decode(extension, data, name)
    except InputError as error:
        raise Unusable(_DAMAGED.get(kind or extension.rsplit(".", 1)[-1], "damaged text"), str(error)) from error


_LIMIT = f"{MAX_PIXELS / 1e6:.0f} megapixels are the limit"
_DAMAGED = {"image": "damaged picture", "sound": "damaged sound", "json": "damaged JSON", "cls": "damaged class number"}


def _converted(data: bytes, name: str, wanted: str) -> bytes:
    """A picture or sound in another format. JPEG and WebP are written at quality 95; sounds have one channel."""
    buffer = io.BytesIO()
    try:
        if wanted in _PICTURES:
            from PIL import Image

            options = {} if wanted == "png" else {"quality": 95}
            Image.fromarray(decode_image(data, name)).save(buffer, _PICTURES[wanted], **options)
        else:
            import soundfile

            sound = decode_sound(data, name)
            soundfile.write(buffer, sound.samples, sound.rate, format=_SOUNDS[wanted])
    except InputError as error:
        raise Unusable("damaged picture" if wanted in _PICTURES else "damaged sound", str(error)) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise Unusable("picture or sound that cannot be converted", f"{name} to .{wanted}: {error}") from error
    return buffer.getvalue()
