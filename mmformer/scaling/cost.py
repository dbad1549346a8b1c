"""What one update costs, and what each device holds of it by layout."""

from __future__ import annotations

from typing import NamedTuple

from mmformer.scaling.devices import Devices
from mmformer.scaling.meter import Meter

MARGIN = 0.9
"""The share of a device's memory that a plan fills: its driver, communication and gaps between blocks have the rest."""

MFU = 0.4
"""Model FLOPs utilisation where nothing is said: the share of a device's peak that training reaches (Chowdhery et al.
2022, §4.1). 0.3 to 0.5 is what large Transformers are reported to train at."""


class Sizes(NamedTuple):
    """What a model holds before an update, in bytes."""

    parameters: int  # and buffers
    gradients: int
    optimizer: int  # its state, and averages of the weights
    layer: int  # parameters of the largest layer
    rest: int  # parameters that are in no layer


class UpdateCost(NamedTuple):
    """What one device does in one update, counted by a Meter."""

    samples: int
    forward: int  # FLOPs
    backward: int  # FLOPs, those of computing activations again among them
    attention: int  # FLOPs of the two that are products between tokens
    updating: int  # bytes that clipping and the optimizer take for a moment, beside the sizes
    sizes: Sizes
    meter: Meter  # of forward and backward pass

    @property
    def flops(self) -> int:
        return self.forward + self.backward

    @property
    def peak(self) -> int:
        """Bytes at most on one device alone."""
        sizes = self.sizes
        after = sizes.parameters + sizes.optimizer + sizes.gradients + self.updating
        return max(self.meter.peak(), after)


class Memory(NamedTuple):
    """What a device holds, in bytes: the most of each, and of all of them at one time."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float  # and whatever else comes and goes in a forward and a backward pass
    gathered: float  # parameters and gradients of others that it has for a moment
    most: float  # less than the sum: gradients come while activations go


def memory(cost: UpdateCost, holders: int = 1) -> Memory:
    """What a device holds.

    Args:
        cost: of its own part of the batch.
        holders: devices that share out parameters, gradients and the optimizer's state (FSDP2). Each gathers a layer
            while the one before it runs, has that layer's gradients in whole for a moment, and what is in no layer all
            the time.
    """
    sizes, share = cost.sizes, 1 / holders
    before = sizes.parameters + sizes.optimizer
    gathered = (1 - share) * (3 * sizes.layer + 2 * sizes.rest)
    passing = cost.meter.peak(share) - before
    most = share * before + max(passing + gathered, share * (sizes.gradients + cost.updating))
    held = (share * sizes.parameters, share * sizes.gradients, share * sizes.optimizer)
    return Memory(*held, cost.meter.peak(0.0) - before, gathered, most)


def seconds(flops: float, devices: Devices, precision: str, mfu: float) -> float:
    """How long so many FLOPs take."""
    return flops / (devices.number * devices.device.peak(precision) * mfu)
