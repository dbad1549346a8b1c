"""``mmformer translate``, ``transcribe`` and ``generate``, as typed."""

from __future__ import annotations

import dataclasses
import io
import sys
from pathlib import Path

import pytest
from typed import Typed

import mmformer
from mmformer.bundle import load_bundle, save_bundle
from mmformer.cli.main import main
from mmformer.generation.beam import BeamSpec
from mmformer.generation.sampling import SamplingSpec

TEXTS = ["a dog runs", "two red squares", "a cat"]


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an untrained model writes holds anything; what is printed of it is tested by itself."""
    for name in ("translate", "generate", "transcribe"):
        monkeypatch.setattr(mmformer.predictor.Predictor, name, lambda self, values, **_: [f"<{v}>" for v in values])


def test_translations_as_json(writer: Typed, writing: Path) -> None:
    model = mmformer.load(writing)
    expected = model.translate(TEXTS)
    assert len(set(expected)) == 3
    found = writer.json("translate", *TEXTS)
    assert found == [{"text": text, "translation": made} for text, made in zip(TEXTS, expected, strict=True)]
    assert model.translate("a cat") == expected[2]


@pytest.mark.usefixtures("plain")
def test_lines_stay_lines(writer: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_bytes("\ufeffa dog\r\n\n  two\u2028cats \n\n".encode())
    lines = "<a dog>\n\n<two\\u2028cats>\n\n"
    assert writer("translate", "--from", "in.txt") == lines
    assert writer("translate", "--from", "in.txt", "--output", "out.txt") == ""
    assert Path("out.txt").read_text() == lines
    assert "out.txt: this file is there already" in writer.refused(
        "translate", "--from", "in.txt", "--output", "out.txt"
    )
    assert writer("translate", "one", "--output", "out.txt", "--overwrite") == ""
    assert Path("out.txt").read_text() == "<one>\n"


@pytest.mark.usefixtures("plain")
def test_texts_may_be_piped_in(writer: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"eins\nzwei\n")))
    assert writer("translate", "--from", "-") == "<eins>\n<zwei>\n"


def test_every_option_of_writing_is_handed_on(writer: Typed, writing: Path, calls: list[str]) -> None:
    model = mmformer.load(writing)
    drawn = SamplingSpec(0, 6, 1.0, 0, 2.0, 40, 0.9, 3)
    words, beams = "--temperature 2 --top-k 40 --top-p 0.9 --seed 3 --max-length 6", BeamSpec(0, 5, 1.0, 0, 3, 2.0)
    for line, spec in ((words, drawn), ("--beams 3 --length-penalty 2 --max-length 5", beams)):
        options = line.split()
        found = writer.json("translate", *TEXTS, "--prompt", "ein", *options)
        assert [row["translation"] for row in found] == model.translate(TEXTS, prompt="ein", spec=spec)
        found = writer.json("generate", *TEXTS, *options)
        assert found == [
            {"prompt": text, "text": made} for text, made in zip(TEXTS, model.generate(TEXTS, spec=spec), strict=True)
        ]
        heard = writer.json("transcribe", "calls", *options)
        assert [row["audio"] for row in heard] == calls
        assert [row["text"] for row in heard] == model.transcribe(calls, spec=spec)


def test_options_change_the_way_that_the_bundle_has(
    writing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is not asked for stays; another way to choose words takes the place of the bundle's."""
    model, transforms = load_bundle(writing)
    beams = BeamSpec(beams=3, length_penalty=2.0, stop="full", total_length=7, total_min_length=4)
    save_bundle(tmp_path / "bundle", model, dataclasses.replace(transforms, generation=beams), "")
    changed, plain = Typed(tmp_path / "bundle", capsys), mmformer.load(writing)
    for line, spec in (
        ("", beams),
        ("--max-length 4", dataclasses.replace(beams, max_length=4, total_length=None)),
        ("--min-length 1", dataclasses.replace(beams, min_length=1, total_min_length=0)),
        ("--stop certain --no-repeat-ngram 1", dataclasses.replace(beams, stop="certain", no_repeat_ngram=1)),
        ("--beams 1", dataclasses.replace(beams, beams=1)),
        ("--temperature 2 --seed 3", SamplingSpec(temperature=2.0, seed=3, total_length=7, total_min_length=4)),
    ):
        found = changed.json("translate", *TEXTS, *line.split())
        assert [row["translation"] for row in found] == plain.translate(TEXTS, spec=spec), line
    assert mmformer.load(tmp_path / "bundle").translate(TEXTS) == plain.translate(TEXTS, spec=beams)
    assert "--seed is of what is drawn" in changed.refused("translate", "a", "--seed", "3")


