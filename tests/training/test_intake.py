"""What a run says of damaged samples and of texts that are cut: at its end, in its logs, and in skipped.tsv."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import sample, tiny_model, tiny_run, write_shards

from mmformer.cli.main import main
from mmformer.config import to_yaml
from mmformer.data.buckets import BucketSpec
from mmformer.data.loading import training_loader
from mmformer.data.manifest import Manifest
from mmformer.data.shards import RawSample, ShardReader, ShardWriter
from mmformer.errors import InputError
from mmformer.models.model import ModelSpec
from mmformer.training.fit import fit
from mmformer.training.run import CheckpointSpec, RunSpec
from mmformer.training.schedule import ConstantScheduleSpec

PNG = sample("x", "red", 0, 0).members["png"]
STEPS = 9


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six of 32 training samples are damaged, from one cause or another."""
    whole, folder = write_shards(tmp_path_factory.mktemp("whole")), tmp_path_factory.mktemp("shards") / "set"
    with ShardWriter(folder, "tiny", samples_per_shard=8) as writer:
        for split in ("train", "val", "test"):
            reader = ShardReader(Manifest.load(whole), split)
            for place, raw in enumerate(reader[place] for place in range(len(reader))):
                own = {"png": PNG[:60]} if place % 10 == 4 else {"json": b"\xff"} if place % 10 == 7 else {}
                writer.write(RawSample(raw.key, raw.members | (own if split == "train" else {})), split)
    return folder


def make_run(shards: Path, steps: int = STEPS, **data: Any) -> RunSpec:
    """Checkpoints lie between the updates that are logged; some texts are cut."""
    run = tiny_run(shards, steps=steps, data={"on_damage": "skip", "test": None} | data)
    return dataclasses.replace(
        run,
        model=with_context(tiny_model(), 6),
        trainer=dataclasses.replace(run.trainer, log_every_n_steps=4),
        checkpoint=CheckpointSpec(every_steps=3),
        schedule=ConstantScheduleSpec(2),
    )


def with_context(model: ModelSpec, length: int) -> ModelSpec:
    text = model.encoders["text"]
    shorter = dataclasses.replace(text.tokenizer, context_length=length)  # type: ignore[call-arg]
    return dataclasses.replace(model, encoders=model.encoders | {"text": dataclasses.replace(text, tokenizer=shorter)})


def table(path: Path, delimiter: str = "\t") -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    output = tmp_path_factory.mktemp("whole") / "run"
    fit(make_run(shards), output)
    return output


