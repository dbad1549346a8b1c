"""A few held-out pictures as files, so that there is something to try a new model on."""

from __future__ import annotations

import re
from pathlib import Path

from mmformer.data.dataset import SampleDataset
from mmformer.data.order import OrderSpec
from mmformer.training.run import RunSpec

NUMBER = 6


def write_pictures(run: RunSpec, folder: Path) -> None:
    """Some pictures of the test split, as their shards have them, named after their captions (or keys)."""
    if run.data.image is None or run.data.test is None:
        return
    dataset = SampleDataset(run.data, run.data.test, OrderSpec(shuffle=False), seed=0, training=False)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(min(NUMBER, len(dataset))):
        sample = dataset[number]
        name = re.sub(r"\W+", "_", (sample.text or sample.key).lower()).strip("_")[:60] or sample.key
        members = dataset.reader[number].members
        member = run.data.image.choose(members)
        (folder / f"{name}.{member}").write_bytes(members[member])
