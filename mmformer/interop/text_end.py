"""Where a text is read: our pool takes its last token, and other libraries look for the id that ends it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmformer.errors import InputError
from mmformer.interop.plain import Data
from mmformer.models.model import ModelSpec
from mmformer.tokenizers.text import TextTokensSpec


@dataclass(frozen=True)
class TextEnd:
    """What a library looks for, as its configs say it.

    Attributes:
        path: of the TextTokensSpec whose texts they are.
        read: a config that is complete -> the id; None: it looks for none.
        write: the id, and whether it is the highest of all -> what a config says, by dotted keys. It raises ValueError,
            with what would do, where a config cannot say it.
    """

    path: str
    read: Callable[[Data], int | None]
    write: Callable[[int, bool], Mapping[str, Any]]

    def said(self, spec: ModelSpec, name: str, where: str) -> Mapping[str, Any]:
        """What a config says of a model's texts.

        Args:
            name: the family's, for messages.

        Raises:
            InputError: the library would read them at another token than our pool does.
        """
        tokenizer = self._tokenizer(spec)
        if tokenizer.padded:  # the last place is read, whatever stands there
            return {}
        words = tokenizer.words()
        begin, end = words.ids.bos if tokenizer.begin else None, self.of(spec)
        if end is None or not tokenizer.end:
            lacking = f"{self.path}.end is false" if end is not None else f"{self.path}.ids has no eos"
            raise InputError(
                f"{where} reads a text at its last token, but a {name} looks for the id that ends it, and its "
                f"{lacking}: set it, if it was trained on texts that end so."
            )
        if begin == end:
            raise InputError(
                f"{where} reads a text at its last token, but a {name} looks for the first {end}, which begins its "
                f"texts, too: train it with a bos that is not its eos, or with {self.path}.begin false."
            )
        try:
            return self.write(end, end == len(words) - 1)
        except ValueError as error:
            raise InputError(
                f"{where} reads a text at its last token, which is {end}, but a {name} finds that by {error}."
            ) from error

    def agrees(self, config: Data, spec: ModelSpec) -> bool:
        """Whether a config that is complete looks for the id that ends a model's texts, as far as that is known."""
        tokenizer, end, looked_for = self._tokenizer(spec), self.of(spec), self.read(config)
        words = len(tokenizer.words())
        highest = words - 1 == end and looked_for == (tokenizer.rows or words) - 1
        return tokenizer.padded or end is None or looked_for in (None, end) or highest

    def of(self, spec: ModelSpec) -> int | None:
        """The id that ends a model's texts; None: it is not known."""
        return next(iter(self._tokenizer(spec).words().ids.eos), None)

    def _tokenizer(self, spec: ModelSpec) -> TextTokensSpec:
        tokenizer = spec.encoders[self.path.split(".")[1]].tokenizer
        assert isinstance(tokenizer, TextTokensSpec)
        return tokenizer
