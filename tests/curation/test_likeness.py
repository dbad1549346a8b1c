"""What is alike, against comparing all with all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sets import encoded, samples, scene, texts, write_set

from mmformer.curation import embedding
from mmformer.curation.candidates import Place
from mmformer.curation.embedding import Embedder, EmbeddingLikeness
from mmformer.curation.likeness import ExactLikeness, Likeness
from mmformer.curation.picture_likeness import PictureLikeness, PicturePrint, colours_apart, picture_print
from mmformer.curation.text_likeness import TextLikeness, overlap, pieces
from mmformer.errors import InputError

Alike = Callable[[Any, Any], float | None]
"""How alike two prints are, the more the more; None: not enough."""


def check_within(likeness: Likeness, prints: Sequence[Any], order: Sequence[int], alike: Alike) -> int:
    """``within`` is the reference's, and matches are the best; how many there are."""
    kept: list[int] = []
    found: dict[int, float] = {}
    for row in order:
        scores = [score for other in kept if (score := alike(prints[other], prints[row])) is not None]
        if scores:
            found[row] = max(scores)
        else:
            kept.append(row)
    answer = likeness.within(prints, order)
    assert answer.keys() == found.keys()
    for row, match in answer.items():
        assert match.row in kept
        assert alike(prints[match.row], prints[row]) == pytest.approx(found[row], abs=1e-6)
    return len(found)


def check_between(likeness: Likeness, prints: Sequence[Any], others: Sequence[Any], alike: Alike) -> int:
    """``between`` is the reference's; how many there are."""
    pairs = {
        row: [score for other in others if (score := alike(other, made)) is not None] for row, made in enumerate(prints)
    }
    answer = likeness.between(prints, others)
    assert answer.keys() == {row for row, scores in pairs.items() if scores}
    for row, match in answer.items():
        assert alike(others[match.row], prints[row]) == pytest.approx(max(pairs[row]), abs=1e-6)
    return len(answer)


