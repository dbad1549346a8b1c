"""The site: it builds without a warning and says every option; its table of imports is the one the layer test holds."""

from __future__ import annotations

import os
import posixpath
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_layers import BASE, KNOWS
from tiny import ROOT

from mmformer.schema import fields_of, members
from mmformer.spec import FAMILIES
from mmformer.training.run import RunSpec


@pytest.fixture(scope="session")
def pages() -> dict[str, str]:
    """The generated pages."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import generate
    finally:
        sys.path.remove(str(ROOT / "docs"))
    made: dict[str, str] = generate.pages()
    return made


def test_the_table_of_imports_is_the_layer_tests() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text[text.index("| unit | may import |") :].partition("\n\n")[0]
    said = {
        unit: set(re.findall(r"`(\w+)`", rest)) for unit, rest in re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.M)
    }
    assert said == {unit: set(knows) - BASE - {unit} for unit, knows in KNOWS.items() if not unit.startswith("__")}


def test_every_file_that_architecture_names_is_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`([\w/]+(?:\.py|/))`", text)
    places = (ROOT / "mmformer", ROOT, ROOT / "mmformer" / "data")
    assert len(named) > 40
    assert [name for name in named if not any((place / name).exists() for place in places)] == []


def test_messages_that_troubleshooting_quotes_are_ones_that_there_are() -> None:
    """Its first columns have messages; … stands for what differs."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    code = "".join(path.read_text() for path in sorted((ROOT / "mmformer").rglob("*.py")))
    said = re.sub(r"\"\n\s*f?\"", "", code)  # strings that go on in the next line
    columns = re.findall(r"^\| (.+?) \|", text, re.M)
    quoted = [message for column in columns for message in re.findall(r"`([^`]+ [^`]+)`", column)]
    parts = [part.strip() for message in quoted for part in message.split("…")]
    assert len(quoted) >= 10
    assert [part for part in parts if part not in said] == []


def test_every_option_of_a_run_is_told(pages: dict[str, str]) -> None:
    text = pages["configs.md"]
    for name in ("RunSpec", "DataSpec", "RecipeSpec"):
        assert f"## {name}\n" in text
    for base in FAMILIES:
        if base.__module__ != "mmformer.data.caption":
            assert all(
                f"## {member.__name__}\n" in text for member in members(base) if member.__module__ in sys.modules
            )
    # A field of each kind of type, as it is written out.
    assert "| `depth` | `int` | required | number of layers. |" in text
    assert "| `precision` | `32-true` or `bf16-mixed` | `32-true` |" in text
    assert "| `ema` | [`EMASpec`](#emaspec) or null | `null` |" in text
    assert "| `stacks` | name: [`StackSpec`](#stackspec) | required |" in text
    assert "| `size` | list of 2: `int` | `[224, 224]` |" in text
    assert "| `mixer` | [`MixerSpec`](#mixerspec) or null | [`AttentionSpec`](#attentionspec) |" in text


def test_links_within_the_options_lead_somewhere(pages: dict[str, str]) -> None:
    text = pages["configs.md"]
    there = {name.lower() for name in re.findall(r"^## (\w+)$", text, re.M)}
    assert set(re.findall(r"\]\(#(\w+)\)", text)) <= there


def test_links_of_generated_pages_lead_to_pages(pages: dict[str, str]) -> None:
    links = [
        (name, posixpath.normpath(posixpath.join(posixpath.dirname(name), link)))
        for name, text in pages.items()
        for link in re.findall(r"\]\((?!https?://)([^)#\s]+)", re.sub(r"`[^`]*`", "", text))
    ]
    assert len(links) > 20
    assert [(name, to) for name, to in links if to not in pages and not (ROOT / "docs" / to).is_file()] == []


def test_every_run_and_model_is_told(pages: dict[str, str]) -> None:
    for file in sorted((ROOT / "configs").rglob("*.yaml")):
        said = pages["runs.md"].partition(f"## {file.relative_to(ROOT)}\n")[2].partition("\n## ")[0]
        assert len(said.split()) >= 8, f"{file.name} has no head comment"
    assert "```sh\nmmformer fit --config configs/runs/emoji_full.yaml\n```" in pages["runs.md"]


def test_every_command_is_told(pages: dict[str, str]) -> None:
    from mmformer.cli.main import COMMANDS

    text = pages["commands.md"]
    assert all(f"\n### {name}\n" in text for name in COMMANDS)
    for usage in (
        "mmformer shards build",
        "mmformer curate duplicates",
        "mmformer vocabulary train",
        "mmformer classify",
    ):
        assert f"usage: {usage} " in text
    assert "| `--resume` |" in text


def test_options_that_sentences_mention_are_ones_that_there_are(pages: dict[str, str]) -> None:
    """Those in fenced blocks are run by test_pages.py."""
    from mmformer.cli.main import overview

    told = pages["commands.md"] + overview()
    written = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "mmformer/resources").rglob("*.md")]
    unknown = [
        f"{page.name}: --{option}"
        for page in written
        for code in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
        for option in re.findall(r"--([a-zA-Z][\w.-]*)", code)
        if f"--{option}" not in told and option.partition(".")[0] not in fields_of(RunSpec, RunSpec)
    ]
    assert unknown == []


def test_the_python_api_is_told(pages: dict[str, str]) -> None:
    text = pages["api/predictor.md"]
    assert "### load\n" in text
    assert "#### Predictor.classify\n" in text
    assert "- `batch_size`: values that are computed at once." in text
    assert "**Raises**\n\n- `InputError`: no such bundle" in text
    assert "    templates: Sequence[str] = ('{}',),\n" in text
    api = "".join(text for name, text in pages.items() if name.startswith("api/"))
    assert not re.findall(r"inspect\._empty|ForwardRef|<factory>|object at 0x", api)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    built = tmp_path / "site"
    assert (built / "configs.html").is_file() and (built / "api" / "predictor.html").is_file()
    assert not [*built.rglob("*.py"), *built.rglob("*.pyc")]
    away = re.compile(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"?(?:https?:)?//")
    fetched = [page.name for page in built.rglob("*.html") if away.search(page.read_text())]
    assert fetched == [], "nothing is fetched when a page is read"
