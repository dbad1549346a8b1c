"""The ids of special tokens, for vocabularies that do not say theirs (no torch here)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmformer.spec import require


@dataclass(frozen=True)
class SpecialIds:
    """Which ids of a vocabulary are its special tokens; None where it has no such token.

    Attributes:
        pad: what fills up short rows, unseen; None: 0 does.
        bos: what ``begin`` puts before a text: BERT's [CLS].
        eos: what ``end`` puts after a text: its first one, BERT's [SEP]. Each of them ends what a decoder writes:
            Llama 3 has three.
        mask: what stands for a hidden token.
        start: what a decoder begins with: T5's pad; None: bos.
        unwritten: what a decoder never writes: Marian's pad.
        unwritten_first: what it does not begin with, after its prompt: for Whisper a blank, and the end.
        prompt: what stands before what a decoder goes on from: nothing for GPT-2, language and task for Whisper. None:
            ``start``, which an empty text begins with in any case.
        languages: of these, Whisper's, the decoder itself puts the likeliest after its start, unless what it goes on
            from begins with one, which then says the task as well.
    """

    pad: int | None = None
    bos: int | None = None
    eos: tuple[int, ...] = ()
    mask: int | None = None
    start: int | None = None
    unwritten: tuple[int, ...] = ()
    unwritten_first: tuple[int, ...] = ()
    prompt: tuple[int, ...] | None = None
    languages: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("pad", "bos", "mask", "start"):
            number = getattr(self, name)
            require(number is None or number >= 0, self, name, "None or an id, which is at least 0")
        for name in ("eos", "unwritten", "unwritten_first", "languages"):
            numbers = getattr(self, name)
            good = all(number >= 0 for number in numbers) and len(set(numbers)) == len(numbers)
            require(good, self, name, "ids, each once and at least 0")
        require(all(number >= 0 for number in self.prompt or ()), self, "prompt", "None or ids, at least 0")

    @property
    def all(self) -> tuple[int, ...]:
        """Every id that is named."""
        one = (self.pad, self.bos, self.mask, self.start)
        several = (*self.eos, *self.unwritten, *self.unwritten_first, *self.languages, *(self.prompt or ()))
        return (*(index for index in one if index is not None), *several)

    def before(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """What a decoder puts before a prompt's own ids."""
        begin = () if self.first is None else (self.first,)
        said = bool(prompt) and prompt[0] in self.languages
        return begin if self.prompt is None or said or not (self.prompt or prompt) else self.prompt

    @property
    def first(self) -> int | None:
        """What a decoder begins with."""
        return self.bos if self.start is None else self.start
