"""What is wrong with what people hand in, one line of a list each: one clear message, code 2, and nothing half-written.

Details of each are tested beside what refuses it; here each goes the whole way, from the words that are typed.
"""

from __future__ import annotations

import io
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import yaml
from bundles import tone
from PIL import Image
from tiny import COLOURS, VOCABULARY, sample, write_few
from typed import change

from mmformer.cli.main import main
from mmformer.data.manifest import Manifest
from mmformer.errors import InputError
from mmformer.tokenizers.vocabulary import VocabularySpec
from mmformer.training.checkpoint import whole_checkpoints
from mmformer.training.task import TrainingTask

PNG = sample("x", "red", 0, 0).members["png"]
ONE = ("--workers", "1")


class Case(NamedTuple):
    """One mistake."""

    words: str  # as they are typed
    told: list[str]  # parts of the message: what was asked, what was found, where, the fix
    make: Callable[[], object] = lambda: None  # what is there before


def few(**members: bytes) -> None:
    """A set of four samples, the second of which has these members; run.yaml reads it."""
    write_few(Path("set"), **{name: [b"", data, b"", b""] for name, data in members.items()})
    point_at("set")


def point_at(source: str) -> None:
    for path, value in (("source", source), ("validation", None), ("test", None), ("batch_size", 2), ("order", {})):
        change(Path("run.yaml"), f"data.{path}", value)


def damaged_few(**members: bytes) -> None:
    """The same, where the others keep their own members."""
    whole = [sample(f"s{n}", list(COLOURS)[n], 0, 0).members for n in range(4)]
    write_few(
        Path("set"), **{name: [data if n == 1 else whole[n][name] for n in range(4)] for name, data in members.items()}
    )
    point_at("set")


def wav(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 8000, format="WAV", subtype="FLOAT")
    return file.getvalue()


def heard(samples: np.ndarray) -> Callable[[], object]:
    return lambda: Path("call.wav").write_bytes(wav(samples))


def table(text: str) -> Callable[[], object]:
    return lambda: Path("captions.csv").write_text(text)


def huge() -> None:
    """A real picture of 400 megapixels, in 50 kB."""
    Image.new("1", (20_000, 20_000)).save("huge.png")


def shard(edit: Callable[[bytearray], object]) -> Callable[[], object]:
    """A set whose tar was edited after it was written."""

    def make() -> None:
        write_few(Path("set"))
        point_at("set")
        tar = Path("set", Manifest.load("set").shards[0].path)
        data = bytearray(tar.read_bytes())
        edit(data)
        tar.write_bytes(data)

    return make


def spoil_picture(data: bytearray) -> None:
    """Other bytes within the first picture."""
    at = data.index(b"IDAT") + 6
    data[at : at + 8] = b"\0" * 8


def copied(edit: Callable[[Path], object]) -> Callable[[], object]:
    """A bundle of one's own, edited."""

    def make() -> None:
        shutil.copytree(BUNDLES["dual"], "mine")
        edit(Path("mine"))

    return make


def other_vocabulary(bundle: Path) -> None:
    lines = [
        f"{colour} {shape} {number}" for colour in COLOURS for shape in ("square", "circle") for number in range(9)
    ]
    VocabularySpec(size=300).train(lines).save(bundle / "text.model")


def newer(bundle: Path) -> None:
    change(bundle / "model.yaml", "version", 7)


def repeated() -> None:
    Path("names.txt").write_text("cat\ndog\ncat\n")


BUNDLES: dict[str, Path] = {}

FIT = "fit --config run.yaml "
CLASSIFY = "classify BUNDLE {} --labels cat,dog"
BUILD = "shards build --images shots --captions captions.csv OUT --workers 1"

