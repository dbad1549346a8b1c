"""Duplicates, leakage, balance, agreement and best: which samples stay."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from bundles import pixels, save_dual
from sets import encoded, fields, keys, samples, table, texts, write_set

import mmformer
from mmformer.curation.agreement import Agreement
from mmformer.curation.balance import Balance
from mmformer.curation.best import Best
from mmformer.curation.candidates import Place
from mmformer.curation.curate import curate
from mmformer.curation.duplicates import Duplicates
from mmformer.curation.embedding import Embedder, EmbeddingLikeness
from mmformer.curation.leakage import Leakage
from mmformer.curation.likeness import ExactLikeness
from mmformer.curation.scores import Cut
from mmformer.curation.text_likeness import TextLikeness
from mmformer.errors import InputError

LABEL = Place("label", "json", "kind")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dual(tmp_path_factory.mktemp("dual") / "bundle")


def stay(filter_: object, folder: Path) -> list[int]:
    """The rows that are kept, as often as they are."""
    verdicts = filter_.judge(samples(folder))  # type: ignore[attr-defined]
    return [row for row, verdict in enumerate(verdicts) for _ in range(verdict.copies)]


def test_of_duplicates_the_first_stays_or_the_best(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", train=texts("one", "two", "one", "three", "one", "two"))
    assert stay(Duplicates(), folder) == [0, 1, 3]
    rows = zip((0.1, 0.5, 0.9, 0.2, 0.9, 0.5), range(6), strict=True)
    scores = "key\tsplit\tscore\n" + "".join(f"train{row}\ttrain\t{score}\n" for score, row in rows)
    (tmp_path / "scores.tsv").write_text(scores)
    best = Duplicates(scores=str(tmp_path / "scores.tsv"))
    assert stay(best, folder) == [1, 2, 3], "the best of each, and the first of equal ones"
    assert best.judge(samples(folder))[0].detail == "the same bytes: 'train2'"


def test_likenesses_are_applied_one_after_the_other(tmp_path: Path) -> None:
    said = ["a red heart on it", "a red heart on it", "A red heart on it", "a blue dog"]
    folder = write_set(tmp_path / "set", train=texts(*said))
    verdicts = Duplicates((ExactLikeness(), TextLikeness())).judge(samples(folder))
    assert [verdict.reason for verdict in verdicts] == ["", "same bytes", "like text", ""]


def test_leaks_are_those_of_the_held_out_splits(tmp_path: Path) -> None:
    held = {"val": texts("two", "nothing"), "test": texts("four", "Five five five")}
    train = texts("one", "two", "three", "four", "four", "five five five")
    folder = write_set(tmp_path / "set", train=train, **held)
    assert stay(Leakage(), folder) == [0, 2, 5], "repeats within the split are none of its business"
    assert stay(Leakage(against=("val",)), folder) == [0, 2, 3, 4, 5]
    verdicts = Leakage((ExactLikeness(), TextLikeness())).judge(samples(folder))
    assert [(verdict.reason, verdict.detail) for verdict in verdicts if not verdict.copies] == [
        ("same bytes in val", "the same bytes: 'val0'"),
        ("same bytes in test", "the same bytes: 'test0'"),
        ("same bytes in test", "the same bytes: 'test0'"),
        ("like text in test", "the same pieces: 'test1'"),
    ]


def test_leaks_into_another_set_are_found(tmp_path: Path) -> None:
    source = write_set(tmp_path / "source", train=texts("a", "b", "c"), test=texts("a"))
    other = write_set(tmp_path / "other", train=texts("c"), test=texts("b", "x"))
    found = curate(source, tmp_path / "out", Leakage(held_out=str(other)))
    assert [(key, verdict.reason, verdict.detail) for key, verdict in found.removed] == [
        ("train1", f"same bytes in test of {other}", "the same bytes: 'test0'"),
        ("train2", f"same bytes in train of {other}", "the same bytes: 'train0'"),
    ]
    assert keys(tmp_path / "out") == ["train0"], "what is in its own test is not asked for"
    assert curate(source, None, Leakage(against=("test",), held_out=str(other))).kept == 2
    with pytest.raises(InputError, match=r"There is no split 'val' in .*other"):
        curate(source, None, Leakage(against=("val",), held_out=str(other)))


def test_leakage_needs_two_splits(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", train=texts("one"))
    with pytest.raises(InputError, match="'train' was to be compared with no other: the set has train"):
        Leakage().judge(samples(folder))
    with pytest.raises(InputError, match="There is no split 'tests'"):
        Leakage(against=("tests",)).judge(samples(folder))


@pytest.mark.parametrize(("most", "least"), [(3, None), (None, 4), (5, 3), (4, 4)])
def test_classes_are_balanced(tmp_path: Path, most: int | None, least: int | None) -> None:
    kinds = ["a"] * 7 + ["b"] * 4 + ["c"] * 2 + ["d"]
    folder = write_set(tmp_path / "set", train=fields(*({"kind": kind} for kind in kinds), {"other": 1}))
    rows = stay(Balance(most, least, LABEL), folder)
    counts = Counter(kinds[row] for row in rows)
    for kind, number in Counter(kinds).items():
        assert counts[kind] == max(least or 0, min(most or number, number)), kind
    times = Counter(rows)
    for kind in "abcd":
        repeats = [times[row] for row in times if kinds[row] == kind]
        assert max(repeats) - min(repeats) <= 1, "no sample is repeated twice before another is once"
    assert 14 not in times, "without a label, of no class"


def test_balance_is_a_choice_by_the_seed_and_a_class_keeps_its_own(tmp_path: Path) -> None:
    kinds = [{"kind": kind} for kind in "a" * 12 + "b" * 12]
    folder = write_set(tmp_path / "set", train=fields(*kinds))
    other = write_set(tmp_path / "other", train=fields(*kinds[:12], *({"kind": "c"} for _ in range(12))))
    chosen = [stay(Balance(4, None, LABEL, seed), folder) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert stay(Balance(4, None, LABEL), other)[:4] == chosen[0][:4]
    assert [row - 12 for row in chosen[0][4:]] != chosen[0][:4], "another class, another choice"


def test_the_score_of_agreement_is_the_models_similarity(tmp_path: Path, bundle: Path) -> None:
    said = ["a red square", "blue", "green pear", "", "large", "small things"]
    pictures = [pixels(seed) for seed in range(6)]
    train = [
        {"png": encoded(picture), "txt": caption.encode()} for picture, caption in zip(pictures, said, strict=True)
    ]
    folder = write_set(tmp_path / "set", train=[*train, {"txt": b"no picture"}, {"png": encoded(pictures[0])}])
    curate(folder, tmp_path / "out", Agreement(Embedder(str(bundle), batch_size=1), Cut(keep=0.5)))
    there = [row for row, caption in enumerate(said) if caption]
    alike = mmformer.load(bundle).similarity(image=[pictures[row] for row in there], text=[said[row] for row in there])
    expected = dict(zip(there, alike.diagonal().tolist(), strict=True))
    rows = table(tmp_path / "out" / "scores.tsv")
    assert [row[:2] for row in rows] == [[f"train{row}", "train"] for row in there]
    np.testing.assert_allclose([float(row[2]) for row in rows], list(expected.values()), atol=1e-5)
    best = sorted(there, key=lambda row: -expected[row])[:4]
    assert keys(tmp_path / "out") == [f"train{row}" for row in sorted(best)], "half of 8"
    reasons = Counter(row[3] for row in table(tmp_path / "out" / "removed.tsv"))
    assert reasons == {"low score": 1, "no score": 3}, "an empty caption is none"


def test_of_several_captions_the_mean_is_compared(tmp_path: Path, bundle: Path) -> None:
    picture, said = pixels(0), ["a red square", "blue"]
    train = [{"png": encoded(picture), **fields({"said": said})[0]}]
    folder = write_set(tmp_path / "set", train=train)
    agreement = Agreement(Embedder(str(bundle)), Cut(keep=1), second=Place("text", "json", "said"))
    (verdict,) = agreement.judge(samples(folder))
    model = mmformer.load(bundle)
    mean = model.embed(text=said).mean(0)
    assert verdict.score == pytest.approx(float(model.embed(image=picture) @ mean / mean.norm()), abs=1e-5)


def test_scores_are_used_again(tmp_path: Path, bundle: Path) -> None:
    train = [{"png": encoded(pixels(seed)), "txt": f"caption {seed}".encode()} for seed in range(8)]
    folder = write_set(tmp_path / "set", train=train)
    for keep in (0.25, 1.0):
        curate(folder, tmp_path / f"scored{keep}", Agreement(Embedder(str(bundle)), Cut(keep)))
    again = Best(Cut(0.25), scores=str(tmp_path / "scored1.0"))
    curate(tmp_path / "scored1.0", tmp_path / "again", again)
    assert keys(tmp_path / "again") == keys(tmp_path / "scored0.25")
    assert len(keys(tmp_path / "again")) == 2


def test_embeddings_find_pictures_of_any_size(tmp_path: Path, bundle: Path) -> None:
    squares = [pixels(seed, 16, 16) for seed in range(3)]
    large = squares[0].repeat(4, axis=0).repeat(4, axis=1)
    folder = write_set(tmp_path / "set", train=[{"png": encoded(one)} for one in (*squares, large)])
    likeness = EmbeddingLikeness(Embedder(str(bundle)), Place("image"), cosine=0.985)
    vectors = mmformer.load(bundle).embed(image=[*squares, large]).numpy()
    cosines = np.triu(vectors @ vectors.T, 1)
    assert np.argwhere(cosines >= 0.985).tolist() == [[0, 3]], "the model takes the two for the same, and no others"
    prints = likeness.prints(samples(folder))
    np.testing.assert_allclose(np.stack(prints), vectors, atol=1e-5)
    assert {row: match.row for row, match in likeness.within(prints, range(4)).items()} == {3: 0}


def test_the_best_by_a_field(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", train=fields(*({"q": score} for score in (3, 1, 2.5, 9)), {"p": 1}))
    place = Place("number", "json", "q")
    assert stay(Best(Cut(least=2.5), place=place), folder) == [0, 2, 3]
    assert stay(Best(Cut(least=2.5, lowest=True), place=place), folder) == [1, 2]
    assert stay(Best(Cut(keep=0.4), place=place), folder) == [0, 3], "2 of 5"
    assert stay(Best(Cut(keep=0.4, lowest=True), place=place), folder) == [1, 2]
    assert stay(Best(Cut(keep=1), place=place), folder) == [0, 1, 2, 3], "a sample without a score has no place"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cut(), "either which fraction"),
        (lambda: Cut(0.5, 0.5), "either which fraction"),
        (lambda: Cut(1.5), "Cut.keep must be a fraction"),
        (lambda: Cut(least=float("nan")), "Cut.least must be a number"),
        (lambda: Best(Cut(0.5)), "in a table, or in a field"),
        (lambda: Balance(), "the most or the least"),
        (lambda: Balance(2, 3), "Balance.least must be at most the most"),
        (lambda: Balance(0), "Balance.most must be at least 1"),
        (lambda: Leakage(against=("val", "val")), "Leakage.against must be different splits"),
        (lambda: Agreement(Embedder("b"), Cut(0.5), Place("text"), Place("text")), "both sides are of text"),
    ],
)
def test_what_cannot_be_meant_is_refused(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]
