"""``mmformer init``: what it writes can be read, and its README's commands work."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from bundles import tone
from pages import Reader, blocks, shrink
from PIL import Image
from soundfile import write
from tiny import COLOURS
from typed import refused

from mmformer import resources
from mmformer.cli.init import TASKS
from mmformer.cli.main import main


@pytest.fixture(params=TASKS)
def project(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new project, whose folder the test runs in; and its run file."""
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine", "--task", request.param]) == 0
    monkeypatch.chdir("mine")
    (file,) = Path().glob("*.yaml")
    return file


def test_a_project_has_a_run_file_folders_and_a_readme(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {path.name for path in Path().iterdir()} == {".gitignore", "README.md", "raw", project.name}
    assert main(["fit", "--config", str(project), "--print_config"]) == 0
    said = yaml.safe_load(capsys.readouterr().out.split("README.md.\n")[-1])
    assert said["data"]["source"] == "data"
    assert set(Path(".gitignore").read_text().split()) >= {"/raw/", "/data/", "/runs/"}
    readme = Path("README.md").read_text()
    assert f"mmformer fit --config {project.name}" in readme
    assert f"runs/{project.stem}/bundle" in readme
    assert project.read_text().count("#") >= 5, "its choices are explained"


def test_no_project_file_is_longer_than_its_line(project: Path) -> None:
    assert all(len(line) <= 125 for file in (project, Path("README.md")) for line in file.read_text().splitlines())


def test_every_task_is_told_and_has_a_template() -> None:
    there = {path.name for path in (resources.FOLDER / "projects").iterdir() if path.is_dir()}
    assert there == set(TASKS)


def test_a_folder_in_use_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    assert main(["init", "there"]) == 0, "an empty one is taken"
    capsys.readouterr()
    assert "something in it" in refused(capsys, "init", "there")
    Path("file").touch()
    assert "is a file" in refused(capsys, "init", "file")
    assert "Did you mean 'classify'?" in refused(capsys, "init", "new", "--task", "clasify")
    assert not Path("new").exists()


def put_data(task: str) -> None:
    """Squares or tones where the project's README wants them, with their captions: 48 of them."""
    rows = []
    for number in range(48):
        colour = list(COLOURS)[number % 2]
        raw = Path(TASKS[task].raw)
        if task == "audio-text":
            name = f"{number}.wav"
            write(raw / name, tone(200 + 20 * number), 8000)
        else:
            raw = raw / colour if task == "classify" else raw
            raw.mkdir(exist_ok=True)
            name = f"{number}.png"
            Image.new("RGB", (20 + number, 20), COLOURS[colour]).save(raw / name)
        rows.append(f"{name},{colour} number {number}\n")
    if task != "classify":
        column = "sound" if task == "audio-text" else "image"
        Path("raw/captions.csv").write_text(f"{column},caption\n" + "".join(rows))


@pytest.mark.slow
def test_the_readmes_commands_work_one_after_another(project: Path) -> None:
    task = next(name for name in TASKS if name.replace("-", "_") == project.stem)
    put_data(task)
    shrink(project)
    reader = Reader(project)
    for block in blocks(Path("README.md")):
        reader.read(block)
    assert Path("runs", project.stem, "bundle", "model.safetensors").is_file()
