"""What a GPU reaches: training beside timm and open_clip, the loader, attention, decoding, and a loss's memory.

    python -m benchmarks.gpu [--only training loading attention decoding loss] [--batch 256]

On one device, in bfloat16; ``--device cpu --small`` goes through the same code on tiny models, to see that it runs.
Rates of matrix products and of copies are measured first, on this device: shares are of those, not of a data sheet.
Ours compiles each layer, as ``parallel.compile`` does, the peers' models are compiled whole; losses are compared before
anything is timed; then both are timed in the order A B B A. Writes ``benchmarks/results/gpu.md``, but for ``--small``.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.beside import quiet
from benchmarks.device import Device, compared, measured
from benchmarks.loading import BATCH, PICTURES, loading_spec
from benchmarks.machine import describe
from benchmarks.systems.case import Reference, open_clip_model, timm_model, transformers_model
from benchmarks.systems.imported import imported
from mmformer.data.loading import training_loader
from mmformer.generation.decoding import Decoding
from mmformer.generation.sampling import GreedySpec
from mmformer.models.logits import text_of
from mmformer.nn.cross_entropy import linear_cross_entropy
from mmformer.nn.kernel import attend
from mmformer.nn.mask import Mask
from mmformer.nn.pattern import WindowSpec
from mmformer.nn.plan import Plan, make_plan
from mmformer.objectives.classification import ClassificationSpec
from mmformer.objectives.contrastive import ContrastiveSpec
from mmformer.objectives.objective import Objective
from mmformer.parallel.compiling import compile_layers
from mmformer.training.accumulate import accumulate
from mmformer.training.optimizers.adamw import AdamWSpec
from mmformer.types import Batch, Text

RESULT = Path("benchmarks/results/gpu.md")
RATE = 1e-5
WINDOW = 256


# --------------------------------------------------------------------------------------------------------- training


class Trainee(NamedTuple):
    """A model of a library, and how it and ours make an update of a batch."""

    name: str
    reference: Reference
    ours: Callable[[Any, Tensor, Tensor], Callable[[], Tensor]]
    theirs: Callable[[Any, Tensor, Tensor], Callable[[], Tensor]]
    beside: Callable[[int], Tensor]  # what comes with so many pictures
    batch: int


def trainees(device: Device, batch: int) -> Iterator[Trainee]:
    def labels(number: int) -> Tensor:
        return torch.randint(1000, (number,))

    def ids(number: int) -> Tensor:
        made = torch.randint(1, 40000, (number, 77))
        made[:, 0], made[:, -1] = 49406, 49407
        return made

    if device.small:
        tiny = timm_model("vit_tiny_patch16_224", depth=2)
        yield Trainee("ViT-Ti/16, 2 layers", tiny, classified, classified_by_timm, labels, 4)
        return
    for name, model, number in (("ViT-B/16", "base", batch), ("ViT-L/16", "large", batch // 2)):
        depth = 12 if model == "base" else 24
        reference = timm_model(f"vit_{model}_patch16_224", depth=depth)
        yield Trainee(name, reference, classified, classified_by_timm, labels, number)
    yield Trainee("CLIP B/16", open_clip_model("ViT-B-16"), contrasted, contrasted_by_open_clip, ids, batch)


def classified(model: Any, image: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    (head,) = model.heads
    objectives: dict[str, Objective] = {"classes": ClassificationSpec(head=head).build()}
    return partial(_ours, model, objectives, Batch((), {head: labels}, image))


def contrasted(model: Any, image: Tensor, ids: Tensor) -> Callable[[], Tensor]:
    objectives: dict[str, Objective] = {"contrastive": ContrastiveSpec(same_caption_positive=False).build()}
    return partial(_ours, model, objectives, Batch((), {}, image, Text(ids, (ids != 0).sum(1))))


def _ours(model: Any, objectives: dict[str, Objective], batch: Batch) -> Tensor:
    def backward(loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    assert isinstance(batch.image, Tensor)
    with torch.autocast(batch.image.device.type, torch.bfloat16):
        return accumulate(model, objectives, dict.fromkeys(objectives, 1.0), batch, 1, backward)["loss"]


def classified_by_timm(model: Any, image: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    return partial(_theirs, image, lambda: F.cross_entropy(model(image), labels))


def contrasted_by_open_clip(model: Any, image: Tensor, ids: Tensor) -> Callable[[], Tensor]:
    import open_clip

    loss: Any = open_clip.ClipLoss()
    return partial(_theirs, image, lambda: loss(*model(image, ids)[:3]))


def _theirs(image: Tensor, loss_of: Callable[[], Tensor]) -> Tensor:
    with torch.autocast(image.device.type, torch.bfloat16):
        loss = loss_of()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def training(device: Device, batch: int) -> Iterator[str]:
    yield "| model | batch | ours, img/s | MFU | MiB | peer, img/s | MFU | MiB | times as fast | losses differ by |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for trainee in trainees(device, batch):
        theirs, model = imported(trainee.reference)
        model.to(device.name).train()
        theirs.to(device.name).train()
        flops = _flops(trainee, model, device) * trainee.batch
        compile_layers(model)
        image = torch.randn(trainee.batch, 3, 224, 224, device=device.name)
        beside = trainee.beside(trainee.batch).to(device.name)
        ours = trainee.ours(model, image, beside)
        other = trainee.theirs(torch.compile(theirs), image, beside)
        difference = abs(float(ours()) - float(other())) / abs(float(other()))
        if not difference < 2e-2:
            raise SystemExit(f"{trainee.name}: losses differ by {difference:.1e}: they are not timed.")
        updates = [
            _update(ours, AdamWSpec(lr=RATE).build(model)),
            _update(other, torch.optim.AdamW(theirs.parameters(), lr=RATE, fused=True)),
        ]
        for each in (model, theirs):
            each.zero_grad()
        memory = [device.raised(update) for update in updates]
        mine, its = compared(device, *updates)
        shares = [flops / statistics.median(times) / device.products for times in (mine, its)]
        ratio = statistics.median(b / a for a, b in zip(mine, its, strict=True))
        rates = [trainee.batch / statistics.median(times) for times in (mine, its)]
        yield (
            f"| {trainee.name} | {trainee.batch} | {rates[0]:,.0f} | **{shares[0]:.0%}** | {memory[0]:,.0f} "
            f"| {rates[1]:,.0f} | {shares[1]:.0%} | {memory[1]:,.0f} | **{ratio:.2f}** | {difference:.0e} |"
        )


def _flops(trainee: Trainee, model: Any, device: Device) -> float:
    """Of forward and backward, for each sample, before anything is compiled."""
    image, beside = torch.randn(2, 3, 224, 224, device=device.name), trainee.beside(2).to(device.name)
    with FlopCounterMode(display=False) as counter:
        trainee.ours(model, image, beside)()
    model.zero_grad()
    return float(counter.get_total_flops()) / 2


def _update(gradient: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    def update() -> None:
        optimizer.zero_grad()
        gradient()
        optimizer.step()

    return update


# ---------------------------------------------------------------------------------------------- the rest of the path


def loading(device: Device, batch: int) -> Iterator[str]:
    """Updates of ViT-B/16 from JPEG pictures, and of pictures that are there."""
    name = "vit_tiny_patch16_224" if device.small else "vit_base_patch16_224"
    _, model = imported(timm_model(name, depth=2 if device.small else 12))
    model.to(device.name).train()
    compile_layers(model)
    optimizer = AdamWSpec(lr=RATE).build(model)
    labels = torch.randint(1000, (BATCH,), device=device.name)
    steps = 2 if device.small else 4 * PICTURES // BATCH
    workers = 0 if device.small else len(os.sched_getaffinity(0))

    def trained(pictures: Iterator[Tensor]) -> float:
        def pass_over() -> None:
            for image in pictures:
                _update(classified(model, image.to(device.name, non_blocking=True), labels), optimizer)()

        return steps * BATCH / device.seconds(pass_over)

    still = torch.randint(0, 256, (BATCH, 3, 224, 224), dtype=torch.uint8, device=device.name)
    trained(iter([still] * 2))
    synthetic = trained(iter([still] * steps))
    fed = trained(batch.image for batch in training_loader(loading_spec(workers), {}, 0, 0, steps))
    yield f"Updates of {name} in batches of {BATCH}: {synthetic:,.0f} img/s of pictures that are there, {fed:,.0f} "
    yield f"from JPEG shards by {workers} workers, start-up with it: **{fed / synthetic:.0%}** (95 % is the goal)."


def attention(device: Device, batch: int) -> Iterator[str]:
    """The kernels that stacks use, forward and backward: of all pairs, and of a window by blocks (flex on CUDA)."""
    yield "| length | heads × width | all pairs, TFLOP/s | share of the products' rate | window, TFLOP/s | share |"
    yield "|---|---|---|---|---|---|"
    for length in (1024,) if device.small else (256, 1024, 4096, 16_384):
        rows = max(1, 2**16 // length) if not device.small else 1
        q, k, v = (
            torch.randn(rows, 12, length, 64, device=device.name, dtype=torch.bfloat16, requires_grad=True)
            for _ in range(3)
        )
        plan = make_plan(Mask(causal=True, pattern=WindowSpec(WINDOW - 1, 0)), length, q.device, 0.0)

        def passed(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> None:
            torch.autograd.grad(attend(q, k, v, None, False, 0.0).sum(), (q, k, v))

        def windowed(q: Tensor = q, k: Tensor = k, v: Tensor = v, plan: Plan | None = plan) -> None:
            assert plan is not None
            torch.autograd.grad(plan.attend(q, k, v, 0.0).sum(), (q, k, v))

        each = 3.5 * 4 * rows * 12 * 64  # FLOPs of a pair; the backward pass makes the weights again
        rates = [each * length**2 / device.best(passed, 5)]
        rates += [each * _seen(length) / device.best(windowed, 5)] if plan is not None else []
        told = [f"{rate / 1e12:.1f} | {rate / device.products:.0%}" for rate in rates]
        yield f"| {length:,} | 12 × 64 | {' | '.join([*told, '– | –'][:2])} |"
    yield ""
    yield f"The window: {WINDOW} keys up to a query's own; of those pairs alone, FLOPs are counted."


def _seen(length: int) -> int:
    """Pairs in the window."""
    within = min(length, WINDOW)
    return within * (within + 1) // 2 + (length - within) * WINDOW


def decoding(device: Device, batch: int) -> Iterator[str]:
    """A language model's greedy ids, beside transformers with its cache."""
    sizes = {"n_layer": 2, "n_embd": 64, "n_head": 2} if device.small else {"n_layer": 24, "n_embd": 1024, "n_head": 16}
    theirs, model = imported(transformers_model("GPT2", "LMHeadModel", **sizes))
    model.to(device.name, torch.bfloat16)
    theirs.to(device.name, torch.bfloat16)
    (name,) = model.decoders
    held = sum(each.numel() * each.element_size() for each in model.parameters())
    begun, new = (10, 64) if device.small else (16, 128)
    yield "| rows | ours, tokens/s | weights read, of what copies move | transformers, tokens/s | times as fast |"
    yield "|---|---|---|---|---|"
    for rows in (1,) if device.small else (1, 16, 64):
        prompt = torch.randint(5, 1000, (rows, 64), device=device.name)

        def ours(ids: int, prompt: Tensor = prompt, rows: int = rows) -> None:
            spec = GreedySpec(max_length=ids, min_length=ids)
            with torch.inference_mode():
                spec.write(Decoding(model, name, {}, rows=rows), text_of(prompt))

        def theirs_of(ids: int, prompt: Tensor = prompt) -> None:
            length = {"max_new_tokens": ids, "min_new_tokens": ids}
            theirs.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, pad_token_id=0, **length)

        few, all_of_them = (
            [statistics.median(times) for times in compared(device, partial(ours, ids), partial(theirs_of, ids))]
            for ids in (begun, begun + new)
        )
        mine, other = (whole - short for whole, short in zip(all_of_them, few, strict=True))
        share, (one, its) = held * new / mine / device.copies, (rows * new / mine, rows * new / other)
        yield f"| {rows} | {one:,.0f} | {share:.0%} | {its:,.0f} | **{other / mine:.2f}** |"
    yield ""
    yield f"Of {new} ids after the first {begun}, when our steps are recorded; transformers' cache grows. Weights are"
    yield "read once an id (the goal: 65 %)."


