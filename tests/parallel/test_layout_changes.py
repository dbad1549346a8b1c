"""A run that goes on with another number of processes: any checkpoint leads to what one process would have come to."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from launched import assert_alike, everything, fit, rewound, rows
from tiny import write_shards
from torch import nn

from mmformer.config import to_yaml
from mmformer.training.layouts import by_name, by_number


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layouts")
    run = everything(write_shards(folder / "shards"))
    run = dataclasses.replace(run, checkpoint=dataclasses.replace(run.checkpoint, every_steps=2, keep=3))
    run = dataclasses.replace(run, thaw={"decoders.*": 3, "stacks.text.*": 5})
    path = folder / "run.yaml"
    path.write_text(to_yaml(run), encoding="utf-8")
    return path


def test_one_two_and_one_again(file: Path, tmp_path: Path) -> None:
    """Averages, moments, clipping and the order of samples go along; some parameters have no moments yet."""
    one = tmp_path / "one"
    fit(file, one)
    two = rewound(one, 2, tmp_path / "two")
    fit(file, two, "--parallel.shard", "2", "--resume")
    assert_alike(one, two)
    assert (two / "checkpoints" / "step-000000004" / "state.ckpt").is_dir(), "each of them wrote a part"
    again = rewound(two, 4, tmp_path / "again")
    fit(file, again, "--resume")
    assert_alike(one, again)


@pytest.mark.slow
def test_two_one_four_and_two_again(tmp_path: Path) -> None:
    """Fifty updates of every kind of loss, in four layouts one after the other, beside those of one process."""
    base = everything(write_shards(tmp_path / "shards"))
    data = dataclasses.replace(base.data, order=dataclasses.replace(base.data.order, lanes=4))
    trainer = dataclasses.replace(base.trainer, max_steps=50)
    run = dataclasses.replace(base, data=data, trainer=trainer)
    run = dataclasses.replace(run, checkpoint=dataclasses.replace(run.checkpoint, every_steps=10, keep=5))
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(run), encoding="utf-8")
    fit(file, tmp_path / "one")
    last = tmp_path / "0"
    fit(file, last, "--parallel.shard", "2")
    layouts = (["--parallel.shard", "1"], ["--parallel.shard", "4"], ["--parallel.data", "2", "--parallel.shard", "1"])
    for number, words in enumerate(layouts, start=1):
        alone = rewound(last, 10 * number, tmp_path / f"{number} alone")
        last = rewound(last, 10 * number, tmp_path / str(number))
        fit(file, last, *words, "--resume")
        fit(file, alone, "--resume")
        assert_near(rows(alone)[10 * number], rows(last)[10 * number], 1e-6)
    for a, b in zip(rows(tmp_path / "one"), rows(last), strict=True):
        assert_near(a, b, 1e-4)


def assert_near(a: dict[str, float], b: dict[str, float], close: float) -> None:
    """The losses of an update."""
    assert a["step"] == b["step"]
    losses = [name for name in a if name.startswith("train/") and a[name] and "norm" not in name]
    assert len(losses) >= 5
    for name in losses:
        assert b[name] == pytest.approx(a[name], rel=close), (a["step"], name)


def test_states_go_by_number_or_by_name() -> None:
    """Parameters are counted through an optimizer's groups, which have another order than the model."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    first, second = [model[0].bias, model[1].bias], [model[1].weight, model[0].weight]
    optimizer = torch.optim.AdamW([{"params": first, "weight_decay": 0.0}, {"params": second}])
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    named = by_name(state, optimizer, model)
    assert [group["params"] for group in named["param_groups"]] == [["0.bias", "1.bias"], ["1.weight", "0.weight"]]
    for name, parameter in model.named_parameters():
        assert named["state"][name]["exp_avg"].shape == parameter.shape, name
        assert torch.equal(named["state"][name]["exp_avg"], optimizer.state[parameter]["exp_avg"])
    back = by_number(named)
    assert back["param_groups"] == state["param_groups"]
    assert back["state"].keys() == state["state"].keys()
    assert all(torch.equal(back["state"][i]["exp_avg"], state["state"][i]["exp_avg"]) for i in state["state"])
