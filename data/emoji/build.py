#!/usr/bin/env python3
"""Make data/emoji again from Debian's packages, or check that what is there is what would be made.

    python data/emoji/build.py              # write the shards beside this file (about three minutes)
    python data/emoji/build.py --output DIR
    python data/emoji/build.py --check      # build into a temporary folder and compare; exit code 1 on a difference

Nothing is downloaded. It needs the packages named in ``SOURCES`` installed, in those versions for the same result.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from noto_font import NotoFont
from numpy.typing import NDArray
from PIL import Image
from speech import RATE, decode, speak, speakers
from tqdm import tqdm
from unicode_text import Emoji, read_emoji

from mmformer.data.manifest import Manifest
from mmformer.data.shards import RawSample, ShardReader, ShardWriter
from mmformer.errors import InputError
from mmformer.files import write_whole

HERE = Path(__file__).resolve().parent
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
EMOJI_TEST = Path("/usr/share/unicode/emoji/emoji-test.txt")
CLDR = Path("/usr/share/unicode/cldr/common")
SOURCES = {  # Debian package -> the version that the data was made from, and a file of it
    "fonts-noto-color-emoji": ("2.042-0+deb12u1", FONT),
    "unicode-data": ("15.0.0-1", EMOJI_TEST),
    "unicode-cldr-core": ("41-0.1", CLDR / "annotationsDerived" / "en.xml"),
    "espeak-ng": ("1.51+dfsg-10+deb12u2", Path("/usr/bin/espeak-ng")),
}
SIZE = 128  # pixels; the font's bitmaps are 136 x 128, with nothing drawn in the outer four columns on either side
CLIPS = 2  # spoken clips per concept
SAMPLES_PER_SHARD = 256


def check_sources() -> None:
    """Refuse to begin without the packages; say which ones have another version than the data was made from.

    Raises:
        InputError: a package is absent; the message has the command that installs it.
    """
    absent = [package for package, (_, file) in SOURCES.items() if not file.exists()]
    if absent:
        raise InputError(f"Not installed: {', '.join(absent)}. On Debian: apt-get install {' '.join(absent)}")
    if shutil.which("dpkg-query") is None:
        print("note: no dpkg here, so the versions of the sources are not known", file=sys.stderr)
        return
    for package, (version, _) in SOURCES.items():
        query = ["dpkg-query", "--show", "--showformat=${Version}", package]
        found = subprocess.run(query, capture_output=True, text=True, check=False).stdout
        if found != version:
            print(
                f"note: {package} is {found or 'not from a package'}, the data was made from {version}", file=sys.stderr
            )


def draw(png: bytes) -> NDArray[np.uint8]:
    """The font's bitmap on white, square: SIZE SIZE 3, uint8. No pixel is resampled.

    Raises:
        InputError: the bitmap has another size, or something is drawn in the columns that are cut off.
    """
    bitmap = Image.open(io.BytesIO(png)).convert("RGBA")
    if bitmap.size != (136, SIZE):
        raise InputError(f"A drawing in {FONT} is {bitmap.size[0]} x {bitmap.size[1]} pixels instead of 136 x {SIZE}.")
    canvas = Image.new("RGBA", bitmap.size, "white")
    canvas.alpha_composite(bitmap)
    pixels = np.asarray(canvas.convert("RGB"))
    margin = (136 - SIZE) // 2
    if pixels[:, :margin].min() < 250 or pixels[:, -margin:].min() < 250:
        raise InputError(f"A drawing in {FONT} would lose pixels at its left or right edge.")
    return np.ascontiguousarray(pixels[:, margin:-margin])


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG of exactly these pixels: with a palette where it fits (nearly always: the font's bitmaps have one)."""
    colours, inverse = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    if len(colours) <= 256:
        image = Image.fromarray(inverse.reshape(pixels.shape[:2]).astype(np.uint8))
        image.putpalette(colours.tobytes())
    else:
        image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def make_samples() -> Iterator[tuple[str, RawSample]]:
    """All samples with their splits, in a fixed shuffled order, so that every shard has something of every group."""
    font = NotoFont(FONT)
    concepts = read_emoji(EMOJI_TEST, CLDR)
    drawings = {emoji.id: draw(font.png(emoji.char)) for emoji in concepts}
    first: dict[bytes, str] = {}  # a drawing that came before takes its split along: no test image is trained on
    splits = {emoji.id: first.setdefault(drawings[emoji.id].tobytes(), emoji.split) for emoji in concepts}
    concepts.sort(key=lambda emoji: hashlib.sha256(f"order:{emoji.id}".encode()).digest())
    for emoji in tqdm(concepts, unit="emoji", disable=None):
        yield splits[emoji.id], make_sample(emoji, drawings[emoji.id], splits[emoji.id])


