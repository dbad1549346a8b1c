"""A sample's members, from bytes to values, by decoders that cannot run code.

Which decoder reads a member is decided by its extension alone, from the table at the end; nothing here unpickles, and
pictures are opened by the five readers of Pillow that are named, not by whichever of its dozens recognises the bytes.
"""

from __future__ import annotations

import io
import json
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from mmformer.data.sound import decode_sound
from mmformer.errors import InputError, describe_bytes, nearest

MAX_PIXELS = 64_000_000
"""Larger images are refused by what their header declares; one of this size takes up to 1 GB while it is decoded."""

MAX_TEXT = 2**24
"""Bytes of a text, or of JSON: longer members are not read. An hour's transcript takes a hundredth."""

MAX_MEMBER = 2**31
"""Bytes of any other member; a sound of the most samples has fewer."""

_MOST_SCANS = 100  # of a JPEG file: one in use has ten, and each takes as long as the whole picture, however short

Transparency = Literal["white", "ignored"]
"""What shows through a picture: white, or the colours that are stored where it is transparent."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# What Pillow's readers raise on damaged files (found by fuzzing them: tests/data/test_decode.py).
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, OverflowError, struct.error, zlib.error)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(
    data: bytes, name: str, max_pixels: int = MAX_PIXELS, transparency: Transparency = "white"
) -> NDArray[np.uint8]:
    """The picture in a PNG, JPEG, WebP, GIF (its first frame) or BMP file, upright, opaque, in colour.

    16 bits a channel become 8, and EXIF orientation is applied; colour profiles are not.
    One kind of damage passes, since Pillow does not see it: a PNG with too few rows, well packed; the rest is black.

    Args:
        data: the file's bytes.
        name: what to call it in an error: its path, or key and extension.
        max_pixels: width times height, as the header declares them, above which it is not decoded; Pillow itself
            decodes no more than 178 megapixels.
        transparency: what shows through it.

    Returns:
        An array of its own, uint8, H W 3.

    Raises:
        InputError: it is none of these formats, damaged, cut off, or too large.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what is refused or repaired below
        try:
            image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
            _check_size(image.size, name, max_pixels)
            if image.format == "JPEG" and (scans := data.count(b"\xff\xda")) > _MOST_SCANS:
                raise InputError(f"{name}: a JPEG file of {scans:,} scans; {_MOST_SCANS} are decoded. Save it anew.")
            image.load()
            return np.array(_to_rgb(_turn_upright(image), transparency))
        except InputError:
            raise
        except Image.DecompressionBombError as error:
            height, width = image_size(data) or (0, 0)
            _check_size((width, height), name, max_pixels)
            raise InputError(f"{name}: {error} Scale it down first.") from error
        except _DAMAGE as error:
            raise InputError(
                f"{name}: not a whole PNG, JPEG, WebP, GIF or BMP image ({describe_bytes(data)}): {_reason(error)}. "
                "Replace it or leave it out."
            ) from error


def image_size(data: bytes) -> tuple[int, int] | None:
    """Height and width in pixels as a picture's header declares them, whatever they are; None: it is no picture."""
    Image.init()
    for form in _FORMATS:
        reader, accepts = Image.OPEN[form]
        # Not through Image.open, which would refuse the largest.
        if accepts is None or accepts(data[:16]) is True:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # Pillow warns of frames that are larger than most
                    with reader(io.BytesIO(data), "") as image:
                        return image.height, image.width
            except (*_DAMAGE, Image.DecompressionBombError):  # a GIF's first frame may declare more
                return None
    return None


def decode_text(data: bytes, name: str) -> str:
    """The text in a UTF-8 file, unchanged but for a byte order mark.

    Raises:
        InputError: it is not UTF-8, or longer than texts are.
    """
    if len(data) > MAX_TEXT:
        raise InputError(f"{name}: {len(data):,} bytes of text, more than the limit of {MAX_TEXT:,}. Divide it.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = data[error.start : error.start + 8].hex(" ")
        raise InputError(
            f"{name}: not UTF-8 text: byte {error.start} of {len(data)} ({found}): {error.reason}. Convert it to UTF-8."
        ) from error


def decode_json(data: bytes, name: str) -> Any:
    """The value in a UTF-8 JSON file.

    Raises:
        InputError: it is not UTF-8 or not JSON, or longer than texts are.
    """
    text = decode_text(data, name)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: not JSON: {_reason(error)}; it begins with {text[:40]!r}.") from error


def decode_class(data: bytes, name: str) -> int:
    """The class number in a ``.cls`` member: decimal text, as webdataset writes it.

    Raises:
        InputError: it is not an integer.
    """
    text = decode_text(data, name)
    try:
        return int(text)
    except ValueError as error:
        raise InputError(f"{name}: must hold one integer, the class, but holds {text[:40]!r}.") from error


def decode(extension: str, data: bytes, name: str, transparency: Transparency = "white") -> Any:
    """The value of a member, by the last part of its extension (``"seg.png"`` is read as ``"png"``).

    Args:
        extension: of the member.
        data: its bytes.
        name: what to call it in an error.
        transparency: what shows through it, where it is a picture.

    Raises:
        InputError: there is no decoder for the extension, or the bytes are not what it says.
    """
    kind = extension.rsplit(".", 1)[-1].lower()
    if kind not in DECODERS:
        raise InputError(
            f"{name}: there is no decoder for '.{kind}', only for {', '.join(DECODERS)}.{nearest(kind, DECODERS)}"
        )
    if DECODERS[kind] is decode_image:
        return decode_image(data, name, transparency=transparency)
    return DECODERS[kind](data, name)


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise InputError(
            f"{name}: declares {width}x{height} = {width * height / 1e6:.1f} megapixels, more than the limit of "
            f"{max_pixels / 1e6:.1f}. Scale it down first."
        )


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except _DAMAGE:
        return image  # the pixels are whole; only what a camera wrote about them is not
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image, transparency: Transparency) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow's own conversion cuts 16 bits off at 255 instead of scaling them.
        deep = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data and transparency == "white":
        layer = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(layer, mask=layer)
        return white
    return image.convert("RGB")


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no reader recognises it"  # Pillow's text names a buffer by its address
    return str(error).strip().rstrip(".") or type(error).__name__


DECODERS: dict[str, Callable[[bytes, str], Any]] = {
    **dict.fromkeys(("png", "jpg", "jpeg", "webp", "gif", "bmp"), decode_image),
    **dict.fromkeys(("wav", "flac", "ogg", "mp3"), decode_sound),
    "json": decode_json,
    "txt": decode_text,
    "cls": decode_class,
}
"""The decoder of each extension."""


def most_bytes(extension: str) -> int:
    """How long a member may be that is to be read, by the last part of its extension."""
    texts = (decode_text, decode_json, decode_class)
    return MAX_TEXT if DECODERS.get(extension.rsplit(".", 1)[-1].lower()) in texts else MAX_MEMBER
