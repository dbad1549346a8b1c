"""``mmformer caption`` and ``similarity``, and sounds in ``classify``, ``embed`` and ``retrieve``, as typed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bundles import save_answering
from rich.console import Console
from typed import Typed

import mmformer
from mmformer.cli import output
from mmformer.cli.main import main
from mmformer.generation.beam import BeamSpec
from mmformer.generation.sampling import SamplingSpec


def test_captions_are_a_table_or_json(three: Typed, trimodal: Path, shots: list[str]) -> None:
    model = mmformer.load(trimodal)
    expected = model.caption(shots)
    found = three.json("caption", "shots")
    assert [row["image"] for row in found] == shots
    assert [row["caption"] for row in found] == expected
    shown = three("caption", shots[0])
    assert shots[0] in shown
    assert expected[0].split()[0] in shown
    assert shown.splitlines()[1].replace("┃", " ").split() == ["picture", "caption"]


def test_labels_of_sounds(three: Typed, trimodal: Path, calls: list[str]) -> None:
    found = three.json("classify", "--sounds", "calls", "--labels", "cat,dog")
    assert [row["audio"] for row in found] == calls
    expected = mmformer.load(trimodal).classify(audio=calls, labels=["cat", "dog"])
    for row, answer in zip(found, expected, strict=True):
        assert row["probabilities"] == pytest.approx(answer, abs=1e-6)
    assert "sound" in three("classify", "--sounds", "calls", "--labels", "cat,dog").splitlines()[1]
    both = three.refused("classify", "shots", "--sounds", "calls", "--labels", "cat,dog")
    assert "classify needs pictures or --sounds, and not both" in both


def test_captions_of_sounds(three: Typed, trimodal: Path, calls: list[str]) -> None:
    found = three.json("caption", "--sounds", "calls")
    assert [row["audio"] for row in found] == calls
    assert [row["caption"] for row in found] == mmformer.load(trimodal).caption(audio=calls)


def test_every_option_of_caption_is_handed_on(three: Typed, trimodal: Path, shots: list[str]) -> None:
    model = mmformer.load(trimodal)
    every = "--beams 2 --min-length 4 --max-length 6 --repetition-penalty 3 --no-repeat-ngram 1"
    for words, spec in (
        ("--beams 3 --length-penalty 2", BeamSpec(beams=3, length_penalty=2.0)),
        ("--beams 3 --stop full", BeamSpec(beams=3, stop="full")),
        ("--temperature 2 --top-k 40 --top-p 0.9 --seed 3", SamplingSpec(0, None, 1.0, 0, 2.0, 40, 0.9, 3)),
        (every, BeamSpec(4, 6, 3.0, 1, 2)),
    ):
        found = [row["caption"] for row in three.json("caption", *shots, *words.split())]
        assert found == model.caption(shots, spec=spec)
    assert three.json("caption", shots[0], "--prompt", "a photo")[0]["caption"].startswith("a photo")


def test_a_decoder_that_reads_several_things_is_given_all(
    typed: Typed, tmp_path: Path, shots: list[str], calls: list[str]
) -> None:
    bundle = save_answering(tmp_path / "answering")
    typed.bundle, model = str(bundle), mmformer.load(bundle)
    found = typed.json("caption", "shots", "--text", "is it red?")
    assert [(row["image"], row["text"]) for row in found] == [(shot, "is it red?") for shot in shots]
    assert [row["caption"] for row in found] == model.caption(shots, text="is it red?")
    heard = typed.json("caption", *shots[:4], "--sounds", *calls)
    assert [(row["image"], row["audio"]) for row in heard] == list(zip(shots, calls, strict=False))
    assert [row["caption"] for row in heard] == model.caption(shots[:4], audio=calls)
    assert typed.json("caption", "--text", "is it?") == [{"text": "is it?", "caption": model.caption(text="is it?")}]
    assert "picture and text" in typed("caption", shots[0], "--text", "is it red?")


def test_texts_that_are_cut_are_told_in_one_line(
    three: Typed, shots: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["retrieve", three.bundle, "--images", "shots", "one two three " * 20]) == 0
    told = "The text was cut: the model reads 16 tokens at most. Shorten it to have all read."
    assert capsys.readouterr().err == f"mmformer: {told}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "caption needs pictures, --sounds or --text"),
        (("shots", "--sounds", "calls"), "There are 5 pictures and 4 sounds: give a sound for each picture"),
        (("shots", "--text", "is it red?"), "caption needs a decoder that reads image and text alone"),
        (("shots", "--seed", "1"), "--seed is of what is drawn: give --temperature, --top-k or --top-p too"),
        (("shots", "--length-penalty", "1"), "--length-penalty is for a search with beams: give --beams too"),
        (("shots", "--stop", "likely"), "--stop is for a search with beams: give --beams too"),
        (("shots", "--beams", "2", "--top-k", "3"), "--top-k draws words, --beams searches: give one"),
        (("shots", "--beams", "0"), "BeamSpec.beams must be at least 1, but is 0"),
        (("shots", "--top-p", "2"), "SamplingSpec.top_p must be above 0 and at most 1, but is 2.0"),
        (("shots", "--max-length", "40"), "is to write 40 ids, but the decoder's context_length is 16"),
        (("shots", "--decoder", "hear"), "hear reads sound"),
        (("--sounds", "shots"), "there is no sound (.wav, .flac, .ogg, .mp3) in this folder"),
    ],
)  # fmt: skip
def test_options_of_caption_that_do_not_fit(
    three: Typed, calls: list[str], words: tuple[str, ...], message: str
) -> None:
    assert message in three.refused("caption", *words)


def test_similarity_of_any_two(three: Typed, trimodal: Path, shots: list[str], calls: list[str]) -> None:
    model = mmformer.load(trimodal)
    found = three.json("similarity", "--images", "shots", "--sounds", "calls")
    assert [row["image"] for row in found] == shots
    matrix = np.array([[row["similarities"][call] for call in calls] for row in found])
    assert np.allclose(matrix, model.similarity(image=shots, audio=calls).numpy(), atol=1e-5)
    assert "name two of --images" in three.refused("similarity", "--images", "shots")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]]


def test_similarity_is_shown_as_a_matrix(three: Typed, trimodal: Path, calls: list[str]) -> None:
    head, *rows = map(cells, three("similarity", "--sounds", "calls", "--texts", "cat,[b]dog").splitlines()[1:-1])
    assert head == ["", "cat", "[b]dog"]
    matrix = mmformer.load(trimodal).similarity(audio=calls, text=["cat", "[b]dog"])
    assert [row[0] for row in rows if row] == calls
    shown = np.array([[float(cell) for cell in row[1:]] for row in rows if row])
    assert np.abs(shown - matrix.numpy()).max() <= 5e-4


def test_a_wide_matrix_is_several(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_console", lambda: Console(width=60))
    columns = [f"column {number}" for number in range(9)]
    output.print_matrix(["row", "long " * 20], columns, [[f"{row}.{n}" for n in range(9)] for row in range(2)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    heads = [cells(line)[1:] for line in lines if "column" in line]
    assert [name for head in heads for name in head] == columns
    assert len(heads) > 1
    first = [cells(line)[1:] for line in lines if line.startswith("│ row ")]
    assert [cell for row in first for cell in row] == [f"0.{n}" for n in range(9)]


def test_an_encoder_is_chosen_by_name(three: Typed, two_eyed: Path, shots: list[str]) -> None:
    three.bundle = str(two_eyed)
    assert "2 encoders of image: image, other. Choose" in three.refused("embed", "--images", "shots", "--json")
    for name in ("image", "other"):
        model = mmformer.load(two_eyed, encoders=name)
        found = three.json("embed", "--images", "shots", "--encoder", name)
        assert np.allclose([row["embedding"] for row in found], model.embed(image=shots).numpy(), atol=1e-6)
        found = three.json("similarity", "--images", "shots", "--texts", "cat", "--encoder", name)
        assert np.allclose([row["similarities"]["cat"] for row in found], model.similarity(shots, "cat"), atol=1e-6)
        (found,) = three.json("retrieve", "--images", "shots", "cat", "--encoder", name, "--top", 1)
        match = model.retrieve(text="cat", images=shots)[0]
        assert found["matches"][0]["image"] == shots[match.candidate]
        (found,) = three.json("classify", shots[0], "--labels", "cat,dog", "--encoder", name, "--head", "warm")
        assert found["probabilities"] == pytest.approx(model.classify(shots[0], ["cat", "dog"], head="warm"), abs=1e-6)


def test_sounds_are_embedded_beside_the_rest(three: Typed, trimodal: Path, shots: list[str], calls: list[str]) -> None:
    three("embed", "--images", "shots", "--audio", "calls", "--texts", "cat", "--output", "all.npz")
    held = np.load("all.npz")
    assert set(held.files) == {*shots, *calls, "cat"}
    wanted = mmformer.load(trimodal).embed(audio=calls)
    assert np.allclose(np.stack([held[call] for call in calls]), wanted.numpy(), atol=1e-5)
    found = three.json("embed", "--audio", calls[0], "--json")
    assert list(found[0]) == ["audio", "embedding"]
    assert three.json("embed", "--sounds", calls[0]) == found, "as the other commands call them"


def test_sounds_are_looked_for_and_among(three: Typed, shots: list[str], calls: list[str]) -> None:
    by_sound = three.json("retrieve", "--sound", calls[0], "--images", "shots", "--top", 2)
    assert by_sound[0]["query"] == calls[0]
    assert {match["image"] for match in by_sound[0]["matches"]} < set(shots)
    among = three.json("retrieve", "--sounds", "calls", "--sound", calls[1], "--top", 1)
    assert among[0]["matches"][0]["audio"] == calls[1]
    assert "sound" in three("retrieve", "a text", "--sounds", "calls")
