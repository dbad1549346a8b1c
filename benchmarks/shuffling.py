"""How well the sample order shuffles, against a full shuffle: a part of ``benchmarks.order``.

On 1,024 shards of 1,000 samples in 64 lanes, in batches of 1,024. Numbers are samples, counted through the manifest.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmformer.data.order import OrderSpec

SHARDS, SAMPLES, LANES, BATCH = 1024, 1000, 64, 1024
BLOCKS = (256, 1024, 4096, 8192)
PARTS, CLASSES = 16, 64

TEXT = f"""## Shuffling

{SHARDS:,} shards of {SAMPLES:,} samples in {LANES} lanes, in batches of {BATCH:,}, against a full shuffle of all:

- displacement: how far a sample is from its place in the manifest, as a share of all samples, ± its standard deviation;
- serial: the correlation of the samples' numbers at neighbouring positions;
- neighbours: the share of samples whose successor in the manifest is in the same batch;
- shards: different ones in a batch;
- classes: chi² over its degrees of freedom (1: as good as drawn) of the classes in a batch, where the manifest is
  sorted by {CLASSES} classes and each shard has one alone, the worst that a set can be;
- parts: the same, of where a shard's samples stand in the epoch. A lane reads a shard and is done with it, which is
  what makes reading cheap, so this is meant to be large;
- epochs: the same, of where a sample stands in many epochs;
- again: how many of a batch's pairs are in a batch together in the next epoch, over how many would be by chance;
- opened: how often a lane opens each of its shards in an epoch, where as many may be open as a block touches, and two
  more.

| | displacement | serial | neighbours | shards | classes | parts | again | epochs | opened |
|---|---|---|---|---|---|---|---|---|---|
"""


class Quality(NamedTuple):
    """How well the order of an epoch shuffles."""

    displacement: float  # mean distance of a sample from its place in the manifest, as a share of all
    spread: float  # standard deviation of that
    serial: float  # correlation of the numbers at neighbouring positions
    neighbours: float  # share of the samples whose successor in the manifest is in the same batch
    shards: float  # different shards in a batch
    classes: float  # chi² over its degrees of freedom, of the classes in a batch
    parts: float  # the same, of a shard's samples over parts of the epoch
    again: float  # pairs of a batch that are in one batch again an epoch later, over how many there would be by chance


def measure(first: NDArray[np.int64], second: NDArray[np.int64]) -> Quality:
    """Of two epochs, the numbers in their order."""
    total = len(first)
    position = np.empty(total, np.int64)
    position[first] = np.arange(total)
    batch, later = position // BATCH, np.empty(total, np.int64)
    later[second] = np.arange(total) // BATCH
    moved = np.abs(position - np.arange(total)) / total
    shard = first.reshape(-1, BATCH) // SAMPLES
    different = [len(np.unique(row)) for row in shard]
    by_class = np.stack([np.bincount(row * CLASSES // SHARDS, minlength=CLASSES) for row in shard])
    by_part = np.stack(
        [np.bincount(row * PARTS // total, minlength=PARTS) for row in position.reshape(SHARDS, SAMPLES)]
    )
    together = np.unique(batch * (total // BATCH + 1) + later, return_counts=True)[1].astype(float)
    pairs = total * (BATCH - 1) / 2
    return Quality(
        float(moved.mean()),
        float(moved.std()),
        float(np.corrcoef(first[:-1], first[1:])[0, 1]),
        float((batch[:-1] == batch[1:]).mean()),
        float(np.mean(different)),
        chi2(by_class),
        chi2(by_part),
        float((together * (together - 1) / 2).sum() / pairs * (total / BATCH)),
    )


def chi2(counts: NDArray[np.int64]) -> float:
    """Over all rows, against equal shares, over the degrees of freedom."""
    expected = counts.sum(axis=1, keepdims=True) / counts.shape[1]
    return float(((counts - expected) ** 2 / expected).sum() / (len(counts) * (counts.shape[1] - 1)))


def epochs_of(spec: OrderSpec) -> list[NDArray[np.int64]]:
    """The numbers of two epochs in their order: lanes are of one length, so that epochs end together."""
    order = spec.build([SAMPLES] * SHARDS, seed=0)
    assert len(set(order.lengths)) == 1
    places = (order.locate(position) for position in range(2 * SHARDS * SAMPLES))
    whole = np.fromiter((shard * SAMPLES + row for _, shard, row in places), np.int64, 2 * SHARDS * SAMPLES)
    return np.split(whole, 2)


def over_epochs(block: int, epochs: int = 200) -> float:
    """Chi² over its degrees of freedom, of where in the epoch each sample of a lane stands in many epochs."""
    order = OrderSpec(lanes=LANES, block=block).build([SAMPLES] * SHARDS, seed=0)
    length = order.lengths[0]
    found = np.zeros((length, PARTS), np.int64)
    slots = {shard: slot for slot, shard in enumerate(order.shards[0].tolist())}
    for epoch in range(epochs):
        for turn in range(0, length, 7):  # every seventh: enough to count, and soon done
            _, shard, row = order.locate((epoch * length + turn) * LANES)
            found[slots[shard] * SAMPLES + row, turn * PARTS // length] += 1
    return chi2(found[found.any(axis=1)])


def opened(block: int) -> float:
    """How often a lane opens each shard in an epoch, where as many may be open as a block touches, and two more."""
    order = OrderSpec(lanes=LANES, block=block).build([SAMPLES] * SHARDS, seed=0)
    recent: OrderedDict[int, None] = OrderedDict()
    number = 0
    for turn in range(order.lengths[0]):
        shard = order.locate(turn * LANES).shard
        number += shard not in recent
        recent[shard] = None
        recent.move_to_end(shard)
        if len(recent) > -(-block // SAMPLES) + 3:
            recent.popitem(last=False)
    return number / len(order.shards[0])


def table() -> str:
    """What was measured, with the words that it needs."""
    full = np.random.default_rng(0)
    rows = [
        _row(f"blocks of {block:,}", measure(*epochs_of(OrderSpec(LANES, block))), over_epochs(block), opened(block))
        for block in BLOCKS
    ]
    rows.append(_row("a full shuffle", measure(*(full.permutation(SHARDS * SAMPLES) for _ in range(2)))))
    rows.append(_row("no shuffle", measure(*epochs_of(OrderSpec(LANES, shuffle=False)))))
    return TEXT + "\n".join(rows) + "\n"


def _row(name: str, told: Quality, *further: float) -> str:
    cells = [
        name,
        f"{told.displacement:.4f} ± {told.spread:.4f}",
        f"{told.serial:+.4f}",
        f"{told.neighbours:.4f}",
        f"{told.shards:.0f}",
        f"{told.classes:.2f}",
        f"{told.parts:.2f}",
        f"{told.again:.2f}",
        *(f"{value:.2f}" for value in further),
        *[""] * (2 - len(further)),
    ]
    return f"| {' | '.join(cells)} |"
