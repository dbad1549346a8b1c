"""How the time and memory of each mixer grow with the length of a row, forward and backward.

    python -m benchmarks.growth [--lengths 1024 2048 …] [--only window Mamba …] [--default-allocator]

Width 256, 8 heads, 2 threads, a batch of one row, float32. Each point is a process of its own: the median time of
passes that take a second at least, and by how much the passes raise the process's peak of resident memory. Exponents
are fitted by least squares on logarithms, over all lengths. glibc maps every tensor above 32 MiB anew, page by page, at
each use; it is told to keep what was freed instead, as other allocators do, unless ``--default-allocator`` says no.
Writes ``benchmarks/results/growth.md`` (a page of the documentation) and ``docs/growth.svg``.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.machine import describe
from benchmarks.memory import peak, resident
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.convolution import ConvolutionSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.linear_attention import LinearAttentionSpec
from mmformer.nn.linformer import LinformerSpec
from mmformer.nn.lsh import LSHAttentionSpec
from mmformer.nn.mamba import MambaSpec
from mmformer.nn.mixer import MixerSpec
from mmformer.nn.pattern import AnyOfSpec, GlobalSpec, WindowSpec
from mmformer.nn.performer import PerformerSpec
from mmformer.nn.random_blocks import RandomBlocksSpec
from mmformer.nn.stack import StackSpec
from mmformer.types import Tokens

WIDTH, THREADS = 256, 2
LENGTHS = (1024, 2048, 4096, 8192, 16_384, 32_768)
KEPT = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}
"""Settings of glibc's allocator, by which memory that was freed stays with the process."""

RESULT, PLOT = Path("benchmarks/results/growth.md"), Path("docs/growth.svg")
BIGBIRD = AnyOfSpec((WindowSpec(96, 96), GlobalSpec(128), RandomBlocksSpec(size=128, blocks=1)))


class Part(NamedTuple):
    """What is measured."""

    what: str
    make: Callable[[int], Callable[[Tensor], Tensor]]  # for a length


class Point(NamedTuple):
    """What was measured."""

    seconds: float
    mebibytes: float


def mixer(spec: MixerSpec | Callable[[int], MixerSpec], causal: bool = False) -> Callable[[int], nn.Module]:
    """One layer of nothing but a mixer."""

    def make(length: int) -> nn.Module:
        layer = LayerSpec(mixer=spec if isinstance(spec, MixerSpec) else spec(length), feedforward=None)
        return _Row(StackSpec(WIDTH, 1, layer, final_norm=False).build(), causal)

    return make


class _Row(nn.Module):
    def __init__(self, stack: nn.Module, causal: bool) -> None:
        super().__init__()
        self.stack, self.causal = stack, causal

    def forward(self, x: Tensor) -> Tensor:
        pos = torch.zeros(*x.shape[:2], 3, dtype=torch.int64)
        pos[..., 0] = torch.arange(x.shape[1])
        y: Tensor = self.stack(Tokens(x, pos), causal=self.causal).tokens.x
        return y


class _LSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.lstm(x)[0]
        return y


PARTS: dict[str, Part] = {
    "full": Part("softmax attention to all (PyTorch's fused kernel)", mixer(AttentionSpec())),
    "full, causal": Part("the same, to what stands before", mixer(AttentionSpec(), causal=True)),
    "LSTM": Part("torch.nn.LSTM of equal width", lambda length: _LSTM()),
    "convolution": Part(
        "a causal convolution, 4 taps 64 steps apart", mixer(ConvolutionSpec(before=3, after=0, dilation=64), True)
    ),
    "window": Part("a window of 256 tokens on each side", mixer(AttentionSpec(pattern=WindowSpec(256, 256)))),
    "BigBird": Part(
        "a window of 96 on each side, 128 global tokens, 2 blocks of 128 at random",
        mixer(AttentionSpec(pattern=BIGBIRD)),
    ),
    "linear": Part("linear attention, elu + 1", mixer(LinearAttentionSpec())),
    "linear, causal": Part("the same, to what stands before", mixer(LinearAttentionSpec(), causal=True)),
    "Performer": Part("128 features", mixer(PerformerSpec())),
    "Performer, causal": Part("the same, to what stands before", mixer(PerformerSpec(), causal=True)),
    "Linformer": Part("128 projected places", mixer(lambda length: LinformerSpec(length=length))),
    "LSH": Part("2 rounds of 64 buckets, windows of 64", mixer(LSHAttentionSpec())),
    "Mamba": Part("expanded twice, 16 states", mixer(MambaSpec(), causal=True)),
}