def loss(device: Device, batch: int) -> Iterator[str]:
    """A head's cross-entropy in chunks, beside the plain one."""
    tokens, width, pieces = (64, 32, 500) if device.small else (16_384, 1024, 50_257)
    x = torch.randn(tokens, width, device=device.name, dtype=torch.bfloat16, requires_grad=True)
    weight = (torch.randn(pieces, width, device=device.name, dtype=torch.bfloat16) / 20).requires_grad_()
    target = torch.randint(pieces, (tokens,), device=device.name)

    def ours() -> None:
        torch.autograd.grad(linear_cross_entropy(x, weight, target).sum() / tokens, (x, weight))

    def theirs() -> None:
        torch.autograd.grad(F.cross_entropy((x @ weight.T).float(), target), (x, weight))

    mine, its = compared(device, ours, theirs)
    memory = device.raised(ours), device.raised(theirs)
    ratio = statistics.median(mine) / statistics.median(its)
    yield f"{tokens:,} tokens, {width} wide, {pieces:,} pieces: **{ratio:.2f}** of the plain one's time, "
    yield f"{memory[0]:,.0f} MiB in place of {memory[1]:,.0f}."


PARTS: dict[str, tuple[str, Callable[[Device, int], Iterator[str]]]] = {
    "training": ("Training", training),
    "loading": ("From shards", loading),
    "attention": ("Attention, forward and backward", attention),
    "decoding": ("Writing", decoding),
    "loss": ("Head and cross-entropy", loss),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--batch", type=int, default=256, help="of training; half of it for the larger model")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny models, to see that it runs; nothing is written")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no CUDA device; --device cpu --small goes through the code")
    quiet()
    torch.manual_seed(0)
    device = measured(arguments.device, arguments.small)
    what = torch.cuda.get_device_name() if device.name == "cuda" else "CPU"
    lines = ["# On a GPU", "", f"`python -m benchmarks.gpu`. {what}; {describe()}; bfloat16.", ""]
    lines += [f"Matrix products: {device.products / 1e12:.1f} TFLOP/s. Copies: {device.copies / 1e9:.0f} GB/s.", ""]
    for name in arguments.only:
        title, part = PARTS[name]
        lines += [f"## {title}", "", *part(device, arguments.batch), ""]
        print("\n".join(lines[-40:]), flush=True)
    if device.name == "cuda" and not device.small and arguments.only == list(PARTS):
        RESULT.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
