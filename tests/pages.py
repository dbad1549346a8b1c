"""Pages of documentation: their fenced blocks, and running those as a reader would.

A fence without a language holds commands, ``python`` a snippet, ``yaml`` a part of a run file or a whole one; any other
language is there to be read. A comment before a fence says what else is to be known:

    <!-- expect: 2 -->          the last command ends with this exit code
    <!-- only shown: why -->    it is not run here
"""

from __future__ import annotations

import glob
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tiny import ROOT

from mmformer.cli.main import main

RUN = ("", "python", "yaml")

SMALLER = {"--trainer.max_steps": "2", "--size": "320", "--updates": "4", "--trainer.accumulate_grad_batches": "2"}
"""Options whose numbers are made small, so that a reader's hours are a test's seconds."""


class Block(NamedTuple):
    """A fenced block."""

    page: Path
    line: int
    language: str
    text: str
    expect: int
    shown: str  # why it is not run; "": it is

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    fence = re.compile(r"((?:^[ ]*<!--[^\n]*-->\n)?)^([ ]*)```([^\n]*)\n(.*?)^\2```$", re.MULTILINE | re.DOTALL)
    found = []
    for match in fence.finditer(text):
        note, _, language, inside = match.groups()
        expect = re.search(r"<!-- expect: (\d+) -->", note)
        shown = re.search(r"<!-- only shown: (.+) -->", note)
        found.append(
            Block(
                page,
                text.count("\n", 0, match.start(2)) + 1,
                language.split()[0] if language.strip() else "",
                textwrap.dedent(inside),
                int(expect[1]) if expect else 0,
                shown[1] if shown else "",
            )
        )
    return found


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command; a backslash joins lines, # begins a comment, patterns stand for files."""
    for line in text.replace("\\\n", " ").splitlines():
        quoted = shlex.shlex(line, posix=False, punctuation_chars=False)
        quoted.whitespace_split, quoted.commenters = True, "#"
        words = []
        for word in quoted:
            plain = shlex.split(word)[0]
            found = sorted(glob.glob(plain)) if plain == word and glob.has_magic(plain) else []  # noqa: PTH207
            words += found or [plain]
        if words:
            yield words


class Reader:
    """Somebody who types what a page says, in one folder, from its first line to its last."""

    def __init__(self, base: Path) -> None:
        self.base = base  # the run that a part of a run file belongs to
        self.names: dict[str, Any] = {}

    def read(self, block: Block) -> None:
        if block.shown or block.language not in RUN:
            return
        if block.language == "python":
            exec(compile(block.text, str(block), "exec"), self.names)
        elif block.language == "yaml":
            self._parse(block)
        else:
            for words in commands(block.text):
                code = self._type(words, str(block))
                assert code == block.expect, f"{block}: {shlex.join(words)} ended with {code}"

    def _type(self, words: list[str], where: str) -> int:
        program, *rest = words
        if program == "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert rest[0] in targets, f"{where}: there is no target {rest[0]}"
            return 0
        if program == "cd":
            os.chdir(rest[0])
            return 0
        assert program == "mmformer", f"{where}: {program} is no command that a test runs: say that it is only shown"
        small = [SMALLER.get(before, word) for before, word in zip(["", *rest], rest, strict=False)]
        if {"--parallel.shard", "--processes"} & set(small):  # it starts itself again
            done = subprocess.run(
                [sys.executable, "-m", "mmformer", *small], capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, done.stderr
            return done.returncode
        try:
            return main(small)
        except SystemExit as end:  # argparse's --help
            return int(end.code or 0)

    def _parse(self, block: Block) -> None:
        part = Path(".part.yaml")
        part.write_text(block.text, encoding="utf-8")
        whole = [] if block.text.startswith("model:") or "\nmodel:" in block.text else ["--config", str(self.base)]
        code = main(["fit", *whole, "--config", str(part), "--print_config"])
        assert code == block.expect, f"{block}: it is no part of a run file"
