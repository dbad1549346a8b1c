"""The run's folder: nothing good is lost to a mistake, a resumed run is the same run, and divergence is told."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny import tiny_run, write_few, write_shards

from mmformer.config import parse, read_yaml, to_yaml
from mmformer.data.caption import FieldCaptionSpec
from mmformer.data.order import OrderSpec
from mmformer.errors import InputError
from mmformer.training.fit import check_accelerator, fit
from mmformer.training.metrics import MetricsTable
from mmformer.training.optimizers.adamw import AdamWSpec
from mmformer.training.run import CheckpointSpec, RunSpec


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def run(shards: Path) -> RunSpec:
    run = tiny_run(shards, steps=2, data={"test": None})
    return dataclasses.replace(run, checkpoint=CheckpointSpec(every_steps=1))


@pytest.fixture(scope="module")
def finished(run: RunSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "done"
    fit(run, output)
    return output


def misspelt(run: RunSpec) -> RunSpec:
    """A run whose captions are not there, which only reading a sample shows."""
    assert run.data.text is not None
    text = dataclasses.replace(run.data.text, caption=FieldCaptionSpec("titel"), training_caption=None)
    return dataclasses.replace(run, data=dataclasses.replace(run.data, text=text))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_mistake_does_not_cost_the_run_that_was_to_be_replaced(run: RunSpec, finished: Path, tmp_path: Path) -> None:
    before = contents(finished)
    with pytest.raises(InputError, match="there is no field 'titel'"):
        fit(misspelt(run), finished, overwrite=True)
    assert contents(finished) == before
    with pytest.raises(InputError, match="there is no field 'titel'"):
        fit(misspelt(run), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_a_failed_start_left_is_no_obstacle(run: RunSpec, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(run))
    fit(run, tmp_path)
    assert (tmp_path / "bundle").is_dir()


def test_a_folder_that_cannot_be_made(run: RunSpec, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="the folder cannot be made: Not a directory: name another with --output"):
        fit(run, tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda run: dataclasses.replace(run, data=dataclasses.replace(run.data, batch_size=4)), "data.batch_size: "),
        (lambda run: dataclasses.replace(run, seed=99), "seed: "),
        (lambda run: dataclasses.replace(run, optimizer=AdamWSpec(lr=0.5)), "optimizer.init_args.lr: .* 0.5 now"),
        (
            lambda run: dataclasses.replace(
                run,
                model=dataclasses.replace(
                    run.model,
                    stacks={n: dataclasses.replace(s, depth=s.depth + 1) for n, s in run.model.stacks.items()},
                ),
            ),
            r"model.stacks.\w+.depth: \d before, \d now",
        ),
    ],
)
def test_another_run_is_not_resumed(run: RunSpec, finished: Path, change: object, key: str) -> None:
    assert callable(change)
    before = contents(finished)
    with pytest.raises(InputError, match=f"this is another run than the one to resume .*{key}"):
        fit(change(run), finished, resume=True)
    assert contents(finished) == before


def test_a_resumed_run_does_not_end_before_it_began(run: RunSpec, finished: Path) -> None:
    less = dataclasses.replace(run, trainer=dataclasses.replace(run.trainer, max_steps=1))
    with pytest.raises(InputError, match="max_steps is 1, but 2 updates are done already"):
        fit(less, finished, resume=True)


def test_more_steps_and_other_workers_may_be_asked_of_a_resumed_run(run: RunSpec, tmp_path: Path) -> None:
    fit(run, tmp_path)
    more = dataclasses.replace(
        run,
        trainer=dataclasses.replace(run.trainer, max_steps=3),
        data=dataclasses.replace(run.data, cache_mib=0),
    )
    fit(more, tmp_path, resume=True)
    assert "trained for 3 updates" in (tmp_path / "bundle" / "README.md").read_text()
    assert parse(RunSpec, read_yaml(tmp_path / "config.yaml"), "x").trainer.max_steps == 3


def test_divergence_is_told_and_not_kept(run: RunSpec, tmp_path: Path) -> None:
    wild = dataclasses.replace(run, optimizer=AdamWSpec(lr=1e30), checkpoint=CheckpointSpec())
    wild = dataclasses.replace(wild, trainer=dataclasses.replace(run.trainer, max_steps=8, log_every_n_steps=4))
    with pytest.raises(InputError, match=r"Training diverged: at update \d .*Lower optimizer.lr \(now 1e\+30\)"):
        fit(wild, tmp_path / "run")
    assert not (tmp_path / "run" / "bundle").exists()
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_an_accelerator_that_is_not_there() -> None:
    check_accelerator("auto")
    with pytest.raises(InputError, match=r"trainer\.accelerator is 'cuda', but this machine has only auto and cpu"):
        check_accelerator("cuda")


def test_the_table_grows_by_a_line_and_takes_up_where_a_run_resumes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    table = MetricsTable(path, 0)
    assert not path.exists()
    for step, values in [(10, {"b": 1, "a": 2}), (20, {"a": 3, "b": 1}), (20, {"v": 9}), (30, {"a": 4, "b": 5})]:
        table.log_metrics(values, step)
    assert path.read_text() == "step,a,b,v\n10,2,1,\n20,3,1,9\n30,4,5,\n"
    table.log_metrics({"v": 7}, 30)
    again = MetricsTable(path, 20)
    again.log_metrics({"a": 8.25, "b": 0}, 30)
    again.log_metrics({"a": 1e-9}, 40)
    assert path.read_text() == "step,a,b,v\n10,2,1,\n20,3,1,9\n30,8.25,0,\n40,1e-09,,\n"


def test_a_damaged_picture_in_the_shards_is_found_before_training(run: RunSpec, tmp_path: Path) -> None:
    broken = write_few(tmp_path / "shards", png=[b"not a picture"] * 4)
    bad = dataclasses.replace(
        run, data=dataclasses.replace(run.data, source=str(broken), validation=None, batch_size=2, order=OrderSpec())
    )
    with pytest.raises(InputError, match=r"\.png"):
        fit(bad, tmp_path / "run")
    assert not (tmp_path / "run").exists()
