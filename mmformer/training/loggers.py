"""Where a run's numbers go."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from mmformer.config import to_data
from mmformer.errors import InputError
from mmformer.training.metrics import MetricsTable
from mmformer.training.run import RunSpec


def check_loggers(run: RunSpec) -> None:
    """Refuse a logger that is not installed.

    Raises:
        InputError: with the command that installs it.
    """
    if run.logging.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise InputError(
            f"logging.wandb is '{run.logging.wandb}', but the package wandb is not installed: pip install "
            f'"mmformer[wandb]", and wandb login; or set logging.wandb to null.'
        )


def make_loggers(run: RunSpec, output: Path, first_step: int) -> list[Logger]:
    """``metrics.csv``, and what the run asks for besides.

    Args:
        first_step: what a resumed run goes on from; 0 in a new one.
    """
    loggers: list[Logger] = [MetricsTable(output / "metrics.csv", first_step)]
    if run.logging.tensorboard:
        loggers.append(TensorBoardLogger(str(output), name="", version="tensorboard"))
    if run.logging.wandb is not None:
        # The run's folder is its name there too: resumed, it goes on in the same one.
        loggers.append(
            WandbLogger(
                project=run.logging.wandb,
                name=output.name,
                id=output.name,
                resume="allow",
                save_dir=str(output),
                config=to_data(run),
            )
        )
    return loggers
