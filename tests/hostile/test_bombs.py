"""Small files that ask for a lot: refused in words, in under a second, before what they ask for is tried."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from attempts import count, outcome
from bundles import change, save_classifier
from PIL import Image

from mmformer.bundle import load_bundle, read_state
from mmformer.config import read_yaml
from mmformer.data.building.tables import read_table
from mmformer.data.decode import MAX_TEXT, decode_image, decode_json, decode_text
from mmformer.data.folders import FolderSamples
from mmformer.data.manifest import Manifest, Shard
from mmformer.data.shards import ShardReader, index_shard
from mmformer.data.sound import decode_sound
from mmformer.data.tar import finish_shard
from mmformer.errors import InputError
from mmformer.interop.checkpoint import read_json
from mmformer.interop.vocabularies import from_open_clip
from mmformer.tokenizers.opening import open_vocabulary

SECOND = 1.0  # of one processor's time
ROOM = 300 * 2**20  # bytes that refusing may ask for, far below what the bombs do


def refused(kind: str, attempt: Callable[[], object], *parts: str) -> None:
    """In time, in little memory, and with these words."""

    def told() -> None:
        try:
            attempt()
        except InputError as error:
            for part in parts:
                assert part in str(error), f"{part!r} is not in {error}"
            raise

    assert outcome(told, SECOND, ROOM) == "refused"
    count("bombs", "refused")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *more: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    rows = zlib.compress(bytes(10_000_000), 9)  # a thousand times smaller
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def texts(number: int) -> bytes:
    """A PNG with so many texts of a megabyte each."""
    packed = zlib.compress(bytes(2**20), 9)
    return png(8, 8, *(chunk(b"zTXt", b"k%d\0\0" % place + packed) for place in range(number)))


def gif(width: int, height: int) -> bytes:
    """With a frame of 65,535 by 65,535."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    return head + b"," + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\x02\x02\x4c\x01\x00;"


def scans(number: int) -> bytes:
    """A progressive JPEG of 64 megapixels of one colour, whose last scan comes again and again."""
    file = io.BytesIO()
    Image.new("L", (8000, 8000), 128).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * number + data[-2:]


PICTURES: dict[str, Callable[[], bytes]] = {
    "a PNG of 20,000 by 20,000": lambda: png(20_000, 20_000),
    "a PNG of 2 billion by 2 billion": lambda: png(2**31 - 1, 2**31 - 1),
    "a GIF of 65,535 by 65,535": lambda: gif(65_535, 65_535),
    "a GIF whose frame is larger than it": lambda: gif(8, 8),
    "a WebP of 16,383 by 16,383": lambda: (
        b"RIFF\x1e\x00\x00\x00WEBPVP8L\x11\x00\x00\x00/" + struct.pack("<I", 16382 | 16382 << 14) + bytes(12)
    ),
    "a BMP of 60,000 by 60,000": lambda: (
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 100, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
    ),
    "a JPEG of 10,000 scans": lambda: scans(10_000),
    "a PNG whose text unpacks to a gigabyte": lambda: texts(1000),
}


@pytest.mark.parametrize("bomb", PICTURES)
def test_pictures(bomb: str) -> None:
    data = PICTURES[bomb]()
    refused(bomb, lambda: decode_image(data, "a"), "a: ")


