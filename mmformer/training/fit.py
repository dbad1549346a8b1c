"""Runs: start one or go on with it, and end with a bundle and its scores."""

from __future__ import annotations

import logging
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from mmformer.bundle import load_bundle
from mmformer.config import to_yaml
from mmformer.errors import InputError
from mmformer.evaluation.metric import Score
from mmformer.files import write_whole
from mmformer.models.model import Model
from mmformer.parallel.allocation import folded
from mmformer.parallel.sharding import whole_model
from mmformer.training.bundling import write_bundle, write_own_adapters
from mmformer.training.checkpoint import Checkpoint, StateIO, step_of
from mmformer.training.early_stopping import EarlyStopping
from mmformer.training.evaluate import Evaluation, score_split
from mmformer.training.intake import Intake, Taken
from mmformer.training.lock import PATIENCE, FolderLock
from mmformer.training.loggers import check_loggers, make_loggers
from mmformer.training.output import begin, check_new, check_resumed
from mmformer.training.parameter_groups import parameter_table
from mmformer.training.pictures import write_pictures
from mmformer.training.presence import LeftAloneError, Presence
from mmformer.training.processes import MeshStrategy, check_processes, is_first, trainer_arguments
from mmformer.training.progress import Progress
from mmformer.training.refusing import Refusing
from mmformer.training.rehearsal import rehearse
from mmformer.training.report import write_report
from mmformer.training.run import RunSpec
from mmformer.training.same_samples import SameSamples
from mmformer.training.samples import Samples
from mmformer.training.sheet import Card
from mmformer.training.stopping import Stopping
from mmformer.training.task import TrainingTask
from mmformer.training.timing import Stopwatch, Timing
from mmformer.training.watchdog import Watchdog

# What Lightning warns of and is meant so here: no workers, no value returned from a step, few steps, a loader that is
# made to begin where a resumed run does (at the end: an empty one); and a warning of PyTorch's about Lightning.
_OWN_CHOICES = (
    "does not have many workers",
    "`training_step` returned `None`",
    "smaller than the logging interval",
    "your dataloader is not resumable",
    "across ranks is zero",
    "LeafSpec",
    "in eval mode at the start of training",  # BatchNorm of timm's
    "grad attribute of a Tensor that is not a leaf",  # which torch.compile looks at
)


class Result(NamedTuple):
    """What a run has come to."""

    scores: dict[str, Score]  # on the test split; empty when there is no such split or metric
    cards: list[Card]  # what the model says of some pictures of it
    taken: Taken  # what training read that was not as it should be


def fit(run: RunSpec, output: Path, resume: bool = False, overwrite: bool = False) -> Result | None:
    """Train, and write a run's folder.

    Args:
        output: the run's folder: config.yaml, parameters.tsv (what trains how, and is loaded), checkpoints/,
            metrics.csv, timing.csv, skipped.tsv (damaged samples, where there were any), tensorboard/, bundle/ (the
            end), adapters/ (by themselves, where it has some and nothing else is new), best/ (where a score was named),
            top/ (several of them), pictures/ (to try it on), report.png (some of them, with what the model says).
        resume: go on from the last whole checkpoint in it.
        overwrite: replace what a former run left in it, once the new one is known to start.

    Returns:
        What the bundle can do on the test split; None in all processes but the first.

    Raises:
        InputError: the folder may not be used so, something that the run needs is missing, or training diverged.
        KeyboardInterrupt: it was told to stop, by Ctrl-C or SIGTERM; while training, a checkpoint was written first.
        OtherProcessError: another process failed, and raises the reason.
    """
    with FolderLock(output) as lock:
        return _fit(run, output, resume, overwrite, lock)


