"""A run: everything that one YAML file says, checked as a whole before anything heavy is imported or built."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import mmformer.evaluation
import mmformer.models
import mmformer.objectives
import mmformer.training.optimizers  # noqa: F401  # their specs' names have to be known to YAML
from mmformer.data.sources import DataSpec
from mmformer.errors import InputError, nearest
from mmformer.evaluation.metric import MetricSpec
from mmformer.models.model import ModelSpec
from mmformer.objectives.objective import ObjectiveSpec
from mmformer.parallel.sharding import ParallelSpec
from mmformer.spec import Parts, require
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.training.average import EMASpec
from mmformer.training.initial import InitialSpec
from mmformer.training.optimizers.adamw import AdamWSpec
from mmformer.training.optimizers.optimizer import OptimizerSpec
from mmformer.training.schedule import ConstantScheduleSpec, CosineScheduleSpec, ScheduleSpec
from mmformer.types import MODALITIES


@dataclass(frozen=True)
class TrainerSpec:
    """What Lightning's Trainer is told, under its own names.

    Attributes:
        max_steps: updates of the whole run.
        accelerator: "auto" takes a GPU where there is one.
        precision: "bf16-mixed" computes in bfloat16 and keeps parameters in float32.
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


@dataclass(frozen=True)
class CheckpointSpec:
    """What is kept to go on from.

    Attributes:
        every_steps: how often a checkpoint is written; None: only at the end.
        keep: how many of the newest stay.
        best: the evaluation score, such as ``retrieval/image_to_text/R@1``, whose best model so far is kept as the
            bundle ``best/``; None: none.
        mode: whether the best score is the highest or the lowest.
    """

    every_steps: int | None = None
    keep: int = 2
    best: str | None = None
    mode: Literal["max", "min"] = "max"

    def __post_init__(self) -> None:
        require(self.every_steps is None or self.every_steps >= 1, self, "every_steps", "None or at least 1")
        require(self.keep >= 1, self, "keep", "at least 1")


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
    """Where numbers go, besides ``metrics.csv``.

    Attributes:
        tensorboard: event files under ``tensorboard/``.
    """

    tensorboard: bool = True


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
        evaluation: what is measured.
        ema: averages of the weights, which are measured and kept in their place; None: none.
        initial: weights to begin with; None: all are drawn, from the seed.
        freeze: patterns of the names of parameters that do not train, such as ``encoders.image.*``; ``parameters.tsv``
            in a run's output has all names.
        logging: where numbers go.
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
    evaluation: EvaluationSpec = field(default_factory=EvaluationSpec)
    ema: EMASpec | None = None
    initial: InitialSpec | None = None
    freeze: tuple[str, ...] = ()
    logging: LoggingSpec = field(default_factory=LoggingSpec)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.objectives:
            raise InputError("objectives is empty: name one, such as contrastive: {class_path: ContrastiveSpec}.")
        for group, names in (
            ("objectives", self.objectives),
            ("evaluation.metrics", self.evaluation.metrics),
            ("data.labels", self.data.labels),
        ):
            for name in names:
                if not name.isidentifier() or name == "aux":
                    raise InputError(
                        f"{group} has the name {name!r}; letters, digits and _ alone make a name, and aux is taken."
                    )
        if self.checkpoint.best is None and self.checkpoint.mode != "max":
            raise InputError("checkpoint.mode says how checkpoint.best is judged, but checkpoint.best names no score.")
        model = self.model
        parts = Parts(model.embedding_widths, model.heads, model.decoders, tuple(self.data.labels))
        for objective in self.objectives.values():
            objective.check(parts)
        for metric in self.evaluation.metrics.values():
            metric.check(parts)
        self.parallel.check(self.data.batch_size, self.trainer.accumulate_grad_batches, self.data.order.lanes)
        self._check_modalities()
        self._check_evaluation()

    def _check_modalities(self) -> None:
        if self.optimizer.averages:
            self._check_averages()
        model, data = self.model, self.data
        tokenizers = [encoder.tokenizer for encoder in model.encoders.values()]
        read = {tokenizer.modality for tokenizer in tokenizers}
        if model.decoders:
            read.add("text" if data.target is None else "target")
        for field_name in (*MODALITIES, "target"):
            given = getattr(data, field_name) is not None
            if field_name in read and not given:
                raise InputError(f"The model reads {field_name}, but data.{field_name} is absent: say how it is read.")
            if given and field_name not in read:
                raise InputError(
                    f"data.{field_name} is read, but no encoder or decoder of the model uses it: remove it."
                )
        for name, decoder in model.decoders.items():
            other = next((t for t in tokenizers if isinstance(t, TextTokensSpec) and t != decoder.tokenizer), None)
            if data.target is None and other is not None:
                raise InputError(
                    f"model.decoders.{name} writes the text that encoders read, but cuts it into other ids: "
                    f"{decoder.tokenizer} and {other}. Give both the same tokenizer, or set data.target."
                )
        for name, encoder in model.encoders.items():
            rate = getattr(encoder.tokenizer, "rate", None)
            if data.audio is not None and rate not in (None, data.audio.transform.rate):
                raise InputError(
                    f"model.encoders.{name} reads {rate} samples a second, but data.audio.transform.rate is "
                    f"{data.audio.transform.rate}: give both the same."
                )

    def _check_evaluation(self) -> None:
        if self.evaluation.every_steps is not None:
            if self.data.validation is None:
                raise InputError("evaluation.every_steps is set, but data.validation names no split to evaluate on.")
            if not self.evaluation.metrics:
                raise InputError("evaluation.every_steps is set, but evaluation.metrics names nothing to measure.")
        writing = [name for name, metric in self.evaluation.metrics.items() if metric.generates]
        if writing and self.evaluation.every_steps is not None and self.parallel.shard > 1:
            raise InputError(
                f"evaluation.metrics.{writing[0]} has a decoder write, which a sharded model does not do while it is "
                f"trained: set evaluation.every_steps to null (the end is measured), or parallel.shard to 1."
            )
        best, metrics = self.checkpoint.best, self.evaluation.metrics
        if best is not None and self.evaluation.every_steps is None:
            raise InputError("checkpoint.best needs scores while training: set evaluation.every_steps.")
        if best is not None and best.partition("/")[0] not in metrics:
            raise InputError(
                f"checkpoint.best is '{best}', but evaluation.metrics names {', '.join(metrics)}."
                f"{nearest(best.partition('/')[0], metrics)}"
            )


def default_output(config: str | Path) -> Path:
    def _check_averages(self) -> None:
        name = type(self.optimizer).__name__
        if self.ema is not None:
            raise InputError(f"optimizer {name} averages the weights itself: set ema to null.")
        if not isinstance(self.schedule, ConstantScheduleSpec) or self.schedule.cooldown_steps:
            raise InputError(
                f"optimizer {name} is made for a rate that does not fall: set schedule to a ConstantScheduleSpec "
                f"without cooldown_steps (a warm-up is good), but it is {self.schedule}."
            )

    """``runs/NAME`` for a config file ``NAME.yaml``."""
    return Path("runs") / Path(config).stem
