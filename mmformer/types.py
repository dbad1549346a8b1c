"""The values that travel between the parts: ``Tokens``, ``Batch`` and ``Outputs``.

Shape letters, used in every trailing comment: B batch, L length, D width, H heads, A coordinate axes, V vocabulary,
E embedding. They are NamedTuples because FSDP2, ``torch.compile`` and Lightning's device transfer see through those.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

AXES = 3
"""Coordinate axes of every token: (time, row, column). Text is (t, 0, 0), an image (0, row, column)."""

SPECIAL = -1
"""The coordinate, on all axes, of tokens that stand nowhere: class tokens, registers."""


class Tokens(NamedTuple):
    """Embeddings with coordinates; any two of one width concatenate."""

    x: Tensor  # B L D
    pos: Tensor  # B L A, int64
    valid: Tensor | None = None  # B L, bool: True where a token is real; None: all are
    segment: Tensor | None = None  # B L, int64: a token sees its own segment only; None: all is one segment


class Text(NamedTuple):
    """Token ids, padded on the right."""

    ids: Tensor  # B L, int64
    lengths: Tensor  # B, int64


class Batch(NamedTuple):
    """What one forward pass reads. A modality that is absent is None."""

    keys: tuple[str, ...]  # the samples' names, as their shards have them
    labels: dict[str, Tensor]  # name -> B, int64; -1 where a sample has no such label
    image: Tensor | None = None  # B 3 H W, uint8
    text: Text | None = None


class LossTerm(NamedTuple):
    """A loss as a sum over a number of items, so that ranks and micro-batches add up exactly."""

    total: Tensor  # scalar, float32: the sum over the items
    items: Tensor  # scalar, float32: their number


class Outputs(NamedTuple):
    """What one forward pass returns; every dictionary goes by the names of the model's parts."""

    embedding: dict[str, Tensor]  # encoder -> B E, not normalised
    tokens: dict[str, Tokens]  # encoder -> what left its stack
    logits: dict[str, Tensor]  # head -> B classes
    scale: dict[str, Tensor]  # head -> (1,), the factor on cosine similarities (the inverse temperature)
    losses: dict[str, LossTerm]  # "encoder/name" -> what layers ask to be minimised (a router's balance, say)
    intermediates: dict[str, Tensor]  # "encoder/layer" -> B L D, those that were asked for
