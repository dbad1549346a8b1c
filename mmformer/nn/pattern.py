"""Which keys a query may see by where the two stand: the sparse patterns of the literature, and their combinations.

A pattern is structure, as a mask is: ``allows`` is its meaning, for one pair; ``occupied`` says which blocks of pairs
hold any, so that the rest is never computed (``nn/blocked.py``). What a pass allows (causality, padding, segments)
comes on top. Places in a row are counted over the real tokens of a segment: neither padding nor what a row is shared
with changes what a token sees.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmformer.spec import Catalogued, family, require


class Places(NamedTuple):
    """Where tokens stand, in their row and on the coordinate axes: tensors of any one shape."""

    order: Tensor  # int64: how many real tokens of its segment stand before each
    coordinates: tuple[Tensor, ...] | None = None  # int64, of each axis; None: only patterns over the order are asked
    total: Tensor | None = None  # int64: how many real tokens its segment has; None: no pattern over lengths is asked

    def along(self, axis: int) -> Tensor:
        """One coordinate."""
        assert self.coordinates is not None, "a pattern over coordinates was asked without them"
        return self.coordinates[axis]

    @property
    def length(self) -> Tensor:
        """Of the segment that each stands in, in real tokens."""
        assert self.total is not None, "a pattern over lengths was asked without them"
        return self.total

    @property
    def special(self) -> Tensor:
        """Which tokens stand nowhere: ``is_special``, of coordinates that are apart."""
        return self.along(0) < 0


class Span(NamedTuple):
    """The least and the greatest value in each block of a row."""

    least: Tensor  # (B or 1) blocks
    most: Tensor  # (B or 1) blocks

    def meets(self, other: Span, before: int = 0, after: int = 0) -> Tensor:
        """(B or 1) blocks blocks: whether a block of the other's reaches one of these, widened."""
        return (other.most[:, None, :] >= self.least[:, :, None] - before) & (
            other.least[:, None, :] <= self.most[:, :, None] + after
        )


def span(value: Tensor, size: int, real: Tensor | None = None) -> Span:
    """Of the blocks of ``size`` tokens of a row: (B or 1) L; tokens that are not real do not count."""
    far = torch.iinfo(value.dtype).max // 4
    low, high = (value, value) if real is None else (value.masked_fill(~real, far), value.masked_fill(~real, -far))
    missing = -value.shape[1] % size
    least = F.pad(low, (0, missing), value=far).view(len(low), -1, size).amin(-1)
    most = F.pad(high, (0, missing), value=-far).view(len(high), -1, size).amax(-1)
    return Span(least, most)


@family
@dataclass(frozen=True)
class PatternSpec(Catalogued, ABC):
    """A relation between the places of queries and keys."""

    @property
    def over_coordinates(self) -> bool:
        """Whether it asks where tokens stand on the coordinate axes, and not in their row alone."""
        return False

    @property
    def over_lengths(self) -> bool:
        """Whether it asks how long rows are: then later tokens change what earlier ones see, and no pass is causal."""
        return False

    @abstractmethod
    def allows(self, query: Places, key: Places) -> Tensor:
        """Whether queries may see keys: bool, of the shape that places of both broadcast to. Element by element, so
        that a kernel can ask it for one pair.
        """

    @abstractmethod
    def occupied(self, query: Places, key: Places, size: int) -> Tensor:
        """Of whole rows, (B or 1) L: (B or 1), blocks of queries, blocks of keys, bool; False where no pair of them is
        allowed.
        """

    def bias(self, query: Places, key: Places) -> Tensor | None:
        """What is added to the scores of pairs, float32, as ``allows`` has them; None: nothing, to no pair."""
        return None

    def __and__(self, other: PatternSpec) -> AllOfSpec:
        return AllOfSpec((self, other))

    def __or__(self, other: PatternSpec) -> AnyOfSpec:
        return AnyOfSpec((self, other))


