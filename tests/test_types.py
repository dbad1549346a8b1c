"""Batches are cut and moved as a whole: every value goes along, none longer than it must be."""

from __future__ import annotations

import torch
from torch import Tensor

from mmformer.types import MODALITIES, Audio, Batch, LossTerm, Mixed, Outputs, Text


def text(*lengths: int) -> Text:
    number = torch.arange(len(lengths))[:, None] * 100 + torch.arange(24)
    return Text(number, torch.tensor(lengths), number % 3 > 0, number % 2)


def full() -> Batch:
    """Four samples, of which the last two are short."""
    samples = torch.arange(40).float().view(4, 10)
    return Batch(
        tuple("abcd"),
        {"colour": torch.tensor([1, -1, 2, 0])},
        torch.arange(4 * 3 * 2 * 2, dtype=torch.uint8).view(4, 3, 2, 2),
        text(20, 9, 3, 8),
        Audio(samples, torch.tensor([10, 7, 2, 5]), 8000, torch.arange(32.0).view(4, 2, 4)),
        text(24, 1, 17, 9),
        torch.tensor([40, 41, 42, 43]),
        (("a", "one"), ("b",), ("c", "three"), ("d",)),
        Mixed({"colour": torch.tensor([0, 2, 1, 3])}, torch.tensor([0.5, 1.0, 0.25, 0.75])),
        seen=torch.tensor([[0], [3], [1], [2]]),
    )


def tensors(batch: Batch) -> list[Tensor]:
    assert batch.image is not None and batch.text is not None and batch.audio is not None
    assert batch.target is not None and batch.positions is not None and batch.mixed is not None
    assert isinstance(batch.image, Tensor) and batch.audio.hidden is not None and batch.seen is not None
    texts = [value for text in (batch.text, batch.target) for value in text if isinstance(value, Tensor)]
    return [
        *batch.labels.values(),
        batch.image,
        *texts,
        batch.audio.samples,
        batch.audio.lengths,
        batch.audio.hidden,
        batch.positions,
        *batch.mixed.labels.values(),
        batch.mixed.share,
        batch.seen,
    ]


def test_rows_cut_everything_alike() -> None:
    batch = full()
    part = batch.rows(slice(2, 4))
    assert batch.image is not None and part.image is not None
    assert part.keys == ("c", "d")
    assert part.labels["colour"].tolist() == [2, 0]
    assert torch.equal(part.image, batch.image[2:])
    assert part.text is not None and part.target is not None and part.audio is not None and part.positions is not None
    assert part.text.lengths.tolist() == [3, 8]
    assert part.text.ids.tolist() == [[200 + i for i in range(8)], [300 + i for i in range(8)]]
    assert part.text.valid is not None and part.text.types is not None
    assert torch.equal(part.text.valid, part.text.ids % 3 > 0)
    assert torch.equal(part.text.types, part.text.ids % 2)
    assert part.target.ids.shape == (2, 24), "17 in multiples of 8"
    assert part.audio.samples.tolist() == [[20, 21, 22, 23, 24], [30, 31, 32, 33, 34]]
    assert part.audio.lengths.tolist() == [2, 5]
    assert part.audio.rate == 8000
    assert part.positions.tolist() == [42, 43]
    assert part.audio.hidden is not None and part.mixed is not None
    assert part.audio.hidden[:, 0, 0].tolist() == [16, 24]
    assert part.references == (("c", "three"), ("d",))
    assert part.mixed.labels["colour"].tolist() == [1, 3]
    assert part.mixed.share.tolist() == [0.25, 0.75]
    assert part.seen is not None and part.seen.tolist() == [[1], [2]]


def test_what_is_absent_stays_absent() -> None:
    bare = Batch(("a", "b"), {})
    for made in (bare.rows(slice(0, 1)), bare.to("cpu")):
        assert made[1:] == ({}, *[None] * (len(Batch._fields) - 2))
    assert bare.written is None


def test_to_moves_every_tensor() -> None:
    moved = full().to("meta")
    assert len(tensors(moved)) == 17
    assert all(tensor.is_meta for tensor in tensors(moved))
    assert moved.keys == tuple("abcd")
    assert moved.references == full().references
    assert moved.audio is not None
    assert moved.audio.rate == 8000


def test_real_ids_are_the_first_unless_it_is_said_which() -> None:
    text = full().text
    assert text is not None and text.valid is not None
    assert torch.equal(text.real, text.valid)
    assert text._replace(valid=None).real.sum(1).tolist() == [20, 9, 3, 8]


def test_a_decoder_reads_a_first_id_and_all_but_the_last() -> None:
    mask = torch.tensor([[False, True, True, False]])
    text = Text(torch.tensor([[0, 5, 6, 0]]), torch.tensor([3]), mask, torch.tensor([[0, 1, 0, 0]]), mask)
    read = text.after(9)
    assert read.ids.tolist() == [[9, 0, 5, 6]]
    assert read.lengths.tolist() == [3]
    assert read.valid is not None and read.types is not None
    assert read.valid.tolist() == [[True, False, True, True]], "the first id is there to be read"
    assert read.types.tolist() == [[0, 0, 1, 0]]
    assert read.everywhere is not None
    assert read.everywhere.tolist() == [[False, False, True, True]]
    assert Text(text.ids, text.lengths).after(9)[2:] == (None, None, None, False, False)


def test_what_is_written_is_the_target_or_the_text() -> None:
    batch = full()
    assert batch.written is batch.target
    assert batch._replace(target=None).written is batch.text


def test_what_stands_before_a_text_is_not_written() -> None:
    batch = full()._replace(target=None)
    assert batch.text is not None and batch.text.valid is not None and batch.text.types is not None
    begun = batch._replace(text=batch.text._replace(begun=True))
    for whole in (begun, begun.to("cpu")):
        assert whole.rows(slice(0, 3)).text is not None and whole.rows(slice(0, 3)).text.begun  # type: ignore[union-attr]
        written = whole.written
        assert written is not None and written.valid is not None and written.types is not None and not written.begun
        assert written.lengths.tolist() == [19, 8, 2, 7]
        assert torch.equal(written.ids, batch.text.ids[:, 1:])
        assert torch.equal(written.valid, batch.text.valid[:, 1:])
        assert torch.equal(written.types, batch.text.types[:, 1:])
    plain = Text(batch.text.ids, batch.text.lengths, begun=True).written
    assert plain.real.sum(1).tolist() == [19, 8, 2, 7]


def test_modalities_are_fields_of_a_batch() -> None:
    assert set(MODALITIES) < set(Batch._fields)


def test_empty_outputs_share_nothing() -> None:
    one = Outputs.empty()
    one.losses["caption"] = LossTerm(torch.tensor(1.0), torch.tensor(1.0))
    assert Outputs.empty().losses == {}
    assert len({id(part) for part in one}) == len(Outputs._fields)
