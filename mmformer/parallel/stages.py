"""Which stage of a pipeline has what of a model, told from its spec: before anything is built or started."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

from mmformer.errors import InputError
from mmformer.models.model import ModelSpec
from mmformer.nn.moe import MixtureOfExpertsSpec


def spans(depth: int, stages: int) -> list[range]:
    """The layers of each stage: as many in each, or one more in the first ones, for the last one makes logits too."""
    each, more = divmod(depth, stages)
    ends = [each * stage + min(stage, more) for stage in range(stages + 1)]
    return [range(first, last) for first, last in pairwise(ends)]


def holders(spec: ModelSpec, names: Iterable[str], stages: int) -> dict[str, tuple[int, ...]]:
    """The stages that have each parameter and buffer, by name; the first of them is the one that counts it.

    Args:
        spec: of a model that ``check_pipeline`` accepts.
    """
    (decoder,), (stack,) = spec.decoders.values(), spec.stacks.values()
    every, last = tuple(range(stages)), stages - 1
    first_and_last = (0, last) if decoder.tied else (0,)
    owners = [stage for stage, span in enumerate(spans(stack.depth, stages)) for _ in span]
    places = {
        r"stacks\.\w+\.position\.": every if stack.position.needs else (0,),  # what all layers ask, or embeds alone
        r"stacks\.\w+\.input_norm\.": (0,),
        r"decoders\.\w+\.tokenizer\.weight$": first_and_last,
        r"decoders\.\w+\.tokenizer\.": (0,),
    }
    found = {}
    for name in names:
        layer = re.match(r"stacks\.\w+\.layers\.(\d+)\.", name)
        own = next((held for pattern, held in places.items() if re.match(pattern, name)), (last,))
        found[name] = (owners[int(layer[1])],) if layer else own
    return found


def check_pipeline(model: ModelSpec, stages: int, parts: int) -> None:
    """Refuse a model that cannot be cut into so many stages, or micro-batches that would leave stages idle.

    Raises:
        InputError: why, and the fix.
    """
    told = f"parallel.pipeline is {stages}"
    instead = "set it to 1, and parallel.shard in its place."
    other = [f"model.{kind}.{name}" for kind in ("encoders", "heads") for name in getattr(model, kind)]
    reading = [f"model.decoders.{name}.reads" for name, decoder in model.decoders.items() if decoder.reads]
    if other or reading or len(model.decoders) > 1:
        found = (other or reading or [f"model.decoders.{name}" for name in list(model.decoders)[1:]])[0]
        raise InputError(
            f"{told}, but the model has {found}: stages are cut of a language model, one decoder that reads nothing, "
            f"whose tokens alone go from layer to layer. For this one, {instead}"
        )
    ((name, decoder),), ((stacked, stack),) = model.decoders.items(), model.stacks.items()
    where = f"model.stacks.{stacked}"
    if decoder.packed:
        raise InputError(
            f"{told}, but model.decoders.{name}.packed has texts share rows, so that micro-batches differ in shape, "
            f"and stages hand on tensors of one shape: set packed to false, or, for this model, {instead}"
        )
    layers = {"sharing": stack.sharing, "halting": stack.halting, "reversible": stack.reversible or None}
    why = {
        "sharing": "has layers applied in several places, which stages would have several times",
        "halting": "ends where all tokens have halted, which a stage does not know of the others",
        "reversible": "has layers over two streams, and stages hand on one",
    }
    for field in [field for field, value in layers.items() if value is not None]:
        raise InputError(f"{told}, but {where}.{field} {why[field]}: leave it out, or, for this model, {instead}")
    if any(isinstance(layer.feedforward, MixtureOfExpertsSpec) for layer in stack.layers):
        raise InputError(
            f"{told}, but {where} has layers with experts, which ask for losses of their own, and only the last stage "
            f"has a loss: for this model, {instead}"
        )
    if stack.depth < stages:
        raise InputError(
            f"{told}, but {where}.depth is {stack.depth}: each stage has one layer at least. Set parallel.pipeline to "
            f"{stack.depth} at most."
        )
    if parts < stages:
        raise InputError(
            f"{told}, but trainer.accumulate_grad_batches is {parts}: a stage works on one micro-batch while the "
            f"others work on the next ones, so that {stages} stages need {stages} at least (of the time, "
            f"(stages - 1) / (micro-batches + stages - 1) is spent waiting: {4 * stages} are better)."
        )
