"""The values that travel between the parts: ``Tokens``, ``Batch`` and ``Outputs``.

Shape letters, used in every trailing comment: B batch, L length, D width, H heads, A coordinate axes, V vocabulary,
E embedding, S audio samples. They are NamedTuples because FSDP2, ``torch.compile`` and Lightning's device transfer see
through those.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

AXES = 3
"""Coordinate axes of every token. Text is (t, 0, 0), an image (0, row, column), sound (time, frequency, 0)."""

SPECIAL = -1
"""The coordinate, on all axes, of the first token that stands nowhere: a class token, a register. Those after it have
-2, -3 and so on, so that each can be told from the others."""

MODALITIES = ("image", "text", "audio")
"""The fields of Batch that encoders read."""


class Tokens(NamedTuple):
    """Embeddings with coordinates; any two of one width concatenate."""

    x: Tensor  # B L D
    pos: Tensor  # B L A, int64
    valid: Tensor | None = None  # B L, bool: True where a token is real; None: all are
    segment: Tensor | None = None  # B L, int64: a token sees its own segment only; None: all is one segment


def is_special(pos: Tensor) -> Tensor:
    """Which tokens stand nowhere: ... A -> ..., bool."""
    return pos[..., 0] < 0


def stands_everywhere(pos: Tensor) -> Tensor:
    """Which tokens see all and are seen by all, where a mixer knows such: ... A -> ..., bool.

    Special ones do, and those of a text that were chosen (``Text.everywhere``): they have a place on the first axis
    alone.
    """
    return pos[..., AXES - 1] < 0


class Patches(NamedTuple):
    """Pictures of sizes of their own, cut into square patches, row by row; zero past each one's last."""

    pixels: Tensor  # B L 3 P P, uint8
    grid: Tensor  # B 2, int64: rows and columns of patches

    def rows(self, keep: Tensor | slice) -> Patches:
        """Some pictures, cut again to the longest of them."""
        grid = self.grid[keep]
        return Patches(self.pixels[keep, : int(grid.prod(1).max())], grid)

    def to(self, device: torch.device | str) -> Patches:
        return Patches(self.pixels.to(device), self.grid.to(device))

    def picture(self, row: int) -> Tensor:
        """One of them, put together again: 3 H W."""
        rows, columns = self.grid[row].tolist()
        patches = self.pixels[row, : rows * columns]
        patches = patches.view(rows, columns, *patches.shape[1:])  # rows columns 3 P P
        return patches.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)