def test_generation_goes_on_from_a_prompt_or_from_nothing(writer: Typed, writing: Path) -> None:
    model = mmformer.load(writing, batch_size=2)
    alone = model.generate("a dog")
    assert alone.startswith("a dog")
    assert model.generate(["two", "a dog", ""]) == [model.generate("two"), alone, model.generate()]
    assert writer.json("generate") == [{"prompt": "", "text": model.generate()}]


@pytest.mark.usefixtures("plain")
def test_generated_texts_keep_their_lines(writer: Typed) -> None:
    assert writer("generate", "one\ntwo", "three\x1b") == "<one\ntwo>\n\n<three\\x1b>\n"


@pytest.mark.usefixtures("plain")
def test_transcripts_are_a_table(writer: Typed, calls: list[str]) -> None:
    shown = writer("transcribe", *calls).splitlines()
    assert shown[1].replace("┃", " ").split() == ["sound", "text"]
    assert calls[0] in shown[3] and f"<{calls[0]}>" in shown[3]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("translate",), "translate needs texts or --from FILE, and not both"),
        (("translate", "a", "--from", "b"), "translate needs texts or --from FILE, and not both"),
        (("translate", "--from", "absent.txt"), "absent.txt cannot be read: No such file or directory"),
        (("translate", ""), "There is nothing to translate: all texts are empty"),
        (("translate", "a", "--overwrite"), "--overwrite replaces what is in --output, which is not given"),
        (("translate", "a", "--json", "--output", "x"), "--json prints and --output writes lines: give one"),
        (("translate", "a", "--seed", "1"), "--seed is of what is drawn"),
        (("translate", "a", "--decoder", "tel"), "needs a decoder that reads text alone (tel), but the model has"),
        (("transcribe",), "the following arguments are required: SOUND"),
        (("transcribe", "absent.wav"), "absent.wav: there is no such file or folder"),
        (("generate", "a", "--beams", "0"), "BeamSpec.beams must be at least 1, but is 0"),
        (("generate", "a", "--prompt", "b"), "unrecognized arguments: --prompt"),
        (("generate", "one two three " * 20), "context_length is 16"),
    ],
)  # fmt: skip
def test_words_that_do_not_fit(writer: Typed, words: tuple[str, ...], message: str) -> None:
    assert message in writer.refused(*words)


def test_a_bundle_that_lacks_the_parts_says_what_it_has(three: Typed, typed: Typed, classifier: Path) -> None:
    told = three.refused("translate", "a")
    reads = "the model has the decoders: caption reads image; hear reads sound."
    able = "It can classify, caption, transcribe, retrieve, similarity, embed."
    assert f"translate needs a decoder that reads text alone (none was named), but {reads} {able}" in told
    assert "generate needs a decoder that reads nothing (none was named), but" in three.refused("generate")
    typed.bundle = str(classifier)
    told = typed.refused("translate", "a")
    assert "the model has no encoder of text, and its decoders are: none. It can classify, retrieve, embed." in told


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("translate", "transcribe", "generate"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert f"  mmformer {command} BUNDLE" in capsys.readouterr().out
