"""What is in a set, in numbers: how many, how large, how long, in which languages, of which classes.

Pictures and sounds are measured by what their headers declare, without decoding them.
"""

from __future__ import annotations

import hashlib
import importlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import numpy as np

from mmformer.data.caption import lookup
from mmformer.data.decode import DECODERS, decode, decode_image, decode_json, decode_text, image_size
from mmformer.data.fields import select
from mmformer.data.manifest import Manifest
from mmformer.data.samples import RawSample
from mmformer.data.shards import ShardReader
from mmformer.data.sound import decode_sound, sound_length
from mmformer.data.workers import spread
from mmformer.errors import InputError


@dataclass(frozen=True)
class Questions:
    """What is asked besides counts and sizes.

    Attributes:
        fields: dotted paths in the json member to texts, ``*`` for every key; empty: ``captions`` or ``caption``, or
            else the txt member.
        label: dotted path in the json member to the class; "": ``label``, or else the cls member.
        vocabulary: a file; texts are counted in its tokens too; None: not.
        languages: whether to guess the language of every text.
    """

    fields: tuple[str, ...] = ()
    label: str = ""
    vocabulary: str | None = None
    languages: bool = False


@dataclass
class Facts:
    """What was measured: sums that add up over shards."""

    samples: int = 0
    members: Counter[str] = field(default_factory=Counter)  # how many there are of each extension
    sizes: Counter[str] = field(default_factory=Counter)  # and their bytes
    unreadable: Counter[str] = field(default_factory=Counter)  # members by extension: texts, headers of the others
    width: list[int] = field(default_factory=list)  # of each picture, in pixels, as stored
    height: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of each sound
    rates: Counter[int] = field(default_factory=Counter)
    captions: list[int] = field(default_factory=list)  # of each sample
    characters: list[int] = field(default_factory=list)  # of each text
    words: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    languages: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    texts: set[bytes] = field(default_factory=set)  # hashes, to tell how many are distinct

    def __iadd__(self, other: Facts) -> Facts:
        for each in fields(self):
            mine, theirs = getattr(self, each.name), getattr(other, each.name)
            if isinstance(mine, set):
                mine |= theirs
            else:
                mine += theirs  # a list or Counter grows in its place
                setattr(self, each.name, mine)
        return self

    @property
    def aspect(self) -> list[float]:
        """Width by height of each picture."""
        return [width / height for width, height in zip(self.width, self.height, strict=True)]


def measure(
    manifest: Manifest,
    questions: Questions,
    workers: int | None = None,
    progress: Callable[[int], object] = lambda shards: None,
) -> dict[str, Facts]:
    """The facts about each split.

    Args:
        manifest: the set.
        questions: what is asked.
        workers: processes; None: as many as there are cores.
        progress: called with 1 after every shard.

    Raises:
        InputError: a shard is damaged, a vocabulary is none, or a package is absent.
    """
    if questions.languages:
        _identifier()
    result = {split: Facts() for split in manifest.splits}
    found = spread(partial(_measure_shard, manifest, questions), range(len(manifest.shards)), workers)
    for shard, facts in zip(manifest.shards, found, strict=True):
        result[shard.split] += facts
        progress(1)
    return result


def _measure_shard(manifest: Manifest, questions: Questions, number: int) -> Facts:
    shard = manifest.shards[number]
    reader = ShardReader(replace(manifest, shards=(shard,)), shard.split)
    tokens = None if questions.vocabulary is None else token_counter(questions.vocabulary)
    language = _identifier() if questions.languages else None
    facts = Facts()
    for row in range(shard.samples):
        raw = reader.read(0, row)
        facts.samples += 1
        for extension, data in raw.members.items():
            _measure_member(facts, extension, data)
        raw, damaged = readable(raw)
        facts.unreadable.update(damaged)
        texts = texts_of(raw, questions.fields)
        facts.captions.append(len(texts))
        facts.characters += map(len, texts)
        facts.words += (len(text.split()) for text in texts)
        facts.texts |= {hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest() for text in texts}
        if tokens is not None:
            facts.tokens += map(tokens, texts)
        if language is not None:
            facts.languages += Counter(map(language, texts))
        label = _label(raw, questions.label)
        if label is not None:
            facts.classes[str(label)] += 1
    return facts


def _measure_member(facts: Facts, extension: str, data: bytes) -> None:
    facts.members[extension] += 1
    facts.sizes[extension] += len(data)
    kind = DECODERS.get(extension.rsplit(".", 1)[-1])
    if kind is decode_image:
        size = image_size(data)
        if size is None:
            facts.unreadable[extension] += 1
        else:
            facts.height.append(size[0])
            facts.width.append(size[1])
    elif kind is decode_sound:
        length = sound_length(data)
        if length is None:
            facts.unreadable[extension] += 1
        else:
            facts.seconds.append(length[0] / length[1])
            facts.rates[length[1]] += 1


