"""A run's plan: what it costs on some devices, however it is spread over them."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from mmformer.errors import InputError
from mmformer.parallel.mesh import DIMENSIONS, HOLDING, ParallelSpec
from mmformer.scaling.cost import MARGIN, MFU, Memory, memory, seconds
from mmformer.scaling.devices import Devices
from mmformer.scaling.mixers import Fit, fits
from mmformer.training.planned import Cache, PlannedRun
from mmformer.training.run import RunSpec
from mmformer.training.stand_in import Lengths

LARGEST = 16_384
"""Samples of one device at most that a plan looks at."""

NEAR = 0.97
"""The share of what there is that has to be filled for a batch to be the largest."""


class Layout(NamedTuple):
    """A way to spread a run over all devices."""

    sizes: dict[str, int]  # of the mesh's dimensions that have more than one process
    samples: int  # of each device, or of each group of them that computes the same samples
    memory: Memory  # of each device
    fits: bool
    largest: int  # samples of an update at most, in all; about; at LARGEST a device, there may be more


class Plan(NamedTuple):
    """What a run costs."""

    devices: Devices
    precision: str
    mfu: float
    batch: int
    steps: int
    parameters: int
    trained: int
    forward: float  # FLOPs of an update, on all devices
    backward: float
    attention: float  # the share of both that are products between tokens
    lengths: dict[str, int]  # stack -> tokens of a row
    caches: dict[str, Cache]  # by decoder
    layouts: list[Layout]
    mixers: dict[str, list[Fit]]  # by stack

    @property
    def seconds(self) -> float:
        """Of an update."""
        return seconds(self.forward + self.backward, self.devices, self.precision, self.mfu)


def plan(
    run: RunSpec, devices: Devices, lengths: Lengths = Lengths(), mfu: float = MFU, row: int | None = None
) -> Plan:
    """What a run costs. Nothing is read but vocabularies, and nothing is allocated.

    Args:
        lengths: of texts and sounds; what is not said is the longest that the run's configuration lets in.
        mfu: the share of the devices' peak that training is to reach.
        row: tokens of a row that mixers are compared at; None: they are not compared.

    Raises:
        InputError: what the model does depends on values, or the run's own layout is of other devices.
    """
    if not 0 < mfu <= 1:
        raise InputError(f"mfu is the share of the devices' peak that is reached: above 0 and at most 1, not {mfu:g}.")
    planned = PlannedRun(run, lengths)
    layouts: list[Layout] = []
    for spec in _layouts(run, devices.number):
        # Processes that share out products say much to each other: only where it is asked for, or nothing else fits.
        if spec.tensor == 1:
            layouts.append(_layout(planned, spec, devices))
        elif spec == run.parallel or not any(layout.fits for layout in layouts):
            layouts.append(_layout(PlannedRun(run, lengths, spec.tensor), spec, devices))
    alone = planned.cost(min(layout.samples for layout in layouts))
    scale = run.data.batch_size / alone.samples
    room = devices.device.memory * MARGIN - sum(alone.sizes[:3])
    model = planned.model
    return Plan(
        devices,
        run.trainer.precision,
        mfu,
        run.data.batch_size,
        run.trainer.max_steps,
        sum(parameter.numel() for parameter in model.parameters()),
        sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        alone.forward * scale,
        alone.backward * scale,
        alone.attention / max(1, alone.flops),
        planned.rows,
        planned.caches(),
        layouts,
        {} if row is None else _mixers(run, planned, row, room),
    )


def _mixers(run: RunSpec, planned: PlannedRun, row: int, room: float) -> dict[str, list[Fit]]:
    bfloat16 = run.trainer.precision == "bf16-mixed"
    return {name: fits(run.model.stacks[name], row, name in planned.causal, bfloat16, room) for name in planned.rows}


def _layouts(run: RunSpec, devices: int) -> list[ParallelSpec]:
    """Ways to spread a run: its own where it is of so many devices, and the usual ones."""
    found = [run.parallel] if run.parallel.processes == devices else []
    sizes = [(devices, 1, 1), (1, devices, 1)]
    sizes += [(devices // 8, 8, 1)] if devices > 8 and devices % 8 == 0 else []
    for tensor in (8, 4, 2):
        if devices % tensor == 0 and _divides(run, tensor):
            sizes.append((1, devices // tensor, tensor))
            break
    for data, shard, tensor in sizes:
        spec = ParallelSpec(data=data, shard=shard, tensor=tensor)
        fits_batch = spec.readers <= run.data.batch_size
        if fits_batch and not any(spec.sizes == other.sizes for other in found):
            found.append(dataclasses.replace(spec, activation_checkpointing=run.parallel.activation_checkpointing))
    if not found:
        raise InputError(
            f"data.batch_size is {run.data.batch_size}, which is less than a sample for each of {devices} devices: "
            f"plan for fewer, or for a larger batch."
        )
    return found


def _divides(run: RunSpec, tensor: int) -> bool:
    try:
        ParallelSpec(tensor=tensor).check(run.model, tensor, 1, tensor)
    except InputError:
        return False
    return not run.adapters


def _layout(planned: PlannedRun, spec: ParallelSpec, devices: Devices) -> Layout:
    room, parts = devices.device.memory * MARGIN, planned.run.trainer.accumulate_grad_batches
    samples = max(1, planned.run.data.batch_size // spec.readers // parts) * parts
    holders = math.prod(getattr(spec, name) for name in HOLDING)
    held = memory(planned.cost(samples), holders)
    largest = _largest(planned, samples, holders, room)
    sizes = {name: size for name, size in zip(DIMENSIONS, spec.sizes, strict=True) if size > 1}
    return Layout(sizes, samples, held, held.most <= room, largest * spec.readers)


def _largest(planned: PlannedRun, samples: int, holders: int, room: float) -> int:
    """Samples of one device at most, as lines tell through two numbers of them, nearer and nearer to the end.

    Args:
        samples: a number of them, of which the cost is known.
    """

    def most(number: int) -> float:
        return memory(planned.cost(number), holders).most

    parts = planned.run.trainer.accumulate_grad_batches
    first, second = parts, max(2 * parts, samples)
    if most(first) > room:
        return 0
    guess = first
    for _ in range(4):
        each = max(1.0, (most(second) - most(first)) / (second - first))
        guess = max(parts, int(first + (room - most(first)) / each) // parts * parts)
        if guess >= LARGEST or guess in (first, second) or NEAR * room <= most(guess) <= room:
            break
        first, second = second, guess
    return min(guess, LARGEST)
