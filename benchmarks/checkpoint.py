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
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.beside import Row, Work
from benchmarks.machine import describe
from mmformer.files import whole_folder
from mmformer.nn.stack import StackSpec
from mmformer.training.background import HostCopy
from mmformer.training.checkpoint import STATE
from mmformer.training.divergence import finite
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
    parameters, size = sum(each.numel() for each in stack.parameters()), size_of(state_of(stack, optimizer))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        table = measure(stack, optimizer, Path(folder), arguments.times)
    lines = [
        "# How long a checkpoint keeps training waiting",
        "",
        f"`python -m benchmarks.checkpoint --layers {arguments.layers} --times {arguments.times}`. {describe()}; "
        f"{parameters / 1e6:.0f} M parameters on {device} with AdamW's moments, {size / 1e9:.2f} GB. "
        f"{os.getloadavg()[0]:.0f} processes wanted the machine's cores.",
        "",
        "| what | median, s | least | most |",
        "|---|---|---|---|",
        *(
            f"| {name} | **{statistics.median(values):.2f}** | {min(values):.2f} | {max(values):.2f} |"
            for name, values in table.items()
        ),
        "",
        "Of main memory, an update waits for what of the copy is not done when its gradient is; the row of [all peers]"
        "(beside.md) is of that, and of all else by which it is later.",
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


def measure(stack: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, times: int) -> dict[str, list[float]]:
    """Seconds of everything that is done with a checkpoint, or would be, and of the gradients beside it."""
    state, still, host, thread = (
        state_of(stack, optimizer),
        still_of(stack, optimizer),
        HostCopy(),
        ThreadPoolExecutor(1),
    )
    gradient = partial(gradient_of, stack)
    gradient()
    table = defaultdict(list, {"the first copy, which finds its memory": [timed(lambda: host.take(state))[0]]})
    for _ in range(times):
        saving = timed(lambda: plain(state, folder / "plain.ckpt"))[0]
        table["`torch.save` and fsync: training would wait for it"].append(saving)
        table["a gradient of 512 tokens"].append(timed(gradient)[0])
        beside, copied = timed(lambda: copy_beside(state, still, host, gradient))
        table["the same, and beside it weights are looked at and copied"].append(beside)
        writing = thread.submit(write, copied, folder / "whole")
        began = time.perf_counter()
        while not writing.done():
            table["the same, and beside it a thread writes, hashes and names the copy"].append(timed(gradient)[0])
        table["until that is done"].append(time.perf_counter() - began)
        writing.result()
        table["looking whether it is whole, before it is loaded"].append(timed(lambda: damage(folder / "whole"))[0])
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
    """The seconds by which training is later: for our copy, all that an update takes longer; for ``torch.save``, its.

    Ours looks whether weights are numbers, too, as it does before each checkpoint. What it writes is read again, and
    compared with what ``torch.save`` wrote. Its thread writes where nothing is timed: what an update takes longer
    beside that is in ``results/checkpoint.md``.
    """
    stack, optimizer = trained(layers, "cpu")
    state, still, host = state_of(stack, optimizer), still_of(stack, optimizer), HostCopy()
    gradient = partial(gradient_of, stack)
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

    def ours() -> float:
        alone = timed(gradient)[0]
        return max(timed(lambda: copy_beside(state, still, host, gradient))[0] - alone, 0.0)

    def theirs() -> float:
        return timed(lambda: torch.save(state, folder / "plain.ckpt"))[0]

    theirs()
    write(copy_beside(state, still, host, gradient), folder / "whole")
    return Work(ours, theirs, unequal(folder / "whole" / STATE, folder / "plain.ckpt"), told=True)


def still_of(stack: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What of their state an update alone changes."""
    return [*stack.parameters(), *(value for kept in optimizer.state.values() for value in kept.values())]


def gradient_of(stack: nn.Module) -> None:
    """What goes on beside a copy: a gradient of 512 tokens."""
    device = next(stack.parameters()).device
    places = torch.zeros(1, 512, 3, dtype=torch.int64, device=device)
    tokens = Tokens(torch.ones(1, 512, WIDTH, device=device), places)
    stack(tokens).tokens.x.square().mean().backward()


def copy_beside(
    state: dict[str, Any], still: list[Tensor], host: HostCopy, gradient: Callable[[], None]
) -> dict[str, Any]:
    """A gradient, and beside it the copy of a state whose weights are numbers."""
    if not finite(state["state_dict"].values()):
        raise SystemExit("The weights of this benchmark are no numbers.")
    copied: dict[str, Any] = host.take(state, still)
    gradient()
    host.finish()
    return copied


def unequal(ours: Path, theirs: Path) -> float:
    """The share of tensors that two files of states do not have alike."""
    mine, other = (list(tensors_of(torch.load(path, weights_only=True))) for path in (ours, theirs))
    same = [name == its and torch.equal(a, b) for (name, a), (its, b) in zip(mine, other, strict=True)]
    return 1 - sum(same) / len(same)


def tensors_of(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors of a nested state, by where they are in it."""
    if isinstance(value, Tensor):
        yield name, value
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in parts:
        yield from tensors_of(each, f"{name}/{key}")


ROWS = [
    Row(
        "checkpoint",
        "a checkpoint of 100 M parameters and AdamW's moments: by how much an update is later",
        "torch",
        1,
        "checkpoints",
        8.0,
        0.0,
        partial(waiting, 14),
        "copied while the next update's gradient is computed, by which that takes longer; then a thread writes it",
        dtype=None,
    )
]


def size_of(state: dict[str, Any]) -> int:
    """Bytes of all its tensors."""
    return sum(each.numel() * each.element_size() for _, each in tensors_of(state))


if __name__ == "__main__":
    main()
