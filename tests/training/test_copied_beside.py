"""Copies of a checkpoint's state that are made beside training: they are of its update, however long they take."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_run, write_shards

from mmformer.training import background as background_module
from mmformer.training.average import EMASpec
from mmformer.training.background import Background, HostCopy
from mmformer.training.checkpoint import whole_checkpoints
from mmformer.training.divergence import DivergenceSpec, Guard, Refused
from mmformer.training.fit import fit
from mmformer.training.run import CheckpointSpec


def test_what_stays_as_it_is_is_copied_beside_training_until_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Event()
    fill = background_module._fill
    monkeypatch.setattr(background_module, "_fill", lambda pending: (held.wait(20), fill(pending)))
    still, moving = torch.arange(3.0), torch.arange(3.0)
    host = HostCopy()
    taken = host.take({"still": still, "tied": still, "moving": moving}, [still])
    moving += 1
    assert torch.equal(taken["moving"], torch.arange(3.0)), "copied at once"
    assert taken["tied"] is taken["still"]
    held.set()
    host.finish()
    assert torch.equal(taken["still"], torch.arange(3.0))
    still += 1
    assert torch.equal(taken["still"], torch.arange(3.0))


def test_what_is_changed_before_it_was_copied_is_no_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Event()
    fill = background_module._fill
    monkeypatch.setattr(background_module, "_fill", lambda pending: (held.wait(20), fill(pending)))
    weight = torch.arange(3.0)
    host = HostCopy()
    host.take({"weight": weight}, [weight])
    weight += 1
    held.set()
    with pytest.raises(RuntimeError, match="changed before it was copied"):
        host.finish()


def as_late_as_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy nothing until training waits for it; the thread that writes waits for it all along."""
    asked: list[threading.Event] = []
    fill, finish, take = background_module._fill, HostCopy.finish, HostCopy.take
    wait = Background.wait

    def fill_late(pending: list[Any]) -> None:
        assert asked[-1].wait(60)
        fill(pending)

    def finish_and_tell(host: HostCopy) -> None:
        if asked and threading.current_thread() is threading.main_thread():
            asked[-1].set()
        finish(host)

    def wait_and_tell(background: Background) -> None:
        if asked and background._thread is not None:
            asked[-1].set()
        wait(background)

    def take_and_ask(host: HostCopy, *of: Any) -> Any:
        host.finish()
        asked.append(threading.Event())
        monkeypatch.setattr(HostCopy, "finish", finish)
        try:
            return take(host, *of)
        finally:
            monkeypatch.setattr(HostCopy, "finish", finish_and_tell)

    monkeypatch.setattr(background_module, "_fill", fill_late)
    monkeypatch.setattr(HostCopy, "finish", finish_and_tell)
    monkeypatch.setattr(HostCopy, "take", take_and_ask)
    monkeypatch.setattr(Background, "wait", wait_and_tell)


@pytest.mark.parametrize("refuses", [False, True], ids=["", "refused"])
def test_the_optimizer_waits_for_the_copy(refuses: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With averages, which are measured in the weights' place after each update, and with one that is refused."""
    run = tiny_run(write_shards(tmp_path / "shards"), dropout=0.2, steps=5, ema=EMASpec(0.9), data={"test": None})
    run = dataclasses.replace(
        run,
        checkpoint=CheckpointSpec(every_steps=1, keep=20),
        divergence=DivergenceSpec("skip"),
        evaluation=dataclasses.replace(run.evaluation, every_steps=1),
    )
    if refuses:
        judge = Guard.judge
        refused = Refused(3, "made up", 1.0, 1.0)
        monkeypatch.setattr(
            Guard, "judge", lambda guard, update, *of: refused if update == 3 else judge(guard, update, *of)
        )
    fit(run, tmp_path / "one")
    as_late_as_can_be(monkeypatch)
    fit(run, tmp_path / "two")
    states = [whole_checkpoints(tmp_path / name) for name in ("one", "two")]
    assert len(states[0]) == len(states[1]) == 5
    for one, two in zip(*states, strict=True):
        assert one.read_bytes() == two.read_bytes()
