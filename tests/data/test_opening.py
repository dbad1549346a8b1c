"""What data.source may be: patterns, plain trees of class folders, and shards that lie elsewhere."""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_data, write_shards

from mmformer.data.classes import read_classes
from mmformer.data.dataset import MixedDataset, SampleDataset
from mmformer.data.folders import FolderSamples
from mmformer.data.inputs import ImageInputSpec, ImageTransformSpec, LabelInputSpec, TextInputSpec
from mmformer.data.opening import expand, open_samples
from mmformer.data.order import OrderSpec
from mmformer.data.remote import CacheSpec
from mmformer.data.samples import JoinedSamples
from mmformer.data.shards import RawSample, ShardWriter
from mmformer.data.sources import DataSpec
from mmformer.errors import InputError


def write(folder: Path, keys: str, split: str = "train") -> Path:
    with ShardWriter(folder, "set", samples_per_shard=2) as writer:
        for key in keys:
            writer.write(RawSample(key, {"txt": key.upper().encode()}), split)
    return folder


# ------------------------------------------------------------------------------------------------- patterns


def test_braces_stand_for_what_a_shell_makes_of_them() -> None:
    assert expand("a/b") == ["a/b"]
    assert expand("{x,y}/{1,2}") == ["x/1", "x/2", "y/1", "y/2"]
    assert expand("s-{008..011}.tar") == ["s-008.tar", "s-009.tar", "s-010.tar", "s-011.tar"]
    assert expand("{a,b{1,2}}") == ["a", "b1", "a", "b2"]
    for wrong in ("x{3..1}", "x{a..c}", "x{}", "x{0..99999}"):
        with pytest.raises(InputError, match=r"must be \{a,b,…\} or \{000..015\}"):
            expand(wrong)
    with pytest.raises(InputError, match=r"stands for .* sources, but at most 10000"):
        expand("{0..999}{0..99}")


def test_several_sets_are_read_as_one(tmp_path: Path) -> None:
    write(tmp_path / "b", "defg")
    write(tmp_path / "a", "abc")
    write(tmp_path / "other", "xy", split="test")
    (tmp_path / "notes").mkdir()
    for pattern in ("{a,b}", "*", "[ab]"):
        samples = open_samples(f"{tmp_path}/{pattern}", "train")
        assert isinstance(samples, JoinedSamples)
        assert samples.keys == tuple("abcdefg")
        assert samples.counts == (2, 1, 2, 2)
        assert [samples[place].members["txt"] for place in range(7)] == [key.encode() for key in "ABCDEFG"]
        assert pickle.loads(pickle.dumps(samples)).keys == samples.keys
    assert open_samples(f"{tmp_path}/*", "test").keys == ("x", "y")
    with pytest.raises(InputError, match=r"There is no split 'val' in .*a/manifest.json: it has train"):
        open_samples(f"{tmp_path}/*", "val")
    with pytest.raises(InputError, match="nothing matches this pattern"):
        open_samples(f"{tmp_path}/none-*", "train")


# ------------------------------------------------------------------------------------------------- plain trees


def picture(colour: int, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((9, 9, 3), colour, np.uint8)).save(file, kind)
    return file.getvalue()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """train and val of two classes; PNG and JPEG mixed, in subfolders too, and files that are none of either."""
    for split, number in (("train", 6), ("val", 2)):
        for colour, name in enumerate(("great_dane", "cat")):
            folder = tmp_path / "pets" / split / name / "deep"
            folder.mkdir(parents=True)
            for place in range(number):
                kind, place_of = (("PNG", "png"), ("JPEG", "JPG"))[place % 2], folder if place % 3 else folder.parent
                (place_of / f"{place}.{kind[1]}").write_bytes(picture(100 * colour + place, kind[0]))
            (folder / "notes.md").write_text("x")
            (folder / ".hidden.png").write_bytes(b"x")
    return tmp_path / "pets"


def test_class_folders_are_read_as_they_are(tree: Path) -> None:
    samples = open_samples(str(tree), "train")
    assert isinstance(samples, FolderSamples)
    assert samples.classes == ["cat", "great_dane"]
    assert sum(samples.counts) == len(samples) == 12
    assert len(samples.counts) == 12, "parts enough for many lanes"
    seen = {raw.key: raw.members for raw in (samples[place] for place in range(12))}
    assert seen.keys() == set(samples.keys)
    assert "great_dane/deep/1.JPG" in seen
    for key, members in seen.items():
        name = key.split("/")[0]
        assert members["cls"] == (b"0" if name == "cat" else b"1")
        assert members["txt"] == name.replace("_", " ").encode()
        assert set(members) == {"cls", "txt", key.rpartition(".")[2].lower()}
    order = [key.split("/")[0] for key in samples.keys]
    assert order != sorted(order), "classes are mixed"
    assert open_samples(str(tree), "train").keys == samples.keys
    assert len(open_samples(str(tree), "val")) == 4
    assert len(open_samples(str(tree / "train"), "train")) == 12
    with pytest.raises(InputError, match=r"There is no split 'vall' in .*pets: it has train, val. Did you mean 'val'"):
        open_samples(str(tree), "vall")
    with pytest.raises(InputError, match=r"No file in .*train is a '.webp': there are cls, jpg, png, txt"):
        samples.read(0, 0, ["webp"])


