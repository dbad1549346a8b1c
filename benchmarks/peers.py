"""Parts against those of others, and against what they are to replace: one process, one machine, one run.

    python -m benchmarks.peers [--only block window mamba experts checkpointing reversible]

Where a peer computes the same, weights are copied and outputs are compared first; then both run in the order A B B A,
nine times after a warm-up, forward and backward, 2 threads, float32: medians and their ratio with its spread. Memory is
by how much a pass raises the peak of a fresh process. Writes ``benchmarks/results/peers.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.attention import compare
from benchmarks.growth import THREADS, one_pass
from benchmarks.machine import describe
from benchmarks.memory import peak, resident
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.feedforward import FeedForwardSpec, GELUFeedForwardSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.mamba import MambaSpec
from mmformer.nn.moe import MixtureOfExpertsSpec
from mmformer.nn.norm import LayerNormSpec
from mmformer.nn.pattern import WindowSpec
from mmformer.nn.router import TokenChoiceSpec
from mmformer.nn.stack import Stack, StackSpec
from mmformer.types import Tokens

RESULT = Path("benchmarks/results/peers.md")
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""glibc gives back what was freed, so that a peak is what is in use, not what is held for later."""


def stack_of(layer: LayerSpec, width: int, depth: int = 1, reversible: bool = False) -> Stack:
    return StackSpec(width, depth, layer, final_norm=False, reversible=reversible).build()


def first_of(stack: Stack) -> Any:
    """Its first layer, whose parts are known to the caller."""
    return stack.layers[0]


def tokens_of(x: Tensor) -> Tokens:
    pos = torch.zeros(*x.shape[:2], 3, dtype=torch.int64)
    pos[..., 0] = torch.arange(x.shape[1])
    return Tokens(x, pos)