BOUNDS: dict[str, str] = {
    "window": "time ≤ 1.1; ≥ 8 × at 16,384",
    "BigBird": "time ≤ 1.15; ≥ 4 × at 16,384",
    "linear": "time ≤ 1.1; ≥ 8 × at 16,384",
    "Performer": "time ≤ 1.1; ≥ 8 × at 16,384",
    "Linformer": "time ≤ 1.1; ≥ 8 × at 16,384",
    "LSH": "time ≤ 1.2",
    "Mamba": "time ≤ 1.1; ≥ 3 × at 32,768",
}
"""What was set before; memory ≤ 1.05 for all of these."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--point", nargs=2, metavar=("PART", "LENGTH"), help="measure one, in this process")
    parser.add_argument("--default-allocator", action="store_true", help="glibc's allocator as it comes")
    args = parser.parse_args()
    if args.point:
        print(json.dumps(measure(args.point[0], int(args.point[1]))))
        return
    found = {
        name: {length: _in_a_process(name, length, {} if args.default_allocator else KEPT) for length in args.lengths}
        for name in args.only
    }
    text = report(found)
    print(text)
    if args.only == list(PARTS) and tuple(args.lengths) == LENGTHS and not args.default_allocator:
        RESULT.write_text(text, encoding="utf-8")
        draw(found)


def _in_a_process(name: str, length: int, environment: dict[str, str]) -> Point:
    command = [sys.executable, "-m", "benchmarks.growth", "--point", name, str(length)]
    environment = {**os.environ, **environment}
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    point = Point(*json.loads(told.splitlines()[-1]))
    print(f"{name:20} {length:6} {point.seconds:8.3f} s {point.mebibytes:8.0f} MiB", file=sys.stderr, flush=True)
    return point


def measure(name: str, length: int) -> Point:
    """Forward and backward, in this process."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    module = PARTS[name].make(length)
    one_pass(module, 256)  # what a library takes at its first call is none of the pass's
    gc.collect()
    before = resident()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < 1 and len(times) < 50):
        times.append(one_pass(module, length))
        if len(times) == 1 and times[0] > 20:
            break
    return Point(statistics.median(times), (peak() - before) / 2**20)


def one_pass(module: Callable[[Tensor], Tensor], length: int) -> float:
    x = torch.randn(1, length, WIDTH, requires_grad=True)
    began = time.perf_counter()
    torch.autograd.backward(module(x).square().mean())
    return time.perf_counter() - began


def exponent(values: dict[int, float]) -> float:
    """p of value ∝ lengthᵖ."""
    return statistics.linear_regression(
        [math.log(length) for length in values], [math.log(value) for value in values.values()]
    ).slope


def report(found: dict[str, dict[int, Point]]) -> str:
    lengths = list(next(iter(found.values())))
    lines = [
        "# How mixers grow",
        "",
        f"Forward and backward of one row, width {WIDTH}, 8 heads, float32, {THREADS} threads, a process for each "
        f"point: `python -m benchmarks.growth`. {describe()}.",
        "",
        "![Seconds and memory over the length of a row](growth.svg)",
        "",
        *_table("Seconds", found, lengths, lambda point: f"{point.seconds:.3g}"),
        *_table("Memory of the pass, MiB", found, lengths, lambda point: f"{point.mebibytes:.0f}"),
        "## Exponents, and times as fast as full attention",
        "",
        "The exponent p of time ∝ Lᵖ and of memory ∝ Lᵖ; the bounds were set before anything was measured "
        "(memory: at most 1.05). glibc is told to keep what was freed; as it comes, it maps every tensor above 32 MiB "
        "anew, which adds up to 0.15 to the exponents of time (`--default-allocator`).",
        "",
        "| mixer | time | memory | " + " | ".join(f"× at {length:,}" for length in lengths) + " | bounds |",
        "|---" * (len(lengths) + 4) + "|",
    ]
    for name, points in found.items():
        grown = [exponent({length: point[which] for length, point in points.items()}) for which in (0, 1)]
        faster = [
            f"{found['full'][length].seconds / point.seconds:.2g}" if "full" in found else ""
            for length, point in points.items()
        ]
        lines.append(f"| {name} | {grown[0]:.2f} | {grown[1]:.2f} | {' | '.join(faster)} | {BOUNDS.get(name, '')} |")
    lines += ["", *(f"- {name}: {PARTS[name].what}." for name in found)]
    return "\n".join(lines) + "\n"


def _table(
    title: str, found: dict[str, dict[int, Point]], lengths: list[int], told: Callable[[Point], str]
) -> list[str]:
    head = f"| mixer | {' | '.join(f'{length:,}' for length in lengths)} |"
    rows = (f"| {name} | {' | '.join(map(told, points.values()))} |" for name, points in found.items())
    return [f"## {title}", "", head, "|---" * (len(lengths) + 1) + "|", *rows, ""]


def draw(found: dict[str, dict[int, Point]]) -> None:
    """Both curves of every mixer, on logarithmic axes."""
    import matplotlib as mpl
    from matplotlib import pyplot

    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "growth", "font.size": 9})
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    colours = mpl.colormaps["tab20"].colors  # type: ignore[attr-defined]
    for axis, which, title in zip(axes, (0, 1), ("seconds", "MiB"), strict=True):
        for (name, points), colour in zip(found.items(), colours, strict=False):
            width = 2.4 if name == "full" else 1.4
            axis.plot(list(points), [point[which] for point in points.values()], marker=".", label=name, color=colour,
                      linewidth=width)  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel="tokens of a row", ylabel=title)
        axis.set_xticks(list(LENGTHS), [f"{length // 1024}k" for length in LENGTHS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    figure.savefig(PLOT, metadata={"Date": None})


if __name__ == "__main__":
    main()
