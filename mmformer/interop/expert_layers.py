"""Experts in a model's layers: their parameters, and, where some layers have none, what a config says of both kinds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mmformer.interop import plain
from mmformer.interop.family import template_data
from mmformer.interop.fields import ACTIVATIONS, Field, choice, read_config, write_config
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, joined
from mmformer.interop.rules import same as named

_FEEDFORWARD, _EXPERT = "layer.feedforward", "layer.feedforward.expert"


def rules(ours: str, router: str, up: Sequence[str], down: Sequence[str], width: int, hidden: int) -> list[Rule]:
    """A mixture's. Theirs has matrices for each expert, ``up`` and ``down``, and ours has them as one."""
    return [
        named(f"{ours}.router.weight", router),
        joined(f"{ours}.experts.up.weight", up, shape=(hidden, width)),
        joined(f"{ours}.experts.down.weight", down, shape=(width, hidden)),
    ]


def step(depth: str, sparse: str) -> Callable[[Data], int]:
    """The step of a config that has none: of its keys for how many layers there are, and how many have experts."""
    return lambda config: config[depth] // (config[sparse] or 1)


def stepped(
    numbers: tuple[str, str, str],
    activation: str,
    layer: Callable[[str], Sequence[Field]],
    experts: Sequence[Field],
    template: str,
    stack: str,
) -> Field:
    """A stack's layers: of ``step``, the second has experts, and where that is 1, all have.

    Args:
        numbers: the keys of how many layers there are, of the step, and of how many have experts.
        activation: the key of that of the feed-forwards, with experts or without.
        layer: what a config says of a layer whose feed-forward stands at a path: a table of paths that begin with
            ``layer``, as where all layers of a stack are alike.
        experts: what it says besides of one that has them.
        template: the file under configs/models/ that has, in its pattern, a layer without, and then one with.
        stack: the path of the stack.
    """
    dense = (*layer(_FEEDFORWARD), choice(activation, ACTIVATIONS, _FEEDFORWARD))
    sparse = (*layer(_EXPERT), choice(activation, ACTIVATIONS, _EXPERT), *experts)
    keys = list(dict.fromkeys(key for field in sparse for key in field.keys))

    def read(depth: int, step: int, _: int, *found: Any) -> Sequence[Any]:
        said = dict(zip(keys, found, strict=True))
        if not 1 <= step <= depth or said[activation] not in ACTIVATIONS:
            raise ValueError(f"a step of 1 to all layers, and an activation of {', '.join(ACTIVATIONS)}")
        kinds = zip(plain.get(template_data(template), f"{stack}.pattern"), (dense, sparse), strict=True)
        without, having = (read_config(said, {"layer": kind}, table, template)["layer"] for kind, table in kinds)
        return [depth, [having if step == 1 or place == 1 else without for place in range(step)]]

    def write(depth: int, pattern: Sequence[Data]) -> Sequence[Any]:
        try:
            said = write_config({"layer": pattern[min(1, len(pattern) - 1)]}, sparse, template)
        except (KeyError, IndexError, ValueError):
            raise ValueError("layers of which the second has experts, each token one") from None
        return [depth, len(pattern), depth // len(pattern), *(said[key] for key in keys)]

    return Field((*numbers, *keys), (f"{stack}.depth", f"{stack}.pattern"), read, write)
