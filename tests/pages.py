"""Pages of documentation: their fenced blocks, and running those as a reader would.

A fence without a language holds commands, ``python`` a snippet, ``yaml`` a run file or a part of one; ``text`` is there
to be read. Comments before a fence say what else is to be known:

    <!-- expect: 2 -->          its commands end with this exit code
    <!-- only shown: why -->    it is not run here
    <!-- file: NAME -->         it is what is in this file
    <!-- base: FILE -->         it is a part of this run file, not of the page's own
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

import torch
import yaml
from tiny import ROOT

from mmformer.cli.main import main
from mmformer.cli.options import merged
from mmformer.config import parse, read_yaml
from mmformer.training.run import RunSpec

RUN = ("", "python", "yaml")
SHELL = ("cp", "mkdir")
"""What a page may call besides mmformer, make and cd."""

SMALLER = {"--trainer.max_steps": "2", "--size": "320", "--updates": "10", "--steps": "1", "--row": "64"}
"""Options whose numbers are made small, so that a reader's hours are a test's seconds."""

SMALL = {
    "data": {"batch_size": 4, "evaluation_batch_size": 16},
    "trainer": {"max_steps": 2, "precision": "32-true", "accelerator": "cpu", "enable_progress_bar": False},
    "schedule": {"class_path": "CosineScheduleSpec"},
}


class Block(NamedTuple):
    """A fenced block, and what the comments before it say."""

    page: Path
    line: int
    language: str
    text: str
    notes: dict[str, str]

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    fence = re.compile(r"((?:^ *<!--[^\n]*-->\n)*)^( *)```([^\n`]*)\n(.*?)^\2```$", re.MULTILINE | re.DOTALL)
    return [
        Block(
            page,
            text.count("\n", 0, match.start(2)) + 1,
            match[3].strip(),
            textwrap.dedent(match[4]),
            dict(re.findall(r"<!-- ([\w ]+): (.+) -->", match[1])),
        )
        for match in fence.finditer(text)
    ]


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command; a backslash joins lines, # begins a comment, patterns stand for files."""
    for line in text.replace("\\\n", " ").splitlines():
        plain = shlex.split(line, comments=True)
        words = []
        for word in plain:
            quoted = f"'{word}'" in line or f'"{word}"' in line
            found = sorted(glob.glob(word)) if glob.has_magic(word) and not quoted else []  # noqa: PTH207
            words += found or [word]
        if words:
            yield words


def shrink(file: Path) -> None:
    """Make a run file one that takes seconds: one layer in each stack, small batches, two updates."""
    data = read_yaml(file)
    for group, values in SMALL.items():
        data[group] = {**data.get(group, {}), **values} if group != "schedule" else values
    for stack in data["model"]["stacks"].values():
        stack["depth"] = 1
    file.write_text(yaml.safe_dump(data, sort_keys=False))


class Reader:
    """Somebody who types what a page says, in one folder, from its first line to its last.

    Args:
        base: the run file that parts of run files belong to, until the page starts a project.
    """

    def __init__(self, base: Path) -> None:
        self.base = base.absolute()
        self.names: dict[str, Any] = {}

    def read(self, block: Block) -> None:
        if "only shown" in block.notes or block.language not in RUN:
            return
        if "file" in block.notes:
            Path(block.notes["file"]).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.text, str(block), "exec"), self.names)
        elif block.language == "yaml":
            self._parse(block)
        else:
            for words in commands(block.text):
                code = self._type(words, str(block))
                assert code == int(block.notes.get("expect", 0)), f"{block}: {shlex.join(words)} ended with {code}"

    def _type(self, words: list[str], where: str) -> int:
        program, *rest = words
        if program == "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert rest[0] in targets, f"{where}: there is no target {rest[0]}"
            return 0
        if program == "cd":
            os.chdir(rest[0])
            return 0
        if program in SHELL:
            return subprocess.run(words).returncode
        assert program == "mmformer", f"{where}: {program} is no command that a test runs: say that it is only shown"
        return self._call([SMALLER.get(before, word) for before, word in zip(["", *rest], rest, strict=False)])

    def _call(self, words: list[str]) -> int:
        if {"--parallel.shard", "--processes"} & set(words):  # it starts itself again
            return subprocess.run([sys.executable, "-m", "mmformer", *words], timeout=600).returncode
        if words[0] == "fit" and not {"--resume", "--overwrite", "--print_config"} & set(words):
            words.append("--overwrite")  # the bundle that pages use was there before the page was read
        try:
            code = main(words)
        except SystemExit as end:  # argparse's --help
            code = int(end.code or 0)
        if words[0] == "init" and code == 0:
            (self.base,) = Path(words[1]).absolute().glob("*.yaml")
            shrink(self.base)
        return code

    def _parse(self, block: Block) -> None:
        part = Path(".part.yaml")
        part.write_text(block.text, encoding="utf-8")
        whole = {"model", "objectives", "data"} <= set(read_yaml(part))
        base = [] if whole else [("config", block.notes.get("base", str(self.base)))]
        run = parse(RunSpec, merged(RunSpec, [*base, ("config", str(part))]), str(block))
        with torch.device("meta"):
            run.model.build()  # its parts fit each other
