"""Two real processes on gloo: what each says of its part adds up to what one says of the whole."""

from __future__ import annotations

import os
from typing import Any

import pytest
import several
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from mmformer import collectives
from mmformer.objectives.contrastive import contrastive_loss
from mmformer.objectives.sigmoid import sigmoid_loss

WORLD = 2
ROWS = 6


def values() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = (F.normalize(torch.randn(ROWS, 5, generator=generator), dim=-1) for _ in range(2))
    return x, y, torch.tensor([7.0]), torch.tensor([-2.0]), torch.tensor([1, 2, 1, 3, 2, 1])


def softmax(part: slice) -> dict[str, Tensor]:
    x, y, scale, _, same = values()
    x, y, scale = (value.requires_grad_() for value in (x[part], y[part], scale))
    total = contrastive_loss(x, y, scale, same[part], chunk=2)
    alone = contrastive_loss(x, y, scale, None, chunk=4, smoothing=0.2)
    (total + 0.5 * alone).backward()
    return told(total + 0.5 * alone, x, y, scale)


def sigmoid(part: slice) -> dict[str, Tensor]:
    x, y, scale, bias, same = values()
    x, y, scale, bias = (value.requires_grad_() for value in (x[part], y[part], scale, bias))
    total = sigmoid_loss(x, y, scale, bias, same[part], same[part], chunk=2)
    (3 * total).backward()
    return {**told(3 * total, x, y, scale), "bias": bias.grad if bias.grad is not None else torch.zeros(1)}


def told(total: Tensor, x: Tensor, y: Tensor, scale: Tensor) -> dict[str, Tensor]:
    assert x.grad is not None and y.grad is not None and scale.grad is not None
    return {"total": total.detach()[None], "scale": scale.grad, "x": x.grad, "y": y.grad}


def gathering(part: slice) -> dict[str, Tensor]:
    x = values()[0][part].requires_grad_()
    weight = torch.arange(ROWS * 5.0).view(ROWS, 5)
    everyone = collectives.gather_rows(x)
    total = (collectives.rank() + 1) * (everyone * weight).sum()
    total.backward()
    assert x.grad is not None
    numbers = collectives.gather_rows(torch.arange(part.start, part.stop))
    return {"rows": everyone.detach(), "x": x.grad, "numbers": numbers.float()}


def peers(part: slice) -> dict[str, Tensor]:
    """Of two processes that compute the same part of a batch, each has all parts."""
    own, _ = dist.new_subgroups_by_enumeration([[0], [1]])
    collectives.divide_batches(own)
    assert (collectives.data_world_size(), collectives.data_rank(), collectives.world_size()) == (1, 0, WORLD)
    x = values()[0][part]
    summed = collectives.sum_over_ranks({"one": torch.ones(())})["one"]
    assert collectives.gather_rows(x) is x and collectives.pass_on(x) == (x,) and collectives.gather_values(1) == [1]
    told = torch.tensor(float(collectives.any_rank(collectives.rank() == 1)))
    number = collectives.of_first_number(0.1 + collectives.rank())
    return {"summed": summed, "told": told, "first": torch.tensor(number, dtype=torch.float64)}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    size = ROWS // WORLD
    part = slice(rank * size, (rank + 1) * size)
    # The peers last: from then on, each process has all parts of a batch.
    torch.save({each.__name__: each(part) for each in (softmax, sigmoid, gathering, peers)}, f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process that leaves in order; all that counts has been written


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """What each function made in each process, by its name."""
    folder = tmp_path_factory.mktemp("two")
    several.spawn(work, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("function", [softmax, sigmoid])
def test_a_loss_and_its_gradient_are_those_of_one_process(function: Any, both: list[Any]) -> None:
    whole, parts = function(slice(0, ROWS)), [each[function.__name__] for each in both]
    for name, value in whole.items():
        found = [part[name] for part in parts]
        # A process's own rows, and its share of what all processes share.
        together = torch.cat(found) if name in ("x", "y") else torch.stack(found).sum(0)
        assert torch.allclose(together, value, atol=1e-6, rtol=1e-6), name
    assert not torch.allclose(parts[0]["total"], parts[1]["total"])


def test_rows_are_gathered_in_order_and_their_gradients_added(both: list[Any]) -> None:
    for rank, part in enumerate(each["gathering"] for each in both):
        assert torch.equal(part["rows"], values()[0])
        assert part["numbers"].tolist() == list(range(ROWS))
        own = torch.arange(ROWS * 5.0).view(ROWS, 5)[rank * 3 : rank * 3 + 3]
        assert torch.equal(part["x"], (1 + 2) * own), "what both processes said of these rows"


def test_peers_share_decisions_and_no_sums(both: list[Any]) -> None:
    for each in both:
        assert {name: float(value) for name, value in each["peers"].items()} == {"summed": 1, "told": 1, "first": 0.1}


def test_one_process_is_told_nothing_new() -> None:
    x = torch.randn(3, 2)
    assert collectives.world_size() == 1
    assert collectives.rank() == 0
    assert collectives.gather_rows(x) is x
    assert collectives.pass_on(x) == (x,)
    assert collectives.sum_over_ranks({"a": x}) == {"a": x}
    assert collectives.of_first_number(0.1, "mps") == 0.1, "nothing is made on a device, which may have no such numbers"
    collectives.barrier()