def test_the_table_and_the_logs_say_what_the_batches_say(whole: Path, shards: Path) -> None:
    run = make_run(shards)
    first: dict[str, tuple[str, ...]] = {}
    expected: dict[int, dict[str, int]] = {}
    cut = 0
    for update, batch in enumerate(training_loader(run.data, run.model.text_encoders(), run.seed, 0, STEPS), start=1):
        assert batch.notes is not None
        for note in batch.notes.skipped:
            first.setdefault(note.key, (str(update), str(shards), note.key, note.cause, note.reason))
        cut += batch.notes.texts["text"][1]
        causes = [row[3] for row in first.values()]
        counts = {name: causes.count(name.replace("_", " ")) for name in ("damaged_picture", "damaged_text")}
        expected[update] = counts | {"cut": cut}
    assert [tuple(row.values()) for row in table(whole / "skipped.tsv")] == list(first.values())
    assert expected[STEPS]["damaged_picture"] == expected[STEPS]["damaged_text"] == 3, "each is told once"
    for row in table(whole / "metrics.csv", ","):
        if row["step"] in ("4", "8", "9"):
            assert {name: int(row[f"data/skipped/{name}"] or 0) for name in ("damaged_picture", "damaged_text")} == {
                name: expected[int(row["step"])][name] for name in ("damaged_picture", "damaged_text")
            }
            assert int(row["data/cut/text"]) == expected[int(row["step"])]["cut"]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_run_ends_with_the_same_table_logs_and_weights(
    workers: int, whole: Path, shards: Path, tmp_path: Path
) -> None:
    """It had gone on to update 4, and told of it, when it is resumed from update 3."""
    output = tmp_path / "run"
    fit(make_run(shards, 4, workers=workers), output)
    for left in (output / "checkpoints").glob("step-000000004"):
        left.rename(tmp_path / "gone")
    assert table(output / "skipped.tsv")[-1]["update"] == "4", "the table is ahead of the checkpoint"
    fit(make_run(shards, workers=workers), output, resume=True)
    assert (output / "skipped.tsv").read_text() == (whole / "skipped.tsv").read_text()
    assert (output / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    one, other = (load_file(folder / "bundle" / "model.safetensors") for folder in (output, whole))
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.slow
def test_where_buckets_move_samples_to_other_updates_those_are_told(shards: Path, tmp_path: Path) -> None:
    """A sample may be read before the update that its position is of."""
    run, output = make_run(shards, buckets=BucketSpec("text", 4)), tmp_path / "run"
    fit(run, tmp_path / "whole")
    found: dict[str, tuple[int, bool]] = {}
    for update, batch in enumerate(training_loader(run.data, run.model.text_encoders(), run.seed, 0, STEPS), start=1):
        assert batch.notes is not None
        for note in batch.notes.skipped:
            found.setdefault(note.key, (update, note.position // 8 + 1 > update))
    told = {row["key"]: int(row["update"]) for row in table(tmp_path / "whole" / "skipped.tsv")}
    assert told == {key: update for key, (update, _) in found.items()}
    assert any(early for _, early in found.values())
    fit(make_run(shards, 3, buckets=run.data.buckets), output)
    fit(run, output, resume=True)
    assert (output / "skipped.tsv").read_text() == (tmp_path / "whole" / "skipped.tsv").read_text()


def test_half_a_line_is_no_line(shards: Path, whole: Path, tmp_path: Path) -> None:
    """What a run that was killed may leave, where it tells of an update after the last checkpoint."""
    output = tmp_path / "run"
    fit(make_run(shards, 3), output)
    with (output / "skipped.tsv").open("a") as file:
        file.write("1")
    fit(make_run(shards), output, resume=True)
    assert (output / "skipped.tsv").read_text() == (whole / "skipped.tsv").read_text()


def test_the_end_has_a_table(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    Path("run.yaml").write_text(to_yaml(make_run(shards, 4)))
    assert main(["fit", "--config", "run.yaml"]) == 0
    told = capsys.readouterr().out
    rows = [line.strip("│ ").split("│") for line in told.splitlines() if "damaged" in line]
    counts = {cause.strip(): int(count) for cause, count in rows}
    assert sum(counts.values()) == len(table(Path("runs/run/skipped.tsv"))) == 6
    assert set(counts) == {"damaged picture", "damaged text"}
    assert "6 training samples were skipped, and others read instead; runs/run/skipped.tsv lists them:" in told
    cut = table(Path("runs/run/metrics.csv"), ",")[-1]["data/cut/text"]
    assert f"Of 32 texts that were read as text, {cut} (" in told
    assert "longer than the model's context of 6 tokens and were cut" in told


def test_a_run_of_whole_samples_has_no_such_table(tmp_path: Path) -> None:
    run = tiny_run(write_shards(tmp_path / "shards"), steps=2, data={"test": None})
    result = fit(run, tmp_path / "run")
    assert result is not None
    assert result.taken.skipped == {}
    assert result.taken.texts == {"text": (16, 0)}
    assert not (tmp_path / "run" / "skipped.tsv").exists()
    assert not any(name.startswith("data/") for name in table(tmp_path / "run" / "metrics.csv", ",")[0])


def test_a_run_that_refused_goes_on_skipping(shards: Path, tmp_path: Path) -> None:
    """What was read before the first damaged sample is the same either way."""
    run = make_run(shards, 2, on_damage="refuse", train="val", batch_size=4)
    run = dataclasses.replace(run, checkpoint=CheckpointSpec(1), data=dataclasses.replace(run.data, order=ORDER))
    fit(run, tmp_path / "run")
    skipping = dataclasses.replace(run.data, on_damage="skip")
    fit(dataclasses.replace(run, data=skipping), tmp_path / "run", resume=True)


ORDER = dataclasses.replace(tiny_run(Path("x")).data.order, lanes=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_ends_where_more_is_skipped_than_it_may(workers: int, shards: Path, tmp_path: Path) -> None:
    """Six can be skipped; five may be. The run goes on where it ended as soon as it may skip one more."""
    output = tmp_path / "run"
    with pytest.raises(
        InputError, match=r"6 different training samples could not be used \(\d damaged \w+, "
    ) as caught:
        fit(make_run(shards, most_skipped=5, workers=workers), output)
    assert "data.most_skipped is 5" in str(caught.value)
    assert str(output / "skipped.tsv") in str(caught.value)
    assert len(table(output / "skipped.tsv")) == 6
    fit(make_run(shards, most_skipped=6, workers=workers), output, resume=True)
    assert len(table(output / "skipped.tsv")) == 6
