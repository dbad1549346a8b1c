"""Runs: start one or go on with it, and end with a bundle and its scores."""

from __future__ import annotations

import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, TQDMProgressBar
from pytorch_lightning.loggers import Logger, TensorBoardLogger

from mmformer.bundle import load_bundle
from mmformer.config import to_yaml
from mmformer.data.dataset import evaluation_loader, read_classes, training_loader
from mmformer.errors import InputError
from mmformer.evaluation.classification import ZeroShotSpec
from mmformer.evaluation.metric import Score
from mmformer.files import write_whole
from mmformer.training.bundling import class_names, write_bundle
from mmformer.training.checkpoint import Checkpoint, whole_checkpoints
from mmformer.training.evaluate import Evaluation, score_split
from mmformer.training.metrics import MetricsTable
from mmformer.training.optimizer import parameter_table
from mmformer.training.run import RunSpec
from mmformer.training.task import TrainingTask

# What Lightning warns of and is meant so here: no workers, no value returned from a step, few steps, a loader that is
# made to begin where a resumed run does (at the end: an empty one); and a warning of PyTorch's about Lightning.
_OWN_CHOICES = (
    "does not have many workers",
    "`training_step` returned `None`",
    "smaller than the logging interval",
    "your dataloader is not resumable",
    "across ranks is zero",
    "LeafSpec",
)


def fit(run: RunSpec, output: Path, resume: bool = False, overwrite: bool = False) -> dict[str, Score]:
    """Train, and write a run's folder.

    Args:
        output: the run's folder: config.yaml, parameters.tsv (what decays and what does not), checkpoints/,
            metrics.csv, tensorboard/, bundle/ (the end), best/ (where a score was named).
        resume: go on from the last whole checkpoint in it.
        overwrite: remove what a former run left in it.

    Returns:
        The bundle's scores on the test split; empty when there is no such split or metric.

    Raises:
        InputError: the folder holds a run and neither is asked for, or there is nothing to resume.
    """
    last = _check_output(output, resume, overwrite)
    task = TrainingTask(run)
    task.configure_model()
    _check_data(run)
    if overwrite:
        shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "config.yaml", to_yaml(run))
    write_whole(output / "parameters.tsv", parameter_table(task.built, run.optimizer.weight_decay))
    # Lightning's notes on the machine and on other products are not about this run; its warnings stay.
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    trainer = _trainer(run, output, 0 if last is None else _step(last))
    with warnings.catch_warnings():
        for message in _OWN_CHOICES:
            warnings.filterwarnings("ignore", message=f".*{message}.*")
        try:
            trainer.fit(task, ckpt_path=None if last is None else str(last), weights_only=True)
        except SystemExit:
            if trainer.interrupted:  # Lightning exits with 1 on Ctrl-C
                raise KeyboardInterrupt from None
            raise
    return _finish(run, output, task)


def _check_output(output: Path, resume: bool, overwrite: bool) -> Path | None:
    """The checkpoint to go on from, or None for a run that starts anew; nothing is changed yet."""
    if resume:
        checkpoints = whole_checkpoints(output)
        if not checkpoints:
            raise InputError(
                f"{output}: there is no whole checkpoint to resume from: start the run without --resume, and set "
                f"--checkpoint.every_steps so that there will be one."
            )
        return checkpoints[-1]
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file, but must be a folder for the run's output: name another with --output.")
    if output.exists() and any(output.iterdir()):
        if not overwrite:
            raise InputError(
                f"{output}: a run's output is there already: go on with it (--resume), replace it (--overwrite), "
                f"or name another folder (--output DIR)."
            )
        if not (output / "config.yaml").exists():
            raise InputError(f"{output}: --overwrite replaces a run's output only, but this folder has no config.yaml.")
    return None


def _check_data(run: RunSpec) -> None:
    """Whatever is missing is told before anything is written, and before hours of training."""
    training_loader(run.data, run.text_encoder(), run.seed, 0, 0)
    class_names(run)
    read = [run.data.validation] if run.evaluation.every_steps is not None else []
    read += [run.data.test] if run.evaluation.metrics else []
    for split in read:
        if split is not None:
            evaluation_loader(run.data, split, None)
    for name, metric in run.evaluation.metrics.items():
        if isinstance(metric, ZeroShotSpec):
            file = run.data.labels[metric.label].classes
            prompted, labelled = len(read_classes(metric.classes)), len(read_classes(file))
            if prompted != labelled:
                raise InputError(
                    f"evaluation.metrics.{name}: {metric.classes} names {prompted} classes, but the label "
                    f"'{metric.label}' has {labelled} ({file}): there must be as many, in the same order."
                )


def _step(checkpoint: Path) -> int:
    return int(checkpoint.parent.name.removeprefix("step-"))


def _trainer(run: RunSpec, output: Path, first_step: int) -> pl.Trainer:
    spec = run.trainer
    loggers: list[Logger] = [MetricsTable(output / "metrics.csv", first_step)]
    if run.logging.tensorboard:
        loggers.append(TensorBoardLogger(str(output), name="", version="tensorboard"))
    # Scores first: the checkpoint of a step then holds the best score as it is after that step.
    callbacks: list[Callback] = [Evaluation(run, output), Checkpoint(run.checkpoint, output)]
    if spec.enable_progress_bar:
        callbacks.append(_Progress(first_step, spec.max_steps))
    return pl.Trainer(
        accelerator=spec.accelerator,
        devices=1,
        precision=spec.precision,
        max_steps=spec.max_steps,
        max_epochs=-1,
        log_every_n_steps=spec.log_every_n_steps,
        deterministic=spec.deterministic,
        enable_progress_bar=spec.enable_progress_bar,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        logger=loggers,
        callbacks=callbacks,
    )


class _Progress(TQDMProgressBar):
    """Counts the run's updates, whatever step it was resumed from."""

    def __init__(self, first_step: int, steps: int) -> None:
        super().__init__(refresh_rate=5)
        self.first_step, self.steps = first_step, steps

    def init_train_tqdm(self) -> Any:
        bar = super().init_train_tqdm()
        bar.reset(total=self.steps)
        bar.initial = bar.n = self.first_step
        bar.set_description("Training")
        return bar

    def on_train_epoch_start(self, *_: Any) -> None:
        """Nothing: a resumed run goes on within an epoch, of whose start Lightning does not tell."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        done = trainer.global_step
        if self.is_enabled and (done % self.refresh_rate == 0 or done == self.steps):
            self.train_progress_bar.n = done
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        return {name.removeprefix("train/"): value for name, value in metrics.items() if name != "v_num"}


def _finish(run: RunSpec, output: Path, task: TrainingTask) -> dict[str, Score]:
    """Write the bundle, then measure what was written, not what is in memory."""
    model = task.built.cpu()
    step = run.trainer.max_steps
    write_bundle(output / "bundle", run, model, step, {}, "")
    if run.data.test is None or not run.evaluation.metrics:
        return {}
    scores = score_bundle(run, output / "bundle", run.data.test)
    write_bundle(output / "bundle", run, model, step, scores, f"the held-out split {run.data.test}")
    return scores


def score_bundle(run: RunSpec, bundle: Path, split: str, device: str = "cpu") -> dict[str, Score]:
    """A bundle's scores on a split of the run's data."""
    model, _ = load_bundle(bundle, device)
    return score_split(run, run.data, split, model, device)