def _fit(run: RunSpec, output: Path, resume: bool, overwrite: bool, lock: FolderLock) -> Result | None:
    if resume and is_first() and output.is_dir():
        lock.take(PATIENCE)
    last = check_resumed(run, output) if resume and is_first() else None
    if not resume and is_first():
        check_new(output, overwrite)
    check_loggers(run)
    check_processes(run.parallel, run.trainer.accelerator)
    task = TrainingTask(run)
    task.configure_model()
    settings = run.optimizer.settings(task.built)
    rehearse(run, folded(task.built, run.seed) if task.in_parts else task.built)
    # Lightning's notes on the machine and on other products are not about this run; its warnings stay.
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    checkpoint = Checkpoint(run.checkpoint, output)
    stopping = Stopping(checkpoint)
    # Scores first: the checkpoint of a step then holds the best score as it is after that step.
    evaluation = Evaluation(run, output, stopping)
    first_step = 0 if last is None else step_of(last)
    intake = Intake(run, output)
    refusing = Refusing(run, output, task, checkpoint)
    callbacks: list[Callback] = [SameSamples(run), intake, refusing, evaluation]
    if run.early_stopping is not None:
        callbacks.append(EarlyStopping(run.early_stopping, evaluation, checkpoint))
    if run.logging.samples:
        callbacks.append(Samples(run))
    if run.watchdog is not None:
        callbacks.append(Watchdog(run.watchdog))
    stopwatch = Stopwatch(stopping)
    callbacks = [Timing(run, output, first_step, stopwatch), *callbacks, checkpoint, stopping]
    trainer = _trainer(run, output, first_step, checkpoint.io, stopwatch, callbacks)
    if is_first():
        if not resume:
            print("\n".join(task.loaded.report), end="\n" * bool(task.loaded.report))
            begin(output, overwrite, lock)
        write_whole(output / "config.yaml", to_yaml(run))
        table = parameter_table(task.built, run.optimizer.lr, settings, task.loaded.names, task.thaw.starts)
        write_whole(output / "parameters.tsv", table)
    with ExitStack() as averaged:
        model = _train(trainer, task, last, stopping, averaged)
        return None if model is None else _finish(run, output, task, model, trainer, intake.taken)


def _train(
    trainer: pl.Trainer, task: TrainingTask, last: Path | None, stopping: Stopping, end: ExitStack
) -> Model | None:
    """Train, and bring together what has been trained, which all processes do; None in all but the first.

    Args:
        last: the state to go on from; that of the first process counts.
        end: until it closes, the model has what is kept of its weights.
    """
    with warnings.catch_warnings(), Presence(trainer.strategy).watching():
        for message in _OWN_CHOICES:
            warnings.filterwarnings("ignore", message=f".*{message}.*")
        if isinstance(trainer.strategy, MeshStrategy):
            last = trainer.strategy.of_first(last)
        try:
            trainer.fit(task, ckpt_path=None if last is None else str(last), weights_only=True)
        except SystemExit:
            if trainer.interrupted:  # Lightning exits with 1 on Ctrl-C
                raise (LeftAloneError if stopping.left_alone else KeyboardInterrupt) from None
            raise
        if stopping.asked(trainer.strategy.root_device):
            raise KeyboardInterrupt
        end.enter_context(task.averaged())
        model = whole_model(task.built)
        return None if model is None else model.cpu()


def _trainer(
    run: RunSpec, output: Path, first_step: int, io: StateIO, stopwatch: Stopwatch, callbacks: list[Callback]
) -> pl.Trainer:
    spec = run.trainer
    if spec.enable_progress_bar:
        callbacks = [*callbacks, Progress(first_step, spec.max_steps)]
    check_accelerator(spec.accelerator)
    processes = trainer_arguments(run.parallel, spec.accelerator)
    return pl.Trainer(
        **processes | {"plugins": [*processes.get("plugins", ()), io]},
        accelerator=spec.accelerator,
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
        logger=make_loggers(run, output, first_step),
        profiler=stopwatch,
        callbacks=callbacks,
    )


def check_accelerator(name: str) -> None:
    """Refuse an accelerator that this machine does not have.

    Raises:
        InputError: it is not there.
    """
    there = {"auto": True, "cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[name]:
        have = [known for known, here in there.items() if here]
        raise InputError(f"trainer.accelerator is '{name}', but this machine has only {' and '.join(have)}.")


def _finish(run: RunSpec, output: Path, task: TrainingTask, model: Model, trainer: pl.Trainer, taken: Taken) -> Result:
    """Write the bundle, then measure what was written, not what is in memory: the first process does, alone."""
    trained = [name for name, parameter in task.built.named_parameters() if parameter.requires_grad]
    step, device = trainer.global_step, str(trainer.strategy.root_device)
    write_bundle(output / "bundle", run, model, step, {}, "")
    write_own_adapters(output / "adapters", run, model, trained)
    write_pictures(run, output / "pictures")
    scores: dict[str, Score] = {}
    if run.data.test is not None and run.evaluation.metrics:
        scores = score_bundle(run, output / "bundle", run.data.test, device)
        write_bundle(output / "bundle", run, model, step, scores, f"the held-out split {run.data.test}")
    return Result(scores, write_report(run, output, scores), taken)


def score_bundle(run: RunSpec, bundle: Path, split: str, device: str = "cpu") -> dict[str, Score]:
    """A bundle's scores on a split of the run's data."""
    model, _ = load_bundle(bundle, device)
    return score_split(run, split, model, device)
