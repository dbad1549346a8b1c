"""Other words and longer texts: rows of pieces that both vocabularies have are kept, wherever they stand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from mmformer.errors import InputError
from mmformer.models.decoder import DecoderSpec
from mmformer.models.encoder import EncoderSpec
from mmformer.models.language_head import LanguageHeadSpec
from mmformer.models.model import Model, ModelSpec
from mmformer.nn.position import LearnedPositionSpec
from mmformer.surgery.remade import Remade
from mmformer.tokenizers.any_vocabulary import AnyVocabulary
from mmformer.tokenizers.opening import open_vocabulary
from mmformer.tokenizers.special import SpecialIds
from mmformer.tokenizers.text import TextTokensSpec

NewRows = Literal["mean", "random"]


def with_vocabulary(spec: ModelSpec, file: str) -> ModelSpec:
    """A spec whose texts are cut by another vocabulary.

    Raises:
        InputError: the model reads no texts, or one of the vocabularies does not say its pieces.
    """

    def other(part: EncoderSpec | DecoderSpec) -> dict[str, Any]:
        tokenizer, theirs = part.tokenizer, open_vocabulary(file)
        assert isinstance(tokenizer, TextTokensSpec), "it reads texts"
        rows = None if tokenizer.rows is None else len(theirs)
        says = tokenizer.ids is None or bool(theirs.ids.all)
        ids = None if says else _same_ids(tokenizer, theirs)
        changes: dict[str, Any] = {
            "tokenizer": dataclasses.replace(tokenizer, vocabulary=file, ids=ids, rows=rows),
        }
        if isinstance(part, DecoderSpec) and part.placeholder is not None:
            changes["placeholder"] = _same(tokenizer, theirs)(part.placeholder)
        return changes

    return _with_tokenizers(spec, other, "--vocabulary")


def with_room(spec: ModelSpec, length: int, resized: Collection[str]) -> ModelSpec:
    """A spec whose texts may have so many tokens, and whose learned positions are as many at least.

    Args:
        resized: stacks whose positions have other sizes already.

    Raises:
        InputError: the model reads no texts, or has positions that cannot be more.
    """
    stacks = dict(spec.stacks)
    for part in _parts(spec):
        position = stacks[part.stack].position
        if not _reads_text(part.tokenizer) or position.limits.get(0, length) >= length:
            continue
        table = isinstance(position, LearnedPositionSpec) and position.axes == (0,) and position.learned is None
        if not table or part.stack in resized:
            raise InputError(
                f"--context-length {length}: model.stacks.{part.stack} has {position.limits[0]} places on axis 0, and "
                f"{position} cannot have more by this: only a table over axis 0 alone that nothing else resizes can."
            )
        longer = dataclasses.replace(position, sizes=(length,))  # type: ignore[call-arg]  # a LearnedPositionSpec
        stacks[part.stack] = dataclasses.replace(stacks[part.stack], position=longer)

    def longest(part: EncoderSpec | DecoderSpec) -> dict[str, Any]:
        return {"tokenizer": dataclasses.replace(part.tokenizer, context_length=length)}  # type: ignore[call-arg]  # of texts

    return _with_tokenizers(dataclasses.replace(spec, stacks=stacks), longest, "--context-length")


def _same_ids(before: TextTokensSpec, after: AnyVocabulary) -> SpecialIds:
    """The special tokens of a vocabulary that does not say them: those of the same pieces as another one's."""
    same = _same(before, after)
    changes: dict[str, Any] = {}
    for each in dataclasses.fields(SpecialIds):
        value = getattr(before.ids, each.name)
        several = isinstance(value, tuple)
        changes[each.name] = tuple(map(same, value)) if several else None if value is None else same(value)
    return SpecialIds(**changes)


def _same(before: TextTokensSpec, after: AnyVocabulary) -> Callable[[int], int]:
    """From an id of a tokenizer's vocabulary to that of the same piece in another one.

    Raises:
        InputError: it, too: there is no such piece.
    """
    theirs, places = _pieces(before), dict(_numbered(after))

    def same(index: int) -> int:
        piece = theirs[index] if index < len(theirs) else None
        if piece not in places:
            named = f"the model's own has no piece {index}" if piece is None else f"--vocabulary has no {piece!r}"
            raise InputError(f"{named}, which is one of the model's special tokens.")
        return places[piece]

    return same


