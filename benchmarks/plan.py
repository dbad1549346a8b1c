"""How near ``mmformer plan`` is to what it tells: FLOPs and peak memory of an update, planned and measured.

    python -m benchmarks.plan [--only TEXT]

Writes ``benchmarks/results/plan.md``; of runs with a text in their names alone, prints the rows. Memory is what
PyTorch's allocator had handed out at most during the second update on the CPU (by the profiler's record, so that what
operations take inside counts), with parameters and the optimizer's state; FLOPs are those that PyTorch's
FlopCounterMode counts in the third. Pictures and sounds are noise.
"""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import describe
from mmformer.cli.options import merged
from mmformer.config import parse
from mmformer.parallel.clipping import clip_gradients
from mmformer.scaling.meter import FORMULAS
from mmformer.training.planned import PlannedRun
from mmformer.training.run import RunSpec
from mmformer.training.stand_in import Lengths, stand_in
from mmformer.training.update import add_gradient, in_precision
from mmformer.types import Batch

RESULT = Path("benchmarks/results/plan.md")
SOME = Lengths(text=(4, 7, 9, 12), target=(4, 6, 8, 11), seconds=(0.6, 0.4, 1.0))
"""By turns, as captions and words are."""

NOWHERE = {"data.source": "nowhere", "optimizer.lr": "1e-3"}
PICTURES, LANGUAGE = "{transform: {size: [224, 224]}}", "{caption: {class_path: FieldCaptionSpec}}"


class Case(NamedTuple):
    """A run, made small, and how many samples an update has."""

    name: str
    settings: dict[str, str]
    samples: int
    lengths: Lengths = SOME

    def run(self) -> RunSpec:
        run: RunSpec = parse(RunSpec, merged(RunSpec, list(self.settings.items())), self.name)
        return run


CASES = (
    Case("ViT and text on emoji (emoji_vit)", {"config": "configs/runs/emoji_vit.yaml"}, 128),
    Case(
        "CLIP with sounds and captions on emoji (emoji_quickstart)",
        {"config": "configs/runs/emoji_quickstart.yaml", "trainer.precision": "32-true"},
        64,
    ),
    Case("AST on spoken digits (fsdd_ast)", {"config": "configs/runs/fsdd_ast.yaml"}, 64),
    Case(
        "ViT-B/16, 4 layers, 224 px",
        NOWHERE
        | {
            "model": "configs/models/vit.yaml",
            "model.stacks.image.depth": "4",
            "objectives": "{classes: {class_path: ClassificationSpec, init_args: {head: classes}}}",
            "data.image": PICTURES,
            "data.labels": "{classes: {classes: none.txt, member: cls}}",
        },
        8,
    ),
    Case(
        "CLIP B/32, 2 + 2 layers, 224 px, 77 tokens",
        NOWHERE
        | {
            "model": "configs/models/clip.yaml",
            "model.stacks.image.depth": "2",
            "model.stacks.text.depth": "2",
            "objectives": "{contrastive: {class_path: ContrastiveSpec}}",
            "data.image": PICTURES,
            "data.text": LANGUAGE,
        },
        8,
        Lengths(),
    ),
    Case(
        "CoCa B/32, 1 + 36 layers",
        NOWHERE
        | {
            "model": "configs/models/coca.yaml",
            "model.stacks.image.depth": "1",
            "objectives": "{contrastive: {class_path: ContrastiveSpec}, caption: {class_path: CaptioningSpec}}",
            "data.image": PICTURES,
            "data.text": LANGUAGE,
        },
        8,
    ),
    Case(
        "GPT-2, 2 layers, 256 tokens",
        NOWHERE
        | {
            "model": "configs/models/gpt2.yaml",
            "model.stacks.text.depth": "2",
            "objectives": "{text: {class_path: CaptioningSpec, init_args: {decoder: text}}}",
            "data.text": LANGUAGE,
        },
        2,
        Lengths((256,)),
    ),
    Case(
        "T5-base, 1 + 1 layers",
        NOWHERE
        | {
            "model": "configs/models/t5.yaml",
            "model.stacks.reader.depth": "1",
            "model.stacks.writer.depth": "1",
            "objectives": "{target: {class_path: CaptioningSpec, init_args: {decoder: target}}}",
            "data.text": LANGUAGE,
            "data.target": LANGUAGE,
        },
        8,
        Lengths((40, 60, 96), (30, 50, 80)),
    ),
    Case("experts on emoji (emoji_experts)", {"config": "configs/runs/emoji_experts.yaml"}, 128),
)


class Numbers(NamedTuple):
    """Of one update."""

    peak: float  # bytes
    flops: float


def planned(case: Case) -> Numbers:
    """As ``mmformer plan`` has it, for this CPU."""
    cost = PlannedRun(case.run(), case.lengths, accelerator=False).cost(case.samples)
    return Numbers(cost.peak, cost.flops)


def measured(case: Case) -> Numbers:
    """On real tensors, of the source that the peak is highest of."""
    run = case.run()
    model = run.model.build()
    model.initialise(run.seed)
    optimizer = run.optimizer.build(model)
    objectives = {name: spec.build() for name, spec in run.objectives.items()}
    kinds = {source.kind: source for source in reversed(run.data.each())}.values()
    found = []
    for source in kinds:
        batch = stand_in(run, source, case.samples, case.lengths, _noise)

        def update(batch: Batch = batch) -> None:
            with in_precision(run, "cpu"):
                add_gradient(run, model, objectives, batch, lambda loss: loss.backward())  # type: ignore[no-untyped-call]
            clip_gradients(model.parameters(), run.trainer.gradient_clip_val)
            optimizer.step()
            optimizer.zero_grad()

        update()
        gc.collect()
        state = [value for kept in optimizer.state.values() for value in kept.values()]
        held = [*model.parameters(), *model.buffers(), *state, *tree_leaves(batch)]
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
            update()
        with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
            update()
        before = sum(value.numel() * value.element_size() for value in held if isinstance(value, Tensor))
        found.append(Numbers(before + _most(record), counter.get_total_flops()))
    return max(found)


def _noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randint(0, 256, shape, dtype=dtype) if dtype == torch.uint8 else torch.randn(shape, dtype=dtype) / 9


def _most(record: profile) -> int:
    """Bytes at most that were handed out at once since the record began."""
    assert record.profiler is not None and record.profiler.kineto_results is not None
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    now, most = 0, 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()  # type: ignore[attr-defined]
        most = max(most, now)
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT")
    only = parser.parse_args().only
    torch.manual_seed(0)
    lines = [
        "# Plans and what they tell",
        "",
        f"`python -m benchmarks.plan`. {describe()}; {torch.get_num_threads()} threads. One update, clipping and "
        "optimizer with it. Planning allocates nothing.",
        "",
        "| run | samples | peak, MiB: planned | measured | ratio | GFLOP: planned | measured | ratio | to plan, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        if only not in case.name:
            continue
        began = time.perf_counter()
        plan = planned(case)
        took = time.perf_counter() - began
        real = measured(case)
        lines.append(
            f"| {case.name} | {case.samples} | {plan.peak / 2**20:.1f} | {real.peak / 2**20:.1f} | "
            f"**{plan.peak / real.peak:.3f}** | {plan.flops / 1e9:.2f} | {real.flops / 1e9:.2f} | "
            f"**{plan.flops / real.flops:.3f}** | {took:.1f} |"
        )
        print(lines[-1], flush=True)
    if not only:
        RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