def random_prints(seed: int, distance: int, number: int = 300) -> list[PicturePrint]:
    """Hashes in groups, of which some are just near enough to each other and some are not, in one of two colours."""
    random = np.random.default_rng(seed)
    centres = [int.from_bytes(random.bytes(8), "big") for _ in range(number // 6)]
    prints = []
    for _ in range(number):
        value = centres[random.integers(len(centres))]
        for bit in random.choice(64, random.integers(0, distance // 2 + 2), replace=False):
            value ^= 1 << int(bit)
        shade = int(random.choice([0, 0, 0, 200]))
        prints.append(PicturePrint(value, bytes([shade]) * 192))
    return prints


@pytest.mark.parametrize("distance", [0, 3, 4, 6, 9])
def test_pictures_are_found_as_by_comparing_all_with_all(distance: int) -> None:
    likeness = PictureLikeness(distance=distance, colour=10)

    def alike(one: PicturePrint, other: PicturePrint) -> float | None:
        bits = (one.hash ^ other.hash).bit_count()
        return -bits if bits <= distance and one.colours == other.colours else None

    prints = random_prints(0, distance)
    order = np.random.default_rng(1).permutation(len(prints)).tolist()
    assert 20 < check_within(likeness, prints, order, alike) < 290
    assert check_between(likeness, prints, random_prints(1, distance), alike) == 0
    assert check_between(likeness, prints[:100], prints[100:], alike) > 20


def test_the_picture_is_the_same_at_another_size_and_quality_and_not_in_other_colours() -> None:
    likeness = PictureLikeness()
    for seed in range(8):
        picture = scene(seed)
        small = np.asarray(Image.fromarray(picture).resize((50, 50), Image.Resampling.BICUBIC))
        prints = [picture_print(one) for one in (picture, small, scene(seed + 100), picture[..., [2, 0, 1]])]
        assert likeness.within(prints, range(4)).keys() == {1}, "the same shapes in other colours are another picture"


def test_one_part_in_another_colour_is_another_picture() -> None:
    flag = np.full((64, 128, 3), (0, 0, 120), np.uint8)
    flag[:32, :64] = (200, 0, 0)
    badge = flag.copy()
    badge[20:44, 88:112] = (255, 255, 0)
    one, other = picture_print(flag), picture_print(badge)
    assert colours_apart(one, other) > 100
    assert PictureLikeness(distance=16).between([one], [other]) == {}


def test_pictures_are_read_from_any_format(tmp_path: Path) -> None:
    picture = scene(0)
    made = [{"png": encoded(picture)}, {"jpg": encoded(picture, "jpeg", quality=70)}, {"png": encoded(scene(1))}]
    folder = write_set(tmp_path / "set", train=[*made, {"txt": b"no picture"}])
    prints = PictureLikeness().prints(samples(folder))
    assert prints[3] is None
    assert {row: match.row for row, match in PictureLikeness().within(prints, range(4)).items()} == {1: 0}


def random_texts(seed: int, number: int = 150) -> list[str]:
    """Texts of random words, some of them with a word or a letter changed."""
    random = np.random.default_rng(seed)
    words = ["".join(random.choice(list("abcdefghij"), random.integers(3, 8))) for _ in range(200)]
    made: list[str] = []
    for _ in range(number):
        if made and random.random() < 0.4:
            chosen = made[random.integers(len(made))].split()
            chosen[random.integers(len(chosen))] = words[random.integers(200)]
            made.append(" ".join(chosen))
        else:
            made.append(" ".join(random.choice(words, random.integers(6, 14))))
    return made


@pytest.mark.parametrize("jaccard", [0.7, *(pytest.param(each, marks=pytest.mark.slow) for each in (0.5, 1.0))])
def test_texts_are_found_as_by_comparing_all_with_all(jaccard: float, tmp_path: Path) -> None:
    """MinHash may miss some near the threshold; with these texts and its fixed seed it misses none."""
    one, two = (texts(*random_texts(1)), texts(*random_texts(1)[::-3]))
    folder = write_set(tmp_path / "set", train=one, test=two)
    likeness = TextLikeness(jaccard=jaccard)
    prints, others = likeness.prints(samples(folder)), likeness.prints(samples(folder, "test"))

    def alike(first: Any, second: Any) -> float | None:
        share = len(first.pieces & second.pieces) / len(first.pieces | second.pieces)
        return share if share >= jaccard else None

    assert (check_within(likeness, prints, range(len(prints)), alike) > 10) == (jaccard < 1)
    assert check_between(likeness, prints, others, alike) >= len(others)


def test_case_and_space_and_width_do_not_matter_and_words_do(tmp_path: Path) -> None:
    said = ["A red  Heart", "a red heart\n", "Ａ red heart", "a dead heart", "", "   "]
    likeness = TextLikeness()
    prints = likeness.prints(samples(write_set(tmp_path / "set", train=texts(*said))))
    assert likeness.within(prints, range(6)).keys() == {1, 2}
    assert prints[4] is prints[5] is None, "nothing is not like nothing"


def test_pieces_of_short_texts_are_the_texts() -> None:
    assert pieces("ab", 3) == {"ab"}
    assert pieces("abcd", 3) == {"abc", "bcd"}
    assert pieces(" ", 3) == frozenset()
    assert overlap(pieces("abcd", 3), pieces("bcde", 3)) == pytest.approx(1 / 3)


@pytest.mark.parametrize("block", [7, 64, 1024])
def test_embeddings_are_found_as_by_comparing_all_with_all(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "_BLOCK", block)
    random = np.random.default_rng(0)
    centres = random.normal(size=(40, 8))
    vectors = centres[random.integers(40, size=200)] + 0.15 * random.normal(size=(200, 8))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    prints: list[Any] = [None if row % 17 == 3 else vector for row, vector in enumerate(vectors)]
    likeness = EmbeddingLikeness(Embedder("unopened"), Place("image"), cosine=0.95)

    def alike(one: Any, other: Any) -> float | None:
        cosine = None if one is None or other is None else float(one @ other)
        return cosine if cosine is not None and cosine >= 0.95 else None

    order = [row for row in random.permutation(200).tolist() if row % 17 != 3]
    assert 50 < check_within(likeness, prints, order, alike) < 180
    assert likeness.within(prints, range(200)).keys().isdisjoint(range(3, 200, 17))
    assert 20 < check_between(likeness, prints[:100], prints[100:], alike) < 100
    assert likeness.between(prints[:10], [None]) == {}


def test_the_same_bytes_are_the_same_whatever_the_key(tmp_path: Path) -> None:
    made = [{"txt": b"a", "json": b"1"}, {"txt": b"a", "json": b"2"}, {"txt": b"a", "json": b"1"}, {"txt": b"a"}]
    folder = write_set(tmp_path / "set", train=[*made, {"txt": b"", "json": b"a1"}])

    def found(*members: str) -> dict[int, int]:
        likeness = ExactLikeness(members)
        prints = likeness.prints(samples(folder))
        return {row: match.row for row, match in likeness.within(prints, range(5)).items()}

    assert found() == {2: 0}
    assert found("txt") == {1: 0, 2: 0, 3: 0}
    assert found("json") == {2: 0}, "a sample without the member is like no other"
    with pytest.raises(InputError, match=r"no sample of the split 'train' has a member 'text': .*Did you mean 'txt'"):
        found("text")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PictureLikeness(distance=17), "PictureLikeness.distance must be 0 to 16"),
        (lambda: PictureLikeness(colour=-1), "PictureLikeness.colour must be 0 to 255"),
        (lambda: TextLikeness(jaccard=0.1), "TextLikeness.jaccard must be 0.2 to 1"),
        (lambda: TextLikeness(characters=0), "TextLikeness.characters must be at least 1"),
        (lambda: EmbeddingLikeness(Embedder("b"), Place("image"), 2), "EmbeddingLikeness.cosine must be"),
    ],
)
def test_what_cannot_be_meant_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
