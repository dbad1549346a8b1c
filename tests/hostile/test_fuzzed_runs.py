"""Files of a run's folder that were damaged, and that a resumed run reads back: mended with a word, or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from attempts import count, damaged, fuzz, outcome, strange
from tiny import tiny_run

from mmformer.config import to_yaml
from mmformer.errors import InputError
from mmformer.training import sealing
from mmformer.training.checkpoint import newest_checkpoint
from mmformer.training.intake import _COLUMNS as SKIPPED
from mmformer.training.metrics import MetricsTable
from mmformer.training.output import check_resumed
from mmformer.training.refusing import _COLUMNS as REFUSED
from mmformer.training.sealing import SEAL, content_of, seal
from mmformer.training.tables import add_rows, as_text, go_on_from, plain, rows_until

METRICS = "step,train/loss,train/lr\n2,0.5,0.001\n4,0.25,0.001\n6,0.125,0.001\n"
TABLES = {
    "metrics.csv": METRICS,
    "timing.csv": "step,timing/data_wait,timing/step\n2,0.01,0.5\n4,0.02,0.5\n6,1e-05,0.5\n",
    "skipped.tsv": as_text([SKIPPED, *((n, "data/set", f"k{n}", "damaged picture", 'a "cut" PNG') for n in (2, 4, 6))]),
    "refused.tsv": as_text([REFUSED, *((n, "spike", "100", "nan", "skip", '["größer", "k\t1"]') for n in (2, 4, 6))]),
}
LONG = pytest.mark.slow


def resumed(path: Path) -> list[dict[str, str]]:
    """What a run that goes on from update 4 makes of a table, and adds to it; its rows then."""
    if path.suffix == ".csv":
        table = MetricsTable(path, 4)
        table.log_metrics({"train/loss": 0.1}, 5)
        return rows_until(5, path, number="step", delimiter=",")
    columns = SKIPPED if path.name == "skipped.tsv" else REFUSED
    rows = go_on_from(4, path, columns)
    add_rows(path, columns, [("5", *map(plain, rows[0].values() if rows else columns))[: len(columns)]])
    found = rows_until(5, path, columns)
    assert found[:-1] == rows
    return found


@pytest.mark.parametrize("budget", [100, pytest.param(3000, marks=LONG)])
@pytest.mark.parametrize("name", TABLES)
def test_tables_that_a_resumed_run_goes_on_with(name: str, budget: int, tmp_path: Path) -> None:
    path = tmp_path / name

    def attempt(data: bytes) -> None:
        path.write_bytes(data)
        rows = resumed(path)
        assert rows and all(None not in row and None not in row.values() for row in rows)

    assert set(fuzz("tables of runs", damaged(TABLES[name].encode()), attempt, budget)) == {"read", "refused"}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_is_cut_stops_no_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever it is, and with zeros behind it, as some disks leave it: rows before stay, and half a line is told."""
    path, whole = tmp_path / name, TABLES[name].encode()
    for size in range(len(whole)):
        for behind in (b"", b"\0\0\0\0"):
            path.write_bytes(whole[:size] + behind)
            rows = resumed(path)
            assert len(rows) == 1 + min(2, max(0, whole[:size].count(b"\n") - 1)), "and the one that was added"
            half = bool(behind) or (size > 0 and not whole[:size].endswith(b"\n"))
            line = whole[:size].count(b"\n") + 1
            told = f"mmformer: {path}: line {line}, the last, is cut: it is left out.\n"
            assert capsys.readouterr().err == told * half
    count("tables of runs", "read", 2 * len(whole))


def without_a_column(text: str, between: str) -> str:
    return "\n".join(line.partition(between)[2] for line in text.splitlines()) + "\n"


WRONG: dict[str, tuple[Callable[[str, str], str], str]] = {
    "a number that is none": (lambda text, _: text.replace("\n4", "\nfour"), "line 3: {number} must be a whole number"),
    "a number without end": (
        lambda text, _: text.replace("\n4", "\n" + "4" * 5000),
        "line 3: {number} must be a whole",
    ),
    "a column less": (without_a_column, "line 1: the columns are"),
    "a column twice": (lambda text, between: text.replace("\n", between + "{number}\n", 1), "line 1: the columns are"),
    "a cell less": (lambda text, between: text.replace(f"\n4{between}", f"\n4\n4{between}"), "line 3: there are"),
    "a cell more": (lambda text, between: text.replace("\n4", f"\n4{between}4"), "line 3: there are"),
    "no UTF-8": (lambda text, _: text.replace("\n4", "\n4\udcff"), "line 3: it cannot be read: 'utf-8' codec"),
    "a quote that is open": (lambda text, between: text.replace(f"\n4{between}", f'\n4{between}"'), "line 3: "),
    "empty lines": (lambda text, _: "\n\n" + text.replace("\n4", "\n\nx"), "line 6: {number} must be"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_was_changed_is_refused_with_its_line(name: str, wrong: str, tmp_path: Path) -> None:
    path, (change, told) = tmp_path / name, WRONG[wrong]
    between, number = (",", "step") if path.suffix == ".csv" else ("\t", "update")
    text = change(TABLES[name], between).replace("{number}", number)
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(InputError) as caught:
        resumed(path)
    for part in (f"{path}: ", told.format(number=number), "or move the file away: the run goes on with a new one."):
        assert part in str(caught.value)
    assert path.read_text(encoding="utf-8", errors="surrogateescape") == text, "it is as it was"
    path.unlink()
    assert len(resumed(path)) == 1
    count("tables of runs", "refused")


def sealed(output: Path) -> Path:
    """A run's folder with a checkpoint of update 4, as far as it is looked at before training."""
    folder = output / "checkpoints" / "step-000000004"
    shutil.rmtree(output, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "state.ckpt").write_bytes(b"state")
    seal(folder, {"state.ckpt": content_of(folder / "state.ckpt")})
    return folder


@pytest.mark.parametrize("budget", [100, pytest.param(3000, marks=LONG)])
def test_a_seal_that_is_damaged_is_no_whole_checkpoint(
    budget: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "PATIENCE", 0.0)
    folder = sealed(tmp_path / "run")
    whole = (folder / SEAL).read_bytes()
    (tmp_path / "run" / "checkpoints" / "step-mine").mkdir()
    (tmp_path / "run" / "checkpoints" / "step-mine" / SEAL).write_bytes(whole)

    def attempt(data: bytes) -> None:
        (folder / SEAL).write_bytes(data)
        found = newest_checkpoint(tmp_path / "run")
        assert (found.newest is None) == bool(found.damaged)

    assert outcome(lambda: attempt(whole)) == "read"
    trees = strange(json.loads(whole)).map(lambda tree: json.dumps(tree).encode())
    assert "read" in fuzz("seals", trees | damaged(whole), attempt, budget)


@pytest.mark.parametrize("budget", [40, pytest.param(500, marks=LONG)])
def test_a_configuration_that_is_damaged_is_no_other_run(budget: int, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "shards", steps=8)
    sealed(tmp_path / "run")
    config, whole = tmp_path / "run" / "config.yaml", to_yaml(run).encode()

    def attempt(data: bytes) -> None:
        config.write_bytes(data)
        assert check_resumed(run, tmp_path / "run").parent.name == "step-000000004"

    assert outcome(lambda: attempt(whole)) == "read"
    assert outcome(lambda: attempt(b"")) == "refused"
    assert "refused" in fuzz("configurations of runs", damaged(whole), attempt, budget)
