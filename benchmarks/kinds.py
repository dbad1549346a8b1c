"""What the milliseconds of a CLIP's update are spent on, ours beside open_clip's: the picture in docs/performance.md.

    python -m benchmarks.kinds

ViT-S-32-alt, 64 pictures and emoji's names, float32 and bfloat16, on 2 threads; PyTorch's profiler adds up what
operators take themselves, and not Python between them. Where attention is plain products (ours, in bfloat16), these are
among the products. Writes ``benchmarks/results/kinds.md`` and ``docs/kinds.svg``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.beside import quiet
from benchmarks.captions import emoji_names
from benchmarks.clip_step import inputs, ours_of, theirs_of
from benchmarks.machine import describe
from benchmarks.systems.case import open_clip_model
from benchmarks.systems.imported import imported

RESULT, PLOT = Path("benchmarks/results/kinds.md"), Path("docs/kinds.svg")
NAME, PICTURES, UPDATES = "ViT-S-32-alt", 64, 8
REST = "the rest"
KINDS = {
    "products": ("mm", "addmm", "bmm", "baddbmm", "convolution", "mkldnn"),
    "attention": ("scaled_dot_product", "softmax", "log_softmax"),
    "norms": ("native_layer_norm", "layer_norm"),
    "activations": ("gelu",),
    "copies and casts": ("copy_", "cat", "clone", "fill_", "zero_", "index", "embedding"),
    "sums": ("add", "mul", "sum", "div"),
    "optimizer": ("Optimizer.step", "_fused_adamw_", "_foreach", "lerp", "addcdiv", "addcmul", "sqrt"),
}
"""Beginnings of operators' names, without what stands before their own; the first kind that has one."""


def kind_of(operator: str) -> str:
    """Of what an operator's time is."""
    name = operator.removeprefix("aten::").lstrip("_")
    for kind in ("optimizer", *KINDS):
        if any(name.startswith(each.lstrip("_")) for each in KINDS[kind]):
            return kind
    return REST


def spent(update: Callable[[], float]) -> dict[str, float]:
    """Milliseconds of an update, by kind."""
    for _ in range(2):
        update()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(UPDATES):
            update()
    kinds = dict.fromkeys((*KINDS, REST), 0.0)
    for each in profiled.key_averages():
        kinds[kind_of(each.key)] += each.self_cpu_time_total / 1000 / UPDATES
    return kinds


def main() -> None:
    quiet()
    reference, model = imported(open_clip_model(NAME))
    batch = inputs(emoji_names, PICTURES)
    made: dict[str, dict[str, float]] = {}
    for precision in ("fp32", "bf16"):
        half = precision == "bf16"
        made[f"mmformer, {precision}"] = spent(ours_of(model, *batch, half))
        made[f"open_clip, {precision}"] = spent(theirs_of(reference, *batch, half))
    lines = ["# What an update is spent on", ""]
    lines += [f"`python -m benchmarks.kinds`. {describe()}; 2 threads.", ""]
    lines += [f"CLIP {NAME}, {PICTURES} pictures with emoji's names: milliseconds that an update's operators take.", ""]
    lines += [f"| | {' | '.join((*KINDS, REST))} | all |", "|---" * (len(KINDS) + 3) + "|"]
    lines += [
        f"| {who} | {' | '.join(f'{value:.0f}' for value in kinds.values())} | {sum(kinds.values()):.0f} |"
        for who, kinds in made.items()
    ]
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw(made)
    print(RESULT.read_text(encoding="utf-8"))


def draw(made: dict[str, dict[str, float]]) -> None:
    """A bar for each, of its kinds one after the other."""
    import matplotlib as mpl
    from matplotlib import pyplot

    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "kinds", "font.size": 9})
    figure, axis = pyplot.subplots(figsize=(9, 2.8), layout="constrained")
    left = [0.0] * len(made)
    for number, kind in enumerate((*KINDS, REST)):
        widths = [kinds[kind] for kinds in made.values()]
        axis.barh(list(made), widths, left=left, label=kind, color=mpl.colormaps["tab10"](number))
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axis.invert_yaxis()
    axis.set_xlabel(f"milliseconds that the operators of an update of {PICTURES} take")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(PLOT, metadata={"Date": None})


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
