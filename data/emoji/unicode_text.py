"""Which emoji there are, and what they are called: Unicode's test file and CLDR's annotations."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from mmformer.errors import InputError

LANGUAGES = ("en", "zh", "de", "fr", "es", "ja", "ko", "ru", "pt", "it", "ar", "hi")
SKIN_TONES = frozenset(range(0x1F3FB, 0x1F400))
VARIATION_SELECTOR = "\ufe0f"


@dataclass(frozen=True)
class Emoji:
    """A concept: its code points, names, and place in Unicode's list."""

    char: str
    names: dict[str, str]  # language -> name
    keywords: dict[str, list[str]]  # language -> keywords
    group: str
    subgroup: str

    @property
    def id(self) -> str:
        """Its code points in hexadecimal, joined by ``-``."""
        return "-".join(f"{ord(point):x}" for point in self.char)

    @property
    def split(self) -> str:
        """A tenth each for test and val, by a hash of the code points without selectors (and skin tones: none here)."""
        base = "-".join(f"{ord(point):x}" for point in self.char.replace(VARIATION_SELECTOR, ""))
        number = int.from_bytes(hashlib.sha256(base.encode()).digest()[:4], "big") % 10
        return {0: "test", 1: "val"}.get(number, "train")


def read_emoji(emoji_test: Path, cldr: Path) -> list[Emoji]:
    """The base emoji: fully qualified, without skin tones, flags and components, in Unicode's order.

    Args:
        emoji_test: Unicode's ``emoji-test.txt``.
        cldr: CLDR's ``common`` folder.
    """
    names, keywords = _read_annotations(cldr)
    found: list[Emoji] = []
    group = subgroup = ""
    for line in emoji_test.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ")
        elif line.startswith("# subgroup: "):
            subgroup = line.removeprefix("# subgroup: ")
        points, _, rest = line.partition(";")
        if not rest.lstrip().startswith("fully-qualified") or group == "Flags":
            continue
        char = "".join(chr(int(point, 16)) for point in points.split())
        if SKIN_TONES.isdisjoint(map(ord, char)):
            # "; fully-qualified # 😀 E1.0 grinning face": the list is newer than CLDR and names what that lacks
            english = rest.split(" E", 1)[1].split(" ", 1)[1]
            bare = char.replace(VARIATION_SELECTOR, "")
            found.append(Emoji(char, {"en": english} | names.get(bare, {}), keywords.get(bare, {}), group, subgroup))
    if not found:
        raise InputError(f"{emoji_test} lists no fully-qualified emoji.")
    return found


def _read_annotations(cldr: Path) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, list[str]]]]:
    """Code points without selectors -> language -> name, and the same for keywords."""
    names: dict[str, dict[str, str]] = {}
    keywords: dict[str, dict[str, list[str]]] = {}
    for language in LANGUAGES:
        for folder in ("annotations", "annotationsDerived"):
            for entry in ElementTree.parse(cldr / folder / f"{language}.xml").iter("annotation"):
                char, text = entry.attrib["cp"].replace(VARIATION_SELECTOR, ""), entry.text or ""
                if entry.get("type") == "tts":
                    names.setdefault(char, {})[language] = text
                else:
                    keywords.setdefault(char, {})[language] = [word.strip() for word in text.split("|")]
    return names, keywords
