"""``mmformer shards``: what people type, from a folder and a table to a set that a run reads."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from typed import refused

from mmformer.cli.main import main
from mmformer.data.manifest import Manifest
from mmformer.data.shards import ShardReader, verify

ONE = ("--workers", "1")


def mmformer(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    code = main(["shards", *words])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return str(out)


def png(colour: tuple[int, int, int], side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """shots/ with 12 pictures, one of them cut; captions.csv; calls/ with sounds; animals/; text.txt."""
    monkeypatch.chdir(tmp_path)
    for folder in ("shots", "calls", "animals/cat", "animals/dog", "empty"):
        Path(folder).mkdir(parents=True)
    lines = ["file,caption,part"]
    for number in range(12):
        data = png((20 * number, 0, 0))
        Path(f"shots/{number}.png").write_bytes(data[:50] if number == 7 else data)
        lines.append(f"{number}.png,red {number},{'test' if number < 3 else 'train'}")
        soundfile.write(f"calls/{number}.wav", np.zeros(80 if number else 0, np.float32), 8000)
        Path(f"animals/{'cat' if number % 2 else 'dog'}/{number}.png").write_bytes(data)
    Path("captions.csv").write_text("\n".join([*lines, "gone.png,gone,train\n"]))
    Path("text.txt").write_text("one\ntwo\n")
    return tmp_path


def keys(folder: str, split: str = "train") -> set[str]:
    manifest = Manifest.load(folder)
    assert verify(manifest) == []
    return set(ShardReader(manifest, split).keys)


def test_pictures_with_a_table(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("build", "--images", "shots", "--captions", "captions.csv", "OUT", "--split-column", "part", *ONE)
    told = mmformer(capsys, *words)
    assert keys("OUT") == {str(n) for n in range(3, 12)} - {"7"}
    assert keys("OUT", "test") == {"0", "1", "2"}
    assert "2 things were left out; OUT/left_out.tsv lists them" in told
    assert [line.split("\t")[:2] for line in Path("OUT/left_out.tsv").read_text().splitlines()[1:]] == [
        ["gone.png", "missing file"],
        ["7", "damaged picture"],
    ]
    assert "OUT is there already, and not empty" in refused(capsys, "shards", *words)


def test_every_other_input(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("shots/3.txt").write_text("beside\n")
    mmformer(capsys, "build", "--images", "shots", "--sidecars", "BESIDE", *ONE)
    assert keys("BESIDE") == {"3"}
    Path("calls.jsonl").write_text("".join(f'{{"file": "{n}.wav", "text": "beep"}}\n' for n in range(12)))
    mmformer(capsys, "build", "--sounds", "calls", "--captions", "calls.jsonl", "CALLS", *ONE)
    assert keys("CALLS") == {str(n) for n in range(1, 12)}, "the one without samples is left out"
    assert "sound without samples" in Path("CALLS/left_out.tsv").read_text()
    mmformer(capsys, "build", "--classes", "animals", "ANIMALS", "--shard-size", "4", *ONE)
    assert Path("ANIMALS/classes.txt").read_text() == "cat\ndog\n"
    assert keys("ANIMALS") == {f"{'cat' if n % 2 else 'dog'}/{n}" for n in range(12)}
    mmformer(capsys, "build", "--texts", "text.txt", "TEXT", *ONE)
    assert keys("TEXT") == {"text/00000001", "text/00000002"}
    mmformer(capsys, "build", "--webdataset", "ANIMALS/*-{000000..000002}.tar", "AGAIN", "--name", "a", *ONE)
    assert keys("AGAIN") == keys("ANIMALS")
    own = ("--split", "first=*-000000.tar", "--split", "rest=*")
    mmformer(capsys, "build", "--webdataset", "ANIMALS/*.tar", "SPLIT", *own, *ONE)
    assert keys("SPLIT", "first") == set(ShardReader(Manifest.load("ANIMALS"), "train").part_keys(0))
    assert keys("SPLIT", "first") | keys("SPLIT", "rest") == keys("ANIMALS")


def test_a_set_of_several_formats_is_told_and_converted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 8)).save("animals/cat/photo.jpg")
    told = mmformer(capsys, "build", "--classes", "animals", "TWO", *ONE)
    assert "This set has images as jpg and png" in told
    told = told.replace("\n", " ")
    assert "data.image.member: jpg;png, or build it with --image-format png or jpg or webp" in told
    told = mmformer(capsys, "build", "--classes", "animals", "ONE", "--image-format", "png", *ONE)
    assert "This set has" not in told
    manifest = Manifest.load("ONE")
    assert manifest.index(manifest.shards[0]).extensions == ("json", "png")


def test_foreign_tars_are_indexed_and_checked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mmformer(capsys, "build", "--classes", "animals", "SET", "--test", "0.3", *ONE)
    for path in Path("SET").glob("*.json"):
        path.unlink()
    told = mmformer(capsys, "index", "SET", "--split", "held=*-test-*", "--split", "train", *ONE)
    assert Manifest.load("SET").splits == ("held", "train")
    assert "held" in told
    assert "12 samples in 2 shards, as the manifest says, and all of it can be decoded" in mmformer(
        capsys, "check", "SET", *ONE
    )
    shard = Manifest.load("SET").shards[1]
    data = bytearray(Path("SET", shard.path).read_bytes())
    data[Manifest.load("SET").index(shard).spans(0)["png"][0]] ^= 1
    Path("SET", shard.path).write_bytes(data)
    assert main(["shards", "check", "SET", *ONE]) == 2
    out, err = capsys.readouterr()
    assert "has the SHA-256" in out
    assert ".png are not those that were indexed" in out
    assert err == "mmformer: 2 problems in 1 of 2 shards. Copy those again, or build the set again.\n"


def test_stats_and_preview_say_and_draw(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mmformer(capsys, "build", "--images", "shots", "--captions", "captions.csv", "OUT", *ONE)
    told = mmformer(capsys, "stats", "OUT", "--label", "part", "--picture", "stats.png", *ONE)
    assert "texts: 11, of which 11 are distinct" in told
    assert "classes: 2, evenness" in told
    as_json = json.loads(mmformer(capsys, "stats", "OUT", "--json", *ONE))
    assert as_json["splits"]["train"]["images"]["width"]["max"] == 8
    mmformer(capsys, "preview", "OUT", "--output", "sheet.png", "--number", "7")
    for name in ("stats.png", "sheet.png"):
        with Image.open(name) as picture:
            assert min(picture.size) > 300
    assert "--picture stats.png: this file is there already" in refused(
        capsys, "shards", "stats", "OUT", "--picture", "stats.png"
    )
    assert "no sample has a text at names.en" in refused(capsys, "shards", "stats", "OUT", "--fields", "names.en", *ONE)
    assert "no sample has a class at kind" in refused(capsys, "shards", "stats", "OUT", "--label", "kind", *ONE)


def test_a_run_is_previewed(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mmformer(capsys, "preview", "--config", str(file), "--output", "run.png", "--number", "2", "--draws", "3")
    with Image.open("run.png") as picture:
        assert picture.width > 800


BUILD = ("build", "OUT", *ONE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*BUILD,), "build was given nothing: it takes one of --images"),
        ((*BUILD, "--images", "shots", "--classes", "animals"), "build was given --images and --classes"),
        ((*BUILD, "--images", "shots"), "--images need captions: --captions TABLE, or --sidecars"),
        ((*BUILD, "--images", "shot", "--sidecars"), "--images shot: there is no such folder. Did you mean 'shots'?"),
        ((*BUILD, "--images", "empty", "--sidecars"), "empty: there is no image (.png, "),
        (
            (*BUILD, "--images", "shots", "--captions", "caption.csv"),
            "no table caption.csv. Did you mean 'captions.csv'",
        ),
        (
            (*BUILD, "--images", "shots", "--captions", "captions.csv", "--caption-column", "captoin"),
            "--caption-column captoin: captions.csv has the columns 'file', 'caption', 'part'. Did you mean 'caption'?",
        ),
        ((*BUILD, "--images", "calls", "--captions", "captions.csv"), "No sample is left to write: 13 × missing file"),
        ((*BUILD, "--classes", "empty"), "each class is a folder here"),
        ((*BUILD, "--classes", "animals", "--captions", "captions.csv"), "--captions is for --images or --sounds"),
        ((*BUILD, "--classes", "animals", "--text-unit", "file"), "--text-unit is for --texts"),
        ((*BUILD, "--classes", "animals", "--split-folders", "--test", "0.1"), "The data says its own splits"),
        ((*BUILD, "--classes", "animals", "--split", "a=a*"), "--split NAME='PATTERN' is for --webdataset"),
        ((*BUILD, "--classes", "animals", "--split", "a", "--split", "b"), "Several are NAME='PATTERN'"),
        ((*BUILD, "--classes", "animals", "--test", "1.5"), "mmformer: --test must be"),
        ((*BUILD, "--classes", "animals", "--image-format", "gif"), "must be one of png, jpg, webp"),
        ((*BUILD, "--classes", "animals", "--workers", "0"), "must be a whole number from 1, but is '0'"),
        ((*BUILD, "--webdataset", "*.tar"), "The pattern '*.tar' matches nothing"),
        (("index", "shots"), "shots: there is no .tar file"),
        (("index", "text.txt", "--split", "a", "--split", "a=b"), "write NAME, or NAME='PATTERN'"),
        (("index", "text.txt", *ONE), "text.txt is not a whole, uncompressed tar"),
        (("check", "shots"), "There is no manifest"),
        (("preview", "--output", "a.png"), "preview needs a FOLDER of shards, or --config RUN.yaml"),
        (("preview", "shots", "--output", "a.bmp"), "a picture's name ends with"),
        (("preview", "shots", "--output", "no/a.png"), "there is no folder no"),
        (("preview", "shots", "--output", "a.png", "--draws", "2"), "--draws is for --config"),
        (("preview", "--config", "r.yaml", "--output", "a.png", "--split", "x"), "--split is for a FOLDER"),
        (("bild",), "bild"),
    ],
)
def test_mistakes_are_told_in_one_line_and_leave_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    before = sorted(Path().iterdir())
    assert message in refused(capsys, "shards", *words)
    assert sorted(Path().iterdir()) == before


def test_an_interrupted_build_says_how_to_go_on(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmformer.data.building import build

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    words = ["shards", "build", "--classes", "animals", "OUT", *ONE]
    with monkeypatch.context() as patched:
        patched.setattr(build, "_commit", interrupted)
        assert main(words) == 130
    _, err = capsys.readouterr()
    assert "OUT is not built. The same command with --resume goes on." in err
    assert "interrupted build of OUT is there" in refused(capsys, *words)
    assert main([*words, "--resume"]) == 0
    assert len(keys("OUT")) == 12
    assert not Path("OUT.partial").exists()
