"""Options of training over two processes through the real command line: an optimizer that averages, norms, the best;
and one table of tokens for an encoder and a decoder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from launched import assert_alike, everything, fit, rows
from tiny import COLOURS, write_shards

from mmformer.config import to_yaml
from mmformer.models.head import ClassificationHeadSpec
from mmformer.models.language_head import LanguageHeadSpec
from mmformer.nn.pool import MeanPoolSpec
from mmformer.training.optimizers.schedule_free import ScheduleFreeAdamWSpec
from mmformer.training.run import CheckpointSpec, EarlyStoppingSpec, LoggingSpec
from mmformer.training.schedule import ConstantScheduleSpec


@pytest.mark.slow
def test_two_processes_train_measure_and_keep_what_one_does(tmp_path: Path) -> None:
    score = "retrieval/image_to_text/median_rank"
    run = everything(write_shards(tmp_path / "shards"))
    # A table that a head shares, too, and a classifier that pools for itself.
    colour = ClassificationHeadSpec("image", len(COLOURS), pool=MeanPoolSpec(), hidden=6, activation="gelu")
    heads = {"colour": colour, "words": LanguageHeadSpec("text")}
    writer = dataclasses.replace(run.model.decoders["caption"], shares="text", logit_bias=True)
    run = dataclasses.replace(
        run,
        model=dataclasses.replace(run.model, decoders={"caption": writer}, heads={**run.model.heads, **heads}),
        ema=None,
        optimizer=ScheduleFreeAdamWSpec(3e-3, layer_decay=0.8),
        schedule=ConstantScheduleSpec(2),
        checkpoint=CheckpointSpec(best=score, mode="min", keep_best=2),
        early_stopping=EarlyStoppingSpec(score, "min", patience=2),
        logging=LoggingSpec(norms=True, samples=2),
    )
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(run), encoding="utf-8")
    fit(file, tmp_path / "one")
    fit(file, tmp_path / "two", "--parallel.shard", "2")
    assert_alike(tmp_path / "one", tmp_path / "two")
    assert any(name.startswith("train/activation_rms/") for name in rows(tmp_path / "two")[0])
    kept = [sorted(path.name for path in (tmp_path / name / "top").iterdir()) for name in ("one", "two")]
    assert kept[0] == kept[1]
    assert (tmp_path / "two" / "timing.csv").is_file()
