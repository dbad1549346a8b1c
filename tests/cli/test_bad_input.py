"""What is wrong with what people hand in, one line of a list each: one clear message, code 2, and nothing half-written.

Details of each are tested beside what refuses it; here each goes the whole way, from the words that are typed.
"""

from __future__ import annotations

import functools
import io
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
from bundles import tone
from PIL import Image
from tiny import COLOURS, sample, vocabulary, write_few
from typed import change

from mmformer.cli.main import main
from mmformer.data.manifest import Manifest
from mmformer.errors import InputError
from mmformer.tokenizers.vocabulary import Vocabulary, VocabularySpec

PNG = sample("x", "red", 0, 0).members["png"]
NO_PICTURE = b"\x89PNG\r\n\x1a\n?"
BLANK = b'{"names": {"en": ""}, "keywords": {"en": [" "]}}'

FIT = "fit --config run.yaml"
CLASSIFY = "classify BUNDLE {} --labels cat,dog"
EMBED = "embed THREE --audio call.wav --json"
HEAR = "evaluate THREE --data set --data.split train --data.text json:names.en --data.audio wav"
BUILD = "shards build --images shots --captions captions.csv OUT --workers 1"


class Case(NamedTuple):
    """One mistake."""

    words: str  # as they are typed
    told: list[str]  # parts of the message: what was asked, what was found, where, the fix
    make: Callable[[], object] = lambda: None  # what is there before


def wrote(name: str, data: bytes | str) -> Callable[[], object]:
    """A file of these bytes, or of this text."""
    return lambda: Path(name).write_bytes(data.encode() if isinstance(data, str) else data)


TABLE = wrote("captions.csv", "file,caption\na.png,x\n")


def configured(path: str, value: object) -> Callable[[], object]:
    """run.yaml with another value."""
    return lambda: change(Path("run.yaml"), path, value)


def few(**members: bytes) -> Callable[[], object]:
    """A set of four samples, the second of which has these members; run.yaml trains on it."""

    def make() -> None:
        own = [sample(f"s{n}", colour, 0, 0).members for n, colour in enumerate(list(COLOURS)[:4])]
        write_few(
            Path("set"),
            **{m: [data if n == 1 else own[n].get(m, HEARD) for n in range(4)] for m, data in members.items()},
        )
        for path, value in {"source": "set", "validation": None, "test": None, "batch_size": 2, "order": {}}.items():
            change(Path("run.yaml"), f"data.{path}", value)

    return make


def tar(edit: Callable[[bytearray], bytes]) -> Callable[[], object]:
    """The same, whole, but for its tar, which was edited after it was written."""

    def make() -> None:
        few()()
        path = Path("set", Manifest.load("set").shards[0].path)
        path.write_bytes(edit(bytearray(path.read_bytes())))

    return make


def spoilt(data: bytearray) -> bytes:
    """Other bytes within the first picture."""
    place = data.index(b"IDAT") + 6
    data[place : place + 8] = bytes(8)
    return data


def huge(name: str = "huge.png") -> bytes:
    """A real picture of 400 megapixels, in 50 kB."""
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    return file.getvalue()


def wav(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 8000, subtype="FLOAT", format="WAV")
    return file.getvalue()


HEARD, SILENT, NOT_NUMBERS = wav(tone(300)), wav(tone(300)[:0]), wav(np.full(99, np.nan))


def copied(edit: Callable[[Path], object]) -> Callable[[], object]:
    """The bundle mine/, edited."""

    def make() -> None:
        shutil.copytree(BUNDLES["BUNDLE"], "mine")
        edit(Path("mine"))

    return make


@functools.cache
def other_vocabulary() -> Vocabulary:
    """One of as many pieces as the bundle's, so that the parameters fit."""
    words = np.random.default_rng(0).integers(ord("a"), ord("z"), (10_000, 6), dtype=np.uint8)
    return VocabularySpec(size=len(vocabulary())).train(bytes(word).decode() for word in words)


BUNDLES: dict[str, Path] = {}

