"""How long a checkpoint keeps training waiting, beside ``torch.save`` of the same state.

    python -m benchmarks.checkpoint [--layers 14] [--times 5] [--folder DIR]

Writes ``benchmarks/results/checkpoint.md``: a Transformer of 100 million parameters with AdamW's moments.
"""

from __future__ import annotations

import argparse
import atexit
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.beside import Row, Work
from benchmarks.machine import describe
from mmformer.files import whole_folder
from mmformer.nn.stack import StackSpec
from mmformer.training.background import HostCopy
from mmformer.training.checkpoint import STATE
from mmformer.training.sealing import content_of, damage, seal
from mmformer.training.writing_state import write_state
from mmformer.types import Tokens

RESULT = Path("benchmarks/results/checkpoint.md")
WIDTH = 768


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--folder", help="on the disk to measure (default: the system's temporary folder)")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    stack, optimizer = trained(arguments.layers, device)
    state, parameters = state_of(stack, optimizer), sum(each.numel() for each in stack.parameters())
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        table = measure(state, Path(folder), arguments.times)
    lines = [
        "# How long a checkpoint keeps training waiting",
        "",
        f"`python -m benchmarks.checkpoint --layers {arguments.layers} --times {arguments.times}`. {describe()}; "
        f"{parameters / 1e6:.0f} M parameters on {device} with AdamW's moments, {size_of(state) / 1e9:.2f} GB. "
        f"{os.getloadavg()[0]:.0f} processes wanted the machine's cores.",
        "",
        "| what | median, s | least | most |",
        "|---|---|---|---|",
        *(
            f"| {name} | **{statistics.median(values):.2f}** | {min(values):.2f} | {max(values):.2f} |"
            for name, values in table.items()
        ),
        "",
        "The first copy finds its memory, later ones fill it again. Of main memory, training waits only for what of it "
        "is not done when the next update's gradient is: see the row of [all peers](beside.md).",
    ]
    text = "\n".join(lines) + "\n"
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(text, encoding="utf-8")
    print(text)


def trained(layers: int, device: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A stack of this many layers and its optimizer, after an update."""
    stack = StackSpec(WIDTH, layers).build().to(device)
    optimizer = torch.optim.AdamW(stack.parameters())
    for name, parameter in stack.named_parameters():
        nn.init.normal_(parameter, std=0.02 if "norm" not in name else 1.0)
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return stack, optimizer


def state_of(stack: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What a checkpoint has of them."""
    return {"state_dict": stack.state_dict(), "optimizer_states": [optimizer.state_dict()]}


def measure(state: dict[str, Any], folder: Path, times: int) -> dict[str, list[float]]:
    """Seconds of everything that is done with a checkpoint, or would be."""
    host = HostCopy()
    first, copied = timed(lambda: host.take(state))
    table: dict[str, list[float]] = {
        "`torch.save` and fsync: training would wait for it": [],
        "the first copy: training waits": [first],
        "a later copy: training waits": [],
        "writing, hashing and naming the copy: in a thread": [],
        "looking whether it is whole, before it is loaded": [],
    }
    for _ in range(times):
        numbers = (
            timed(lambda: plain(state, folder / "plain.ckpt"))[0],
            timed(lambda: host.take(state))[0],
            timed(lambda: write(copied, folder / "whole"))[0],
            timed(lambda: damage(folder / "whole"))[0],
        )
        for name, seconds in zip([name for name in table if "first" not in name], numbers, strict=True):
            table[name].append(seconds)
    return table


def plain(state: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def write(state: dict[str, Any], folder: Path) -> None:
    with whole_folder(folder) as partial:
        write_state(state, partial / STATE)
        seal(partial, {STATE: content_of(partial / STATE)})


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    made = call()
    return time.perf_counter() - began, made


def waiting(layers: int) -> Work:
    """The seconds that training waits: for our copy, before it goes on and before the optimizer; for ``torch.save``."""
    stack, optimizer = trained(layers, "cpu")
    state = state_of(stack, optimizer)
    still = [*stack.parameters(), *(value for kept in optimizer.state.values() for value in kept.values())]
    tokens = Tokens(torch.randn(1, 512, WIDTH), torch.zeros(1, 512, 3, dtype=torch.int64))
    host = HostCopy()
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

    def ours() -> float:
        began = timed(lambda: host.take(state, still))[0]
        stack(tokens).tokens.x.square().mean().backward()  # the next update's gradient, as it is beside a copy
        return began + timed(host.finish)[0]

    def theirs() -> float:
        return timed(lambda: torch.save(state, folder / "plain.ckpt"))[0]

    ours()
    copied = host.take(state)["state_dict"]
    same = all(torch.equal(value, copied[name]) for name, value in state["state_dict"].items())
    return Work(ours, theirs, 0.0 if same else 1.0, told=True)


ROWS = [
    Row(
        "checkpoint",
        "a checkpoint of 100 M parameters and AdamW's moments: what an update waits for",
        "torch",
        1,
        "checkpoints",
        8.0,
        0.0,
        partial(waiting, 14),
        "copied while the next update's gradient is computed (which takes 0.1 s longer), and written by a thread",
        dtype=None,
    )
]


def size_of(value: Any) -> int:
    """Bytes of all tensors in a nested state."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(size_of, parts))


if __name__ == "__main__":
    main()
