"""``mmformer vocabulary``: from text files and from the captions in shards to a vocabulary file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmformer.cli import vocabulary as command
from mmformer.data.manifest import Manifest
from mmformer.data.shards import RawSample, ShardWriter
from mmformer.errors import InputError
from mmformer.tokenizers.vocabulary import Vocabulary, VocabularySpec

WORDS = ["a red heart", "ein rotes Herz", "ein roter Apfel", "eine grüne Birne", "a green pear", "a red apple"]
SIZE = 300


def mmformer(*words: object) -> int:
    return command.run("vocabulary", [str(word) for word in words])


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    with ShardWriter(folder, "set", samples_per_shard=2) as writer:
        for number, (english, german) in enumerate(zip(WORDS[::2], WORDS[1::2], strict=True)):
            fields = {
                "names": {"en": english, "de": german},
                "keywords": {"en": english.split()},
                "id": "x" * 40,
                "n": 3,
            }
            members = {"json": json.dumps(fields).encode(), "txt": english.encode()}
            writer.write(RawSample(f"k{number}", members))
        writer.write(RawSample("held-out", {"json": b'{"names": {"en": "zzzz zzzz"}}', "txt": b"zzzz"}), "test")
    return folder


def test_a_text_file_a_folder_and_a_pattern_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deep = tmp_path / "texts" / "deep"
    deep.mkdir(parents=True)
    (tmp_path / "one.text").write_text("\ufeff" + "\n".join(WORDS[:2]), encoding="utf-8")
    (deep / "two.txt").write_text(WORDS[2] + "\r\n" + WORDS[3] + "\n", encoding="utf-8")
    (deep / "ignored.md").write_bytes(b"\xff\xff")
    (tmp_path / "three.md").write_text("\n".join(WORDS[4:]), encoding="utf-8")
    target = tmp_path / "v.model"
    inputs = (tmp_path / "one.text", tmp_path / "texts", tmp_path / "th*.md")
    assert mmformer("train", *inputs, "--output", target, "--size", SIZE, "--special", "image", "en") == 0
    expected = VocabularySpec(size=SIZE, special=("image", "en")).train(WORDS)
    assert Vocabulary.load(target).fingerprint == expected.fingerprint
    out, err = capsys.readouterr()
    assert f"{target}: 300 pieces from 6 texts of" in out
    assert "pad=0 unk=1 bos=2 eos=3 mask=4 image=5 en=6" in out
    assert expected.fingerprint in out
    assert err == "", "no progress bar where nobody watches"


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (["--fields", "names.*"], WORDS),
        (["--fields", "names"], WORDS),
        (["--fields", "names.en"], WORDS[::2]),
        (["--fields", "names.de", "keywords.*"], [*WORDS[1::2], *" ".join(WORDS[::2]).split()]),
        (["--fields", "names.de", "--fields", "keywords.en.*"], [*WORDS[1::2], *" ".join(WORDS[::2]).split()]),
        (["--extension", "txt"], WORDS[::2]),
        (["--extension", "txt", "--split", "test"], ["zzzz"]),
    ],
)
@pytest.mark.parametrize("by", ["folder", "manifest"])
def test_shards_are_read_by_field_and_split(
    shards: Path, options: list[str], texts: list[str], by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def train(spec: VocabularySpec, texts: object) -> Vocabulary:
        seen.extend(texts)  # type: ignore[call-overload]
        raise InputError("seen enough")

    monkeypatch.setattr(VocabularySpec, "train", train)
    given = shards if by == "folder" else shards / "manifest.json"
    with pytest.raises(InputError, match="seen enough"):
        mmformer("train", given, *options, "--output", shards / "v.model", "--size", SIZE)
    assert sorted(seen) == sorted(texts)


def test_a_vocabulary_trained_on_shards_is_written(shards: Path, tmp_path: Path) -> None:
    options = ("--fields", "names.*", "--size", SIZE, "--coverage", 1.0)
    assert mmformer("train", shards, "--output", tmp_path / "v.model", *options) == 0
    vocabulary = Vocabulary.load(tmp_path / "v.model")
    assert len(vocabulary) == SIZE
    assert not any("zz" in piece for piece in vocabulary.pieces(range(SIZE))), "held-out captions stay unseen"


def test_a_vocabulary_that_is_there_is_replaced_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("\n".join(WORDS), encoding="utf-8")
    target = tmp_path / "v.model"
    target.write_text("work of days")
    words = ("train", tmp_path / "one.txt", "--output", target, "--size", SIZE)
    with pytest.raises(
        InputError, match=r"--output .*v\.model: this file is there already: replace it \(--overwrite\)"
    ):
        mmformer(*words)
    assert target.read_text() == "work of days"
    assert mmformer(*words, "--overwrite") == 0
    assert len(Vocabulary.load(target)) == SIZE


def test_encode_prints_pieces_and_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vocabulary = VocabularySpec(size=SIZE).train(WORDS)
    vocabulary.save(tmp_path / "v.model")
    assert mmformer("encode", tmp_path / "v.model", "a red\npear", "") == 0
    ids = vocabulary.encode("a red\npear")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{len(ids)} tokens: ") and "'<0x0A>'" in lines[0]
    assert lines[1] == " ".join(map(str, ids))
    assert lines[2].startswith("0 tokens")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            [],
            r"shards: say what to read from \.json with --fields; a sample has the fields names\.\*, keywords\.\*, id",
        ),
        (
            ["--fields", "name.*"],
            r"--fields name\.\* selects no text in the \.json members of split 'train'; .*names\.\*",
        ),
        (["--fields", "n"], r"--fields n selects no text"),
        (["--fields", "names", "--split", "trian"], r"no split 'trian'.*Did you mean 'train'"),
        (["--extension", "jsn"], r"'jsn'"),
    ],
)
def test_shards_that_hold_no_such_text_are_refused(shards: Path, options: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        mmformer("train", shards, "--output", shards / "v.model", "--size", SIZE, *options)
    assert not (shards / "v.model").exists()


def test_texts_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("gut\nschön\n".encode("latin-1"))
    (tmp_path / "empty").mkdir()
    for given, message in [
        ("latin.txt", r"latin\.txt, line 2: not UTF-8 text"),
        ("empty", r"empty folder has no \.txt file and no manifest\.json"),
        ("missing.txt", r"missing\.txt names no file or folder"),
        ("*.tex", r"\*\.tex names no file or folder"),
    ]:
        with pytest.raises(InputError, match=message):
            mmformer("train", tmp_path / given, "--output", tmp_path / "v.model", "--size", SIZE)
    with pytest.raises(InputError, match=r"--output .*there is no folder .*Create it"):
        mmformer("train", tmp_path / "latin.txt", "--output", tmp_path / "no" / "v.model", "--size", SIZE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "latin.txt"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: COMMAND"),
        (["tran"], "invalid choice: 'tran'.* Did you mean 'train'"),
        (["trian"], "Did you mean 'train'"),
        (["xyzzy"], r"\(choose from .*\)\. mmformer vocabulary --help"),
        (["train"], "required: INPUT, --output, --size"),
        (["train", "x.txt", "--output", "v", "--size", "many"], "argument --size: invalid int value: 'many'"),
        (["train", "x.txt", "--output", "v", "--size", "300", "--feilds", "a"], "--feilds a. Did you mean '--fields'"),
        (["train", "x.txt", "--size", "300", "--ouptut=v"], "required: --output. .*--ouptut. Did you mean '--output'"),
        (["encode", "v.model", "x", "--sise", "3"], r"arguments: --sise 3\. mmformer vocabulary encode --help"),
    ],
)
def test_wrong_words_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        mmformer(*words)


def test_the_default_vocabulary_is_trained_on_the_embedded_captions() -> None:
    root = Path(__file__).parents[2]
    script = (root / "tokenizers" / "build.sh").read_text(encoding="utf-8")
    assert "data/emoji" in script and "--split train" in script
    assert "train" in Manifest.load(root / "data" / "emoji").splits
    assert len(Vocabulary.load(root / "tokenizers" / "emoji-12.model")) == 8192
