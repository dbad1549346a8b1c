"""What ``mmformer classify``, ``retrieve`` and ``embed`` say to mistakes: one line, and code 2."""

from __future__ import annotations

from pathlib import Path

import pytest
from typed import Typed

WRONG = {
    "classify": [
        ("no.png", ["no.png: there is no such file or folder."]),
        ("shots/a.pgn", ["shots/a.pgn: there is no such file", "Did you mean 'a.png'?"]),
        ("empty", ["empty: there is no picture (.png, .jpg,"]),
        ("zz*.png", ["The pattern 'zz*.png' matches nothing."]),
        ("*.txt", ["The pattern '*.txt' matches 2 files or folders, but none is a picture (.png"]),
        ("shots broken.png --labels cat,dog", ["broken.png: not a whole PNG", "Replace it or leave it out."]),
        ("shots --labels ,,", ["--labels is empty: write it as --labels 'cat,dog,pizza'."]),
        ("shots --labels-file blank.txt", ["blank.txt: there is nothing in it; write one a line."]),
        ("shots --labels-file lable.txt", ["lable.txt cannot be read: No such file", "Did you mean 'label.txt'?"]),
        ("shots --labels-file broken.png", ["broken.png: not UTF-8 text", "Convert it to UTF-8."]),
        ("shots --labels-file empty", ["empty cannot be read: Is a directory."]),
        ("shots --labels cat,dog,cat", ["The label 'cat' is there more than once."]),
        ("shots --labels cat --template photo", ["must hold {} once", "'photo'"]),
        ("shots --template {}", ["A template is for labels", "give --labels or --labels-file too"]),
        ("shots --templates-file blank.txt --labels cat", ["blank.txt: there is nothing in it"]),
        ("shots --labels cat --labels-file label.txt", ["--labels-file: not allowed with argument --labels."]),
        ("shots --template {} --templates-file x", ["--templates-file: not allowed with argument --template."]),
        ("shots --labels cat --head colour", ["head='colour' chooses among its own", "give either a head or labels"]),
        ("shots --encoder image", ["--encoder is for labels, but there are none"]),
        (
            "shots --labels cat --encoder imag",
            ["no encoder 'imag'; its encoders are image, text. Did you mean 'image'?"],
        ),
        ("shots --head color", ["color", "Did you mean 'colour'?"]),
        ("shots --top 0", ["argument --top: must be a whole number, at least 1, but is '0'."]),
        ("shots --batch-size -3", ["argument --batch-size: must be a whole number, at least 1, but is '-3'."]),
        ("shots --device banana", ["The device 'banana' cannot be used here"]),
        ("shots --lables cat", ["unrecognized arguments: --lables cat. Did you mean '--labels'?", "--help"]),
        ("shots --label cat", ["unrecognized arguments: --label cat."]),
        ("", ["classify needs pictures or --sounds, and not both"]),
    ],
    "retrieve": [
        ("cat", ["needs what to look among: --images, --sounds, --texts or --texts-file."]),
        ("--images shots", ["needs what to look for: a TEXT, an --image or a --sound."]),
        (
            "--images shots cat --image shots/a.png",
            ["needs one of them, not text and picture: a TEXT, an --image or a --sound."],
        ),
        ("--images shots --texts cat dog", ["--texts: not allowed with argument --images."]),
        ("--texts cat --texts-file label.txt dog", ["--texts-file: not allowed with argument --texts."]),
        ("--images shots/a.png shots/c.bmp cat", ["'shots/c.bmp' is a path", "repeat --images", "use --image"]),
        ("--images shots/deep/ shots/ cat", ["'shots/' is a path"]),
        ("--sounds a.wav b.wav cat", ["'b.wav' is a path", "repeat --sounds", "use --sound."]),
        ("--images shots --image no.png", ["no.png: there is no such file"]),
        ("--images empty cat", ["empty: there is no picture"]),
        ("--images broken.png cat", ["broken.png: not a whole PNG"]),
        ("--texts , cat", ["--texts is empty"]),
        ("--texts a cat --top x", ["--top: must be a whole number, at least 1, but is 'x'."]),
    ],
    "embed": [
        ("--json", ["embed needs --images, --audio, --texts or --texts-file."]),
        ("--images shots", ["needs a file to write, --output FILE (.npz, .safetensors, .jsonl), or --json to print."]),
        ("--images shots --output e.csv", ["e.csv: its name must end with .npz, .safetensors, .jsonl, not '.csv'."]),
        ("--images shots --output no/e.npz", ["no/e.npz: there is no folder no. Create it first."]),
        ("--images shots --output folder.npz", ["folder.npz: it is a folder"]),
        ("--images shots --output label.npz", ["--output label.npz: this file is there already", "(--overwrite)"]),
        ("--images shots --outptu e.npz", ["--outptu", "Did you mean '--output'?"]),
        ("--images shots --output e.npz --json", ["--json: not allowed with argument --output."]),
        ("--images shots/a.png --texts shots/a.png --json", ["'shots/a.png' is there as values of two modalities"]),
        ("--texts __metadata__ --output e.safetensors", ["safetensors keeps the name __metadata__ for itself"]),
        ("--texts \udcff --json", ["'\\udcff' is not valid Unicode"]),
        ("--images broken.png --output e.npz", ["broken.png: not a whole PNG"]),
    ],
}


@pytest.mark.parametrize(
    ("command", "words", "parts"),
    [(command, words, parts) for command, rows in WRONG.items() for words, parts in rows],
    ids=str,
)
def test_mistakes_get_one_line(typed: Typed, shots: list[str], command: str, words: str, parts: list[str]) -> None:
    Path("empty").mkdir()
    Path("folder.npz").mkdir()
    Path("broken.png").write_bytes(b"\x89PNG\r\n\x1a\n then something else")
    Path("blank.txt").write_text("\n \n")
    Path("label.txt").write_text("cat\n")
    Path("b.wav").write_text("no sound")
    Path("label.npz").write_text("work of days")
    message = typed.refused(command, *words.split())
    for part in parts:
        assert part in message
    assert message.count("Did you mean") <= 1
    assert not list(Path().glob("e.*"))
    assert Path("label.npz").read_text() == "work of days"


@pytest.mark.parametrize("command", ["classify", "retrieve", "embed"])
def test_what_is_no_bundle(typed: Typed, shots: list[str], command: str) -> None:
    words = {"classify": ["shots"], "retrieve": ["--images", "shots", "cat"], "embed": ["--texts", "cat", "--json"]}
    for bundle, message in (("none", "there is no such bundle"), ("shots", "this is no bundle, for it has no model")):
        typed.bundle = bundle
        assert f"{bundle}: {message}" in typed.refused(command, *words[command])
