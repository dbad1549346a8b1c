"""Captions that say nothing of their sample, or not in a wanted language."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from mmformer.curation.candidates import Candidates, Place
from mmformer.curation.extras import extra
from mmformer.curation.filter import KEPT, Filter, Verdict, removed
from mmformer.curation.text_likeness import normal
from mmformer.errors import InputError, nearest
from mmformer.spec import require


@dataclass(frozen=True)
class Captions(Filter):
    """Removes samples by their captions; of several captions each has to pass. A sample without one does not stay.

    Attributes:
        place: of the caption.
        characters: fewest and most, without white space around it; None: any number.
        words: fewest and most, between white space; None: any number.
        letters: the least share of letters, with the marks that belong to them, in what is not white space.
        match: a regular expression that has to be found in it; "": none.
        avoid: a regular expression that must not be found in it; "": none.
        repeats: how many samples may have the same caption, but for case and white space; where more have it, none of
            them stays (ALIGN, Jia et al., 2021). None: any number.
        languages: the wanted ones, by ISO 639 codes; empty: all.
        certainty: the least probability, as langid (Lui and Baldwin, 2012) has it, that the caption is in one of the
            languages. Of single words that is low for every language: what is asked for should be little.
    """

    name: ClassVar[str] = "captions"

    place: Place = Place("text")
    characters: tuple[int, int | None] | None = None
    words: tuple[int, int | None] | None = None
    letters: float = 0.0
    match: str = ""
    avoid: str = ""
    repeats: int | None = None
    languages: tuple[str, ...] = ()
    certainty: float = 0.01

    def __post_init__(self) -> None:
        for name in ("characters", "words"):
            least, most = getattr(self, name) or (1, None)
            fits = least >= 0 and (least > 0 or most is not None) and (most is None or most >= max(least, 1))
            require(fits, self, name, "a range that leaves something out and something in, such as (2, 60)")
        require(0 <= self.letters <= 1, self, "letters", "0 to 1")
        require(self.repeats is None or self.repeats >= 1, self, "repeats", "at least 1")
        require(0 < self.certainty < 1, self, "certainty", "between 0 and 1")
        for name in ("match", "avoid"):
            try:
                re.compile(getattr(self, name))
            except re.error as error:
                raise InputError(
                    f"Captions.{name} is no regular expression: {getattr(self, name)!r}: {error}."
                ) from error
        told = self.languages or self.certainty == Captions.certainty
        require(bool(told), self, "certainty", "left alone where no language is wanted")
        checks = (self.characters, self.words, self.letters, self.match, self.avoid, self.repeats, self.languages)
        if not any(checks):
            raise InputError("The captions have nothing to pass: say how long, in which language, or what else.")

    def judge(self, samples: Candidates) -> Sequence[Verdict]:
        captions = [texts for (texts,) in samples.values(self.place)]
        times = Counter(text for texts in captions for text in {normal(text) for text in texts or ()})
        checks = list(self._checks(times))
        return [_verdict(texts, checks) for texts in captions]

    def _checks(self, times: Counter[str]) -> Iterator[Check]:
        """What every caption has to pass, the cheapest first."""
        if self.characters is not None:
            yield _length("characters", *self.characters, measure=lambda text: len(text.strip()))
        if self.words is not None:
            yield _length("words", *self.words, measure=lambda text: len(text.split()))
        if self.letters:
            yield lambda text: ("few letters", f"{letters(text):.2f} of it") if letters(text) < self.letters else None
        if self.match:
            wanted = re.compile(self.match)
            yield lambda text: None if wanted.search(text) else ("no match", self.match)
        if self.avoid:
            unwanted = re.compile(self.avoid)
            yield lambda text: ("pattern", found[0]) if (found := unwanted.search(text)) else None
        if self.repeats is not None:
            most = self.repeats
            yield lambda text: ("repeated", f"{times[normal(text)]} times") if times[normal(text)] > most else None
        if self.languages:
            yield _language(self.languages, self.certainty)


Check = Callable[[str], tuple[str, str] | None]
"""Why a caption does not pass, as a reason and what was found."""


def letters(text: str) -> float:
    """The share of letters, with their marks, in what is not white space; 0 of nothing."""
    shown = "".join(text.split())
    return sum(unicodedata.category(character)[0] in "LM" for character in shown) / len(shown) if shown else 0.0


def _verdict(texts: tuple[str, ...] | None, checks: Sequence[Check]) -> Verdict:
    if texts is None:
        return removed("no caption")
    for text in texts:
        for check in checks:
            if (failed := check(text)) is not None:
                return removed(failed[0], f"{failed[1]}: {text[:80]!r}")
    return KEPT


def _length(what: str, least: int, most: int | None, measure: Callable[[str], int]) -> Check:
    def check(text: str) -> tuple[str, str] | None:
        length = measure(text)
        if length < least:
            return f"few {what}", str(length)
        return (f"many {what}", str(length)) if most is not None and length > most else None

    return check


def _language(wanted: tuple[str, ...], certainty: float) -> Check:
    langid = extra("py3langid.langid", "Telling languages")
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    known = [name for name, _ in identifier.rank("")]
    for language in wanted:
        if language not in known:
            raise InputError(
                f"The language '{language}' is not known{nearest(language, known) or '.'} The known ones are "
                f"{', '.join(sorted(known))}."
            )

    def check(text: str) -> tuple[str, str] | None:
        ranked = identifier.rank(text)
        share = sum(probability for language, probability in ranked if language in wanted)
        return None if share >= certainty else ("other language", f"{ranked[0][0]} rather than {' or '.join(wanted)}")

    return check
