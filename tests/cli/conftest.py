"""What the tests of the command line share."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from bundles import (
    save_classifier,
    save_dual,
    save_trimodal,
    save_two_eyed,
    save_writing,
    write_pictures,
    write_sounds,
)
from tiny import tiny_run, write_shards
from typed import Typed

from mmformer import predictor
from mmformer.bundle import load_bundle
from mmformer.config import to_yaml

_loaded = functools.cache(load_bundle)


@pytest.fixture(scope="session")
def dual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dual(tmp_path_factory.mktemp("dual") / "bundle")


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("classifier") / "bundle")


@pytest.fixture(scope="session")
def trimodal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_trimodal(tmp_path_factory.mktemp("trimodal") / "bundle")


@pytest.fixture(scope="session")
def writing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_writing(tmp_path_factory.mktemp("writing") / "bundle")


@pytest.fixture(scope="session")
def two_eyed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_two_eyed(tmp_path_factory.mktemp("two") / "bundle")


@pytest.fixture
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle is read from its files once only: these bundles do not change, and tests are many."""
    monkeypatch.setattr(predictor, "load_bundle", _loaded)


@pytest.fixture
def shots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pictures in shots/, in the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    return [str(path) for path in write_pictures(Path("shots"))]


@pytest.fixture
def calls(shots: list[str]) -> list[str]:
    """Sounds in calls/, beside shots/."""
    return [str(path) for path in write_sounds(Path("calls"))]


@pytest.fixture
def three(trimodal: Path, capsys: pytest.CaptureFixture[str], loaded_once: None) -> Typed:
    """Commands on a bundle that reads pictures, texts and sounds."""
    return Typed(trimodal, capsys)


@pytest.fixture
def writer(writing: Path, capsys: pytest.CaptureFixture[str], loaded_once: None) -> Typed:
    """Commands on a bundle that translates, transcribes and goes on with texts."""
    return Typed(writing, capsys)


@pytest.fixture
def typed(dual: Path, capsys: pytest.CaptureFixture[str], loaded_once: None) -> Typed:
    return Typed(dual, capsys)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def file(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """run.yaml, and a run's folder run/, in the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    for path in (Path("run.yaml"), Path("run/config.yaml")):
        path.write_text(to_yaml(tiny_run(shards)))
    return Path("run.yaml")
