"""Selective state spaces as transformers keeps them, in models of them alone (Mamba) and among other layers (Jamba)."""

from __future__ import annotations

from mmformer.interop.rules import Rule, turned
from mmformer.interop.rules import same as named


def mixer_rules(ours: str, theirs: str, channels: int, kernel: int) -> list[Rule]:
    """The rules of a ``MambaSpec``'s parameters but for those of ``out``, which other mixers have as well."""
    scan = f"{ours}.forwards"
    return [
        named(f"{ours}.enter.{{p}}", f"{theirs}.in_proj.{{p}}"),
        turned(f"{scan}.kernel", f"{theirs}.conv1d.weight", (channels, 1, kernel), (2, 1, 0)),
        named(f"{scan}.kernel_bias", f"{theirs}.conv1d.bias"),
        named(f"{scan}.select.weight", f"{theirs}.x_proj.weight"),
        named(f"{scan}.step", f"{theirs}.dt_proj.weight"),
        named(f"{scan}.step_bias", f"{theirs}.dt_proj.bias"),
        named(f"{scan}.log_decay", f"{theirs}.A_log"),
        named(f"{scan}.skip", f"{theirs}.D"),
    ]


def read_rank(rank: int | str) -> int | None:
    """Of the steps' projection; "auto" leaves it to the width."""
    return None if rank == "auto" else int(rank)
