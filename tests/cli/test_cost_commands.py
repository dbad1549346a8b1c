"""``mmformer plan`` and ``mmformer profile`` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import tiny_run, write_shards

from mmformer.cli.main import main
from mmformer.config import to_yaml


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Of a run whose data is not there yet."""
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(tiny_run(tmp_path / "data")))
    return file


def test_a_plan(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", str(config), "--devices", "2xL4", "--row", "64"]) == 0
    out = capsys.readouterr().out
    assert "on 2xL4, at 40 % of 30.3 TFLOP/s each (32-true)" in out
    assert "the longest that the run lets in" in out
    assert "shard 2 " in out
    assert "The stack 'image' with other mixers" in out


def test_a_plan_as_json(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["plan", "--config", str(config), "--text_tokens", "3,9", "--model.stacks.text.depth", "2", "--json"]) == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert told["devices"]["device"]["name"] == "H100"
    assert told["layouts"][0]["fits"] is True
    assert told["lengths"]["text"] == 16


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--devices", "3xH300"), "there is no device 'H300'"),
        (("--mfu", "40"), "above 0 and at most 1"),
        (("--text_tokens", "4,x"), "--text_tokens must be positive whole numbers"),
        (("--row", "1,2"), "--row must be one number"),
    ],
)
def test_what_cannot_be_planned(
    words: tuple[str, ...], told: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--config", str(config), *words]) == 2
    assert told in capsys.readouterr().err


def test_a_profile(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(config.parent / "data")
    before = sorted(config.parent.rglob("*"))
    assert main(["profile", "--config", str(config), "--steps", "1"]) == 0
    out = capsys.readouterr().out
    for phase in ("data wait", "host to device", "forward", "backward", "optimizer", "all of it"):
        assert phase in out
    assert "The largest lever is " in out
    assert sorted(config.parent.rglob("*")) == before
