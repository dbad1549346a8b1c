"""``mmformer curate``: a filter a subcommand, from shards to a folder that the next one reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import sample
from typed import refused

from mmformer.cli.main import main
from mmformer.data.manifest import Manifest
from mmformer.data.shards import RawSample, ShardReader, ShardWriter, verify

NAMES = ["red", "blue", "red", "green", "red", "blue"]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    with ShardWriter(tmp_path / "shards", "set", samples_per_shard=2) as writer:
        for number, name in enumerate(NAMES):
            raw = sample(f"k{number}", name, place=0, large=0)
            members = {**raw.members, "txt": f"a {name} square".encode(), "cls": str(number % 2).encode()}
            writer.write(RawSample(raw.key, members))
        raw = sample("held", "green", place=0, large=0)
        writer.write(RawSample("held", {**raw.members, "txt": b"a green square", "cls": b"0"}), "test")
    return tmp_path / "shards"


def left(folder: Path) -> list[str]:
    manifest = Manifest.load(folder)
    assert verify(manifest) == []
    return list(ShardReader(manifest, "train").keys)


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["curate", *map(str, words)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return str(out)


def test_each_filter_writes_a_set_and_they_chain(
    shards: Path, tmp_path: Path, dual: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["once", "said", "apart", "true", "half", "even"]
    once, named, apart, true, half, even = (tmp_path / name for name in names)
    out = said(capsys, "duplicates", shards, once, "--by", "exact", "image", "--members", "png", "--distance", 8)
    assert left(once) == ["k0", "k1", "k3"]
    assert f"{once}: 3 of 6 samples of the split 'train' are left" in out
    assert "same bytes │ 3" in out
    said(capsys, "captions", shards, named, "--text", "json:colour", "--match", "e$|d$", "--characters", ":4")
    assert left(named) == ["k0", "k1", "k2", "k4", "k5"]
    said(capsys, "leakage", once, apart, "--by", "image", "text")
    assert left(apart) == ["k0", "k1"], "the green one is in the test split"
    said(capsys, "agreement", shards, true, "--bundle", dual, "--keep", 0.5)
    assert len(left(true)) == 3
    said(capsys, "best", shards, half, "--scores", true, "--keep", 0.5)
    assert left(half) == left(true)
    out = said(capsys, "balance", named, even, "--label", "json:colour", "--least", 4)
    assert len(left(even)) == 8
    assert "5 of 5 samples of the split 'train' are left, in 8 rows" in out
    history = json.loads((even / "manifest.json").read_text())["history"]
    assert [step["filter"] for step in history] == ["captions", "balance"]


def test_leakage_without_a_folder_lists_what_it_finds(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(shards.parent.rglob("*"))
    out = said(capsys, "leakage", shards, "--by", "text")
    assert "k3" in out
    assert "like text in test: the same pieces: 'held'" in out
    assert "5 of 6 samples of the split 'train' are like none elsewhere" in out
    assert sorted(shards.parent.rglob("*")) == before
    assert "6 of 6" in said(capsys, "leakage", shards), "the class is another"


def test_pictures_are_compared_by_a_model(
    shards: Path, tmp_path: Path, dual: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--by", "embedding", "--embed", "image", "--bundle", dual, "--cosine", 0.9999, "--batch-size", 2)
    said(capsys, "duplicates", shards, tmp_path / "out", *words)
    assert left(tmp_path / "out") == ["k0", "k1", "k3"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("duplicate", "S", "O"), "Did you mean 'duplicates'"),
        (("duplicates", "S"), "OUT"),
        (("duplicates", "S", "O", "--jaccard", "0.5"), "--jaccard is of --by text, but --by is exact"),
        (("duplicates", "S", "O", "--by", "text", "--batch-size", "2"), "--batch-size is of --by embedding"),
        (("duplicates", "S", "O", "--by", "text", "text"), "name each once"),
        (("duplicates", "S", "O", "--workers", "2"), "--workers is of --by image and --by text, but --by is exact"),
        (("duplicates", "S", "O", "--by", "embedding"), "needs a model, --bundle BUNDLE"),
        (("duplicates", "S", "O", "--by", "embedding", "--bundle", "b", "--embed", "png"), "begins with image, audio"),
        (("duplicates", "S", "O", "--by", "sound"), "invalid choice: 'sound'"),
        (("captions", "S", "O"), "nothing to pass"),
        (("captions", "S", "O", "--words", "3"), "must be a range such as 3:200"),
        (("captions", "S", "O", "--words", "2:", "--certainty", "0.1"), "--certainty is of --language"),
        (("agreement", "S", "O", "--keep", "0.5"), "--bundle"),
        (("agreement", "S", "O", "--bundle", "b"), "--keep --least"),
        (("agreement", "S", "O", "--bundle", "b", "--keep", "1", "--audio", "wav"), "--audio is not compared"),
        (("best", "S", "O", "--keep", "0.5"), "--scores --by"),
        (("balance", "S", "O"), "the most or the least"),
        (("captions", "S", "S", "--words", "2:"), "is there already"),
        (("captions", "N", "O", "--words", "2:"), "There is no folder of shards"),
        (("captions", "S", "O", "--words", "9:"), "captions would leave none of the 6 samples"),
    ],
)
def test_mistakes_are_told_in_one_line_and_write_nothing(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    paths = {"S": str(shards), "O": str(tmp_path / "out"), "N": str(tmp_path / "none")}
    assert message in refused(capsys, "curate", *(paths.get(word, word) for word in words))
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]
