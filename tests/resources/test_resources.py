"""Names of files that mmformer brings mean the same in a checkout, in a wheel, and wherever a command is called."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ROOT

from mmformer import resources
from mmformer.cli.main import main
from mmformer.data.classes import read_classes
from mmformer.errors import InputError
from mmformer.tokenizers.vocabulary import Vocabulary

RUN = "configs/runs/emoji_quickstart.yaml"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_is_not_there_is_what_mmformer_brings(elsewhere: Path) -> None:
    assert resources.find(RUN).read_text() == (ROOT / RUN).read_text()
    assert Vocabulary.load("tokenizers/emoji-en.model").fingerprint
    assert read_classes("data/emoji/groups.txt") == read_classes(ROOT / "data/emoji/groups.txt")


def test_a_file_of_the_user_goes_before_it(elsewhere: Path) -> None:
    own = Path(RUN)
    own.parent.mkdir(parents=True)
    own.write_text("seed: 1\n")
    assert resources.find(RUN) == own


@pytest.mark.parametrize(
    "name", ["nowhere.yaml", "configs/runs", "../resources/__init__.py", str(ROOT / "nowhere"), "x" * 5000, "a\0b"]
)
def test_other_names_stay_what_they_are(name: str, elsewhere: Path) -> None:
    assert resources.find(name) == Path(name)


def test_a_run_file_finds_what_it_names(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", RUN, "--print_config"]) == 0
    assert main(["fit", "--config", RUN, "--model", "configs/models/emoji_trimodal_wide.yaml", "--print_config"]) == 0
    assert capsys.readouterr().err == ""


def test_samples_are_not_brought_and_it_is_said_where_they_are(elsewhere: Path) -> None:
    from mmformer.data.manifest import Manifest

    with pytest.raises(InputError, match=r"no folder of shards data/emoji\. .* a folder of its repository\. Copy it"):
        Manifest.load("data/emoji")
    for name in ("data/mine", "data", str(elsewhere / "data/emoji")):
        with pytest.raises(InputError, match=r"no folder of shards \S+\.$"):
            Manifest.load(name)


@pytest.mark.slow
def test_a_wheel_works_outside_a_checkout(elsewhere: Path) -> None:
    """Built and installed without a network, and called in an empty folder, where no checkout can be imported."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    source = elsewhere / "source"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):  # a copy: building leaves build/ in the source
        if name.endswith(".tar") or not (ROOT / name).exists():
            continue
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            (source / name).symlink_to((ROOT / name).readlink())
        else:
            (source / name).write_bytes((ROOT / name).read_bytes())
    told = subprocess.run(
        [*pip, "wheel", str(source), "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", "wheels"],
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    (wheel,) = Path("wheels").glob("mmformer-*.whl")
    assert wheel.stat().st_size < 2e6, "samples are not in it"
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", "site", str(wheel)], check=True)

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        code = (
            f"import sys; sys.path.insert(0, {str(elsewhere / 'site')!r}); import mmformer; "
            f"assert mmformer.__file__.startswith({str(elsewhere)!r}), mmformer.__file__; "
            "from mmformer.cli.main import main; sys.exit(main(sys.argv[1:]))"
        )
        folder = elsewhere / "empty"
        folder.mkdir(exist_ok=True)
        return subprocess.run([sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True)

    named = (name for name in tracked.split("\0") if name.startswith(("configs/", "tokenizers/")))
    brought = elsewhere / "site" / "mmformer" / "resources"
    absent = [name for name in named if name.endswith((".yaml", ".model")) and not (brought / name).is_file()]
    assert not absent
    shown = call("fit", "--config", RUN, "--print_config")
    assert shown.returncode == 0, shown.stderr
    assert "tokenizers/emoji-en.model" in shown.stdout
    assert call("vocabulary", "encode", "tokenizers/emoji-12.model", "a red heart").returncode == 0
    missing = call("fit", "--config", RUN)
    assert missing.returncode == 2
    assert "data/emoji is a folder of its repository" in missing.stderr
    assert call("init", "mine", "--task", "caption").returncode == 0
    assert (elsewhere / "empty" / "mine" / ".gitignore").is_file()
    code = "import sys; sys.path.insert(0, sys.argv[1]); from mmformer.data.classes import *; read_classes('cifar10')"
    subprocess.run([sys.executable, "-c", code, str(elsewhere / "site")], check=True)