CASES: dict[str, list[Case]] = {
    "a misspelt key": [
        Case(f"{FIT} --optimizer.lrr 1", ["unknown key 'optimizer.lrr'", "Did you mean 'lr'?"]),
        Case(
            FIT,
            ["run.yaml: unknown key 'data.bach_size'", "Did you mean 'batch_size'?"],
            configured("data.bach_size", 8),
        ),
    ],
    "a wrong type": [
        Case(f"{FIT} --trainer.max_steps five", ["trainer.max_steps: Expected int. Got value: 'five'"]),
        Case(FIT, ["data.batch_size: Expected int. Got value: 'many'"], configured("data.batch_size", "many")),
        Case(f"{FIT} --data.on_damage ignore", ["data.on_damage", "'refuse', 'skip'", "'ignore'"]),
        Case(
            f"{FIT} --model.stacks.text.layer.mixer.heads 0",
            ["model.stacks.text.layer.mixer: AttentionSpec.heads must be at least 1, but is 0."],
        ),
        Case(
            f"{BUILD} --test 2",
            ["mmformer: --test must be at least 0 and, with validation, below 1, but is 2.0."],
            TABLE,
        ),
    ],
    "a missing file": [
        Case("fit --config ran.yaml", ["ran.yaml cannot be read: No such file"]),
        Case(CLASSIFY.format("shots/a.pgn"), ["shots/a.pgn: there is no such file", "Did you mean 'a.png'?"]),
        Case(f"{FIT} --data.source nowhere", ["There is no folder of shards nowhere."]),
        Case(
            f"{FIT} --model.encoders.text.tokenizer.vocabulary own.modle",
            ["The vocabulary own.modle cannot be read: No such file or directory. Did you mean 'own.model'?"],
            wrote("own.model", b""),
        ),
    ],
    "an empty folder": [
        Case(CLASSIFY.format("empty"), ["empty: there is no picture (.png,"]),
        Case(f"{FIT} --data.source empty", ["There is no manifest empty/manifest.json.", "mmformer shards build"]),
        Case("shards index empty", ["empty: there is no .tar file in this folder or below it."]),
        Case("shards build --classes empty OUT --workers 1", ["empty: there is no folder in it", "class is a folder"]),
    ],
    "a CSV without the named column": [
        Case(
            f"{BUILD} --caption-column title",
            ["--caption-column title: captions.csv has the columns 'file', 'titel'.", "Did you mean 'titel'?"],
            wrote("captions.csv", "file,titel\na.png,x\n"),
        ),
        Case(
            BUILD,
            ["captions.csv has the columns 'file', 'words': none is called caption", "Name one with --caption-column."],
            wrote("captions.csv", "file,words\na.png,x\n"),
        ),
    ],
    "a corrupt image": [
        Case(
            CLASSIFY.format("bad.png"),
            ["bad.png: not a whole PNG", "Replace it or leave it out."],
            wrote("bad.png", NO_PICTURE),
        ),
        Case(FIT, ["s1.png: not a whole PNG", "set data.on_damage to skip"], few(png=NO_PICTURE)),
    ],
    "a truncated image": [
        Case(CLASSIFY.format("bad.png"), ["bad.png: not a whole PNG", "truncated"], wrote("bad.png", PNG[:70])),
        Case(FIT, ["s1.png: not a whole PNG", "truncated", "set data.on_damage to skip"], few(png=PNG[:70])),
    ],
    "an image of 20,000x20,000": [
        Case(
            CLASSIFY.format("huge.png"),
            ["huge.png: declares 20000x20000 = 400.0 megapixels", "limit of 64.0", "Scale it down first."],
            wrote("huge.png", huge()),
        ),
        Case(FIT, ["s1.png: declares 20000x20000", "set data.on_damage to skip"], few(png=huge())),
    ],
    "a zero-length sound": [
        Case(EMBED, ["call.wav: there is no sample in this sound. Replace it"], wrote("call.wav", SILENT)),
        Case(HEAR, ["s1.wav: there is no sample in this sound."], few(wav=SILENT)),
    ],
    "a NaN sound": [
        Case(EMBED, ["call.wav: some samples are NaN or infinite. Replace it"], wrote("call.wav", NOT_NUMBERS)),
        Case(HEAR, ["s1.wav: some samples are NaN or infinite."], few(wav=NOT_NUMBERS)),
    ],
    "an empty caption": [
        Case(FIT, ["s1.json: the caption is empty.", "set data.on_damage to skip"], few(json=BLANK)),
        Case("retrieve BUNDLE --images shots ' '", ["A text is empty", "Leave it out."]),
    ],
    "a caption that is no UTF-8": [
        Case(
            FIT,
            ["s1.json: not UTF-8 text: byte 11", "Convert it to UTF-8.", "set data.on_damage to skip"],
            few(json=b'{"names": "\xff"}'),
        ),
        Case(
            BUILD,
            ["text that is not UTF-8, such as captions.csv, line 2"],
            wrote("captions.csv", b"file,caption\na.png,\xff\n"),
        ),
    ],
    "a shard that is cut": [
        Case(
            FIT,
            ["made-train-000000.tar has 8192 bytes, but the manifest says 10240", "download it again"],
            tar(lambda data: data[:8192]),
        )
    ],
    "a shard whose bytes changed": [
        Case(FIT, ["the bytes of s0.png are not those that were indexed", "copy or download it again"], tar(spoilt))
    ],
    "fewer shards than lanes": [
        Case(
            f"{FIT} --data.order.lanes 8", ["order.lanes is 8, but only 4 of the 4 shards hold samples", "to 4 or less"]
        ),
        Case(
            f"{FIT} --parallel.shard 4",
            [
                "data.order.lanes is 2, which parallel.data",
                "× parallel.shard",
                "4 × 1, does not divide",
                "multiple of 4",
            ],
        ),
    ],
    "fewer samples than one batch": [
        Case(
            f"{FIT} --data.batch_size 64",
            ["data.batch_size is 64, but the split 'train'", "has 32 samples", "Set data.batch_size to 32 or less."],
        )
    ],
    "a vocabulary that does not fit the model": [
        Case(
            "classify mine shots --labels cat,dog",
            ["mine/text.model: this is another vocabulary than the one", "copy the bundle again, as a whole."],
            copied(lambda bundle: other_vocabulary().save(bundle / "text.model")),
        ),
        Case(
            f"{FIT} --model.encoders.text.tokenizer.vocabulary own.model "
            "--initial.path BUNDLE --initial.parameters [encoders.*]",
            [
                "was trained with another vocabulary than own.model: set model.encoders.text.tokenizer.vocabulary to",
                "or leave encoders.text.tokenizer.weight out of initial.parameters.",
            ],
            lambda: other_vocabulary().save("own.model"),
        ),
    ],
    "a bundle from a newer version": [
        Case(
            "classify mine shots --labels cat,dog",
            ["mine/model.yaml: the bundle has format version 7, but this mmformer reads up to 1: upgrade it."],
            copied(lambda bundle: change(bundle / "model.yaml", "version", 7)),
        )
    ],
    "a batch that the ranks do not divide": [
        Case(f"{FIT} --parallel.shard 3", ["data.batch_size is 8", "1 × 3 × 1, does not divide: take a multiple of 3."])
    ],
    "a stack name that does not exist": [
        Case(
            f"{FIT} --model.encoders.image.stack imag",
            ["model.encoders.image.stack is 'imag', but the stacks are image, text.", "Did you mean 'image'?"],
        ),
        Case(f"{FIT} --model.stacks.imag.depth 3", ["there is no stack 'imag'; the stacks are image, text."]),
    ],
    "a width that the heads do not divide": [
        Case(
            f"{FIT} --model.stacks.image.layer.mixer.heads 3",
            [
                "model.stacks.image: AttentionSpec.heads must divide the stack's width, but 3 heads do not divide 16",
                "take 2 heads, or a width that is a multiple of 3.",
            ],
        )
    ],
    "a class list with duplicates": [
        Case(
            "classify BUNDLE shots --labels-file names.txt",
            ["The label 'cat' is there more than once."],
            wrote("names.txt", "cat\ndog\ncat\n"),
        ),
        Case(
            f"{FIT} --data.labels.colour.classes names.txt --data.labels.colour.field colour",
            ["names.txt: the class 'cat' is there more than once."],
            wrote("names.txt", "cat\ndog\ncat\n"),
        ),
    ],
}
"""What is wrong -> how it is met. A long caption, a full disk and Ctrl-C are in test_bad_endings.py."""


