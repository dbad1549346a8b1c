"""mmformer, in one process of which something goes wrong: ``FAULT=KIND:PROCESS:UPDATE python faulty.py fit …``.

It touches the file ``FAULT_FILE`` just before.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from mmformer.cli.main import main
from mmformer.training.processes import leave
from mmformer.training.task import TrainingTask


def spoil(kind: str, update: int) -> None:
    """Have something go wrong in an update, 1 the first."""
    step, backward = TrainingTask.training_step, TrainingTask.manual_backward

    def faulty(self: TrainingTask, batch: Any, batch_idx: int) -> None:
        if self.global_step + 1 == update and kind in ACTS:
            Path(os.environ["FAULT_FILE"]).touch()
            ACTS[kind]()
        step(self, batch, batch_idx)

    def poisoned(self: Any, loss: Tensor, *arguments: Any, **named: Any) -> None:
        backward(self, loss * float("nan") if self.global_step + 1 == update else loss, *arguments, **named)

    TrainingTask.training_step = faulty  # type: ignore[method-assign]
    if kind == "nan":
        TrainingTask.manual_backward = poisoned  # type: ignore[method-assign]


ACTS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "usr1": lambda: os.kill(os.getpid(), signal.SIGUSR1),
    "hang": lambda: time.sleep(600),
}

if __name__ == "__main__":
    kind, process, update = os.environ["FAULT"].split(":")
    if os.environ.get("LOCAL_RANK", "0") == process:
        spoil(kind, int(update))
    code = main(sys.argv[1:])
    leave(code)
    sys.exit(code)
