"""Masked pixels: which patches are seen hangs on the seed and a sample's position alone; the loss is the head's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmformer.errors import InputError
from mmformer.objectives.masked_pixels import MaskedPixels, MaskedPixelsSpec, drawn
from mmformer.spec import Parts
from mmformer.types import Batch, LossTerm, Outputs, Patches


def batch(*positions: int, sides: tuple[int, int] = (24, 16)) -> Batch:
    image = torch.zeros(len(positions), 3, *sides, dtype=torch.uint8)
    return Batch((), {}, image, positions=torch.tensor(positions))


def seen_of(objective: MaskedPixels, made: Batch, seed: int = 7) -> Tensor:
    found = objective.prepare(made, seed).seen
    assert found is not None
    return found


def test_a_share_of_the_patches_is_not_seen() -> None:
    """24 patches, of which 6 are seen: different ones, in their order."""
    seen = seen_of(MaskedPixelsSpec(patch=4).build(), batch(3, 1, 4, 1))
    assert seen.shape == (4, 6) and seen.dtype == torch.int64
    assert all(row == sorted(set(row)) and row[0] >= 0 and row[-1] < 24 for row in seen.tolist())
    assert torch.equal(seen[1], seen[3])
    assert len({tuple(row) for row in seen.tolist()}) == 3


@pytest.mark.parametrize(("share", "number"), [(0.75, 6), (0.7, 7), (0.5, 12), (0.99, 1), (0.01, 23)])
def test_how_many_are_seen(share: float, number: int) -> None:
    """As the reference rounds: down; and one at least."""
    objective = MaskedPixelsSpec(patch=4, share=share).build()
    assert seen_of(objective, batch(0, 1)).shape == (2, number)
    assert float(objective.items(batch(0, 1))["squared_error"]) == 2 * (24 - number)


def test_it_hangs_on_the_seed_and_the_position_alone() -> None:
    objective = MaskedPixelsSpec(patch=4).build()
    together = seen_of(objective, batch(5, 900, 12))
    for row, position in enumerate((5, 900, 12)):
        assert torch.equal(together[row], seen_of(objective, batch(position))[0])
    assert not torch.equal(together, seen_of(objective, batch(5, 900, 12), seed=8))
    large = 2**62 + 12345
    assert not torch.equal(seen_of(objective, batch(5), large), seen_of(objective, batch(5), large + 1))
    assert torch.equal(seen_of(objective, batch(0, 1, 2)), seen_of(objective, batch(0, 1, 2)._replace(positions=None)))


def test_every_patch_is_seen_as_often_and_with_every_other() -> None:
    seen = seen_of(MaskedPixelsSpec(patch=4).build(), batch(*range(4000)))
    here = torch.zeros(4000, 24).scatter(1, seen, 1.0)
    together = here.T @ here / 4000
    alone = together.diagonal()
    assert (alone - 0.25).abs().max() < 0.035  # five standard deviations
    pairs = together[~torch.eye(24, dtype=torch.bool)]
    assert (pairs - 0.25 * 5 / 23).abs().max() < 0.018
    assert (here[1:] * here[:-1]).sum(1).mean() == pytest.approx(6 * 0.25, abs=0.1), "nothing of the sample before"


def test_it_is_split_mix() -> None:
    """The generator's numbers, as its authors' code makes them, for the places that a sample has in its stream."""
    wide = (1 << 64) - 1
    for position, number in ((0, 0), (3, 17), (2**40, 5)):
        z = (((position << 20) + number) * 0x9E3779B97F4A7C15 + 99) & wide
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & wide
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & wide
        z ^= z >> 31
        assert int(drawn(99, torch.tensor([position]), number + 1)[0, number]) % (1 << 64) == z


def test_the_loss_is_the_heads() -> None:
    objective = MaskedPixelsSpec(head="told", patch=4).build()
    term = LossTerm(torch.tensor(6.0), torch.tensor(36.0))
    outputs = Outputs.empty()._replace(losses={"told": term, "caption": term})
    assert objective.losses(outputs, batch(0, 1)) == {"squared_error": term}
    assert float(objective.items(batch(0, 1))["squared_error"]) == term.items
    assert objective.losses(Outputs.empty(), batch(0)) == {}
    assert not objective.couples_samples


def test_without_pictures_there_is_nothing_to_hide() -> None:
    objective, bare = MaskedPixelsSpec().build(), Batch(("a",), {})
    assert objective.prepare(bare, 0) is bare and objective.items(bare) == {}


def test_pictures_in_their_own_proportions_are_refused() -> None:
    native = Patches(torch.zeros(1, 4, 3, 4, 4, dtype=torch.uint8), torch.tensor([[2, 2]]))
    with pytest.raises(InputError, match=r"sizes of their own \(fit: native\): take another fit"):
        MaskedPixelsSpec(patch=4).build().prepare(Batch((), {}, native), 0)
    several = torch.zeros(2, 3, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(InputError, match=r"these are of shape \(2, 3, 3, 8, 8\): hand in one of each sample"):
        MaskedPixelsSpec(patch=4).build().prepare(Batch((), {}, several), 0)


def parts(side: int = 8) -> Parts:
    head: Any = SimpleNamespace(normalised=True, encoder="image")
    return Parts({"image": 4}, {"pixels": head, "group": object()}, {}, (), {"image": side})


def test_what_a_run_lacks_is_told() -> None:
    MaskedPixelsSpec(patch=8).check(parts())
    with pytest.raises(InputError, match=r"the head 'pixel', but the model's heads over pixels are pixels\. Did"):
        MaskedPixelsSpec(head="pixel", patch=8).check(parts())
    with pytest.raises(InputError, match="'group', but the model's heads over pixels are pixels"):
        MaskedPixelsSpec(head="group", patch=8).check(parts())
    with pytest.raises(InputError, match="patches of 16x16 pixels, but those of the encoder 'image' are 8x8: set"):
        MaskedPixelsSpec().check(parts())


@pytest.mark.parametrize("change", [{"share": 0.0}, {"share": 1.0}, {"patch": 0}, {"weight": 0.0}])
def test_fields_that_make_no_sense(change: dict[str, float]) -> None:
    with pytest.raises(InputError, match=rf"MaskedPixelsSpec.{next(iter(change))} must be"):
        MaskedPixelsSpec(**change)  # type: ignore[arg-type]