@pytest.fixture
def here(file: Path, dual: Path, trimodal: Path, loaded_once: None) -> None:
    """The folder that a test runs in: run.yaml, run/, a picture in shots/, and an empty folder."""
    BUNDLES.update(BUNDLE=dual, THREE=trimodal)
    for folder in ("shots", "empty"):
        Path(folder).mkdir()
    Path("shots/a.png").write_bytes(PNG)


def tree() -> dict[str, bytes | None]:
    """Everything below this folder."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(Path().rglob("*"))}


def typed_words(case: Case) -> list[str]:
    return [str(BUNDLES.get(word, word)) for word in shlex.split(case.words)]


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=f"{name}-{place}") for name, cases in CASES.items() for place, case in enumerate(cases)],
)
def test_it_gets_one_clear_message_and_writes_nothing(
    case: Case, here: None, capfd: pytest.CaptureFixture[str]
) -> None:
    case.make()
    before = tree()
    code = main(typed_words(case))
    out, err = capfd.readouterr()
    assert (code, out) == (2, ""), err
    assert err.startswith("mmformer: ")
    assert err.count("\n") == 1, err
    for part in case.told:
        assert part in err, err
    assert tree() == before


def test_check_finds_bytes_that_changed_and_still_decode(here: None, capsys: pytest.CaptureFixture[str]) -> None:
    """A run does not compare hashes, which would read all of a set before it starts."""
    tar(lambda data: bytes(data).replace(b"small", b"large", 1))()
    before = tree()
    assert main(["shards", "check", "set", "--workers", "1"]) == 2
    out, err = capsys.readouterr()
    assert "made-train-000000.tar has the SHA-256" in out
    assert "its content changed" in out
    assert "the bytes of s0.json are not those that were indexed" in out
    assert err == "mmformer: 2 problems in 1 of 1 shards. Copy those again, or build the set again.\n"
    assert tree() == before


def test_debug_shows_where(here: None) -> None:
    few(png=NO_PICTURE)()
    with pytest.raises(InputError, match=r"s1\.png: not a whole PNG") as caught:
        main(["--debug", *FIT.split()])
    assert "decode.py" in str(caught.getrepr(chain=True))
