"""Decoding: every kind of picture to upright opaque RGB, and one clear message for everything damaged or too large."""

from __future__ import annotations

import io
import random
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmformer.data.decode import DECODERS, decode, decode_image, decode_json, decode_text
from mmformer.errors import InputError

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
SMOOTH = np.stack(np.broadcast_arrays(np.arange(30) * 8, np.arange(20)[:, None] * 12, 60), axis=-1).astype(np.uint8)


def file(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})], ids=["png", "bmp", "webp"]
)
def test_lossless_formats_come_back_exactly(kind: str, options: dict[str, Any]) -> None:
    decoded = decode_image(file(Image.fromarray(PICTURE), kind, **options), "a")
    assert decoded.dtype == np.uint8
    assert decoded.flags.writeable and decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, PICTURE)


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("GIF", "RGB")])
def test_lossy_formats_come_back_nearly(kind: str, mode: str) -> None:
    options = {} if kind == "GIF" else {"quality": 98}
    decoded = decode_image(file(Image.fromarray(SMOOTH).convert(mode), kind, **options), "a")
    assert np.abs(decoded.astype(int) - SMOOTH).mean() < 4


def test_transparency_is_laid_on_white() -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (200, 100, 0, 255)
    rgba[0, 1] = (200, 100, 0, 0)
    rgba[1, 0] = (200, 100, 0, 51)
    expected = [[[200, 100, 0], [255, 255, 255]], [[244, 224, 204], [255, 255, 255]]]
    for kind in ("PNG", "WEBP"):
        options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        np.testing.assert_array_equal(decode_image(file(Image.fromarray(rgba), kind, **options), "a"), expected)
    grey = Image.fromarray(np.array([[[90, 255], [90, 0]]], np.uint8), "LA")
    np.testing.assert_array_equal(decode_image(file(grey, "PNG"), "a"), [[[90] * 3, [255] * 3]])
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF"):
        decoded = decode_image(file(palette, kind, transparency=1), "a")
        np.testing.assert_array_equal(decoded, [[[10, 20, 30], [255, 255, 255]]])
    keyed = file(Image.fromarray(np.array([[10, 20]], np.uint8)), "PNG", transparency=20)
    np.testing.assert_array_equal(decode_image(keyed, "a"), [[[10] * 3, [255] * 3]])


def test_grey_bilevel_and_16_bits_are_scaled_not_cut() -> None:
    grey = np.array([[0, 7, 255]], np.uint8)
    np.testing.assert_array_equal(decode_image(file(Image.fromarray(grey), "PNG"), "a")[..., 1], grey)
    bilevel = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    np.testing.assert_array_equal(decode_image(file(bilevel, "PNG"), "a"), [[[0] * 3, [255] * 3]])
    deep = np.array([[0, 257, 32768, 65535]], np.uint16)
    np.testing.assert_array_equal(decode_image(file(Image.fromarray(deep), "PNG"), "a")[0, :, 0], [0, 1, 128, 255])
    colour = png(2, 1, 16, 2, b"\0" + struct.pack(">6H", 0, 0x8000, 0xFFFF, 0x1234, 0x4321, 0xABCD))
    np.testing.assert_array_equal(decode_image(colour, "a"), [[[0, 0x80, 0xFF], [0x12, 0x43, 0xAB]]])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    stored = {
        1: SMOOTH,
        2: SMOOTH[:, ::-1],
        3: SMOOTH[::-1, ::-1],
        4: SMOOTH[::-1],
        5: SMOOTH.transpose(1, 0, 2),
        6: SMOOTH.transpose(1, 0, 2)[::-1],
        7: SMOOTH.transpose(1, 0, 2)[::-1, ::-1],
        8: SMOOTH.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, quality=98)
    decoded = decode_image(data, "a")
    assert decoded.shape == SMOOTH.shape
    assert np.abs(decoded.astype(int) - SMOOTH).mean() < 4