def flac_of_hours(hours: int) -> bytes:
    """Silence that declares to be so long, and is a second."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros((44_100, 2), np.float32), 44_100, format="FLAC")
    data = bytearray(file.getvalue())
    declared = hours * 3600 * 44_100
    data[21] = (data[21] & 0xF0) | declared >> 32
    data[22:26] = struct.pack(">I", declared & 0xFFFFFFFF)
    return bytes(data)


def wav_of_hours(hours: int) -> bytes:
    length = hours * 3600 * 8000
    form = struct.pack("<HHIIHH", 1, 1, 8000, 8000, 1, 8)
    return b"RIFF" + struct.pack("<I", length + 36) + b"WAVEfmt \x10\0\0\0" + form + b"data" + struct.pack("<I", length)


@pytest.mark.parametrize("seconds", [None, 10.0])
@pytest.mark.parametrize("make", [flac_of_hours, wav_of_hours])
@pytest.mark.parametrize("hours", [3, 24])
def test_sounds_that_declare_hours(make: Callable[[int], bytes], hours: int, seconds: float | None) -> None:
    data = make(hours) + bytes(1000 if make is wav_of_hours else 0)
    refused(f"a sound of {hours} hours", lambda: decode_sound(data, "a", seconds, 0.5), "a: ")


def laughs(levels: int = 12) -> str:
    lines = ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


def merges(levels: int = 12) -> str:
    lines = ["a0: &a0 {k: v}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}], k{n}: v}}" for n in range(1, levels)]
    return "\n".join(lines)


YAML: dict[str, tuple[str, str]] = {
    "a billion laughs": (laughs(), "its aliases written out"),
    "a billion laughs in merges": (merges(), "its aliases written out"),
    "a list that holds itself": ("a: &a [*a]", "its aliases written out"),
    "a number to base 60": ("a: " + "1:" * 20_000 + "1", "so many digits"),
    "a number of 100,000 digits": ("a: " + "9" * 100_000, "so many digits"),
    "a thousand brackets": ("a: " + "[" * 1000, "nested too deeply"),
    "ten thousand dashes": ("- " * 10_000, "nested too deeply"),
}


@pytest.mark.parametrize("bomb", YAML)
def test_yaml(bomb: str, tmp_path: Path) -> None:
    text, told = YAML[bomb]
    (tmp_path / "a.yaml").write_text(text)
    refused(bomb, lambda: read_yaml(tmp_path / "a.yaml"), "a.yaml", told)


def test_yaml_of_a_gigabyte(tmp_path: Path) -> None:
    sparse(tmp_path / "a.yaml", 2**30)
    refused("YAML of a gigabyte", lambda: read_yaml(tmp_path / "a.yaml"), "too long")


@pytest.mark.parametrize("value", [laughs(), "1:" * 5000 + "1", "[" * 900])
def test_yaml_in_a_text_of_a_bundle(value: str, tmp_path: Path) -> None:
    """A text that stands where none is meant is read once more, as YAML."""
    bundle = save_classifier(tmp_path / "bundle")
    change(bundle / "model.yaml", lambda data: data["model"]["stacks"]["image"].update(width=value))
    with pytest.raises(InputError):
        load_bundle(bundle)  # what comes first takes its time alone
    refused("YAML in a text", lambda: load_bundle(bundle), "width")


def sparse(file: Path, size: int, begin: bytes = b"") -> None:
    """A file of zeros that takes no room."""
    file.write_bytes(begin)
    os.truncate(file, size)


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def record(key: str, value: str) -> bytes:
    length = len(key) + len(value.encode()) + 3
    while len(made := f"{length} {key}={value}\n".encode()) != length:
        length = len(made)
    return made


def pax(*records: bytes) -> bytes:
    body = b"".join(records)
    return member("././@PaxHeader", len(body), tarfile.XHDTYPE) + padded(body)


END = bytes(1024)
ADDS_UP = 1795362656
"""A time at which the first block of a gzip's bytes, signed, add up to the checksum that is not there."""
TARS: dict[str, Callable[[], bytes]] = {
    "a member of 10 TB": lambda: member("a.txt", 10 * 10**12) + b"a" * 512 + END,
    "a name of 10 TB": lambda: member("././@LongLink", 10 * 10**12, tarfile.GNUTYPE_LONGNAME) + b"a" * 512 + END,
    "a name of a gigabyte": lambda: member("././@LongLink", 2**30, tarfile.GNUTYPE_LONGNAME) + b"a" * 512 + END,
    "a header of a gigabyte": lambda: member("././@PaxHeader", 2**30, tarfile.XHDTYPE) + b"a" * 512 + END,
    "a size below zero": lambda: pax(record("size", "-1024")) + member("a.txt", 3) + padded(b"abc") + END,
    "a size that leads back": lambda: member("b.txt") + pax(record("size", "-2560")) + member("a.txt") + END,
    "headers in headers": lambda: b"".join(pax(record("comment", "x")) for _ in range(5000)) + END,
    "a header of digits": lambda: (
        member("././@PaxHeader", 60_000, tarfile.XHDTYPE) + padded(b"1" * 60_000) + member("a.txt") + END
    ),
    "gzip of zeros": lambda: gzip.compress(bytes(50_000_000), 9, mtime=0),
    "gzip of zeros whose bytes add up": lambda: gzip.compress(bytes(50_000_000), 9, mtime=ADDS_UP),
    "a name that leads out": lambda: member("../../evil.txt", 3) + padded(b"abc") + END,
    "a name that is somewhere": lambda: member("/etc/evil.txt", 3) + padded(b"abc") + END,
    "a sparse file of a terabyte": lambda: (
        pax(record("GNU.sparse.size", str(10**12)), record("GNU.sparse.numblocks", "0"))
        + member("a.txt", 3)
        + padded(b"abc")
        + END
    ),
}


