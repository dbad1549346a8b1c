"""BLEU, ROUGE-L and CIDEr-D against pycocoevalcap, which COCO's captions are measured with."""

from __future__ import annotations

import random
import shutil
from typing import Any

import pytest

from mmformer.evaluation.bleu import bleu
from mmformer.evaluation.cider import cider
from mmformer.evaluation.rouge import rouge_l
from mmformer.evaluation.words import spoken

pytest.importorskip("pycocoevalcap.bleu.bleu")

# What people say of pictures, with the marks and contractions that tokenizers differ in.
CANDIDATES = [
    "a man riding a wave on top of a surfboard",
    "A cat sitting on top of a laptop computer.",
    "a dog",
    "Two people aren't standing next to the woman's red umbrella",
    "a plate of food with broccoli, rice and meat",
    "the the the the",
]
REFERENCES = [
    ["A man is surfing on a large wave.", "a surfer riding a wave on a surfboard", "A man riding on top of a wave"],
    ["A cat sits on top of a laptop.", "the cat is lying on a computer"],
    ["a brown dog runs through the grass", "A dog."],
    ["Two people stand next to a red umbrella", "There aren't two people at the woman's umbrella"],
    ["A plate with broccoli, rice and some meat on it", "a white plate of food"],
    ["the bus stops at the corner", "a bus in the street"],
]


def made(seed: int) -> tuple[list[str], list[list[str]]]:
    """Texts of few different words, so that runs of all lengths agree here and there."""
    drawn = random.Random(seed)

    def text(least: int) -> str:
        return " ".join(drawn.choice(["a", "b", "c", "d", "e", "f"]) for _ in range(drawn.randint(least, 12)))

    return [text(1) for _ in range(20)], [[text(1) for _ in range(drawn.randint(1, 5))] for _ in range(20)]


def of_coco(candidates: list[str], references: list[list[str]]) -> dict[str, Any]:
    """The reference's scores of the same words."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    said = {number: [" ".join(spoken(text))] for number, text in enumerate(candidates)}
    known = {number: [" ".join(spoken(text)) for text in texts] for number, texts in enumerate(references)}
    return {
        "bleu": Bleu(4).compute_score(known, said, verbose=0)[0],
        "rouge": Rouge().compute_score(known, said)[0],
        "cider": Cider().compute_score(known, said)[0],
    }


@pytest.mark.parametrize(
    ("candidates", "references"), [(CANDIDATES, REFERENCES), made(0), made(1)], ids=["captions", "drawn", "drawn too"]
)
def test_scores_are_those_of_the_reference(candidates: list[str], references: list[list[str]]) -> None:
    expected = of_coco(candidates, references)
    # Where no run of a length agrees, the reference adds 1e-15 to the count, of which it takes the fourth root.
    assert bleu(candidates, references) == pytest.approx(expected["bleu"], rel=1e-6, abs=5e-5)
    assert rouge_l(candidates, references) == pytest.approx(expected["rouge"], abs=1e-9)
    assert cider(candidates, references) == pytest.approx(expected["cider"], abs=1e-9)


# What the reference's tokenizer makes of texts, where it does more than to leave out commas and full stops.
WORDS = {
    "A \"red\" bus -- it's 3.5m long; they'll go!": "a red bus it 's 3.5 m long they 'll go",
    "Mr. Smith's in St. Louis, e.g. in the U.S., 5:30 p.m.": "mr. smith 's in st. louis e.g. in the u.s. 5:30 p.m.",
    "A no. 7 bus, not that one? No.": "a no. 7 bus not that one no",
    "wow!! really?! yes!": "wow !! really ?! yes",
    "a (small) [big] {odd} dog...cats' toys": "a -lrb- small -rrb- -lsb- big -rsb- -lcb- odd -rcb- dog cats toys",
    "I cannot, can't've, I'm gonna; y'all 're": "i can not ca n't 've i 'm gon na y' all 're",
    "the '90s, the 80's, rock 'n' roll": "the '90s the 80 's rock 'n' roll",
    "$5, €5 and 20% off & more; AT&T, man&dog &amp; Q&A": "$ 5 $ 5 and 20 % off & more at&t man & dog & q&a",
    "hello,world: 1,000 3-year-olds; half-eaten 24/7": "hello world 1,000 3-year-olds half-eaten 24/7",
    "#1 fan, #winning x*y=z **bold** don’t “quote”": "# 1 fan #winning x * y = z ** bold ** do n't quote",
}


@pytest.mark.parametrize("text", WORDS)
def test_words_are_those_that_were_noted_down(text: str) -> None:
    assert " ".join(spoken(text)) == WORDS[text]


@pytest.mark.skipif(shutil.which("java") is None, reason="the reference's tokenizer is a Java program")
def test_words_are_those_of_the_references_tokenizer() -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    texts = [*CANDIDATES, *(text for texts in REFERENCES for text in texts), *WORDS]
    found = PTBTokenizer().tokenize({number: [{"caption": text}] for number, text in enumerate(texts)})
    assert [" ".join(spoken(text)) for text in texts] == [found[number][0] for number in range(len(texts))]


def test_nothing_written_is_worth_nothing() -> None:
    assert bleu([""], [["a b"]]) == [0, 0, 0, 0]
    assert rouge_l([""], [["a b"]]) == 0
    assert bleu(["a b c d"], [["a b c d"]]) == [1, 1, 1, 1]
    assert rouge_l(["a b c d"], [["x", "a b c d"]]) == 1