def test_animations_give_their_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = file(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(decode_image(data, "a")[4, 4], [255, 0, 0])


DAMAGED = {
    "empty": b"",
    "text": b"<html>404 Not Found</html>",
    "png signature alone": b"\x89PNG\r\n\x1a\n",
    "png cut off": file(Image.fromarray(PICTURE), "PNG")[:-200],
    "png wrong checksum": file(Image.fromarray(PICTURE), "PNG").replace(b"IHDR\x00", b"IHDR\x01"),
    "png no pixels": png(0, 0, 8, 2, b""),
    "jpeg cut off": file(Image.fromarray(PICTURE), "JPEG")[:-100],
    "jpeg header alone": file(Image.fromarray(PICTURE), "JPEG")[:300],
    "webp cut off": file(Image.fromarray(PICTURE), "WEBP")[:-30],
    "gif cut off": file(Image.fromarray(PICTURE), "GIF")[:-300],
    "bmp cut off": file(Image.fromarray(PICTURE), "BMP")[:-30],
    "tiff, which is not read": file(Image.fromarray(PICTURE), "TIFF"),
    "postscript, which is not run": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_images_are_refused_by_name(case: str) -> None:
    with pytest.raises(InputError, match=r"^shard-3/cat\.png: not a whole PNG.*(Replace it|leave it out)") as caught:
        decode_image(DAMAGED[case], "shard-3/cat.png")
    assert "0x" not in str(caught.value) and len(str(caught.value)) < 300


def test_sizes_are_checked_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = png(9000, 9000, 8, 2, b"")
    with pytest.raises(InputError, match=r"^a: declares 9000x9000 = 81\.0 megapixels, more than the limit of 64\.0"):
        decode_image(bomb, "a")
    for width in (12_000, 2**31 - 1):  # Pillow warns of the first and refuses the second by itself
        with pytest.raises(InputError, match=r"^a: .*Scale it down first"):
            decode_image(png(width, width, 8, 2, b""), "a")
    with pytest.raises(InputError, match=r"30x20 = 0\.0 megapixels"):
        decode_image(file(Image.fromarray(PICTURE), "PNG"), "a", max_pixels=599)
    assert decode_image(file(Image.fromarray(PICTURE), "PNG"), "a", max_pixels=600).shape == (20, 30, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_flipped_and_missing_bytes_raise_nothing_else(kind: str) -> None:
    whole, chance = file(Image.fromarray(PICTURE), kind), random.Random(kind)
    outcomes = set()
    for _ in range(300):
        data = bytearray(whole[: chance.randrange(len(whole))] if chance.random() < 0.3 else whole)
        for _ in range(chance.randint(0, 5)):
            if data:
                data[chance.randrange(min(len(data), chance.choice((60, 10_000))))] = chance.randrange(256)
        try:
            decoded = decode_image(bytes(data), "a", max_pixels=100_000)
            assert decoded.dtype == np.uint8 and decoded.ndim == 3 and decoded.shape[2] == 3
            outcomes.add("decoded")
        except InputError as error:
            assert str(error).startswith("a: ")
            outcomes.add("refused")
    assert outcomes == {"decoded", "refused"}


def test_text_and_json() -> None:
    assert decode_text("\ufeffzwei\nZeilen ☃".encode(), "a") == "zwei\nZeilen ☃"
    assert decode_json('{"naïve": [1, null, "雪"]}'.encode(), "a") == {"naïve": [1, None, "雪"]}
    with pytest.raises(InputError, match=r"^a\.txt: not UTF-8 text: byte 2 of 4 \(e9 21\)"):
        decode_text(b"caf\xe9!"[1:], "a.txt")
    with pytest.raises(InputError, match=r"^a\.json: not UTF-8"):
        decode_json(b'"\xff"', "a.json")
    for broken in (b"", b"{'a': 1}", b"[" * 100_000, b"1" * 5000):
        with pytest.raises(InputError, match=r"^a\.json: not JSON"):
            decode_json(broken, "a.json")


def test_members_are_decoded_by_extension() -> None:
    data = file(Image.fromarray(PICTURE), "PNG")
    for extension in ("png", "PNG", "seg.png", "jpg"):
        np.testing.assert_array_equal(decode(extension, data, "a"), PICTURE)
    assert decode("cls", b"12\n", "a") == 12
    with pytest.raises(InputError, match=r"a\.cls: must hold one integer, the class, but holds 'cat'"):
        decode("cls", b"cat", "a.cls")
    with pytest.raises(InputError, match=r"a\.jsn: there is no decoder for '\.jsn'.*Did you mean 'json'"):
        decode("jsn", b"{}", "a.jsn")


def test_nothing_is_unpickled() -> None:
    assert not {"pkl", "pickle", "pyd", "pth", "npy", "npz"} & set(DECODERS)
    with pytest.raises(InputError, match="no decoder"):
        decode("pyd", b"cos\nsystem\n(S'exit 1'\ntR.", "a.pyd")