@pytest.mark.parametrize("bomb", TARS)
def test_tars(bomb: str, tmp_path: Path) -> None:
    tar = tmp_path / "s.tar"
    tar.write_bytes(TARS[bomb]())
    refused(bomb, lambda: index_shard(tar), str(tar))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE], ids=["symbolic", "hard"])
def test_links_in_tars_lead_nowhere(kind: bytes, tmp_path: Path) -> None:
    """They are passed over, as webdataset does: the sample has no such member."""
    (tmp_path / "secret.txt").write_text("secret")
    tar = tmp_path / "s.tar"
    link = member("a.txt", 0, kind, str(tmp_path / "secret.txt"))
    tar.write_bytes(link + member("a.json", 2) + padded(b"{}") + END)
    shard = finish_shard(tar, "train")
    assert ShardReader(Manifest(tmp_path, (shard,)), "train")[0].members == {"json": b"{}"}
    count("bombs", "refused")


def test_folders_that_hold_themselves(tmp_path: Path) -> None:
    """Two links to the folder above: twice as many files at each of forty levels."""
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "cat" / "a.png")
    for name in ("more", "most"):
        (tmp_path / "cat" / name).symlink_to(tmp_path / "cat")

    def attempt() -> None:
        assert len(FolderSamples(tmp_path, "train")) == 1

    assert outcome(attempt, SECOND, ROOM) == "read"
    count("bombs", "refused")


def test_a_caption_of_a_gigabyte(tmp_path: Path) -> None:
    """In a shard, where it is not read at all; and wherever else a text is decoded."""
    tar = tmp_path / "s.tar"
    tar.write_bytes(member("a.txt", 2**30))
    os.truncate(tar, 512 + 2**30)
    with tar.open("ab") as file:
        file.write(END)
    index = index_shard(tar, checksums=False)
    index.save(tmp_path / "s.index.json")
    shard = Shard(tar.name, "train", 1, tar.stat().st_size, "0" * 64, "s.index.json")
    reader = ShardReader(Manifest(tmp_path, (shard,)), "train")
    refused("a caption of a gigabyte", lambda: reader[0], "a.txt has 1,073,741,824 bytes, but at most")
    long = b"a" * (MAX_TEXT + 1)
    refused("a long caption", lambda: decode_text(long, "a.txt"), "a.txt: ", "more than the limit")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_line_of_a_gigabyte_in_a_table(suffix: str, tmp_path: Path) -> None:
    sparse(tmp_path / f"a{suffix}", 2**30, b"file,caption\na.png," if suffix == ".csv" else b"file\tcaption\n")
    refused("a line of a gigabyte", lambda: read_table(tmp_path / f"a{suffix}"), "line")


def parquet_of(caption: Any, **options: Any) -> bytes:
    """A table of one column, as pyarrow writes it."""
    arrow = pytest.importorskip("pyarrow", reason="tables in Parquet")
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(arrow.table({"caption": caption}), file, **options)
    return file.getvalue()


def zeros(compression: str) -> bytes:
    text = "\0" * 2**26
    return parquet_of(
        [text], compression=compression, compression_level=1, use_dictionary=False, write_statistics=False
    )


def lying() -> bytes:
    """The only page of a table, whose header says that it is 2 GiB, as the footer does not."""
    data = parquet_of(["a cat"], compression="gzip", use_dictionary=False)
    assert (data[4], data[6]) == (0x15, 0x15) and data[7] < 0x80 and data[8] == 0x15, "kind, size, compressed size"
    return data[:7] + b"\xfe\xff\xff\xff\x0f" + data[8:]


def same_texts() -> Any:
    """A text of 100 kB, a million times."""
    import pyarrow as arrow

    return arrow.DictionaryArray.from_arrays(arrow.array(np.zeros(10**6, np.int8)), ["a" * 10**5])


def one_list() -> Any:
    """All of them in one row."""
    import pyarrow as arrow

    return arrow.ListArray.from_arrays([0, 10**6], same_texts())


def prefixes() -> bytes:
    """Texts of which each is the one before it."""
    return parquet_of(["a" * 10**5] * 100, use_dictionary=False, column_encoding="DELTA_BYTE_ARRAY")


def empty_cells() -> bytes:
    import pyarrow as arrow

    return parquet_of(arrow.nulls(10**7, arrow.bool_()))


def deep() -> bytes:
    """A footer alone, whose columns are a hundred thousand groups in each other (Thrift's compact protocol)."""
    groups = b"\x35\x02\x18\x01g\x15\x02\0" * 100_000  # optional, its name, one in it
    schema = b"\x48\x01s\x15\x02\0" + groups + b"\x15\x0c\x25\x02\x18\x01v\0"
    footer = b"\x15\x02\x19\xfc\xa2\x8d\x06" + schema + b"\x16\0\x19\x0c\0"
    return b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1"