class Text(NamedTuple):
    """Token ids, padded on the right unless ``valid`` says otherwise."""

    ids: Tensor  # B L, int64
    lengths: Tensor  # B, int64
    valid: Tensor | None = None
    """B L, bool: which ids are real, all among a row's first ``lengths``; there may be holes, or padding on the left,
    and places count from the row's first id all the same. None: the first ``lengths`` are."""
    types: Tensor | None = None  # B L, int64: the segment that an id belongs to (BERT, Devlin et al. 2018, §3.2)
    everywhere: Tensor | None = None
    """B L, bool: which ids see all and are seen by all (global attention, Longformer, Beltagy et al. 2020, §3.1), where
    an encoder's mixers know such; None: none does."""
    begun: bool = False
    """Whether each row's first id is what its tokenizer put before the text (bos), which decoders do not write."""
    whole: bool = False
    """Whether all ids are known to be real: then no mask is made of which are."""

    @property
    def real(self) -> Tensor:
        """Which ids are real: B L, bool."""
        if self.valid is not None:
            return self.valid
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]

    @property
    def written(self) -> Text:
        """What a decoder learns to write of it: all, without what it begins with."""
        if not self.begun:
            return self
        return _changed(self, lambda value: value[:, 1:])._replace(lengths=self.lengths - 1, begun=False)

    def after(self, first: int) -> Text:
        """What a decoder reads that learns to write this: a first id in every row, then all but the last place's."""
        ids, valid, types, everywhere = self.ids, self.valid, self.types, self.everywhere
        return Text(
            torch.cat((torch.full_like(ids[:, :1], first), ids[:, :-1]), dim=1),
            self.lengths,
            None if valid is None else torch.cat((torch.ones_like(valid[:, :1]), valid[:, :-1]), dim=1),
            None if types is None else torch.cat((types[:, :1], types[:, :-1]), dim=1),
            None if everywhere is None else torch.cat((everywhere[:, :1] & False, everywhere[:, :-1]), dim=1),
        )

    def rows(self, keep: Tensor | slice, cut: bool = True) -> Text:
        """Some rows, cut again to the longest of them in multiples of 8; without ``cut``, as long as they are."""
        lengths = self.lengths[keep]
        length = -(-int(lengths.max()) // 8) * 8 if cut else self.ids.shape[1]
        return _changed(self, lambda value: value[keep, :length])._replace(lengths=lengths)

    def to(self, device: torch.device | str) -> Text:
        return _changed(self, lambda value: value.to(device))._replace(lengths=self.lengths.to(device))


def _changed(text: Text, change: Callable[[Tensor], Tensor]) -> Text:
    """A text whose ids, and all that is said of each of them, are changed alike."""
    valid, types, everywhere = (
        None if value is None else change(value) for value in (text.valid, text.types, text.everywhere)
    )
    return text._replace(ids=change(text.ids), valid=valid, types=types, everywhere=everywhere)


class Audio(NamedTuple):
    """Waveforms of one channel, zero past their ends."""

    samples: Tensor  # B S, float32, -1 to 1
    lengths: Tensor  # B, int64: samples that are real
    rate: int  # samples a second
    hidden: Tensor | None = None
    """B N 4, float32: rectangles of the spectrogram that are not shown, in training: where each begins and ends in
    time, as parts of the sound, and where in frequency, as parts of the bands; None: all is shown."""

    def rows(self, keep: Tensor | slice) -> Audio:
        """Some rows, cut again to the longest of them."""
        lengths = self.lengths[keep]
        hidden = None if self.hidden is None else self.hidden[keep]
        return Audio(self.samples[keep, : int(lengths.max())], lengths, self.rate, hidden)

    def to(self, device: torch.device | str) -> Audio:
        hidden = None if self.hidden is None else self.hidden.to(device)
        return Audio(self.samples.to(device), self.lengths.to(device), self.rate, hidden)


class Mixed(NamedTuple):
    """What other pictures are mixed into those of a batch."""

    labels: dict[str, Tensor]  # of the other picture: name -> B, int64
    share: Tensor  # B, float32: of a sample's own picture, and so of its own labels; 1 where nothing is mixed in

    def rows(self, keep: slice) -> Mixed:
        return Mixed({name: label[keep] for name, label in self.labels.items()}, self.share[keep])

    def to(self, device: torch.device | str) -> Mixed:
        return Mixed({name: label.to(device) for name, label in self.labels.items()}, self.share.to(device))


class Skipped(NamedTuple):
    """A damaged training sample, in whose place another one was read."""

    position: int  # whose sample it would have been
    source: str
    key: str
    cause: str  # one of few, to be counted
    reason: str


class Notes(NamedTuple):
    """What is told of how a batch was read."""

    skipped: tuple[Skipped, ...]
    texts: dict[str, tuple[int, int]]  # text or target -> how many there are, and how many were too long and were cut


class Batch(NamedTuple):
    """What one forward pass reads. A modality that is absent is None."""

    keys: tuple[str, ...]  # the samples' names, as their shards have them
    labels: dict[str, Tensor]  # name -> B, int64; -1 where a sample has no such label
    image: Tensor | Patches | None = None
    """B 3 H W, uint8, or float32 where they are normalised already; B N 3 H W where rows have several pictures; patches
    where pictures have sizes of their own."""
    text: Text | None = None
    audio: Audio | None = None
    target: Text | None = None  # what decoders learn to write; None: ``text``, without what it begins with
    positions: Tensor | None = None  # B, int64: in the order of samples; what is random for a sample draws from it
    references: tuple[tuple[str, ...], ...] | None = None  # B: all texts that are right for each, to measure against
    mixed: Mixed | None = None  # in training, where pictures are mixed; None: they are not
    notes: Notes | None = None  # of the whole batch: some of its rows have none
    seen: Tensor | None = None
    """B K, int64: the patches of pictures that encoders see, by their numbers, row by row; an objective draws them.
    None: all."""

    @property
    def written(self) -> Text | None:
        """What decoders learn to write."""
        if self.target is not None:
            return self.target
        return None if self.text is None else self.text.written

    def picture(self, row: int) -> Tensor:
        """The picture of one of the samples, the first of several, where there are pictures: 3 H W, uint8."""
        assert self.image is not None, "there are pictures"
        if isinstance(self.image, Patches):
            return self.image.picture(row)
        return self.image[row] if self.image.ndim == 4 else self.image[row, 0]

    def rows(self, keep: slice, cut: bool = True) -> Batch:
        """Some of the samples, each value no longer than it must be; without ``cut``, texts as long as they are."""
        return Batch(
            self.keys[keep],
            {name: label[keep] for name, label in self.labels.items()},
            None if self.image is None else _kept(self.image, keep),
            None if self.text is None else self.text.rows(keep, cut),
            None if self.audio is None else self.audio.rows(keep),
            None if self.target is None else self.target.rows(keep, cut),
            None if self.positions is None else self.positions[keep],
            None if self.references is None else self.references[keep],
            None if self.mixed is None else self.mixed.rows(keep),
            seen=None if self.seen is None else self.seen[keep],
        )

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its tensors on a device."""
        return Batch(
            self.keys,
            {name: label.to(device) for name, label in self.labels.items()},
            None if self.image is None else self.image.to(device),
            None if self.text is None else self.text.to(device),
            None if self.audio is None else self.audio.to(device),
            None if self.target is None else self.target.to(device),
            None if self.positions is None else self.positions.to(device),
            self.references,
            None if self.mixed is None else self.mixed.to(device),
            self.notes,
            None if self.seen is None else self.seen.to(device),
        )


def _kept(image: Tensor | Patches, keep: slice) -> Tensor | Patches:
    return image.rows(keep) if isinstance(image, Patches) else image[keep]


class LossTerm(NamedTuple):
    """A loss as a sum over a number of items, so that ranks and micro-batches add up exactly."""

    total: Tensor  # scalar, float32: the sum over the items
    items: Tensor  # scalar, float32: their number
    minimised: bool = True  # False: it is only told, as a share that was dropped is

    def plus(self, other: LossTerm) -> LossTerm:
        """Both, over the items of both."""
        return LossTerm(self.total + other.total, self.items + other.items, self.minimised)


Aux = dict[str, LossTerm]
"""What parts of a layer ask to be minimised, or have told, by name."""


class Early(NamedTuple):
    """Of an encoder whose stack samples may leave before its end."""

    embedding: dict[int, Tensor]  # layer -> B E, what its embedding would be if it ended there; where none leaves
    left: Tensor | None  # B, int64: the layer after which each sample left; None: all went to the end


class Outputs(NamedTuple):
    """What one forward pass returns; every dictionary goes by the names of the model's parts."""

    embedding: dict[str, Tensor]  # encoder -> B E, not normalised
    tokens: dict[str, Tokens]  # encoder or decoder -> what left its stack, unless nobody asked for it (Model.forward)
    logits: dict[str, Tensor]  # head -> B classes; of a language head B L V
    scale: dict[str, Tensor]  # head -> (1,), the factor on cosine similarities (the inverse temperature)
    bias: dict[str, Tensor]  # head -> (1,), added to scaled similarities (the sigmoid loss's)
    losses: dict[str, LossTerm]
    """decoder -> cross-entropy of what it was to write, over tokens; head -> the loss that it measures itself."""
    aux: dict[str, LossTerm]
    """"encoder/name", "decoder/name" or "head/name" -> what layers ask to be minimised (a router's balance, say)."""
    intermediates: dict[str, Tensor]  # "encoder/layer" -> B L D, those that were asked for
    early: dict[str, Early]  # encoder -> of exits before the end of its stack, where a head has some
    exits: dict[str, Tensor]  # head -> B exits classes, the logits of its exits, where none leaves at them

    @staticmethod
    def empty() -> Outputs:
        return Outputs({}, {}, {}, {}, {}, {}, {}, {}, {}, {})
