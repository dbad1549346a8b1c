"""What a filter sees: the samples of one split, in the manifest's order, and the values in them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mmformer.data.caption import lookup
from mmformer.data.decode import DECODERS, decode, decode_image, decode_text
from mmformer.data.manifest import MANIFEST_NAME, Manifest
from mmformer.data.shards import RawSample, ShardReader
from mmformer.data.sound import Sound, decode_sound
from mmformer.data.workers import spread
from mmformer.errors import InputError, nearest

R = TypeVar("R")

_PART = 512
"""Samples that a process takes at once: so many cost more than to hand them to it."""

Progress = Callable[[int], object]
"""Called with the number of samples that were just read."""


def _kinds(decoder: Callable[[bytes, str], Any]) -> frozenset[str]:
    return frozenset(kind for kind, own in DECODERS.items() if own is decoder)


_OWN: dict[str, frozenset[str]] = {
    "image": _kinds(decode_image),
    "audio": _kinds(decode_sound),
    "text": _kinds(decode_text),
    "label": frozenset({"cls"}),
    "number": frozenset(),
}
"""Kind of value -> what a member that holds one of them, and nothing else, is called."""

_USUAL = {"text": ("captions", "caption"), "label": ("label",)}
"""Kind of value -> the fields of a json member that ``mmformer shards build`` writes it to."""

_OPTIONS = {"image": "--image jpg", "audio": "--audio wav", "label": "--label json:FIELD", "number": "--by json:FIELD"}


@dataclass(frozen=True)
class Place:
    """Where in a sample a value is.

    Attributes:
        kind: image (uint8 H W 3), audio (a Sound), text (a tuple of texts: one, or the several of a list), label (a
            text, from a name or a number) or number (a float).
        member: extension of the member that holds it; "": the first that can hold nothing else, such as any picture, or
            else the fields ``captions``, ``caption`` or ``label`` of ``json``.
        field: dotted path of keys in a json member; "" for all of it.
    """

    kind: str
    member: str = ""
    field: str = ""

    @classmethod
    def parse(cls, kind: str, word: str) -> Place:
        """``json:names.en`` is the field ``names.en`` of the member ``json``; ``txt`` the whole of ``txt``."""
        member, _, field = word.partition(":")
        return cls(kind, member.removeprefix("."), field)

    def fits(self, extension: str) -> bool:
        """Whether a member with this extension may hold the value."""
        if self.member:
            return extension == self.member
        return extension.rpartition(".")[2] in _OWN[self.kind] or (extension == "json" and self.kind in _USUAL)

    def value(self, raw: RawSample) -> Any | None:
        """The value in a sample; None where there is none.

        Raises:
            InputError: the member is damaged, or holds something else.
        """
        fitting = sorted(filter(self.fits, raw.members), key="json".__eq__)  # json last
        for extension in fitting:
            name = f"{raw.key}.{extension}"
            whole = decode(extension, raw.members[extension], name)
            for field in (self.field,) if self.member or extension != "json" else _USUAL[self.kind]:
                if (found := lookup(whole, field, name, optional=True)) is not None:
                    return _checked(self.kind, found, f"{name}:{field}".rstrip(":"))
        return None


def _checked(kind: str, value: Any, name: str) -> Any:
    """The value as its kind has it."""
    if kind == "image" and isinstance(value, np.ndarray):
        return value
    if kind == "audio" and isinstance(value, Sound):
        return value
    if kind == "text" and isinstance(value, str):
        return (value,)
    if kind == "text" and isinstance(value, list) and all(isinstance(text, str) for text in value):
        return tuple(value) or None
    if kind == "label" and isinstance(value, str | int):
        return str(value)
    if kind == "number" and isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        return float(value)
    fields = f", with the fields {', '.join(value)}: name one, {name}:FIELD" if isinstance(value, dict) else ""
    raise InputError(f"{name}: must hold {_WHAT[kind]}, but holds a value of type {type(value).__name__}{fields}.")


_WHAT = {
    "image": "a picture",
    "audio": "a sound",
    "text": "a text or a list of texts",
    "label": "a class's name or number",
    "number": "a number",
}


class _Part(NamedTuple):
    """Some samples of a shard."""

    shard: int
    first: int
    end: int


class _Made(NamedTuple):
    """What was made of a part."""

    results: list[Any]
    damaged: dict[int, str]  # by row in the part
    found: list[bool]  # for each place, whether a sample has a value there


def _made(manifest: Manifest, split: str, function: Callable[..., Any], places: Sequence[Place], part: _Part) -> _Made:
    samples, results, found = Candidates(manifest, split), [], [False] * len(places)
    for values in samples._values(places, [part]):
        found = _either(found, values)
        results.append(function(*values))
    return _Made(results, samples.damaged, found)


def _either(found: Sequence[bool], values: Sequence[Any | None]) -> list[bool]:
    return [before or value is not None for before, value in zip(found, values, strict=True)]


class Candidates:
    """The samples of one split.

    Args:
        manifest: the set.
        split: its name.
        progress: called as samples are read.
        workers: processes for what takes long; None: as many as there are cores.

    Attributes:
        damaged: row -> what is wrong with a member of it that was asked for and cannot be decoded. Its value reads as
            absent, and whoever applies the filter leaves the sample out.
    """

    def __init__(
        self, manifest: Manifest, split: str, progress: Progress | None = None, workers: int | None = None
    ) -> None:
        self.manifest, self.split, self.progress, self.workers = manifest, split, progress, workers
        self.reader = ShardReader(manifest, split)
        self.damaged: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.reader)

    @property
    def keys(self) -> tuple[str, ...]:
        return self.reader.keys

    def of(self, split: str, manifest: Manifest | None = None) -> Candidates:
        """Those of another split of the set, or of another set."""
        return Candidates(manifest or self.manifest, split, self.progress, self.workers)

    def raw(self, extensions: Collection[str] = ()) -> Iterator[RawSample]:
        """Every sample with these of its members; with all where none is named.

        Raises:
            InputError: no sample of the split has one of them.
        """
        known = {name for shard in self.reader.shards for name in self.manifest.index(shard).extensions}
        for name in extensions:
            if name not in known:
                raise InputError(
                    f"{self.manifest.root / MANIFEST_NAME}: no sample of the split '{self.split}' has a member "
                    f"'{name}': there are {', '.join(sorted(known))}.{nearest(name, known)}"
                )
        return self._read(lambda extension: not extensions or extension in extensions, self._parts())

    def values(self, *places: Place) -> Iterator[tuple[Any | None, ...]]:
        """For every sample its values at some places, None for what it lacks.

        Raises:
            InputError: no sample of the split has a value at one of the places.
        """
        found = [False] * len(places)
        for values in self._values(places, self._parts()):
            found = _either(found, values)
            yield values
        self._require(places, found)

    def each(self, function: Callable[..., R], *places: Place) -> list[R]:
        """A function of every sample's values at some places, made by several processes.

        Args:
            function: of the values, None for what a sample lacks; it can be pickled, as its results can.
            places: of the values.

        Raises:
            InputError: no sample of the split has a value at one of the places.
        """
        made: list[R] = []
        found = [False] * len(places)
        parts = self._parts()
        for part in spread(partial(_made, self.manifest, self.split, function, places), parts, self.workers):
            self.damaged |= {len(made) + row: problem for row, problem in part.damaged.items()}
            made += part.results
            found = [before or now for before, now in zip(found, part.found, strict=True)]
            if self.progress is not None:
                self.progress(len(part.results))
        self._require(places, found)
        return made

    def _require(self, places: Sequence[Place], found: Sequence[bool]) -> None:
        """Refuse places where no sample has a value, and none is damaged."""
        for place, once in zip(places, found, strict=True):
            if not once and not self.damaged:
                raise InputError(self._nowhere(place))

    def _values(self, places: Sequence[Place], parts: Sequence[_Part]) -> Iterator[tuple[Any | None, ...]]:
        for row, raw in enumerate(self._read(lambda extension: any(place.fits(extension) for place in places), parts)):
            yield tuple(self._value(row, raw, place) for place in places)

    def _parts(self) -> list[_Part]:
        """All samples, in their order, cut into pieces of shards."""
        counts = enumerate(self.reader.counts)
        return [_Part(shard, first, min(first + _PART, end)) for shard, end in counts for first in range(0, end, _PART)]

    def _value(self, row: int, raw: RawSample, place: Place) -> Any | None:
        try:
            return place.value(raw)
        except InputError as error:
            self.damaged[row] = str(error)
            return None

    def _read(self, wanted: Callable[[str], bool], parts: Sequence[_Part]) -> Iterator[RawSample]:
        for number, first, end in parts:
            extensions = list(filter(wanted, self.reader.extensions(number)))
            for row in range(first, end):
                yield self.reader.read(number, row, extensions)
                if self.progress is not None:
                    self.progress(1)

    def _nowhere(self, place: Place) -> str:
        """What to say where no sample has a value."""
        file, raw = self.manifest.root / MANIFEST_NAME, self.reader[0]
        asked = f"{place.member}:{place.field}".rstrip(":") or f"a member that is {_WHAT[place.kind]}"
        option = _OPTIONS.get(place.kind, "--text json:FIELD")
        fields = ""
        if "json" in raw.members and isinstance(content := decode("json", raw.members["json"], raw.key), dict):
            fields = f"; the fields of its json are {', '.join(content)}"
        return (
            f"{file}: no sample of the split '{self.split}' has {asked}. '{raw.key}' has the members "
            f"{', '.join(raw.members)}{fields}. Say where it is, such as {option}."
        )