def make_sample(emoji: Emoji, pixels: NDArray[np.uint8], split: str) -> RawSample:
    """One concept: drawing, texts, and its English name spoken."""
    clips = {f"en-{number}.ogg": speaker for number, speaker in enumerate(speakers(emoji.id, CLIPS))}
    texts = {
        "id": emoji.id,
        "char": emoji.char,
        "names": emoji.names,
        "keywords": emoji.keywords,
        "group": emoji.group,
        "subgroup": emoji.subgroup,
        "split": split,
        "speech": [{"ext": ext, "voice": speaker.voice, "rate": speaker.rate} for ext, speaker in clips.items()],
    }
    members = {
        "png": encode_png(pixels),
        "json": json.dumps(texts, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode(),
    }
    return RawSample(emoji.id, members | {ext: speak(emoji.names["en"], speaker) for ext, speaker in clips.items()})


def build(folder: Path) -> None:
    """Write shards, indexes, manifest and the list of groups."""
    groups = dict.fromkeys(emoji.group for emoji in read_emoji(EMOJI_TEST, CLDR))
    with ShardWriter(folder, "emoji", SAMPLES_PER_SHARD, overwrite=True) as writer:
        for split, sample in make_samples():
            writer.write(sample, split)
    write_whole(folder / "groups.txt", "".join(f"{group}\n" for group in groups))


@dataclass
class Comparison:
    """What was compared, how often, and the differences."""

    compared: Counter[str]
    differences: list[str]

    def equal(self, kind: str, where: str, made: Any, there: Any) -> None:
        self.compared[kind] += 1
        if made != there:
            self.differences.append(f"{where}: {kind}: made {str(made)[:80]!r}, found {str(there)[:80]!r}")

    def member(self, where: str, made: bytes, there: bytes) -> None:
        """Compare what a member decodes to: bytes may differ between versions of the encoders."""
        self.compared["members"] += 1
        self.compared["members equal byte for byte"] += made == there
        if where.endswith(".json"):
            self.equal("texts", where, json.loads(made), json.loads(there))
        elif where.endswith(".png"):
            self.equal("pixels", where, *(hash_array(_pixels(data)) for data in (made, there)))
        else:
            (made_samples, made_rate), (samples, rate) = decode(made), decode(there)
            self.equal("rates", where, (made_rate, RATE), (rate, RATE))
            self.equal("decoded sounds", where, hash_array(made_samples), hash_array(samples))


def _pixels(png: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def hash_array(array: NDArray[Any]) -> str:
    """A short name of an array's shape and content."""
    return f"{array.shape} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"


def compare(made: Path, there: Path) -> Comparison:
    """Every sample of two builds: keys, texts, pixels, decoded sounds."""
    result = Comparison(Counter(), [])
    ours, theirs = Manifest.load(made), Manifest.load(there)
    result.equal("splits", "manifest", ours.splits, theirs.splits)
    for split in ours.splits:
        if split not in theirs.splits:
            continue
        left, right = ShardReader(ours, split), ShardReader(theirs, split)
        result.equal("lists of keys", split, left.keys, right.keys)
        result.equal("shard sizes in samples", split, left.counts, right.counts)
        for position in range(min(len(left), len(right))):
            one, other = left[position].members, right[position].members
            result.equal("member names", left.keys[position], list(one), list(other))
            for extension in one.keys() & other.keys():
                result.member(f"{left.keys[position]}.{extension}", one[extension], other[extension])
    result.equal("groups", "groups.txt", *((folder / "groups.txt").read_text() for folder in (made, there)))
    return result


def check(folder: Path) -> int:
    """Build again, compare with the folder, and print the outcome: 0 for equal, 1 for different."""
    with tempfile.TemporaryDirectory() as temporary:
        build(Path(temporary))
        result = compare(Path(temporary), folder)
    for kind, count in result.compared.items():
        print(f"{count:>6}  {kind}")
    for difference in result.differences[:20]:
        print(f"different: {difference}")
    print(f"{len(result.differences)} differences from {folder}")
    return 1 if result.differences else 0


def main() -> int:
    """Parse arguments, build or check; 2 for what cannot be used."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--output", type=Path, default=HERE, help="folder to write, or to check (default: this one)")
    parser.add_argument("--check", action="store_true", help="build into a temporary folder and compare")
    arguments = parser.parse_args()
    try:
        check_sources()
        if arguments.check:
            return check(arguments.output)
        build(arguments.output)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    size = sum(file.stat().st_size for file in arguments.output.iterdir() if file.is_file())
    print(f"{arguments.output}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