def row(what: str, ours: Callable[[Tensor], Tensor], peer: Callable[[Tensor], Tensor], shape: tuple[int, ...],
        equal: float | None, bound: str) -> str:  # fmt: skip
    """A line of the table; ``equal``: by how much outputs may differ, None where weights are not copied."""
    x = torch.randn(shape, requires_grad=True)
    if equal is not None:
        with torch.no_grad():
            torch.testing.assert_close(ours(x), peer(x), atol=equal, rtol=equal)

    def run(module: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        return lambda: torch.autograd.backward(module(x).square().mean())

    about = "weights copied, outputs equal" if equal is not None else "same sizes"
    return timed(what, shape, run(ours), run(peer), bound, about)


def timed(what: str, shape: tuple[int, ...], ours: Callable[[], None], peer: Callable[[], None], bound: str,
          about: str) -> str:  # fmt: skip
    """A line of the table."""
    mine, other = compare(ours, peer, repeats=9)
    ratios = sorted(a / b for a, b in zip(mine, other, strict=True))
    return (
        f"| {what} | {' × '.join(map(str, shape))} | {statistics.median(mine):.1f} | {statistics.median(other):.1f} "
        f"| **{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {bound} | {about} |"
    )


def block() -> Iterator[str]:
    """A whole pre-norm block against timm's and x-transformers'."""
    from timm.models.vision_transformer import Block

    layer_norm: Any = partial(nn.LayerNorm, eps=1e-6)
    for width, heads, shape in ((256, 8, (8, 256, 256)), (384, 6, (16, 197, 384)), (256, 8, (1, 2048, 256))):
        layer = LayerSpec(AttentionSpec(heads), GELUFeedForwardSpec(), norm=LayerNormSpec(eps=1e-6))
        ours = stack_of(layer, width)
        theirs = Block(width, heads, qkv_bias=True, norm_layer=layer_norm)
        ours_of = dict(ours.named_parameters())
        names = {
            "norm1": "mixer_residual.norm",
            "attn.qkv": "mixer.qkv",
            "attn.proj": "mixer.out",
            "norm2": "feedforward_residual.norm",
            "mlp.fc1": "feedforward.up",
            "mlp.fc2": "feedforward.down",
        }
        for name, value in theirs.named_parameters():
            part, _, kind = name.rpartition(".")
            ours_of[f"layers.0.{names[part]}.{kind}"].data.copy_(value)

        def mine(x: Tensor, ours: Stack = ours) -> Tensor:
            y: Tensor = ours(tokens_of(x)).tokens.x
            return y

        yield row(f"block, {heads} heads / timm {version('timm')}", mine, theirs, shape, 1e-5, "≤ 1.0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            from x_transformers import Encoder  # type: ignore[import-untyped]
        sizes = {"dim": width, "depth": 1, "heads": heads, "attn_dim_head": width // heads}
        other = Encoder(**sizes, attn_flash=True, pre_norm_has_final_norm=False)
        bare = stack_of(LayerSpec(AttentionSpec(heads, bias=False), GELUFeedForwardSpec()), width)

        def mine_bare(x: Tensor, ours: Stack = bare) -> Tensor:
            y: Tensor = ours(tokens_of(x)).tokens.x
            return y

        what = f"block, {heads} heads / x-transformers {version('x-transformers')}"
        yield row(what, mine_bare, other, shape, None, "≤ 1.0")


def window() -> Iterator[str]:
    """±256 keys against Longformer's, which has no projection out of it."""
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    for length in (4096, 8192):
        config = LongformerConfig(
            hidden_size=256, num_attention_heads=8, attention_window=[512], attention_probs_dropout_prob=0.0
        )
        theirs: nn.Module = LongformerSelfAttention(config, 0)  # type: ignore[no-untyped-call]
        ours = stack_of(LayerSpec(AttentionSpec(8, pattern=WindowSpec(256, 256)), None, norm=LayerNormSpec()), 256)
        own = first_of(ours)
        own.mixer_residual.norm = nn.Identity()
        with torch.no_grad():
            for kind in ("weight", "bias"):
                parts = [getattr(getattr(theirs, name), kind) for name in ("query", "key", "value")]
                getattr(own.mixer.qkv, kind).copy_(torch.cat(parts))
            own.mixer.out.weight.copy_(torch.eye(256))
            own.mixer.out.bias.zero_()
        seen = torch.zeros(1, length)

        def mine(x: Tensor, ours: Stack = ours) -> Tensor:
            y: Tensor = ours(tokens_of(x)).tokens.x - x  # without the residual sum
            return y

        def peer(x: Tensor, theirs: nn.Module = theirs, seen: Tensor = seen) -> Tensor:
            no = seen < 0
            y: Tensor = theirs(x, attention_mask=seen, is_index_masked=no, is_index_global_attn=no)[0]
            return y

        what = f"window ±256 / Longformer, transformers {version('transformers')}"
        yield row(what, mine, peer, (1, length, 256), 1e-4, "≤ 0.5")


def mamba() -> Iterator[str]:
    """Against the path of transformers that is PyTorch alone, as ours is."""
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    for shape in ((1, 512, 256), (4, 128, 256)):
        theirs = MambaMixer(MambaConfig(hidden_size=256, state_size=16, expand=2, use_mambapy=False), 0)
        mixer = MambaSpec().build(256)
        inner: Any = mixer.forwards
        with torch.no_grad():
            copied: Any = (
                (mixer.enter.weight, theirs.in_proj.weight),
                (mixer.out.weight, theirs.out_proj.weight),
                (inner.kernel, theirs.conv1d.weight[:, 0].T),
                (inner.kernel_bias, theirs.conv1d.bias),
                (inner.select.weight, theirs.x_proj.weight),
                (inner.step, theirs.dt_proj.weight),
                (inner.step_bias, theirs.dt_proj.bias),
                (inner.log_decay, theirs.A_log),
                (inner.skip, theirs.D),
            )
            for mine_, value in copied:
                mine_.copy_(value)
        ours = stack_of(LayerSpec(MambaSpec(), None), 256)
        own = first_of(ours)
        own.mixer_residual.norm, own.mixer = nn.Identity(), mixer

        def mine(x: Tensor, ours: Stack = ours) -> Tensor:
            y: Tensor = ours(tokens_of(x), causal=True).tokens.x - x
            return y

        what = f"Mamba / transformers {version('transformers')}, pure PyTorch"
        yield row(what, mine, theirs, shape, 1e-4, "≤ 0.33")


def experts() -> Iterator[str]:
    """A step of training (AdamW) with 8 experts against the dense stack of the same width."""
    shape = (8, 512, 256)
    choices: dict[str, tuple[TokenChoiceSpec, str]] = {
        "8 experts, top 1": (TokenChoiceSpec(top=1, renormalise=False, capacity=1.25), "≤ 1.5"),
        "8 experts, top 2": (TokenChoiceSpec(top=2), "≤ 2.2"),
    }

    def step(feedforward: FeedForwardSpec) -> tuple[Callable[[], None], int]:
        stack = stack_of(LayerSpec(AttentionSpec(8), feedforward), 256, 4)
        optimizer = torch.optim.AdamW(stack.parameters(), fused=True)
        x = torch.randn(shape)

        def run() -> None:
            output = stack(tokens_of(x))
            loss = output.tokens.x.square().mean()
            for name, term in output.aux.items():
                if name in ("balance", "router_z"):
                    loss = loss + 0.01 * term.total / term.items
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()

        return run, sum(p.numel() for p in first_of(stack).feedforward.parameters())

    for what, (router, bound) in choices.items():
        (ours, many), (dense, few) = step(MixtureOfExpertsSpec(8, router=router)), step(GELUFeedForwardSpec())
        about = f"{many / few:.1f} × the parameters of the feed-forward"
        yield timed(f"{what} / dense, a step with AdamW, 4 layers", shape, ours, dense, bound, about)


def checkpointing() -> Iterator[str]:
    """Depth 24: what is kept for the gradient, and the time."""
    kept = {"nothing": "all of a layer", "attention": "all but softmax attention", "products": "all but products"}
    again = [(f"{what} computed again", how) for how, what in kept.items()]
    yield from _memory("checkpointing", [("nothing computed again", "none"), *again])


def reversible() -> Iterator[str]:
    """What is kept for the gradient at several depths; a reversible stack's backward holds the gradients of all layers
    at once, 3 MiB each here, and nothing else that grows."""
    kinds = [(kind, depth) for kind in ("residual", "reversible") for depth in (6, 12, 24)]
    yield from _memory("reversible", [(f"{kind}, depth {depth}", f"{kind} {depth}") for kind, depth in kinds])


def _memory(kind: str, points: list[tuple[str, str]]) -> Iterator[str]:
    least: list[float] | None = None
    for what, how in points:
        command = [sys.executable, "-m", "benchmarks.peers", "--point", f"{kind} {how}"]
        told = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **RETURNED})
        seconds, mebibytes = json.loads(told.stdout)
        least = least or [seconds, mebibytes]
        yield (
            f"| {what} | {mebibytes:.0f} | {least[1] / mebibytes:.2f} | {seconds * 1e3:.0f} "
            f"| {seconds / least[0]:.2f} |"
        )


def _point(words: list[str]) -> tuple[float, float]:
    """Seconds and MiB of a pass, in this process."""
    torch.manual_seed(0)
    kind, how = words[0], words[1]
    layer = LayerSpec(AttentionSpec(8), GELUFeedForwardSpec())
    stack = stack_of(layer, 256, 24 if kind == "checkpointing" else int(words[2]), how == "reversible")
    if kind == "checkpointing" and how != "none":
        from mmformer.parallel.checkpointing import ActivationCheckpointingSpec, checkpoint_stack

        checkpoint_stack(stack, ActivationCheckpointingSpec(keep=how))  # type: ignore[arg-type]

    def run(x: Tensor) -> Tensor:
        y: Tensor = stack(tokens_of(x.expand(4, -1, -1))).tokens.x
        return y

    one_pass(run, 16)
    before = resident()
    times = [one_pass(run, 512) for _ in range(3)]
    return statistics.median(times), (peak() - before) / 2**20


SPEED = (block, window, mamba, experts)
MEMORY = (checkpointing, reversible)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [each.__name__ for each in (*SPEED, *MEMORY)]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--point", help="measure one, in this process")
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    if args.point:
        print(json.dumps(_point(args.point.split())))
        return
    lines = [
        "# Parts against their peers",
        "",
        f"`python -m benchmarks.peers`. {describe()}; {THREADS} threads.",
        "",
        "| ours / theirs | shape | ours, ms | theirs, ms | ratio (least to most) | bound | |",
        "|---|---|---|---|---|---|---|",
    ]
    for part in SPEED:
        if part.__name__ in args.only:
            lines += _told(part())
    for part in MEMORY:
        if part.__name__ in args.only:
            about = " ".join((part.__doc__ or "").split())
            setting = "Width 256, 4 rows of 512 tokens; glibc gives back what was freed."
            lines += ["", f"## {part.__name__.capitalize()}", "", f"{about} {setting}", ""]
            lines += ["| | MiB of a pass | times less | ms | × time |", "|---|---|---|---|---|", *_told(part())]
    if args.only == names:
        RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def _told(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        print(line, file=sys.stderr, flush=True)
        yield line


if __name__ == "__main__":
    main()
