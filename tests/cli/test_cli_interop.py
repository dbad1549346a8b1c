"""``mmformer import`` and ``export`` as they are called; what they make: tests/interop."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import torch
from bundles import save_dual
from safetensors.torch import load_file, save_file

import mmformer
from mmformer.cli.main import main

SIZES = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 30, "n_positions": 12, "eos_token_id": 29}


def told(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """What a command prints that goes well."""
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    return err


def test_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers", reason="the reference")
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES)).save_pretrained(tmp_path / "in")
    capsys.readouterr()
    out = told(capsys, "import", f"hf:{tmp_path / 'in'}", tmp_path / "bundle")
    assert "hf gpt2 (GPT2LMHeadModel), 7," in out
    assert "bos_token_id 50256 is beyond the table of 30 rows: there is no such token" in out
    assert "no vocabulary was found: the bundle takes ids only" in out
    assert mmformer.load(tmp_path / "bundle").logits([[1, 2, 3]]).shape == (1, 3, 30)
    assert "takes ids only" in refused(capsys, "generate", tmp_path / "bundle", "a dog")
    out = told(capsys, "export", tmp_path / "bundle", tmp_path / "out", "--to", "hf")
    assert out == f"{tmp_path / 'out'}: gpt2 (GPT2LMHeadModel)\n"
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("in", "out"))
    assert all(torch.equal(first[name], second[name]) for name in first | second)
    assert "is there already" in refused(capsys, "export", tmp_path / "bundle", tmp_path / "out", "--to", "hf")
    told(capsys, "export", tmp_path / "bundle", tmp_path / "out", "--to", "hf", "--overwrite")
    assert "no family of timm is such a model" in refused(
        capsys, "export", tmp_path / "bundle", tmp_path / "other", "--to", "timm"
    )
    assert not (tmp_path / "other").exists()


def test_a_bundle_as_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = save_dual(tmp_path / "bundle")
    file = tmp_path / "all.safetensors"
    told(capsys, "export", bundle, file, "--to", "safetensors")
    told(capsys, "import", file, tmp_path / "again")
    first, second = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (bundle, tmp_path / "again")
    )
    assert first == second
    assert "is a folder, but with --to safetensors" in refused(
        capsys, "export", bundle, tmp_path / "again", "--to", "safetensors", "--overwrite"
    )


def test_a_file_that_would_write_elsewhere_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.dumps({"../evil.txt": base64.b64encode(b"x").decode()})
    save_file({"a": torch.zeros(1)}, tmp_path / "bad.safetensors", {"mmformer": content})
    assert "'../evil.txt' in its metadata" in refused(capsys, "import", tmp_path / "bad.safetensors", tmp_path / "b")
    save_file({"a": torch.zeros(1)}, tmp_path / "worse.safetensors", {"mmformer": "]"})
    assert "its metadata cannot be read" in refused(capsys, "import", tmp_path / "worse.safetensors", tmp_path / "b")
    save_file({"a": torch.zeros(1)}, tmp_path / "empty.safetensors", {"mmformer": "{}"})
    assert "has no model.yaml" in refused(capsys, "import", tmp_path / "empty.safetensors", tmp_path / "b")
    assert not (tmp_path / "b").exists() and not (tmp_path / "evil.txt").exists()


def test_what_can_be_imported(capsys: pytest.CaptureFixture[str]) -> None:
    out = told(capsys, "import", "--list")
    assert "configs/models/gpt2.yaml  GPT-2, the smallest (124 M parameters)\n    hf gpt2 (GPT2LMHeadModel)\n" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["import"], "takes a SOURCE and a BUNDLE"),
        (["import", "hf:nowhere", "OUT"], "There is no folder nowhere."),
        (["import", "hg:models", "OUT"], "'hg:models' names no model: write hf:NAME"),
        (["import", "hf:EMPTY", "OUT"], "has no config.json"),
        (["export", "EMPTY", "OUT", "--to", "hf"], "this is no bundle, for it has no model.yaml"),
        (["export", "EMPTY", "OUT", "--to", "onyx"], "--to must be one of hf, open_clip, timm, safetensors"),
    ],
)
def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    given = [word.replace("EMPTY", str(tmp_path / "empty")).replace("OUT", str(tmp_path / "out")) for word in words]
    assert message in refused(capsys, *given)
    assert not (tmp_path / "out").exists()