@dataclass(frozen=True)
class WindowSpec(PatternSpec):
    """A sliding window round each query (Longformer, Beltagy et al. 2020, §3.1); one-sided with ``after`` 0.

    Attributes:
        before: keys before the query's own place that it sees.
        after: keys after it.
        dilation: steps between the keys that are seen: the window reaches so many times as far. What is computed is
            what it reaches.
    """

    cost: ClassVar[str] = "L·(before + after)·dilation·D"
    source: ClassVar[str] = "Longformer, Beltagy et al. 2020, §3.1"

    before: int = 256
    after: int = 256
    dilation: int = 1

    def __post_init__(self) -> None:
        require(self.before >= 0, self, "before", "at least 0")
        require(self.after >= 0, self, "after", "at least 0")
        require(self.dilation >= 1, self, "dilation", "at least 1")

    def allows(self, query: Places, key: Places) -> Tensor:
        ahead = key.order - query.order
        near = (ahead >= -self.before * self.dilation) & (ahead <= self.after * self.dilation)
        return near & (ahead % self.dilation == 0)

    def occupied(self, query: Places, key: Places, size: int) -> Tensor:
        reach = self.before * self.dilation, self.after * self.dilation
        return span(query.order, size).meets(span(key.order, size), *reach)


@dataclass(frozen=True)
class ChunksSpec(PatternSpec):
    """Chunks of a row that see themselves only (block-local attention; Blockwise, Qiu et al. 2019).

    Attributes:
        size: tokens of a chunk.
    """

    cost: ClassVar[str] = "L·size·D"
    source: ClassVar[str] = "Blockwise, Qiu et al. 2019"

    size: int = 256

    def __post_init__(self) -> None:
        require(self.size >= 1, self, "size", "at least 1")

    def allows(self, query: Places, key: Places) -> Tensor:
        return query.order // self.size == key.order // self.size

    def occupied(self, query: Places, key: Places, size: int) -> Tensor:
        return span(query.order // self.size, size).meets(span(key.order // self.size, size))


@dataclass(frozen=True)
class GlobalSpec(PatternSpec):
    """The first tokens see all and are seen by all (Longformer's and BigBird's global tokens, here with the projections
    of the others).

    Attributes:
        tokens: how many.
    """

    cost: ClassVar[str] = "L·tokens·D"
    source: ClassVar[str] = "Longformer, Beltagy et al. 2020, §3.1; BigBird, Zaheer et al. 2020, §2"

    tokens: int = 1

    def __post_init__(self) -> None:
        require(self.tokens >= 1, self, "tokens", "at least 1")

    def allows(self, query: Places, key: Places) -> Tensor:
        return (query.order < self.tokens) | (key.order < self.tokens)

    def occupied(self, query: Places, key: Places, size: int) -> Tensor:
        asking, asked = (span(places.order, size).least < self.tokens for places in (query, key))
        return asking[:, :, None] | asked[:, None, :]


@dataclass(frozen=True)
class StridedSpec(PatternSpec):
    """Every so many'th key, counted from the query (Sparse Transformer, Child et al. 2019, §4.2, its second head).

    No block of pairs is empty: it is computed in full, and saves nothing; with a window of ``stride`` keys it is the
    paper's strided attention.

    Attributes:
        stride: steps between the keys that are seen.
    """

    cost: ClassVar[str] = "L²·D"
    source: ClassVar[str] = "Sparse Transformer, Child et al. 2019, §4.2"

    stride: int = 128

    def __post_init__(self) -> None:
        require(self.stride >= 1, self, "stride", "at least 1")

    def allows(self, query: Places, key: Places) -> Tensor:
        return (query.order - key.order) % self.stride == 0

    def occupied(self, query: Places, key: Places, size: int) -> Tensor:
        asking, asked = (span(places.order, size).least for places in (query, key))
        return torch.ones_like(asking[:, :, None] == asked[:, None, :])


@dataclass(frozen=True)
class NeighbourhoodSpec(PatternSpec):
    """A patch sees those round it on the grid (Image Transformer, Parmar et al. 2018; NAT, Hassani et al. 2022, without
    its shift at the borders). Special tokens see all and are seen by all.

    Attributes:
        rows: of patches above and below that are seen.
        columns: of patches to the left and to the right.
        axes: the coordinate axes of rows and columns.
    """

    cost: ClassVar[str] = "L·rows·columns·D"
    source: ClassVar[str] = "Image Transformer, Parmar et al. 2018; NAT, Hassani et al. 2022"

    rows: int = 3
    columns: int = 3
    axes: tuple[int, int] = (1, 2)

    def __post_init__(self) -> None:
        require(self.rows >= 0, self, "rows", "at least 0")
        require(self.columns >= 0, self, "columns", "at least 0")
        require(len(set(self.axes)) == 2 and all(0 <= axis < 3 for axis in self.axes), self, "axes", "two of 0 to 2")

    @property
    def over_coordinates(self) -> bool:
        return True

    def allows(self, query: Places, key: Places) -> Tensor:
        special = query.special | key.special
        near = ~special
        for axis, reach in zip(self.axes, (self.rows, self.columns), strict=True):
            near = near & ((query.along(axis) - key.along(axis)).abs() <= reach)
        return special | near

    def occupied(self, query: Places, key: Places, size: int) -> Tensor:
        special = [places.special for places in (query, key)]
        near = []
        for axis, reach in zip(self.axes, (self.rows, self.columns), strict=True):
            asking = span(query.along(axis), size, ~special[0])
            near.append(asking.meets(span(key.along(axis), size, ~special[1]), reach, reach))
        whole, seen = (span(mark.long(), size).most.bool() for mark in special)
        return near[0] & near[1] | whole[:, :, None] | seen[:, None, :]


@dataclass(frozen=True)
class JoinedSpec(PatternSpec):
    """What several patterns say together.

    Attributes:
        patterns: two or more.
    """

    patterns: tuple[PatternSpec, ...]

    def __post_init__(self) -> None:
        require(len(self.patterns) >= 2, self, "patterns", "two or more")

    @property
    def over_coordinates(self) -> bool:
        return any(pattern.over_coordinates for pattern in self.patterns)

    @property
    def over_lengths(self) -> bool:
        return any(pattern.over_lengths for pattern in self.patterns)

    @abstractmethod
    def join(self, one: Tensor, other: Tensor) -> Tensor:
        """What two of them say, of what each says."""

    def allows(self, query: Places, key: Places) -> Tensor:
        return reduce(self.join, [pattern.allows(query, key) for pattern in self.patterns])

    def occupied(self, query: Places, key: Places, size: int) -> Tensor:
        return reduce(self.join, [pattern.occupied(query, key, size) for pattern in self.patterns])

    def bias(self, query: Places, key: Places) -> Tensor | None:
        """The sum of theirs."""
        return reduce(added, [pattern.bias(query, key) for pattern in self.patterns])


@dataclass(frozen=True)
class AllOfSpec(JoinedSpec):
    """What all of some patterns allow; also written ``a & b``."""

    cost: ClassVar[str] = "that of the narrowest"
    source: ClassVar[str] = "Child et al. 2019, §4.2"

    patterns: tuple[PatternSpec, ...] = (WindowSpec(), StridedSpec())

    def join(self, one: Tensor, other: Tensor) -> Tensor:
        return one & other


@dataclass(frozen=True)
class AnyOfSpec(JoinedSpec):
    """What any of some patterns allows; also written ``a | b``. BigBird is a window, global tokens, random blocks."""

    cost: ClassVar[str] = "the sum of theirs"
    source: ClassVar[str] = "BigBird, Zaheer et al. 2020, §2"

    patterns: tuple[PatternSpec, ...] = (WindowSpec(), GlobalSpec())

    def join(self, one: Tensor, other: Tensor) -> Tensor:
        return one | other


def added(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Two biases on scores as one; None: nothing is added."""
    if one is None or other is None:
        return other if one is None else one
    return one + other
