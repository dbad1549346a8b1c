"""``mmformer parts`` as a user meets it."""

from __future__ import annotations

import json

import pytest

from mmformer.cli.main import main


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["parts", *words]) == 0
    return capsys.readouterr().out


def test_all_parts_by_kind(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys)
    for kind in ("Mixer", "Position", "Pattern", "Feed forward", "Norm"):
        assert f"{kind}\n{'=' * len(kind)}\n" in text
    assert "AttentionSpec\n    Softmax attention over a fused kernel.\n    cost      L²·D\n" in text
    assert "key_value_heads: null" in text
    assert "RotaryPositionSpec" in text
    assert "needs     a mixer with rotary" in text


def test_a_part_shows_what_its_options_mean(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "attention")
    assert "        heads: 8\n            query heads; they share the width out evenly." in text
    assert "RMSNormSpec" not in text
    assert text == told(capsys, "AttentionSpec")


def test_only_what_supports_something(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "mixer", "--supports", "causal, cross")
    assert "AttentionSpec" in text
    assert "GridConvolutionSpec" not in text
    assert "RotaryPositionSpec" not in text


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    (norm,) = json.loads(told(capsys, "rms-norm", "--json"))
    assert norm["kind"] == "Norm"
    assert norm["options"]["eps"]["default"] == "1e-06"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("Atention",), "There is no kind of part and no part named 'Atention'. Did you mean"),
        (("--supports", "casual"), "Did you mean 'causal'?"),
    ],
)
def test_what_there_is_not(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parts", *words]) == 2
    assert said in capsys.readouterr().err
