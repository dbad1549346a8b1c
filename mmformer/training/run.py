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
from mmformer.nn.position import LearnedPositionSpec
from mmformer.objectives.objective import ObjectiveSpec
from mmformer.parallel.sharding import ParallelSpec
from mmformer.spec import Parts, require
from mmformer.tokenizers.image import ImagePatchesSpec
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
        keep_best: how many of the best models stay, as bundles ``top/step-…``, where it is more than the one in
            ``best/``, which is among them.
    """

    every_steps: int | None = None
    keep: int = 2
    best: str | None = None
    mode: Literal["max", "min"] = "max"
    keep_best: int = 1

    def __post_init__(self) -> None:
        require(self.every_steps is None or self.every_steps >= 1, self, "every_steps", "None or at least 1")
        require(self.keep >= 1, self, "keep", "at least 1")
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
        norms: log the norm of each part's gradient, and the root mean square of what leaves each layer.
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
        evaluation: what is measured.
        ema: averages of the weights, which are measured and kept in their place; None: none.
        initial: weights to begin with; None: all are drawn, from the seed.
        freeze: patterns of the names of parameters that do not train, such as ``encoders.image.*``; ``parameters.tsv``
            in a run's output has all names.
        thaw: gradual unfreezing: patterns of names, and the number of updates for which those parameters do not train.
        early_stopping: when a run ends before its last update; None: never.
        logging: what is told of it, and where.
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
    thaw: dict[str, int] = field(default_factory=dict)
    early_stopping: EarlyStoppingSpec | None = None
    logging: LoggingSpec = field(default_factory=LoggingSpec)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.objectives:
            raise InputError("objectives is empty: name one, such as contrastive: {class_path: ContrastiveSpec}.")
        for group, names in (
            ("objectives", self.objectives),
            ("evaluation.metrics", self.evaluation.metrics),
            ("data.labels", self.data.all_labels),
            ("data.also", self.data.also),
        ):
            for name in names:
                if not name.isidentifier() or name == "aux":
                    raise InputError(
                        f"{group} has the name {name!r}; letters, digits and _ alone make a name, and aux is taken."
                    )
        if self.checkpoint.best is None:
            for name, plain in (("mode", "max"), ("keep_best", 1)):
                if getattr(self.checkpoint, name) != plain:
                    raise InputError(f"checkpoint.{name} is of what checkpoint.best names, but that names no score.")
        model = self.model
        parts = Parts(model.embedding_widths, model.heads, model.decoders, tuple(self.data.all_labels))
        for objective in self.objectives.values():
            objective.check(parts)
        measured = parts._replace(labels=tuple(self.data.labels))  # the first source's held-out splits
        for metric in self.evaluation.metrics.values():
            metric.check(measured)
        self.parallel.check(self.data.batch_size, self.trainer.accumulate_grad_batches, self.data.order.lanes)
        self._check_modalities()
        self._check_evaluation()
        self._check_thaw()
        for where, source in self.data.named.items():
            blind = [name for name, objective in self.objectives.items() if not objective.mixes]
            if source.image is not None and source.image.mix is not None and blind:
                raise InputError(
                    f"{where}.image.mix mixes pictures and their labels, but objectives.{blind[0]} would take a "
                    f"mixture for the picture that it is named after: leave mix out, or train on labels alone."
                )
        if self.logging.samples and "image" not in self.data.filled:
            raise InputError("logging.samples draws pictures, but data.image is absent: set it to 0.")
        if self.optimizer.averages:
            self._check_averages()

    def _check_modalities(self) -> None:
        model, data = self.model, self.data
        tokenizers = [encoder.tokenizer for encoder in model.encoders.values()]
        read = {tokenizer.modality for tokenizer in tokenizers}
        if model.decoders:
            read.add("target" if "target" in data.filled else "text")
        for field_name in (*MODALITIES, "target"):
            given = field_name in data.filled
            if field_name in read and not given:
                raise InputError(f"The model reads {field_name}, but data.{field_name} is absent: say how it is read.")
            if given and field_name not in read:
                raise InputError(
                    f"data.{field_name} is read, but no encoder or decoder of the model uses it: remove it."
                )
        for name, decoder in model.decoders.items():
            other = next((t for t in tokenizers if isinstance(t, TextTokensSpec) and t != decoder.tokenizer), None)
            if "target" not in data.filled and other is not None:
                raise InputError(
                    f"model.decoders.{name} writes the text that encoders read, but cuts it into other ids: "
                    f"{decoder.tokenizer} and {other}. Give both the same tokenizer, or set data.target."
                )
        for name, encoder in model.encoders.items():
            rate, audio = getattr(encoder.tokenizer, "rate", None), data.shared("audio")
            if audio is not None and rate not in (None, audio.transform.rate):
                raise InputError(
                    f"model.encoders.{name} reads {rate} samples a second, but data.audio.transform.rate is "
                    f"{audio.transform.rate}: give both the same."
                )
        image = data.shared("image")
        if image is not None and image.transform.fit == "native":
            self._check_native(image.transform.patch, image.transform.budget)

    def _check_native(self, patch: int, budget: int) -> None:
        """Refuse a model that cannot read patches of pictures in their own proportions, up to a budget of them."""
        model = self.model
        reading = {name: part for name, part in model.encoders.items() if part.tokenizer.modality == "image"}
        for name, encoder in reading.items():
            tokenizer = encoder.tokenizer
            if not isinstance(tokenizer, ImagePatchesSpec) or tokenizer.patch != patch:
                raise InputError(
                    f"data.image.transform makes patches of {patch}x{patch} pixels of pictures in their own "
                    f"proportions (fit: native), but model.encoders.{name} reads pictures by {tokenizer}: give it "
                    f"ImagePatchesSpec with the patch {patch}, or take another fit."
                )
        stacks = {encoder.stack for encoder in reading.values()}
        stacks |= {decoder.stack for decoder in model.decoders.values() if {*decoder.read_as("prefix")} & {*reading}}
        for name in sorted(stacks):
            position = model.stacks[name].position
            if isinstance(position, LearnedPositionSpec):
                sizes = dict(zip(position.axes, position.sizes, strict=True))
                if min(sizes.get(1, budget), sizes.get(2, budget)) < budget:
                    raise InputError(
                        f"model.stacks.{name}.position has {position.sizes} places on the axes {position.axes}, but "
                        f"a picture in its own proportions (fit: native) may have {budget} rows or columns of "
                        f"patches: take SinusoidalPositionSpec or RotaryPositionSpec over the axes (1, 2)."
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
        metrics = self.evaluation.metrics
        for field_name, score in self.watched_scores.items():
            if self.evaluation.every_steps is None:
                raise InputError(f"{field_name} needs scores while training: set evaluation.every_steps.")
            if score.partition("/")[0] not in metrics:
                raise InputError(
                    f"{field_name} is '{score}', but evaluation.metrics names {', '.join(metrics)}."
                    f"{nearest(score.partition('/')[0], metrics)}"
                )

    @property
    def watched_scores(self) -> dict[str, str]:
        """The scores that something is decided by while training, by the field that names each."""
        stopping = None if self.early_stopping is None else self.early_stopping.score
        named = {"checkpoint.best": self.checkpoint.best, "early_stopping.score": stopping}
        return {field_name: score for field_name, score in named.items() if score is not None}

    def _check_thaw(self) -> None:
        for pattern, updates in self.thaw.items():
            if not 1 <= updates < self.trainer.max_steps:
                raise InputError(
                    f"thaw is {updates} for '{pattern}', but must be at least 1 and below trainer.max_steps "
                    f"({self.trainer.max_steps}); to keep parameters as they are, freeze them."
                )
        if self.thaw and self.parallel.shard > 1:
            raise InputError(
                "thaw needs parallel.shard to be 1: a sharded run resumes with the optimizer's state of every "
                "parameter, which those that do not train yet have none of."
            )

    def _check_averages(self) -> None:
        name = type(self.optimizer).__name__
        if self.ema is not None:
            raise InputError(f"optimizer {name} averages the weights itself: set ema to null.")
        if not isinstance(self.schedule, ConstantScheduleSpec) or self.schedule.cooldown_steps:
            raise InputError(
                f"optimizer {name} is made for a rate that does not fall: set schedule to a ConstantScheduleSpec "
                f"without cooldown_steps (a warm-up is good), but it is {self.schedule}."
            )


def default_output(config: str | Path) -> Path:
    """``runs/NAME`` for a config file ``NAME.yaml``."""
    return Path("runs") / Path(config).stem
