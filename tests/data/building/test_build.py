"""A build: the same bytes whatever the number of processes, taken up again where it stopped, whole or not there."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmformer.data.building import build as module
from mmformer.data.building.build import BuildSpec, build
from mmformer.data.building.draft import Draft, Found, LeftOut, Span, Unusable, file_span
from mmformer.data.building.members import Treatment, make_members
from mmformer.data.building.splits import assign
from mmformer.data.decode import decode_image, decode_sound
from mmformer.data.manifest import Manifest
from mmformer.data.shards import ShardReader, verify
from mmformer.errors import InputError

SPEC = BuildSpec(name="s", shard_size=4, workers=1)


def picture(seed: int, form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def sound(samples: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(samples, 0.25, np.float32), 8000, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG whose header declares 20,000 x 20,000 pixels, of which there are none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def draft(folder: Path, key: str, name: str, data: bytes, split: str = "") -> Draft:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    extension = name.rsplit(".", 1)[-1]
    return Draft(key, split, {extension: file_span(folder, name), "json": f'{{"caption":"{key}"}}'.encode()})


@pytest.fixture
def found(tmp_path: Path) -> Found:
    """Ten pictures, of which one is cut."""
    drafts = [draft(tmp_path / "in", f"k{n}", f"{n}.png", picture(n)) for n in range(9)]
    return Found([*drafts, draft(tmp_path / "in", "cut", "cut.png", picture(9)[:60])], [LeftOut("row", "why", "so")])


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_built_is_whole_and_says_what_was_left_out(tmp_path: Path, found: Found) -> None:
    seen: list[int] = []
    built = build(found._replace(classes=("a", "b")), tmp_path / "out", SPEC, progress=seen.append)
    manifest = Manifest.load(tmp_path / "out")
    assert built.manifest == manifest
    assert verify(manifest) == []
    reader = ShardReader(manifest, "train")
    assert set(reader.keys) == {f"k{n}" for n in range(9)}
    assert reader.keys != tuple(sorted(reader.keys)), "shuffled"
    for raw in (reader[position] for position in range(len(reader))):
        assert raw.members["png"] == picture(int(raw.key[1:]))
        assert raw.members["json"] == f'{{"caption":"{raw.key}"}}'.encode()
    assert seen == [4, 4, 2]
    assert [one.cause for one in built.left_out] == ["why", "damaged picture"]
    assert (tmp_path / "out" / "classes.txt").read_text() == "a\nb\n"
    lines = (tmp_path / "out" / "left_out.tsv").read_text().splitlines()
    assert lines[:2] == ["name\tcause\tdetail", "row\twhy\tso"]
    assert lines[2].startswith("cut\tdamaged picture\tcut.png: not a whole PNG")
    assert {name.rsplit(".", 1)[-1] for name in content(tmp_path / "out")} == {"tar", "json", "tsv", "txt"}


def test_the_bytes_do_not_depend_on_the_processes_nor_on_the_order_found(tmp_path: Path, found: Found) -> None:
    spec = replace(SPEC, validation=0.2, test=0.2)
    build(found, tmp_path / "one", spec)
    build(found._replace(drafts=found.drafts[::-1]), tmp_path / "two", replace(spec, workers=2))
    assert content(tmp_path / "one") == content(tmp_path / "two")
    build(found, tmp_path / "three", replace(spec, seed=1))
    assert content(tmp_path / "one") != content(tmp_path / "three")
    build(found, tmp_path / "kept", replace(SPEC, keep_order=True))
    assert ShardReader(Manifest.load(tmp_path / "kept"), "train").keys == tuple(f"k{n}" for n in range(9))


def test_an_interrupted_build_goes_on_where_it_stopped(
    tmp_path: Path, found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(found, tmp_path / "whole", SPEC)
    out, made = tmp_path / "out", []

    def interrupt(samples: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(found, out, SPEC, progress=interrupt)
    assert not out.exists()
    with pytest.raises(InputError, match=r"An interrupted build of .*out is there: continue it with --resume"):
        build(found, out, SPEC)
    with pytest.raises(InputError, match="holds an interrupted build of other samples, or with other options"):
        build(found, out, replace(SPEC, seed=5), resume=True)

    def counted(one: Draft, treatment: Treatment) -> dict[str, bytes]:
        made.append(one.key)
        return make_members(one, treatment)

    monkeypatch.setattr(module, "make_members", counted)
    built = build(found, out, SPEC, resume=True)
    assert len(made) == 6, "the first shard's four are not made again"
    assert content(out) == content(tmp_path / "whole")
    assert [one.cause for one in built.left_out] == ["why", "damaged picture"]
    assert not (tmp_path / "out.partial").exists()
    with pytest.raises(InputError, match="is there already, and not empty"):
        build(found, out, SPEC, resume=True)


def test_a_failure_leaves_no_set(tmp_path: Path, found: Found) -> None:
    only_cut = found._replace(drafts=found.drafts[-1:])
    message = (
        r"No sample is left to write: 1 × why, such as row \(so\); 1 × damaged picture, such as cut \(cut.png: not"
    )
    with pytest.raises(InputError, match=message):
        build(only_cut, tmp_path / "out", SPEC)
    with pytest.raises(InputError, match="There is nothing to build a set of"):
        build(Found([], []), tmp_path / "out", SPEC)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    (tmp_path / "empty").mkdir()
    build(found, tmp_path / "empty", SPEC)
    assert (tmp_path / "empty" / "manifest.json").exists(), "an empty folder may be taken"


@pytest.mark.parametrize(
    ("name", "data", "cause"),
    [
        ("a.png", picture(0)[:60], "damaged picture"),
        ("a.jpg", picture(0), None),  # what it is decides, not its name
        ("a.png", b"no picture at all", "damaged picture"),
        ("a.png", bomb(), "picture that is too large"),
        ("a.wav", sound(0), "sound without samples"),
        ("a.wav", sound(50)[:100], "damaged sound"),
        ("a.wav", sound(50).replace(struct.pack("<f", 0.25), struct.pack("<f", np.nan)), "damaged sound"),
        ("a.txt", b"caf\xe9", "damaged text"),
        ("a.json", b"{", "damaged JSON"),
        ("a.cls", b"seven", "damaged class number"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else str(value),  # a sound's bytes hold the time of day
)
def test_what_training_would_stumble_on_is_unusable(tmp_path: Path, name: str, data: bytes, cause: str | None) -> None:
    (tmp_path / name).write_bytes(data)
    one = Draft("a", "", {name[2:]: file_span(tmp_path, name)})
    if cause is None:
        assert make_members(one, Treatment()) == {name[2:]: data}
    else:
        with pytest.raises(Unusable) as raised:
            make_members(one, Treatment())
        assert raised.value.cause == cause
    assert make_members(one, Treatment(decode=False)) == {name[2:]: data}


def test_a_file_that_changed_or_went_is_unusable(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(0))
    span = file_span(tmp_path, "a.png")
    (tmp_path / "a.png").write_bytes(b"short")
    with pytest.raises(Unusable, match="became shorter while"):
        span.read()
    (tmp_path / "a.png").unlink()
    with pytest.raises(Unusable, match="No such file"):
        span.read()


def test_other_formats_are_converted(tmp_path: Path) -> None:
    drafts = [
        draft(tmp_path, "a", "a.webp", picture(1, "WEBP")),
        draft(tmp_path, "b", "b.png", picture(2)),
        draft(tmp_path, "c", "c.wav", sound(40)),
    ]
    treatment = Treatment(image="png", sound="flac")
    first, second, third = (make_members(one, treatment) for one in drafts)
    assert list(first) == ["png", "json"]
    assert first["png"].startswith(b"\x89PNG")
    assert (decode_image(first["png"], "") == decode_image(picture(1, "WEBP"), "")).all()
    assert second["png"] == picture(2)
    converted = decode_sound(third["flac"], "")
    assert converted.rate == 8000
    assert np.allclose(converted.samples, 0.25, atol=1e-4)
    both = Draft("d", "", {**drafts[0].members, **drafts[1].members})
    with pytest.raises(Unusable, match="two members of one format"):
        make_members(both, treatment)


def test_splits_have_their_shares_and_do_not_move(tmp_path: Path) -> None:
    drafts = [Draft(f"k{n}", "", {"json": b"{}"}) for n in range(4000)]
    shares = {"val": 0.05, "test": 0.1}
    split = {one.key: one.split for one in assign(drafts, shares, 0, "train", 1)}
    for name, share in {**shares, "train": 0.85}.items():
        found = sum(own == name for own in split.values())
        assert abs(found - 4000 * share) < 4 * (4000 * share * (1 - share)) ** 0.5
    fewer = {one.key: one.split for one in assign(drafts[1000:], shares, 0, "train", 1)}
    assert fewer == {key: split[key] for key in fewer}
    assert {one.key: one.split for one in assign(drafts, shares, 1, "train", 1)} != split
    given = [one._replace(split="own") for one in drafts[:3]]
    assert assign(given, shares, 0, "train", 1) == given


def test_copies_of_a_file_stay_in_one_split(tmp_path: Path) -> None:
    """Also through a third sample that has a file in common with each of two others."""
    for number in range(120):
        (tmp_path / f"{number}.png").write_bytes(b"%03d" % (number % 40))
    (tmp_path / "a.wav").write_bytes(b"abc")
    drafts = [Draft(f"k{n:03d}", "", {"png": file_span(tmp_path, f"{n}.png")}) for n in range(120)]
    drafts[7].members["wav"] = drafts[8].members["wav"] = file_span(tmp_path, "a.wav")
    split = [one.split for one in assign(drafts, {"val": 0.5}, 0, "train", 1)]
    assert split[:40] == split[40:80] == split[80:]
    assert split[7] == split[8] == split[48]
    assert {"val", "train"} == set(split)
    alone = [one.split for one in assign(drafts[:7], {"val": 0.5}, 0, "train", 1)]
    assert alone == split[:7], "the first key of equals is where a sample without them would go"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a/b"}, "BuildSpec.name must be of letters"),
        ({"split": "val", "validation": 0.1}, "BuildSpec.split must be another one than those that are held out"),
        ({"shard_size": 0}, "shard_size must be at least 1"),
        ({"validation": 1.0}, "validation must be at least 0 and below 1"),
        ({"validation": 0.6, "test": 0.4}, "test must be at least 0 and, with validation, below 1"),
        ({"image_format": "gif"}, "image_format must be one of png, jpg, webp, but is 'gif'"),
        ({"workers": 0}, "workers must be at least 1"),
    ],
)
def test_what_cannot_be_built_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BuildSpec(**change)  # type: ignore[arg-type]


def test_a_span_is_a_part_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    assert Span(str(tmp_path / "f"), 3, 4).read() == b"3456"
