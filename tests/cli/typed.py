"""Commands as a test types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmformer.cli.main import main


class Typed:
    """Runs commands on a bundle, as ``mmformer COMMAND BUNDLE WORDS``."""

    def __init__(self, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.bundle, self.capsys = str(bundle), capsys

    def __call__(self, command: str, *words: object, told: str = "") -> str:
        code = main([command, self.bundle, *map(str, words)])
        out, err = self.capsys.readouterr()
        assert code == 0
        assert err.startswith(f"mmformer: {told}") and err.count("\n") == 1 if told else err == ""
        return str(out)

    def json(self, command: str, *words: object, told: str = "") -> Any:
        return json.loads(self(command, *words, "--json", told=told))

    def refused(self, command: str, *words: object) -> str:
        code = main([command, self.bundle, *map(str, words)])
        out, err = self.capsys.readouterr()
        assert (code, out) == (2, "")
        assert err.startswith("mmformer: ")
        assert err.count("\n") == 1, "one line"
        return str(err)


def change(file: Path, path: str, value: object) -> None:
    """Another value at a dotted path of a file."""
    data = place = yaml.safe_load(file.read_text())
    *above, last = path.split(".")
    for key in above:
        place = place[key]
    place[last] = value
    file.write_text(yaml.safe_dump(data))


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    code = main(words)
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("mmformer: ")
    return str(err)