def test_a_class_has_one_number_in_all_splits(tree: Path) -> None:
    """Though val lacks the first class, and only it has the last one."""
    (tree / "val" / "cat").rename(tree / "val" / "zebra")
    numbers = {}
    for split in ("train", "val"):
        samples = open_samples(str(tree), split)
        for raw in (samples[place] for place in range(len(samples))):
            numbers.setdefault(raw.members["txt"].decode(), set()).add(int(raw.members["cls"]))
    assert numbers == {"cat": {0}, "great dane": {1}, "zebra": {2}}
    assert read_classes(tree) == ["cat", "great dane", "zebra"]


def test_a_run_reads_class_folders(tree: Path) -> None:
    spec = DataSpec(
        str(tree),
        image=ImageInputSpec("png;jpg", ImageTransformSpec((8, 8))),
        text=TextInputSpec("txt"),
        labels={"pet": LabelInputSpec(str(tree), member="cls")},
    )
    assert read_classes(tree / "train") == read_classes(tree) == ["cat", "great dane"]
    dataset = SampleDataset(spec, "train", OrderSpec(lanes=4), seed=0, training=True)
    for position in range(12):
        sample = dataset[position]
        assert sample.image is not None
        name = ("cat", "great_dane")[sample.labels["pet"]]
        assert sample.key.startswith(name)
        assert sample.text == name.replace("_", " ")
        assert int(sample.image[4, 4, 0]) // 50 == (0 if name == "great_dane" else 2)


def test_a_folder_without_what_is_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.md").write_text("x")
    with pytest.raises(InputError, match="a folder for each class is expected, with files that end in one of bmp, "):
        open_samples(str(tmp_path), "train")
    with pytest.raises(InputError, match=r"There is no manifest .*a/manifest.json"):
        open_samples(str(tmp_path / "a"), "train")
    with pytest.raises(
        InputError, match=r"tars are read by a manifest.*mmformer shards index 'x/\{0..9\}.tar' --output"
    ):
        open_samples("x/{0..9}.tar", "train")


# ------------------------------------------------------------------------------------------------- elsewhere


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[tuple[str, CacheSpec]]:
    """A set of shards in fsspec's memory, and a folder for copies."""
    folder = write_shards(tmp_path / "local")
    memory = fsspec.filesystem("memory")
    memory.put(f"{folder}/", "/sets/tiny/", recursive=True)
    yield "memory://sets/tiny", CacheSpec(str(tmp_path / "copies"))
    memory.rm("/sets", recursive=True)


def kept(cache: CacheSpec) -> list[Path]:
    return sorted(Path(cache.folder).glob("*/*.tar"))


def test_remote_shards_are_read_as_local_ones(remote: tuple[str, CacheSpec], tmp_path: Path) -> None:
    url, cache = remote
    local, far = open_samples(str(tmp_path / "local"), "train"), open_samples(url, "train", cache)
    assert not kept(cache), "fetched when it is read"
    assert far.counts == local.counts
    assert far[9] == local[9]
    assert len(kept(cache)) == 1
    assert [far[place] for place in range(len(far))] == [local[place] for place in range(len(local))]
    assert len(kept(cache)) == 4
    fsspec.filesystem("memory").rm("/sets/tiny/tiny-train-000000.tar")
    again = pickle.loads(pickle.dumps(open_samples(url, "train", cache)))
    assert again[0] == local[0], "kept copies are read again"
    data = tiny_data(tmp_path / "local", source=url, copies=cache)
    sample = SampleDataset(data, "train", OrderSpec(shuffle=False), 0, training=False)[3]
    assert sample.key == local.keys[3]


def test_copies_make_room_for_others(remote: tuple[str, CacheSpec]) -> None:
    url, cache = remote
    probe = open_samples(url, "train", cache)
    probe[0]
    size = kept(cache)[0].stat().st_size
    small = CacheSpec(cache.folder, gib=2.5 * size / 2**30)
    samples = open_samples(url, "train", small)
    for part in range(3):
        samples.read(part, 0)
        time.sleep(0.01)
    assert len(kept(cache)) == 2, "two fit"
    first = open_samples(url, "train", small)
    assert first.read(0, 0).key == samples.read(0, 0).key, "an open copy is read to its end, a lost one fetched again"


def test_what_changed_or_is_missing_elsewhere_is_told(remote: tuple[str, CacheSpec], tmp_path: Path) -> None:
    url, cache = remote
    memory = fsspec.filesystem("memory")
    with memory.open("/sets/tiny/tiny-train-000001.tar", "wb") as file:
        file.write(b"other")
    samples = open_samples(url, "train", cache)
    with pytest.raises(InputError, match=r"tiny/tiny-train-000001.tar has 5 bytes, .* it was changed or cut"):
        samples.read(1, 0)
    memory.rm("/sets/tiny/tiny-train-000002.tar")
    with pytest.raises(InputError, match=r"tiny-train-000002.tar cannot be read: there is no such file"):
        samples.read(2, 0)
    assert not kept(cache)
    assert not list(Path(cache.folder).glob("*/.fetching-*"))
    with pytest.raises(InputError, match=r"memory://nowhere/manifest.json cannot be read: there is no such file"):
        open_samples("memory://nowhere", "train", cache)
    with pytest.raises(InputError, match=r"nothing://x/manifest.json cannot be read: Protocol not known: nothing"):
        open_samples("nothing://x", "train", cache)
    with pytest.raises(InputError, match=r"DataSpec.copies must be left alone where no shard is at a URL"):
        MixedDataset(tiny_data(tmp_path / "local", copies=cache), seed=0)