def readable(raw: RawSample) -> tuple[RawSample, list[str]]:
    """A sample without those of its json, txt and cls that are damaged, and their extensions."""
    damaged = []
    for extension in sorted({"json", "txt", "cls"} & raw.members.keys()):
        try:
            decode(extension, raw.members[extension], raw.key)
        except InputError:
            damaged.append(extension)
    return RawSample(raw.key, {name: data for name, data in raw.members.items() if name not in damaged}), damaged


def texts_of(raw: RawSample, paths: Sequence[str] = ()) -> list[str]:
    """A sample's texts, at dotted paths in its json, or where sets usually have them.

    Raises:
        InputError: the member is damaged.
    """
    if "json" in raw.members:
        value = decode_json(raw.members["json"], f"{raw.key}.json")
        usual = next((name for name in ("captions", "caption") if isinstance(value, dict) and name in value), None)
        found = list(select(value, paths or ([usual] if usual else []))) if isinstance(value, dict) else []
        if found or paths:
            return found
    return [decode_text(raw.members["txt"], f"{raw.key}.txt")] if "txt" in raw.members and not paths else []


def _label(raw: RawSample, path: str) -> Any:
    if "json" in raw.members:
        value = decode_json(raw.members["json"], f"{raw.key}.json")
        label = lookup(value, path or "label", raw.key, optional=True) if isinstance(value, dict) else None
        if label is not None or path:
            return label
    return decode("cls", raw.members["cls"], f"{raw.key}.cls") if "cls" in raw.members and not path else None


def token_counter(vocabulary: str) -> Callable[[str], int]:
    """How many tokens of a vocabulary's file a text has, without special ones."""
    from mmformer.tokenizers.opening import open_vocabulary
    from mmformer.tokenizers.vocabulary import Vocabulary

    loaded = open_vocabulary(vocabulary)
    space = " " if isinstance(loaded, Vocabulary) else ""  # as texts are read
    return lambda text: len(loaded.encode_many([space + text])[0])


def _identifier() -> Callable[[str], str]:
    try:
        langid = importlib.import_module("py3langid.langid")
    except ImportError as error:
        raise InputError('Languages are told by py3langid: pip install "mmformer[curation]"') from error
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
    return lambda text: str(identifier.classify(text)[0])


def summary(manifest: Manifest, split: str, facts: Facts) -> dict[str, Any]:
    """The facts about a split, as JSON has them; what the set does not hold is left out."""
    shards = manifest.split(split)
    told: dict[str, Any] = {
        "samples": facts.samples,
        "shards": len(shards),
        "bytes": sum(facts.sizes.values()),
        "members": {
            name: {"count": count, "bytes": facts.sizes[name], "unreadable": facts.unreadable[name]}
            for name, count in sorted(facts.members.items())
        },
    }
    if facts.width:
        told["images"] = {"width": spans(facts.width), "height": spans(facts.height), "aspect": spans(facts.aspect)}
    if facts.seconds:
        told["sounds"] = {
            "hours": sum(facts.seconds) / 3600,
            "seconds": spans(facts.seconds),
            "rates": {str(rate): count for rate, count in facts.rates.most_common()},
        }
    if facts.characters:
        told["texts"] = {
            "count": len(facts.characters),
            "distinct": len(facts.texts),
            "of a sample": spans(facts.captions),
            "characters": spans(facts.characters),
            "words": spans(facts.words),
        }
        told["texts"] |= {"tokens": spans(facts.tokens)} if facts.tokens else {}
        told["texts"] |= {"languages": dict(facts.languages.most_common())} if facts.languages else {}
    if facts.classes:
        told["classes"] = {
            "count": len(facts.classes),
            "without": facts.samples - facts.classes.total(),
            "evenness": evenness(facts.classes),
            "counts": dict(facts.classes.most_common()),
        }
    return told


def spans(values: Sequence[float]) -> dict[str, float]:
    """The least, the middle and the most of some numbers; p5 and p95 leave 5 % of them on one side."""
    array = np.asarray(values, np.float64)
    low, middle, high = np.percentile(array, [5, 50, 95])
    return {
        "min": float(array.min()),
        "p5": float(low),
        "median": float(middle),
        "mean": float(array.mean()),
        "p95": float(high),
        "max": float(array.max()),
    }


def evenness(classes: Mapping[str, int]) -> float:
    """Entropy by the most that it could be (Pielou, 1966): 1 where all classes are as frequent."""
    if len(classes) < 2:
        return 1.0
    shares = np.asarray(list(classes.values())) / sum(classes.values())
    return float(-(shares * np.log(shares)).sum() / math.log(len(classes)))