CASES: dict[str, list[Case]] = {
    "a misspelt key": [
        Case(FIT + "--optimizer.lrr 1", ["unknown key 'optimizer.lrr'", "Did you mean 'lr'?"]),
        Case(
            FIT,
            ["run.yaml: unknown key 'data.bach_size'", "Did you mean 'batch_size'?"],
            lambda: change(Path("run.yaml"), "data.bach_size", 8),
        ),
    ],
    "a wrong type": [
        Case(FIT + "--trainer.max_steps five", ["trainer.max_steps: Expected int. Got value: 'five'"]),
        Case(FIT, ["data.batch_size", "'many'"], lambda: change(Path("run.yaml"), "data.batch_size", "many")),
    ],
    "a missing file": [
        Case("fit --config ran.yaml", ["ran.yaml cannot be read: No such file"]),
        Case(CLASSIFY.format("shots/a.pgn"), ["shots/a.pgn: there is no such file", "Did you mean 'a.png'?"]),
        Case(FIT + "--data.source nowhere", ["There is no folder of shards nowhere."]),
        Case(FIT + "--model.encoders.text.tokenizer.vocabulary no.model", ["The vocabulary no.model cannot be read"]),
    ],
    "an empty folder": [
        Case(CLASSIFY.format("empty"), ["empty: there is no picture (.png,"]),
        Case(FIT + "--data.source empty", ["empty", "manifest.json"]),
        Case("shards index empty", ["empty: there is no .tar file in this folder or below it."]),
        Case(
            "shards build --classes empty OUT --workers 1",
            ["empty"],
        ),
    ],
    "a CSV without the named column": [
        Case(BUILD + " --caption-column title", ["--caption-column title", "'titel'?"], table("file,titel\na.png,x\n")),
        Case(BUILD, ["captions.csv", "--caption-column"], table("file,words\na.png,x\n")),
    ],
    "a corrupt image": [
        Case(CLASSIFY.format("bad.png"), ["bad.png: not a whole PNG", "Replace it or leave it out."], lambda: write_bad(b"\x89PNG\r\n\x1a\n?")),
        Case(FIT, ["s1.png: not a whole PNG", "data.on_damage"], lambda: damaged_few(png=b"\x89PNG\r\n\x1a\n?")),
    ],
    "a truncated image": [
        Case(CLASSIFY.format("bad.png"), ["bad.png: not a whole PNG", "truncated"], lambda: write_bad(PNG[:70])),
        Case(FIT, ["s1.png: not a whole PNG", "truncated", "data.on_damage"], lambda: damaged_few(png=PNG[:70])),
    ],
    "an image of 20,000x20,000": [
        Case(CLASSIFY.format("huge.png"), ["huge.png", "Scale it down first."], huge),
    ],
    "a zero-length sound": [
        Case("embed THREE --audio call.wav --json", ["call.wav: there is no sample in this sound."], heard(tone(300)[:0])),
    ],
    "a NaN sound": [
        Case("embed THREE --audio call.wav --json", ["call.wav: some samples are NaN or infinite."], heard(np.full(99, np.nan))),
    ],
    "an empty caption": [
        Case(FIT, ["s1.json: the caption is empty.", "data.on_damage"], lambda: damaged_few(json=b'{"names": {"en": ""}, "keywords": {"en": [" "]}}')),
    ],
    "a caption that is no UTF-8": [
        Case(FIT, ["s1.json: not UTF-8 text: byte 11", "Convert it to UTF-8.", "data.on_damage"], lambda: damaged_few(json=b'{"names": "\xff"}')),
        Case(BUILD, ["captions.csv", "UTF-8"], lambda: Path("captions.csv").write_bytes(b"file,caption\na.png,\xff\n")),
    ],
    "a shard that is cut": [
        Case(FIT, ["bytes, but the manifest says", "copy or download it again"], shard(lambda data: data.__delitem__(slice(-2048, None)))),
    ],
    "a shard whose bytes changed": [
        Case(FIT, ["s0.png: not a whole PNG"], shard(spoil_picture)),
    ],
    "fewer shards than lanes": [
        Case(FIT + "--data.order.lanes 8", ["order.lanes is 8, but only 4 of the 4 shards hold samples", "to 4 or less"]),
        Case(FIT + "--parallel.shard 4", ["data.order.lanes is 2, which parallel.shard, 4, does not divide", "multiple of 4"]),
    ],
    "fewer samples than one batch": [
        Case(FIT + "--data.batch_size 64", ["data.batch_size is 64", "has 32 samples", "Set data.batch_size to 32 or less."]),
    ],
    "a vocabulary that does not fit the model": [
        Case("classify mine shots --labels cat,dog", ["mine", "vocabulary"], copied(other_vocabulary)),
    ],
    "a bundle from a newer version": [
        Case("classify mine shots --labels cat,dog", ["mine/model.yaml", "format version 7", "reads up to 1: upgrade"], copied(newer)),
    ],
    "a batch that the ranks do not divide": [
        Case(FIT + "--parallel.shard 3", ["data.batch_size is 8", "1 × 3, does not divide: take a multiple of 3."]),
    ],
    "a stack name that does not exist": [
        Case(FIT + "--model.encoders.image.stack imag", ["imag", "Did you mean 'image'?"]),
        Case(FIT + "--model.stacks.imag.depth 3", ["there is no stack 'imag'; the stacks are image, text."]),
    ],
    "a width that the heads do not divide": [
        Case(FIT + "--model.stacks.image.layer.mixer.heads 3", ["16", "3", "heads"]),
    ],
    "a class list with duplicates": [
        Case("classify BUNDLE shots --labels-file names.txt", ["The label 'cat' is there more than once."], repeated),
        Case(
            FIT + "--data.labels.colour.classes names.txt --data.labels.colour.field colour",
            ["names.txt: the class 'cat' is there more than once."],
            repeated,
        ),
    ],
}  # fmt: skip


def write_bad(data: bytes) -> None:
    Path("bad.png").write_bytes(data)


@pytest.fixture
def here(file: Path, dual: Path, trimodal: Path, loaded_once: None) -> None:
    """The folder that a test runs in: run.yaml, run/, a picture in shots/, and an empty folder."""
    BUNDLES.update(dual=dual, three=trimodal)
    for folder in ("shots", "empty"):
        Path(folder).mkdir()
    Path("shots/a.png").write_bytes(PNG)


def tree() -> dict[str, bytes | None]:
    """Everything below this folder."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(Path().rglob("*"))}


def words(case: Case) -> list[str]:
    named = {"BUNDLE": str(BUNDLES["dual"]), "THREE": str(BUNDLES["three"])}
    return [named.get(word, word) for word in case.words.split()]


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{name}: {case.words[:60]}") for name, cases in CASES.items() for case in cases]
)
def test_it_gets_one_clear_message_and_writes_nothing(
    case: Case, here: None, capfd: pytest.CaptureFixture[str]
) -> None:
    case.make()
    before = tree()
    code = main(words(case))
    out, err = capfd.readouterr()
    assert (code, out) == (2, ""), err
    assert err.startswith("mmformer: ")
    assert err.count("\n") == 1, err
    for part in case.told:
        assert part in err, err
    assert tree() == before
