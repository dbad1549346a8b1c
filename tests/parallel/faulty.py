"""mmformer, in one process of which something goes wrong: ``FAULT=KIND:PROCESS:UPDATE python faulty.py fit …``.

It touches the file ``FAULT_FILE`` just before; where that is there already, nothing goes wrong.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from mmformer.cli.main import main
from mmformer.training.checkpoint import whole_checkpoints
from mmformer.training.processes import leave
from mmformer.training.task import TrainingTask

FILE = Path(os.environ["FAULT_FILE"])


def damage() -> None:
    """Change a byte of the newest checkpoint, when there are two, then die."""
    output = Path(sys.argv[sys.argv.index("--output") + 1])
    while len(states := whole_checkpoints(output)) < 2:
        time.sleep(0.05)
    part = states[-1] / "__0_0.distcp"
    data = part.read_bytes()
    part.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    """Be silent, as a machine that is lost; somebody ends this process at last."""
    subprocess.Popen(["sh", "-c", f"sleep 40; kill -KILL {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)


def spoil(kind: str, update: int) -> None:
    """Have something go wrong in an update, 1 the first."""
    step, backward = TrainingTask.training_step, TrainingTask.manual_backward

    def faulty(self: TrainingTask, batch: Any, batch_idx: int) -> None:
        if self.global_step + 1 == update and kind in ACTS and not FILE.exists():
            FILE.touch()
            ACTS[kind]()
        step(self, batch, batch_idx)

    def poisoned(self: Any, loss: Tensor, *arguments: Any, **named: Any) -> None:
        backward(self, loss * float("nan") if self.global_step + 1 == update else loss, *arguments, **named)

    TrainingTask.training_step = faulty  # type: ignore[method-assign]
    if kind == "nan":
        TrainingTask.manual_backward = poisoned  # type: ignore[method-assign]
        spoil_stages(update)


def spoil_stages(update: int) -> None:
    """Have the last stage of a pipeline go on from a loss that is no number, in an update."""
    from mmformer.parallel.pipeline import Pipeline  # takes a while to import

    step, train = TrainingTask.training_step, Pipeline.train
    updates = 0

    def counted(self: TrainingTask, batch: Any, batch_idx: int) -> None:
        nonlocal updates
        updates = self.global_step + 1
        step(self, batch, batch_idx)

    def poisoned(self: Pipeline, texts: Any, ending: Any) -> None:
        train(self, texts, lambda *given: ending(*given) * (float("nan") if updates == update else 1.0))

    TrainingTask.training_step = counted  # type: ignore[method-assign]
    Pipeline.train = poisoned  # type: ignore[method-assign]


ACTS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "usr1": lambda: os.kill(os.getpid(), signal.SIGUSR1),
    "hang": lambda: time.sleep(600),
    "damage": damage,
    "stop": stop,
}

if __name__ == "__main__":
    kind, process, update = os.environ["FAULT"].split(":")
    if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == process:
        spoil(kind, int(update))
    code = main(sys.argv[1:])
    leave(code)
    sys.exit(code)
