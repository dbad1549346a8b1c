"""Every command and snippet of README and docs is run, in a folder where what it names is there, on a tiny scale."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from bundles import tone
from pages import RUN, SHELL, Reader, blocks
from PIL import Image
from soundfile import write
from tiny import COLOURS, ROOT

from mmformer.cli.main import main
from mmformer.cli.options import merged
from mmformer.training.run import RunSpec

QUICKSTART = Path("configs/runs/emoji_quickstart.yaml")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "launch/README.md", ROOT / "tokenizers/README.md"]
"""These are for whoever changes the code, or need machines that a test has not."""

STAND_IN = {
    "model": {"stacks": {"trunk": {"width": 32, "depth": 1}, "writer": {"width": 32, "depth": 1}}},
    "data": {"batch_size": 16, "evaluation_batch_size": 64, "cache_mib": 16},
    "trainer": {"max_steps": 2, "precision": "32-true", "accelerator": "cpu", "enable_progress_bar": False},
    "schedule": {"class_path": "CosineScheduleSpec", "init_args": {"warmup_steps": 0}},
}
"""The quickstart with all its parts, but small."""


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pages name: the quickstart's files and what it left, pictures, sounds and texts."""
    folder = tmp_path_factory.mktemp("shelf")
    (folder / "data").mkdir()
    (folder / "data" / "emoji").symlink_to(ROOT / "data" / "emoji")
    (folder / QUICKSTART.parent).mkdir(parents=True)
    data = merged(RunSpec, [("config", str(ROOT / QUICKSTART)), *options(STAND_IN)])
    (folder / QUICKSTART).write_text(yaml.safe_dump(data, sort_keys=False))
    put_pictures(folder)
    put_sounds(folder)
    (folder / "texts").mkdir()
    lines = [
        f"a {size} {colour} square {place}" for size in ("large", "small") for colour in COLOURS for place in "abc"
    ]
    (folder / "texts" / "book.txt").write_text("\n".join(lines) + "\n")
    (folder / "sentences.txt").write_text("\n".join(lines[:3]) + "\n")
    pairs = [f"{line} and {colour}" for line in lines for colour in ("black", "blue", "green", "red")]
    (folder / "pairs.tsv").write_text("en\tde\n" + "".join(f"{pair}\t{pair[::-1]}\n" for pair in pairs))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--config", str(QUICKSTART)]) == 0
    return folder


def options(tree: dict[str, object], above: str = "") -> list[tuple[str, str]]:
    """Plain data as dotted options."""
    found: list[tuple[str, str]] = []
    for name, value in tree.items():
        whole = isinstance(value, dict) and "class_path" not in value
        found += options(value, f"{above}{name}.") if whole else [(f"{above}{name}", str(value))]  # type: ignore[arg-type]
    return found


def put_pictures(folder: Path) -> None:
    """photos/ with captions.csv, described/ with a text beside each, classes/ with two classes, and single pictures."""
    rows = []
    for number in range(48):
        colour = list(COLOURS)[number % len(COLOURS)]
        noise = np.random.default_rng(number).integers(0, 60, (20, 16 + number, 3))
        picture = Image.fromarray((noise + np.array(COLOURS[colour]) // 2).astype(np.uint8))
        side = folder / "classes" / ("black" if number % 2 == 0 else "blue")
        for place in (folder / "photos", folder / "described", side):
            place.mkdir(parents=True, exist_ok=True)
            name = number // 2 if place is side else number
            picture.save(place / f"{name}.png")
        (folder / "described" / f"{number}.txt").write_text(f"{colour} number {number}")
        rows.append(f"{number}.png,{colour} number {number}\n")
        if number < 6:
            picture.save(folder / f"{('picture', 'cat', 'dog', 'sun', 'a', 'b')[number]}.png")
    (folder / "captions.csv").write_text("image,caption\n" + "".join(rows))
    shutil.copytree(folder / "photos", folder / "pictures")


def put_sounds(folder: Path) -> None:
    """recordings/ with recordings.csv, calls/, and one word."""
    (folder / "recordings").mkdir()
    (folder / "calls").mkdir()
    rows = []
    for number in range(48):
        write(folder / "recordings" / f"{number}.wav", tone(200 + 20 * number), 8000)
        rows.append(f"{number}.wav,tone number {number}\n")
    (folder / "recordings.csv").write_text("sound,caption\n" + "".join(rows))
    for name in ("calls/one.wav", "calls/two.wav", "word.wav"):
        write(folder / name, tone(300), 16000)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_says_works(page: Path, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = [block for block in blocks(page) if block.language in RUN]
    if not run:
        pytest.skip("there is nothing to run on this page")
    folder = tmp_path / "reader"
    shutil.copytree(shelf, folder, symlinks=True)
    monkeypatch.chdir(folder)
    reader = Reader(QUICKSTART)
    reader.names |= {"samples": tone(400, rate=16000)}
    for block in run:
        reader.read(block)


def test_every_page_is_in_the_sites_navigation_or_is_generated() -> None:
    told = (ROOT / "mkdocs.yml").read_text()
    pages = [str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")]
    assert [page for page in pages if f": {page}\n" not in told] == []


@pytest.mark.parametrize("page", PAGES + OTHERS, ids=lambda page: str(page.relative_to(ROOT)))
def test_fences_end_and_are_known(page: Path) -> None:
    found = blocks(page)
    assert page.read_text().count("```") == 2 * len(found), "a fence does not end"
    assert {block.language for block in found} <= {*RUN, "text"}
    for block in found:
        assert set(block.notes) <= {"expect", "only shown", "file", "base"}, block


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_ones_that_are_run(page: Path) -> None:
    """Quick, for the run itself is slow: nobody adds a command that no test would know."""
    from pages import commands

    from mmformer.cli.main import COMMANDS

    for block in blocks(page):
        if block.language == "" and "only shown" not in block.notes:
            for program, *rest in commands(block.text):
                assert program in ("mmformer", "make", "cd", *SHELL), block
                assert program != "mmformer" or rest[0] in COMMANDS or rest[0].startswith("--"), block
