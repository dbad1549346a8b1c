"""What encoders made, put into a text in the places of placeholders (LLaVA, Liu et al. 2023, §4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmformer.errors import InputError
from mmformer.types import Tokens


def inserted(x: Tensor, places: Tensor, parts: Sequence[Tokens]) -> Tensor:
    """Embeddings of a text in which what was read stands in the places of placeholders, in their order.

    Args:
        x: B L D, of the text's ids.
        places: B L, bool: the placeholders.
        parts: what was read, of width D; each row has as many placeholders as it has tokens of all parts together.

    Raises:
        InputError: it has not.
    """
    read = torch.cat([part.x for part in parts], dim=1)  # B M D
    valid = torch.cat([_valid(part) for part in parts], dim=1)  # B M
    check_places(places, valid)
    return x.masked_scatter(places[..., None], read[valid].to(x.dtype))


def check_places(places: Tensor, valid: Tensor) -> None:
    """Refuse a row that has not as many placeholders as there is to put in their places.

    Raises:
        InputError: which, and how many of both.
    """
    if torch.compiler.is_compiling() or places.is_meta:
        return
    found, needed = places.sum(1), valid.sum(1)
    wrong = (found != needed).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"Row {row} has {int(found[row])} placeholders, but {int(needed[row])} tokens are to be put in their "
            f"places: repeat the placeholder as often as that."
        )


def spread(ids: Sequence[int], placeholder: int, number: int) -> list[int]:
    """A prompt's ids, in which the one placeholder is repeated as often as there are tokens to put there.

    A prompt that has it so often already stays as it is; one that has none gets all at its beginning.

    Raises:
        InputError: it has it another number of times.
    """
    found = list(ids).count(placeholder)
    if found == number:
        return list(ids)
    if found > 1:
        raise InputError(
            f"A prompt has {found} placeholders, but there is one picture or sound, of {number} tokens: write one."
        )
    at = list(ids).index(placeholder) if found else 0
    return [*ids[:at], *[placeholder] * number, *ids[at + found :]]


def content(tokens: Tokens, special: int) -> Tokens:
    """Tokens without the special ones, which stand first."""
    valid, segment = (None if each is None else each[:, special:] for each in tokens[2:])
    return Tokens(tokens.x[:, special:], tokens.pos[:, special:], valid, segment)


def _valid(tokens: Tokens) -> Tensor:
    return torch.ones_like(tokens.pos[..., 0], dtype=torch.bool) if tokens.valid is None else tokens.valid
