"""The one Lightning task: it trains any model with any weighted set of objectives.

One Lightning batch is one update. Micro-batches are cut inside ``training_step`` (manual optimisation), so the data
position, what a resumed run goes on from, is the number of updates times the batch size and nothing else.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mmformer import collectives
from mmformer.adapters.adapter import attach
from mmformer.data.collate import Sample
from mmformer.data.loading import training_loader
from mmformer.data.seeding import derive
from mmformer.errors import InputError
from mmformer.models.head import ContrastiveHead
from mmformer.models.model import Model
from mmformer.nn.performer import redraw
from mmformer.nn.router import rebalance, take_excess
from mmformer.objectives.objective import Objective
from mmformer.parallel.allocation import allocate, allocate_adapters
from mmformer.parallel.checkpointing import checkpoint_layers
from mmformer.parallel.clipping import clip_gradients
from mmformer.parallel.compiling import compile_layers
from mmformer.parallel.copies import find_drift
from mmformer.parallel.sharding import is_spread, local_part, spread, whole
from mmformer.training.average import WeightAverage
from mmformer.training.bundling import other_answers
from mmformer.training.divergence import Guard, Refused, finite
from mmformer.training.freeze import Thaw, freeze
from mmformer.training.initial import InitialSpec, Loaded, choose_initial, other_transforms
from mmformer.training.norms import ActivationNorms, gradient_norms
from mmformer.training.optimizers.optimizer import AveragingOptimizer
from mmformer.training.run import RunSpec
from mmformer.training.update import add_gradient
from mmformer.types import Batch


class TrainingTask(pl.LightningModule):
    """Keeps the run's spec; builds the model when Lightning says that it is time."""

    def __init__(self, run: RunSpec) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.run = run
        self.mixture = run.data.mixture()
        self.model: Model | None = None
        self.average: WeightAverage | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.thaw: Thaw  # what does not train yet
        self.loaded = Loaded(frozenset(), [])  # what begins with weights from a file
        self.guard = Guard(run.divergence)
        self.refused: Refused | None = None  # the last update, where it was not applied
        self._drifted = False  # whether it was told that copies of parameters differ
        self.objectives: dict[str, Objective] = {name: spec.build() for name, spec in run.objectives.items()}

    @property
    def built(self) -> Model:
        """The model; ``configure_model`` has run."""
        assert self.model is not None, "configure_model comes first"
        return self.model

    @property
    def in_parts(self) -> bool:
        """Whether the model has no data before it is spread, and is never held whole."""
        return self.run.parallel.processes > 1

    def configure_model(self) -> None:
        """Build the model; once there are several processes, spread it over them. Both are done once."""
        if self.model is None:
            with torch.device("meta"):
                self.model = self.run.model.build()
            if not self.in_parts:
                self.model.to_empty(device="cpu")
                self.model.initialise(self.run.seed)
            if self.run.initial is not None:
                self._begin_with(self.model, self.run.initial)
            if self.run.adapters:
                attach(self.model, self.run.adapters, self.run.seed)
            freeze(self.model, self.run.freeze)
            self.thaw = Thaw(self.model, self.run.thaw)
            if self.run.parallel.activation_checkpointing is not None:
                checkpoint_layers(self.model, self.run.parallel.activation_checkpointing)
        elif self.device_mesh is None or is_spread(self.model):
            return
        if self.device_mesh is not None:
            device, dtype = self.trainer.strategy.root_device, self.run.trainer.dtype
            parallel = self.run.parallel
            offloaded = parallel.cpu_offload
            spread(self.model, self.device_mesh, dtype, parallel.context_method, parallel.compile, offloaded)
            allocate(self.model, self.run.seed, device, offloaded)
            self.loaded.give(self.model)
            allocate_adapters(self.model, self.run.seed)
        if self.run.ema is not None:
            self.average = self.run.ema.build(self.model)

    def setup(self, stage: str) -> None:
        """Compile what one process trains; several do it once it is spread. The rehearsal runs without."""
        if self.run.parallel.compile and self.run.parallel.processes == 1:
            compile_layers(self.built)

    def _begin_with(self, model: Model, initial: InitialSpec) -> None:
        self.loaded = choose_initial(model, initial)
        image, audio = (self.run.data.shared(name) for name in ("image", "audio"))
        prepared = (None if image is None else image.transform, None if audio is None else audio.transform)
        self.loaded.report.extend([*other_transforms(initial, *prepared), *other_answers(self.run)])
        if not self.in_parts:
            self.loaded.give(model)

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the model has the averages of its weights, where the run asks for them: what is measured and kept."""
        if self.average is not None:
            return self.average.applied(self.built)
        if isinstance(self.optimizer, AveragingOptimizer):
            return self.optimizer.averaged(self.built)
        return nullcontext()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.optimizer = self.run.optimizer.build(self.built)
        return self.optimizer

    def train_dataloader(self) -> DataLoader[Sample]:
        run = self.run
        ranks = (collectives.data_rank(), collectives.data_world_size())
        encoders, steps = run.model.text_encoders(), run.trainer.max_steps
        return training_loader(run.data, encoders, run.seed, self.global_step, steps, *ranks)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        step, trainer = self.global_step, self.run.trainer
        # Whatever else drew from the global stream, dropout is a function of (seed, step, tokens and layers of this
        # process).
        rank, stage = collectives.token_rank(), collectives.stage()
        part = (rank, stage) if stage else (rank,) if rank else ()
        torch.manual_seed(derive(self.run.seed, "dropout", step, *part))
        optimizer = self.optimizers(use_pl_optimizer=True)
        assert not isinstance(optimizer, list)
        lr = self.run.optimizer.lr * self.run.schedule.factor(step, trainer.max_steps)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        optimizer.zero_grad()
        redraw(self.built, step)
        measured = self.run.logging.norms and self._is_logged(step + 1)
        with ActivationNorms(self.built) if measured else nullcontext() as activations:
            losses = add_gradient(self.run, self.built, self.objectives, batch, self.manual_backward)
        self.thaw.drop_gradients(self.built, step)
        excess = take_excess(self.built)
        norms = {} if activations is None else gradient_norms(self.built) | activations.read()
        norm = clip_gradients(self.built.parameters(), trainer.gradient_clip_val)
        self.refused = self.guard.judge(step + 1, self.mixture.kind(step), losses["loss"], norm)
        if self.refused is not None:
            self._count()
        else:
            optimizer.step()
            rebalance(excess, collectives.data_world_size())
            if self.average is not None:
                self.average.update(self.built, step + 1)
        self._log(losses | norms, norm, lr, step + 1)

    def _count(self) -> None:
        """Count an update that no optimizer makes, not even without gradients: some count their steps themselves."""
        self.built.zero_grad()
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        progress.increment_completed()

    def changed_by_updates(self) -> list[Tensor]:
        """What the optimizer changes and keeps, and the averages: the rest changes at other times too, or never."""
        states = [] if self.optimizer is None else list(self.optimizer.state.values())
        kept = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        trained = [parameter for parameter in self.built.parameters() if parameter.requires_grad]
        return [*trained, *kept, *([] if self.average is None else self.average.buffers())]

    def check_finite(self) -> None:
        """Refuse to measure or to keep weights that are not numbers any more: a finite gradient may have made them so.

        Raises:
            InputError: some are not.
        """
        held = (local_part(parameter.detach()) for parameter in self.built.parameters() if not parameter.is_meta)
        if collectives.any_rank(not finite(held), self.device):
            raise InputError(
                f"Training diverged: after update {self.global_step} some weights are no numbers. Lower optimizer.lr "
                f"(now {self.run.optimizer.lr:g}); earlier checkpoints are kept."
            )

    def check_copies(self) -> None:
        """Refuse to keep one of several copies of a parameter that are not the same any more (``parallel/copies.py``).

        Where GPUs may add up in any order, they drift apart by rounding; that is told once.

        Raises:
            InputError: some differ.
        """
        drift = find_drift(self.built)
        if drift is None:
            return
        groups = " and of ".join(
            f"process{'es' * (len(each) > 1)} {', '.join(map(str, each))}" for each in drift.processes
        )
        told = (
            f"after update {self.global_step} the copies of {drift.name} that processes hold are not the same any "
            f"more: those of {groups} differ ({drift.parameters} parameters in all)."
        )
        if self.device.type == "cpu" or self.run.trainer.deterministic:
            raise InputError(
                f"The processes' weights drifted apart: {told} No checkpoint was made. Look at the memory of their "
                f"machines, and go on from the last checkpoint with --resume."
            )
        if collectives.rank() == 0 and not self._drifted:
            print(
                f"\nmmformer: {told} A GPU may round otherwise each time; trainer.deterministic forbids it.",
                file=sys.stderr,
            )
        self._drifted = True

    def _is_logged(self, updates: int) -> bool:
        """Whether an update has a row: the last of every so many, of each kind where sources take turns."""
        every, kind_of = self.run.trainer.log_every_n_steps, self.mixture.kind
        end = min(-(-updates // every) * every, self.run.trainer.max_steps)
        return all(kind_of(later) != kind_of(updates - 1) for later in range(updates, end))

    def _log(self, named: dict[str, Tensor], norm: Tensor, lr: float, updates: int) -> None:
        self.log("train/loss", named["loss"], prog_bar=True, logger=False)
        if not self._is_logged(updates):
            return
        values: dict[str, Any] = {f"train/{name}": value for name, value in named.items()}
        values |= {"train/gradient_norm": norm, "train/lr": lr}
        if self.guard.total:
            values["train/refused"] = self.guard.total
        for name, head in self.built.heads.items():
            if isinstance(head, ContrastiveHead):
                values[f"train/{name}_scale"] = head.scale_of(whole(head.log_scale.detach()))
                if head.bias is not None:
                    values[f"train/{name}_bias"] = whole(head.bias.detach())
        # Not through Lightning, which logs after the callbacks: a checkpoint would be there before its step's row.
        for logger in self.loggers:
            logger.log_metrics({name: float(value) for name, value in values.items()}, updates)