PARQUET: dict[str, tuple[Callable[[], bytes], str]] = {
    "zeros, gzip": (lambda: zeros("gzip"), "unpacks to more than"),
    "zeros, zstd": (lambda: zeros("zstd"), "unpacks to more than"),
    "a page that declares 2 GiB": (lying, "unpacks to more than"),
    "a text repeated": (lambda: parquet_of(same_texts()), "unpacks to more than"),
    "a list of one text": (lambda: parquet_of(one_list()), "unpacks to more than"),
    "texts by those before them": (prefixes, "DELTA_BYTE_ARRAY"),
    "cells without anything": (empty_cells, "unpacks to more than"),
    "groups in each other": (deep, "nested"),
}


@pytest.mark.parametrize("bomb", PARQUET)
def test_tables_in_parquet_that_unpack_to_gigabytes(bomb: str, tmp_path: Path) -> None:
    make, told = PARQUET[bomb]
    (tmp_path / "a.parquet").write_bytes(make())
    refused(f"Parquet, {bomb}", lambda: read_table(tmp_path / "a.parquet"), "a.parquet", told)


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def test_json_nested_without_end(tmp_path: Path) -> None:
    refused("nested JSON", lambda: decode_json(nested(500_000), "a.json"), "a.json: not JSON")
    for name, read in (("manifest.json", Manifest.load), ("config.json", read_json), ("v.json", open_vocabulary)):
        file = tmp_path / name
        file.write_bytes(nested(500_000))
        refused(f"nested JSON, {name}", lambda read=read, file=file: read(file), str(file))  # type: ignore[misc]
    file = tmp_path / "a.safetensors"
    file.write_bytes(struct.pack("<Q", 1_000_000) + nested(500_000))
    refused("nested JSON in safetensors", lambda: read_state(file), str(file))


def test_vocabularies_that_unpack_to_gigabytes(tmp_path: Path) -> None:
    def zipped(name: str, method: int = zipfile.ZIP_DEFLATED, **content: bytes) -> Path:
        with zipfile.ZipFile(tmp_path / name, "w", method) as archive:
            for member_name, data in content.items():
                archive.writestr(member_name, data)
        return tmp_path / name

    large = zipped("large.zip", options=bytes(2**24))
    lying = zipped("lying.zip", options=bytes(2**24))
    for file, declared in ((large, 2**30), (lying, 10)):
        content = bytearray(file.read_bytes())
        place = content.rindex(b"PK\x01\x02")
        content[place + 24 : place + 28] = struct.pack("<I", declared)
        file.write_bytes(content)
    packed = zipped("packed.zip", zipfile.ZIP_LZMA, options=b"{}")
    refused("zip of zeros", lambda: open_vocabulary(large), "MiB")
    refused("zip with another method", lambda: open_vocabulary(packed), "packed in a way")
    refused("zip with another size", lambda: open_vocabulary(lying), "damaged")
    merges = gzip.compress(bytes(40 * 2**20), 1)
    refused("gzip of zeros", lambda: from_open_clip(merges), "not CLIP's")


def test_safetensors_that_declare_more_than_there_is(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    for number, header in enumerate(
        (
            {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
            {"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}},
        )
    ):
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text)
        refused(f"safetensors {number}", lambda: read_state(file), str(file))
    file.write_bytes(struct.pack("<Q", 2**40) + b"{}")
    refused("a header of a terabyte", lambda: read_state(file), str(file))


STACK = "stacks.image"
MODELS: dict[str, tuple[str, Any]] = {
    "a billion layers": (f"{STACK}.depth", 10**9),
    "ten thousand layers": (f"{STACK}.depth", 10_000),
    "a width of a billion": (f"{STACK}.width", 10**9),
    "classes without end": ("heads.colour.init_args.classes", 10**12),
    "a patch of a billion": ("encoders.image.tokenizer.init_args.patch", 10**9),
}


@pytest.mark.parametrize("bomb", MODELS)
def test_models_that_are_far_larger_than_their_weights(bomb: str, tmp_path: Path) -> None:
    bundle = save_classifier(tmp_path / "bundle")
    load_bundle(bundle)  # what comes first takes its time alone

    def edit(data: Any) -> None:
        path, value = MODELS[bomb]
        place = data["model"]
        for key in path.split(".")[:-1]:
            place = place[key]
        place[path.split(".")[-1]] = value

    change(bundle / "model.yaml", edit)
    assert yaml.safe_load((bundle / "model.yaml").read_text())
    refused(bomb, lambda: load_bundle(bundle), str(bundle))
