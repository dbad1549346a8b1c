"""What a model must not have trained on: samples that are like one that is held out, of the same set or of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mmformer.curation.candidates import Candidates
from mmformer.curation.filter import KEPT, Filter, Verdict, removed
from mmformer.curation.likeness import ExactLikeness, Likeness
from mmformer.data.remote import open_manifest
from mmformer.errors import InputError
from mmformer.spec import require


@dataclass(frozen=True)
class Leakage(Filter):
    """Removes what is like a sample of another split.

    Attributes:
        by: when two samples are alike; the first likeness that finds a sample is what is said of it.
        against: the other splits; empty: all of them.
        held_out: the set that these are of, a folder of shards or a URL of one; "": the same set.
    """

    name: ClassVar[str] = "leakage"

    by: tuple[Likeness, ...] = (ExactLikeness(),)
    against: tuple[str, ...] = ()
    held_out: str = ""

    def __post_init__(self) -> None:
        require(len(set(self.against)) == len(self.against), self, "against", "different splits")

    def judge(self, samples: Candidates) -> Sequence[Verdict]:
        if self.held_out:
            manifest = open_manifest(self.held_out)
            against = self.against or manifest.splits
        else:
            manifest = samples.manifest
            against = self.against or tuple(name for name in manifest.splits if name != samples.split)
            if not against or samples.split in against:
                raise InputError(
                    f"Leakage is between splits, but '{samples.split}' was to be compared with "
                    f"{', '.join(against) or 'no other'}: the set has {', '.join(manifest.splits)}. Name a split "
                    "of it, or another set (--held-out)."
                )
        verdicts = [KEPT] * len(samples)
        for likeness in self.by:
            prints = likeness.prints(samples)
            for split in against:
                others = samples.of(split, manifest)
                for row, match in likeness.between(prints, likeness.prints(others)).items():
                    if verdicts[row].copies:
                        detail = f"{match.how}: '{others.keys[match.row]}'"
                        verdicts[row] = removed(f"{likeness.reason} in {self._named(split)}", detail)
        return verdicts

    def _named(self, split: str) -> str:
        return f"{split} of {self.held_out}" if self.held_out else split
