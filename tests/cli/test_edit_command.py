"""``mmformer edit``: what it prints, and what it refuses before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundles import save_dual

from mmformer.bundle import load_bundle
from mmformer.cli.main import main


def test_it_writes_a_bundle_and_says_what_became_of_its_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_dual(tmp_path / "old")
    words = ["edit", str(tmp_path / "old"), str(tmp_path / "new")]
    assert main([*words, "--image-size", "32", "24", "--patch", "4", "--drop", "heads.colour"]) == 0
    model, transforms = load_bundle(tmp_path / "new")
    assert transforms.image is not None
    assert transforms.image.size == (32, 24)
    assert list(model.spec.heads) == ["contrastive"]
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'new'}:",
        f"  copied   {len(model.state_dict()) - 1} parameters as they are",
        "  remade   encoders.image.tokenizer.projection.weight: patches from 8×8 to 4×4",
        "  dropped  heads.colour.*",
    ]
    assert main([*words, "--image-size", "32"]) == 2
    assert "is there already: replace it (--overwrite)" in capsys.readouterr().err
    assert main([*words, "--image-size", "32", "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing is to change: name --image-size"),
        (["--patch", "0"], "argument --patch: must be a whole number from 1, but is '0'"),
        (["--image-size", "1", "2", "3"], "--image-size is a side, or height and width, but has 3 numbers"),
        (["--audio-seconds", "long"], "argument --audio-seconds: must be a number, but is 'long'"),
        (["--patch", "4", "--new-rows", "random"], "--new-rows must be left out without a vocabulary"),
        (["--vocabulary", "nowhere.model"], "nowhere.model"),
        (["--drop", "heads.color"], "the model has no heads.color"),
    ],
)
def test_what_cannot_be_is_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_dual(tmp_path / "old")
    assert main(["edit", str(tmp_path / "old"), str(tmp_path / "new"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