def _numbered(vocabulary: AnyVocabulary) -> Iterator[tuple[str, int]]:
    """Each piece with its id."""
    return ((piece, index) for index, piece in enumerate(vocabulary.pieces(range(len(vocabulary)))))


def _with_tokenizers(
    spec: ModelSpec, other: Callable[[EncoderSpec | DecoderSpec], dict[str, Any]], option: str
) -> ModelSpec:
    """A spec whose parts that read or write texts have other fields."""
    if not any(_reads_text(part.tokenizer) for part in _parts(spec)):
        raise InputError(f"{option} is of texts, but no encoder or decoder of the model reads them.")

    def changed(part: Any) -> Any:
        return dataclasses.replace(part, **other(part)) if _reads_text(part.tokenizer) else part

    encoders = {name: changed(part) for name, part in spec.encoders.items()}
    decoders = {name: changed(part) for name, part in spec.decoders.items()}
    return dataclasses.replace(spec, encoders=encoders, decoders=decoders)


def _parts(spec: ModelSpec) -> list[EncoderSpec | DecoderSpec]:
    return [*spec.encoders.values(), *spec.decoders.values()]


def _reads_text(tokenizer: Any) -> bool:
    return isinstance(tokenizer, TextTokensSpec)


def remade_room(old: Model, new: Model, stacks: Collection[str]) -> Iterator[tuple[str, Remade]]:
    """Tables of positions of longer texts: the rows that there were, and drawn ones after them."""
    for name in sorted(stacks):
        key = f"stacks.{name}.position.weight"
        table, kept = new.state_dict()[key].clone(), old.state_dict()[key]
        table[: len(kept)] = kept
        number = len(table) - len(kept)
        yield key, Remade(table, f"{old.spec.stacks[name].position.limits[0]} places are kept, {number} are drawn")


def remade_words(old: Model, new: Model, rows: NewRows) -> Iterator[tuple[str, Remade]]:
    """What has a row for each piece, where the vocabulary is another one now.

    Args:
        rows: of pieces that are new: the ``mean`` of all old ones, or drawn at ``random``.
    """
    state = new.state_dict()
    for group, name, key in _tables(new.spec):
        before, after = (getattr(model.spec, group)[name].tokenizer for model in (old, new))
        if key in state and before.vocabulary != after.vocabulary:
            yield key, _by_piece(old.state_dict()[key], state[key], _pieces(before), _pieces(after), rows)


def _tables(spec: ModelSpec) -> Iterator[tuple[str, str, str]]:
    """The group and the name of each part that reads texts, with the parameters that may have a row for each piece."""
    for group in ("encoders", "decoders"):
        for name, part in getattr(spec, group).items():
            if _reads_text(part.tokenizer):
                yield group, name, f"{group}.{name}.tokenizer.weight"
                yield group, name, f"{group}.{name}.output.weight"
                yield group, name, f"{group}.{name}.logit_bias"
    for name, head in spec.heads.items():
        if isinstance(head, LanguageHeadSpec):
            yield "encoders", head.encoder, f"heads.{name}.output.weight"
            yield "encoders", head.encoder, f"heads.{name}.bias"


def _by_piece(old: Tensor, drawn: Tensor, theirs: list[str], ours: list[str], rows: NewRows) -> Remade:
    places = {piece: index for index, piece in enumerate(theirs)}
    pairs = [(index, places[piece]) for index, piece in enumerate(ours) if piece in places]
    table = drawn.clone()
    if rows == "mean":
        table[: len(ours)] = old[: len(theirs)].double().mean(0).to(old.dtype)
    to, taken = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).unbind(1)
    table[to] = old[taken]
    told = "their mean" if rows == "mean" else "drawn"
    kept = f"the rows of {len(pairs)} of {len(theirs)} pieces are kept"
    return Remade(table, f"{kept}, those of {len(ours) - len(pairs)} are new: {told}")


def _pieces(tokenizer: TextTokensSpec) -> list[str]:
    """A vocabulary's pieces, by id.

    Raises:
        InputError: there is none.
    """
    if tokenizer.vocabulary is None:
        raise InputError(
            "--vocabulary keeps the rows of pieces that both vocabularies have, but the model has none: it takes ids."
        )
    return [piece for piece, _ in _numbered(open_vocabulary(tokenizer.vocabulary, tokenizer.ids))]
