"""Ranks against brute force, ties told against the model, both directions, chance; and the loop that feeds metrics."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

import pytest
import torch
from tiny import tiny_batch, tiny_model
from torch import Tensor
from torch.nn import functional as F

from mmformer.errors import InputError
from mmformer.evaluation.metric import Score, evaluate
from mmformer.evaluation.retrieval import Retrieval, RetrievalSpec, ranks
from mmformer.spec import Parts
from mmformer.types import Batch, Outputs

SPEC = RetrievalSpec(recall=(1, 3))


def embeddings(number: int = 23, width: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(number, width, generator=generator)
    return x, x + torch.randn(number, width, generator=generator)


def brute_force(query: Tensor, candidate: Tensor) -> list[int]:
    """For each query, how many candidates score at least what the right one does."""
    found = []
    for index, q in enumerate(query):
        scores = [float((q * c).sum()) for c in candidate]
        found.append(sum(score >= scores[index] for score in scores))
    return found


def measure(spec: RetrievalSpec, image: Tensor, text: Tensor, sizes: tuple[int, ...]) -> dict[str, Score]:
    metric = spec.build()
    for x, y in zip(image.split(sizes), text.split(sizes), strict=True):
        metric.update(Outputs.empty()._replace(embedding={"image": x, "text": y}), Batch((), {}))
    return metric.compute()


@pytest.mark.parametrize("chunk", [1, 5, 23, 4096])
def test_ranks_are_counted(chunk: int) -> None:
    query, candidate = embeddings()
    found = ranks(query, candidate, chunk)
    assert found.dtype == torch.int64
    assert found.tolist() == brute_force(query, candidate)
    assert 1 <= found.min() <= found.max() <= 23
    assert len(found.unique()) > 3


def test_ties_count_against_the_model() -> None:
    same = torch.ones(5, 3)
    assert ranks(same, same).tolist() == [5] * 5, "embeddings that tell nothing apart find nothing"
    scores = measure(SPEC, same, same, (5,))
    assert scores["image_to_text/R@1"].value == scores["image_to_text/R@3"].value == 0
    assert scores["image_to_text/median_rank"].value == 5
    pairs = torch.eye(3).repeat_interleave(2, dim=0)  # each has a twin
    assert ranks(pairs, pairs).tolist() == [2] * 6


def test_what_is_not_a_number_finds_nothing() -> None:
    nan = torch.full((5, 3), float("nan"))
    good = F.normalize(embeddings(5, 3)[0], dim=1)
    for query, candidate in ((nan, nan), (nan, good), (good, nan)):
        assert ranks(query, candidate).tolist() == [5] * 5
    for image, text in ((nan, nan), (nan, good), (torch.full((5, 3), float("inf")), good)):
        scores = measure(SPEC, image, text, (5,))
        assert all(score.value == (5 if "rank" in name else 0) for name, score in scores.items())
    one = good.clone()
    one[2] = float("nan")  # one diverged sample is last itself, and stands before every other's right one
    assert ranks(one, good).tolist() == [1, 1, 5, 1, 1]
    assert ranks(good, one).tolist() == [2, 2, 5, 2, 2]


def test_a_perfect_model_finds_all() -> None:
    eye = torch.eye(6)
    scores = measure(SPEC, eye, 7 * eye, (6,))
    assert all(score.value == (1 if "rank" in name else 100) for name, score in scores.items())


def test_scores_are_those_of_the_ranks_both_ways() -> None:
    """Over batches of any sizes; embeddings are normalised first."""
    image, text = embeddings()
    image = image * torch.linspace(0.1, 9, 23)[:, None]
    expected = {
        "image_to_text": brute_force(F.normalize(image, dim=1), F.normalize(text, dim=1)),
        "text_to_image": brute_force(F.normalize(text, dim=1), F.normalize(image, dim=1)),
    }
    for sizes in ((23,), (10, 10, 3), (1,) * 23):
        scores = measure(SPEC, image, text, sizes)
        assert list(scores) == [f"{way}/{name}" for way in expected for name in ("R@1", "R@3", "median_rank")]
        for way, rank in expected.items():
            for k in (1, 3):
                assert scores[f"{way}/R@{k}"].value == pytest.approx(100 * sum(r <= k for r in rank) / 23)
                assert scores[f"{way}/R@{k}"].unit == "%"
            assert scores[f"{way}/median_rank"].value == statistics.median(rank)
            assert scores[f"{way}/median_rank"].unit == ""


def test_the_median_of_an_even_number_lies_between() -> None:
    query = torch.eye(4)
    candidate = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 2, 1, 2], [3, 3, 3, 0.1]])
    rank = ranks(query, candidate).tolist()
    metric = Retrieval(SPEC)
    metric.rows.add({"image/embedding": query, "text/embedding": candidate})
    assert metric.compute()["image_to_text/median_rank"].value == statistics.median(rank)


def test_chance_is_what_guessing_gives() -> None:
    scores = measure(RetrievalSpec(recall=(1, 10, 50)), *embeddings(), (23,))
    chance = {name: score.chance for name, score in scores.items() if name.startswith("image")}
    assert chance == {
        "image_to_text/R@1": pytest.approx(100 / 23),
        "image_to_text/R@10": pytest.approx(1000 / 23),
        "image_to_text/R@50": 100,
        "image_to_text/median_rank": 12,
    }
    noise = [measure(SPEC, torch.randn(100, 8), torch.randn(100, 8), (100,)) for _ in range(20)]
    mean = statistics.mean(score["image_to_text/R@3"].value for score in noise)
    assert abs(mean - 3) < 2, "random embeddings score about that"


def test_the_pair_names_the_encoders() -> None:
    x, y = embeddings()
    metric = RetrievalSpec((("a", "b"), ("image", "a")), (1,)).build()
    metric.update(Outputs.empty()._replace(embedding={"a": x, "b": y, "image": y}), Batch((), {}))
    scores = metric.compute()
    assert list(scores)[:4] == ["a_to_b/R@1", "a_to_b/median_rank", "b_to_a/R@1", "b_to_a/median_rank"]
    assert scores["a_to_b/R@1"] == scores["a_to_image/R@1"], "b and image are the same here"
    assert len(scores) == 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pairs": (("image", "image"),)}, "RetrievalSpec.pairs must be different pairs of two different encoders"),
        ({"pairs": (("a", "b"), ("b", "a"))}, "RetrievalSpec.pairs must be different pairs"),
        ({"pairs": ()}, "RetrievalSpec.pairs must be at least one pair"),
        ({"recall": ()}, "RetrievalSpec.recall must be at least one k"),
        ({"recall": (0,)}, "RetrievalSpec.recall must be at least one k, each at least 1"),
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        RetrievalSpec(**fields)
    assert str(caught.value).startswith(message)


def test_a_model_that_does_not_fit_is_refused() -> None:
    SPEC.check(Parts({"image": 4, "text": 4}, {}, {}, ()))
    with pytest.raises(InputError, match=r"RetrievalSpec.pairs is 'text', but .* image, txt. Did you mean 'txt'"):
        SPEC.check(Parts({"image": 4, "txt": 4}, {}, {}, ()))
    with pytest.raises(InputError, match=r"'image' against 'text', but their embeddings are 4 and 5 wide"):
        SPEC.check(Parts({"image": 4, "text": 5}, {}, {}, ()))


def test_no_batch_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="no sample"):
        SPEC.build().compute()


# ------------------------------------------------------------------------------------------------- the loop

WAYS = (("image", "text"), ("text", "image"))
TEXTS = ["red", "a blue square", "green", "pink on the left", "black"]


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_leaves_the_model_as_it_was(training: bool) -> None:
    model = tiny_model(dropout=0.5).build().train(training)
    model.initialise(0)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches = [tiny_batch(TEXTS[:2]), tiny_batch(TEXTS[2:])]
    one = evaluate(model, batches, {"r": SPEC}, {})
    assert model.training is training
    assert torch.equal(torch.get_rng_state(), before), "no dropout, no draws"
    assert evaluate(model, iter(batches), {"r": SPEC}, {}) == one
    assert set(one) == {f"r/{a}_to_{b}/{k}" for a, b in WAYS for k in ("R@1", "R@3", "median_rank")}
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        embedded = [model.eval()(batch).embedding for batch in batches]
    x, y = (F.normalize(torch.cat([e[name] for e in embedded]), dim=1) for name in ("image", "text"))
    assert one["r/image_to_text/median_rank"].value == statistics.median(brute_force(x, y))


def test_the_mode_is_restored_when_a_metric_fails() -> None:
    model = tiny_model().build().train()
    with pytest.raises(InputError):
        evaluate(model, [Batch((), {})], {"r": SPEC}, {})
    assert model.training


def test_two_metrics_of_one_kind_do_not_share() -> None:
    model = tiny_model().build()
    model.initialise(0)
    specs = {"a": SPEC, "b": dataclasses.replace(SPEC, recall=(2,))}
    scores = evaluate(model, [tiny_batch(TEXTS)], specs, {})
    assert {name.split("/")[0] for name in scores} == {"a", "b"}
    assert scores["a/image_to_text/median_rank"] == scores["b/image_to_text/median_rank"]
    assert "b/image_to_text/R@2" in scores


def test_to_device_moves_every_tensor() -> None:
    moved = tiny_batch(TEXTS).to("meta")
    assert moved.image is not None
    assert moved.text is not None
    assert moved.keys == ("0", "1", "2", "3", "4")
    tensors = [moved.image, *(part for part in moved.text if isinstance(part, torch.Tensor)), *moved.labels.values()]
    assert all(tensor.is_meta for tensor in tensors)
    assert Batch((), {}).to("meta") == Batch((), {})


def test_only_the_scores_that_are_asked_for_are_told_in_that_order() -> None:
    model, batches = tiny_model().build(), [tiny_batch(TEXTS)]
    whole = evaluate(model, batches, {"r": SPEC}, {})
    wanted = ("text_to_image/R@3", "image_to_text/R@1")
    told = evaluate(model, batches, {"r": dataclasses.replace(SPEC, only=wanted), "all": SPEC}, {})
    assert list(told)[:2] == [f"r/{name}" for name in wanted]
    assert {f"r/{name.removeprefix('all/')}": score for name, score in list(told.items())[2:]} == whole
    assert all(told[f"r/{name}"] == whole[f"r/{name}"] for name in wanted)
    with pytest.raises(
        InputError, match=r"RetrievalSpec.only of the metric 'r' has 'R@1', but its scores are image_to"
    ):
        evaluate(model, batches, {"r": dataclasses.replace(SPEC, only=("R@1",))}, {})
