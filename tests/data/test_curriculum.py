"""Easy samples first: the share that is seen, which ones those are, and that the order stays a function."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_data, write_shards

from mmformer.data.curriculum import CurriculumSpec
from mmformer.data.dataset import MixedDataset
from mmformer.data.loading import training_loader
from mmformer.data.opening import open_samples
from mmformer.data.sources import DataSpec
from mmformer.errors import InputError


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def scores(shards: Path) -> dict[str, float]:
    """A score of every training sample, in a table beside them; no two alike."""
    keys = open_samples(str(shards), "train").keys
    table = {key: float((7 * place) % len(keys)) for place, key in enumerate(keys)}
    lines = [f"{key}\ttrain\t{score}" for key, score in table.items()]
    (shards / "scores.tsv").write_text("\n".join(["key\tsplit\tscore", *lines]) + "\n")
    return table


def data(shards: Path, **changes: object) -> DataSpec:
    fields = {"scores": str(shards / "scores.tsv"), "updates": 20, "begin": 0.25} | changes
    curriculum = CurriculumSpec(**fields)  # type: ignore[arg-type]
    return tiny_data(shards, curriculum=curriculum, batch_size=4, image=None)


@pytest.mark.parametrize("lowest", [False, True])
def test_an_update_sees_its_share_and_no_harder_ones(shards: Path, scores: dict[str, float], lowest: bool) -> None:
    spec = data(shards, lowest=lowest)
    dataset = MixedDataset(spec, 3)
    best = sorted(scores, key=lambda key: scores[key] if lowest else -scores[key])
    assert spec.curriculum is not None
    hardest = 0
    for update in range(40):
        share = spec.curriculum.share(update)
        assert share == pytest.approx(min(1.0, 0.25 + 0.75 * update / 20))
        allowed = set(best[: round(0.5 + share * len(best))])
        keys = [dataset[4 * update + row].key for row in range(4)]
        assert set(keys) <= allowed, update
        hardest = max(hardest, *(best.index(key) for key in keys))
        if update == 5:
            assert hardest < len(best) / 2
    assert hardest >= len(best) - 3, "at last all are seen"


def test_it_is_the_plain_order_once_all_are_seen(shards: Path, scores: dict[str, float]) -> None:
    staged, plain = MixedDataset(data(shards), 3), MixedDataset(tiny_data(shards, batch_size=4, image=None), 3)
    late = range(4 * 20, 4 * 30)
    assert [staged[p].key for p in late] == [plain[p].key for p in late]
    early = range(4 * 10)
    assert [staged[p].key for p in early] != [plain[p].key for p in early]


def test_ranks_and_resumed_runs_see_the_same(shards: Path, scores: dict[str, float]) -> None:
    spec = data(shards)

    def keys(first: int = 0, **ranks: int) -> list[tuple[str, ...]]:
        return [batch.keys for batch in training_loader(spec, {}, 3, first, 12, **ranks)]  # type: ignore[arg-type]

    whole = keys()
    assert keys(7) == whole[7:]
    halves = [keys(rank=rank, ranks=2) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*halves, strict=True)] == [sorted(batch) for batch in whole]
    assert sum(len(set(batch)) for batch in whole) > 0.85 * sum(map(len, whole)), "hardly any sample twice in a batch"


def test_a_table_of_another_set_is_refused(shards: Path, scores: dict[str, float], tmp_path: Path) -> None:
    (tmp_path / "scores.tsv").write_text("key\tsplit\tscore\n00\ttrain\t1\n")
    spec = data(shards, scores=str(tmp_path / "scores.tsv"))
    with pytest.raises(InputError, match=r"scores.tsv has no score of '.*' in the split 'train'"):
        MixedDataset(spec, 3)
    with pytest.raises(InputError, match=r"CurriculumSpec.begin must be above 0 and below 1"):
        data(shards, begin=1.0)
    with pytest.raises(InputError, match=r"CurriculumSpec.updates must be at least 1"):
        data(shards, updates=0)
    tight = MixedDataset(data(shards, begin=0.01), 3)
    with pytest.raises(InputError, match="some lane of the order has no sample among that share"):
        [tight[position] for position in range(4)]
