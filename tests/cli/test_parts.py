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
    assert "        heads: 8\n            query heads; they share the width out evenly, where" in text
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
    assert norm["options"]["eps"]["default"] == 1e-6


def test_a_part_is_named_as_users_may_name_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "feed_forward") == told(capsys, "Feed forward") == told(capsys, "feedforward")
    none = told(capsys, "PositionSpec")  # the part, not its kind
    assert "No position" in none
    assert "RotaryPositionSpec" not in none


def test_kinds_say_where_they_stand_in_a_run_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert "in model.stacks.NAME.layer.mixer, model.stacks.NAME.layer.cross\n" in told(capsys, "mixer")
    assert "in MixtureOfExpertsSpec.router\n" in told(capsys, "router")
    assert "in AttentionSpec.pattern, GlobalAttentionSpec.pattern, AllOfSpec.patterns, AnyOfSpec.patterns\n" in told(
        capsys, "pattern"
    )


def test_defaults_that_are_parts_go_by_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "pattern")
    assert "patterns: [WindowSpec, StridedSpec]" in text
    assert "size: 256" in text


def test_lines_are_folded_in_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = told(capsys)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    folded = told(capsys)
    assert max(map(len, plain.splitlines())) > 80 >= max(map(len, folded.splitlines()))
    assert folded.split() == plain.split()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("Atention",), "There is no kind of part and no part named 'Atention'. Did you mean"),
        (("alibi",), "ALiBiPositionSpec speaks of it."),
        (("qk_norm",), "It is an option: AttentionSpec.qk_norm."),
        (("reversible",), "It is an option: model.stacks.NAME.reversible."),
        (("--supports", "casual"), "Did you mean 'causal'?"),
        (("norm", "--supports", "causal"), "none of these parts supports all of that. They have no abilities"),
        (("mixer", "--supports", "cross,2-D"), "none of these parts supports all of that. They support causal,"),
    ],
)
def test_what_there_is_not(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parts", *words]) == 2
    assert said in capsys.readouterr().err
