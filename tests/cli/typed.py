"""Commands as a test types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmformer.cli.main import main


class Typed:
    """Runs commands on a bundle, as ``mmformer COMMAND BUNDLE WORDS``."""

    def __init__(self, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.bundle, self.capsys = str(bundle), capsys

    def __call__(self, command: str, *words: object) -> str:
        code = main([command, self.bundle, *map(str, words)])
        out, err = self.capsys.readouterr()
        assert (code, err) == (0, "")
        return str(out)

    def json(self, command: str, *words: object) -> Any:
        return json.loads(self(command, *words, "--json"))

    def refused(self, command: str, *words: object) -> str:
        code = main([command, self.bundle, *map(str, words)])
        out, err = self.capsys.readouterr()
        assert (code, out) == (2, "")
        assert err.startswith("mmformer: ")
        assert err.count("\n") == 1, "one line"
        return str(err)
