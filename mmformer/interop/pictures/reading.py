"""What the three libraries' readers share: what is read, and the checks that refuse what cannot be expressed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from mmformer.data.image_transform import ImageTransformSpec
from mmformer.errors import InputError, nearest

Colour = tuple[float, float, float]


class PictureReading(NamedTuple):
    """How a model reads pictures: made into its size, as bytes, and then normalised by its tokenizer."""

    transform: ImageTransformSpec
    mean: Colour  # of the three channels, on a scale of 0 to 1
    std: Colour


def known(data: Mapping[str, Any], keys: Collection[str], ignored: Collection[str], where: str) -> dict[str, Any]:
    """What a config says; null says nothing.

    Args:
        data: the config.
        keys: those that say something of pictures.
        ignored: those that say nothing of them.
        where: what to call it in an error.

    Raises:
        InputError: it says something by another key.
    """
    said = {key: value for key, value in data.items() if value is not None}
    for key in said.keys() - set(keys) - set(ignored):
        raise InputError(
            f"{where} has {key} {said[key]!r:.80}, which may change pictures in a way that mmformer does not know; "
            f"known are {', '.join(sorted(keys))}.{nearest(key, keys)} Take it out if it changes nothing."
        )
    return {key: value for key, value in said.items() if key in keys}


def expressible(condition: bool, said: Mapping[str, Any], key: str, must: str, where: str) -> None:
    """Refuse a value that the transform of a bundle cannot express.

    Raises:
        InputError: with the value and what is possible.
    """
    if not condition:
        raise InputError(
            f"{where} has {key} {said.get(key)!r:.80}, but the pictures that mmformer can make have {key} {must}."
        )


def colour(said: Mapping[str, Any], key: str, where: str) -> Colour:
    """Three numbers, a channel each.

    Raises:
        InputError: something else.
    """
    value = said[key]
    right = isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(each, int | float) for each in value)
    expressible(right, said, key, "of three numbers, one a channel", where)
    return float(value[0]), float(value[1]), float(value[2])


def whole(value: Any, least: int = 1) -> bool:
    """Whether it is an integer, and at least so large."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
