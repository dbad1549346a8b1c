"""A run: everything that one YAML file says, checked as a whole before anything heavy is imported or built."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

import mmformer.adapters
import mmformer.evaluation
import mmformer.models
import mmformer.objectives
import mmformer.training.optimizers  # noqa: F401  # their specs' names have to be known to YAML
from mmformer.adapters.adapter import AdapterSpec
from mmformer.data.sources import DataSpec
from mmformer.evaluation.metric import MetricSpec
from mmformer.models.model import ModelSpec
from mmformer.objectives.objective import ObjectiveSpec
from mmformer.parallel.mesh import ParallelSpec
from mmformer.spec import require
from mmformer.training.average import EMASpec
from mmformer.training.checks import check_run
from mmformer.training.divergence import DivergenceSpec
from mmformer.training.initial import InitialSpec
from mmformer.training.optimizers.adamw import AdamWSpec
from mmformer.training.optimizers.optimizer import OptimizerSpec
from mmformer.training.schedule import CosineScheduleSpec, ScheduleSpec


@dataclass(frozen=True)
class TrainerSpec:
    """What Lightning's Trainer is told, under its own names.

    Attributes:
        max_steps: updates of the whole run.
        accelerator: "auto" takes a GPU where there is one.
        precision: "bf16-mixed" computes in bfloat16 and keeps parameters in float32; scores while training are computed
            so too, those of the end in float32.
        gradient_clip_val: largest norm of the whole gradient; None: not clipped.
        accumulate_grad_batches: micro-batches that one update's batch is cut into, to save memory. The gradient is
            that of the whole batch, for contrastive losses too.
        log_every_n_steps: how often metrics are written.
        deterministic: use deterministic algorithms only, for exact resume on a GPU.
        enable_progress_bar: show one.
    """

    max_steps: int = 1000
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    gradient_clip_val: float | None = 1.0
    accumulate_grad_batches: int = 1
    log_every_n_steps: int = 10
    deterministic: bool = False
    enable_progress_bar: bool = True

    def __post_init__(self) -> None:
        require(self.max_steps >= 1, self, "max_steps", "at least 1")
        clips = self.gradient_clip_val is None or self.gradient_clip_val > 0
        require(clips, self, "gradient_clip_val", "None or positive")
        require(self.accumulate_grad_batches >= 1, self, "accumulate_grad_batches", "at least 1")
        require(self.log_every_n_steps >= 1, self, "log_every_n_steps", "at least 1")

    @property
    def dtype(self) -> torch.dtype:
        """What products are computed in."""
        return torch.bfloat16 if self.precision == "bf16-mixed" else torch.float32


@dataclass(frozen=True)
class CheckpointSpec:
    """What is kept to go on from.

    Attributes:
        every_steps: how often a checkpoint is written; None: only at the end, and as ``every_minutes`` says.
        every_minutes: after how long the next is written at the latest; None: as ``every_steps`` says alone.
        keep: how many of the newest stay.
        keep_every: those after so many updates, twice as many and so on stay as well: a multiple of ``every_steps``;
            None: none do.
        best: the evaluation score, such as ``retrieval/image_to_text/R@1``, whose best model so far is kept as the
            bundle ``best/``; None: none.
        mode: whether the best score is the highest or the lowest.
        keep_best: how many of the best models stay, as bundles ``top/step-…``, where it is more than the one in
            ``best/``, which is among them.
    """

    every_steps: int | None = None
    every_minutes: float | None = None
    keep: int = 2
    keep_every: int | None = None
    best: str | None = None
    mode: Literal["max", "min"] = "max"
    keep_best: int = 1

    def __post_init__(self) -> None:
        require(self.every_steps is None or self.every_steps >= 1, self, "every_steps", "None or at least 1")
        require(self.every_minutes is None or self.every_minutes > 0, self, "every_minutes", "None or positive")
        require(self.keep >= 1, self, "keep", "at least 1")
        every = self.every_steps or (self.keep_every or 0) + 1
        stays = self.keep_every is None or (self.keep_every >= 1 and self.keep_every % every == 0)
        require(stays, self, "keep_every", "None or a multiple of every_steps")
        require(self.keep_best >= 1, self, "keep_best", "at least 1")


@dataclass(frozen=True)
class EarlyStoppingSpec:
    """Ends a run whose score gets no better; it is then finished as it is.

    Attributes:
        score: the evaluation score that is looked at, such as ``retrieval/image_to_text/R@1``.
        mode: whether better is higher or lower.
        patience: evaluations in a row that may be no better than the best before them.
        least: by how much a better one has to be better.
    """

    score: str
    mode: Literal["max", "min"] = "max"
    patience: int = 3
    least: float = 0.0

    def __post_init__(self) -> None:
        require(self.patience >= 1, self, "patience", "at least 1")
        require(self.least >= 0, self, "least", "at least 0")


@dataclass(frozen=True)
class EvaluationSpec:
    """What is measured on held-out splits: on ``data.validation`` while training, on ``data.test`` at the end.

    Attributes:
        metrics: by name.
        every_steps: how often while training; None: not.
    """

    metrics: dict[str, MetricSpec] = field(default_factory=dict)
    every_steps: int | None = None

    def __post_init__(self) -> None:
        require(self.every_steps is None or self.every_steps >= 1, self, "every_steps", "None or at least 1")


@dataclass(frozen=True)
class LoggingSpec:
    """What is told of a run, and where, besides ``metrics.csv`` and ``timing.csv``.

    Attributes:
        tensorboard: event files under ``tensorboard/``.
        wandb: the project of Weights & Biases that numbers go to as well; None: none. Needs the package wandb.
        norms: log the norm of each part's gradient, and the root mean square of what leaves each layer; layers of
            reversible stacks, which run as two halves, are left out.
        samples: pictures of the batch, as the model sees them and with their texts, that are drawn in TensorBoard at
            the first update and whenever the model is measured.
    """

    tensorboard: bool = True
    wandb: str | None = None
    norms: bool = False
    samples: int = 0

    def __post_init__(self) -> None:
        require(self.wandb != "", self, "wandb", "None or the name of a project")
        require(self.samples >= 0, self, "samples", "at least 0")
        require(self.tensorboard or not self.samples, self, "samples", "0 where logging.tensorboard is false")


@dataclass(frozen=True)
class RunSpec:
    """One training run.

    Attributes:
        model: what is trained; inline, or the path of a file under ``configs/models/``.
        objectives: what is minimised, by name: the weighted sum of their mean losses.
        data: what it is trained and measured on.
        optimizer: how parameters move.
        schedule: the learning rate over the steps.
        trainer: steps, precision, device.
        parallel: over how many processes it is spread.
        checkpoint: what is kept to go on from.
        divergence: what is done about updates that would ruin the weights.
        evaluation: what is measured.
        ema: averages of the weights, which are measured and kept in their place; None: none.
        initial: weights to begin with; None: all are drawn, from the seed.
        adapters: what of the model trains, by name, while all else stays as it is: LoRA and its kin, and parameters
            that train whole. Bundles hold them merged into the weights. Empty: all of it trains.
        freeze: patterns of the names of parameters that do not train, such as ``encoders.image.*``; ``parameters.tsv``
            in a run's output has all names.
        thaw: gradual unfreezing: patterns of names, and the number of updates for which those parameters do not train.
        early_stopping: when a run ends before its last update; None: never.
        logging: what is told of it, and where.
        watchdog: seconds that an update may take, with all that is done before the next, evaluation among it; then
            every process that hangs writes where it stands to standard error, and ends. None: any time.
        seed: of the first weights, the order, the augmentations, the captions and dropout.
    """

    model: ModelSpec
    objectives: dict[str, ObjectiveSpec]
    data: DataSpec
    optimizer: OptimizerSpec = field(default_factory=AdamWSpec)
    schedule: ScheduleSpec = field(default_factory=CosineScheduleSpec)
    trainer: TrainerSpec = field(default_factory=TrainerSpec)
    parallel: ParallelSpec = field(default_factory=ParallelSpec)
    checkpoint: CheckpointSpec = field(default_factory=CheckpointSpec)
    divergence: DivergenceSpec = field(default_factory=DivergenceSpec)
    evaluation: EvaluationSpec = field(default_factory=EvaluationSpec)
    ema: EMASpec | None = None
    initial: InitialSpec | None = None
    adapters: dict[str, AdapterSpec] = field(default_factory=dict)
    freeze: tuple[str, ...] = ()
    thaw: dict[str, int] = field(default_factory=dict)
    early_stopping: EarlyStoppingSpec | None = None
    logging: LoggingSpec = field(default_factory=LoggingSpec)
    watchdog: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.watchdog is None or self.watchdog > 0, self, "watchdog", "None or positive")
        check_run(self)

    @property
    def watched_scores(self) -> dict[str, str]:
        """The scores that something is decided by while training, by the field that names each."""
        stopping = None if self.early_stopping is None else self.early_stopping.score
        named = {"checkpoint.best": self.checkpoint.best, "early_stopping.score": stopping}
        return {field_name: score for field_name, score in named.items() if score is not None}


def default_output(config: str | Path) -> Path:
    """``runs/NAME`` for a config file ``NAME.yaml``."""
    return Path("runs") / Path(config).stem
