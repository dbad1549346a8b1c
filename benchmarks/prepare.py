"""Shards of the public sets that quality is measured on, from their folders as they were published.

    python -m benchmarks.prepare fsdd DIR

writes ``runs/data/fsdd`` and ``runs/data/fsdd_theo`` from DIR/metadata.csv and DIR/fsdd_recordings.tar.xz, and so on;
``--help`` lists the sets. None of them is part of this project, and nothing is downloaded.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mmformer.data.shards import RawSample, ShardWriter
from mmformer.tokenizers.vocabulary import VocabularySpec

OUTPUT = Path("runs/data")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLOTHES = (
    "T-shirt or top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=list(SETS))
    parser.add_argument("folder", type=Path, help="where its files are")
    arguments = parser.parse_args()
    SETS[arguments.set](arguments.folder)
    return 0


def write(name: str, samples: Iterator[tuple[str, RawSample]], classes: tuple[str, ...], per_shard: int = 1000) -> None:
    """A set of shards, in an order that is always the same, with its classes, if it has some, beside it."""
    with ShardWriter(OUTPUT / name, name, per_shard, overwrite=True) as writer:
        for split, sample in samples:
            writer.write(sample, split)
    if classes:
        (OUTPUT / name / "classes.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
    print(f"{OUTPUT / name}: " + ", ".join(f"{split} {count}" for split, count in _counts(writer).items()))


def _counts(writer: ShardWriter) -> dict[str, int]:
    counts: dict[str, int] = {}
    for shard in writer.manifest.shards:
        counts[shard.split] = counts.get(shard.split, 0) + shard.samples
    return counts


def _shuffled(number: int) -> list[int]:
    order: list[int] = np.random.default_rng(0).permutation(number).tolist()
    return order


def _sample(key: str, fields: dict[str, object], **members: bytes) -> RawSample:
    return RawSample(key, {**members, "json": json.dumps(fields).encode()})


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


# ------------------------------------------------------------------------------------------------- spoken digits


def fsdd(folder: Path) -> None:
    """The official split, and another whose test has all that one speaker says."""
    with (folder / "metadata.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with tarfile.open(folder / "fsdd_recordings.tar.xz") as tar:
        sounds = {Path(member.name).name: tar.extractfile(member) for member in tar if member.isfile()}
        data = {name: file.read() for name, file in sounds.items() if file is not None}

    def samples(split_of: Callable[[dict[str, str]], str]) -> Iterator[tuple[str, RawSample]]:
        for place in _shuffled(len(rows)):
            row = rows[place]
            name = Path(row["file"]).name
            digit, speaker, _ = name.removesuffix(".wav").split("_")
            fields: dict[str, object] = {"digit": int(digit), "name": DIGITS[int(digit)], "speaker": speaker}
            yield split_of(row), _sample(name.removesuffix(".wav"), fields, wav=data[name])

    write("fsdd", samples(lambda row: row["split"]), DIGITS)
    write("fsdd_theo", samples(lambda row: "test" if "_theo_" in row["file"] else "train"), DIGITS)


# ------------------------------------------------------------------------------------------------- pictures


def fashion_mnist(folder: Path) -> None:
    """60,000 and 10,000 grey pictures of clothes; 5,000 of the former, always the same, are held out as val."""

    def samples() -> Iterator[tuple[str, RawSample]]:
        for split, prefix in (("train", "train"), ("test", "t10k")):
            pixels = np.frombuffer(gzip.decompress((folder / f"{prefix}-images-idx3-ubyte.gz").read_bytes()), np.uint8)
            labels = np.frombuffer(gzip.decompress((folder / f"{prefix}-labels-idx1-ubyte.gz").read_bytes()), np.uint8)
            pixels, labels = pixels[16:].reshape(-1, 28, 28), labels[8:]
            for number, place in enumerate(_shuffled(len(labels))):
                own = "val" if split == "train" and number < 5000 else split
                label = int(labels[place])
                fields: dict[str, object] = {"class": label, "name": CLOTHES[label]}
                yield own, _sample(f"{split}-{place:05d}", fields, png=_png(pixels[place]))

    write("fashion_mnist", samples(), CLOTHES, 2500)


def mnist_20k(folder: Path) -> None:
    """20,000 and 10,000 written digits."""

    def samples() -> Iterator[tuple[str, RawSample]]:
        with np.load(folder / "mnist_20k.npz") as arrays:
            names = {name.lower(): arrays[name] for name in arrays.files}
        for split in ("train", "test"):
            pixels, labels = names[f"x_{split}"], names[f"y_{split}"]
            for place in _shuffled(len(labels)):
                digit = int(labels[place])
                fields: dict[str, object] = {"digit": digit, "name": DIGITS[digit]}
                yield split, _sample(f"{split}-{place:05d}", fields, png=_png(pixels[place].reshape(28, 28)))

    write("mnist_20k", samples(), DIGITS, 2500)


# ------------------------------------------------------------------------------------------------- questions


def easy_vqa(folder: Path) -> None:
    """A question and its answer to a picture, each a sample of its own."""
    answers = tuple((folder / "answers.txt").read_text(encoding="utf-8").split())

    def samples() -> Iterator[tuple[str, RawSample]]:
        for split in ("train", "test"):
            rows = json.loads((folder / f"{split}_questions.json").read_text(encoding="utf-8"))
            with zipfile.ZipFile(folder / f"{split}_images.zip") as pictures:
                files = {Path(name).stem: pictures.read(name) for name in pictures.namelist() if name.endswith(".png")}
            for place in _shuffled(len(rows)):
                question, answer, picture = rows[place]
                fields: dict[str, object] = {"question": question, "answer": answer}
                yield split, _sample(f"{split}-{place:05d}", fields, png=files[str(picture)])

    write("easy_vqa", samples(), answers, 2500)


# ------------------------------------------------------------------------------------------------- clip art


def openclipart(folder: Path) -> None:
    """Drawings with their noisy titles."""
    text = (folder / "captions.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]

    def samples() -> Iterator[tuple[str, RawSample]]:
        with zipfile.ZipFile(folder / "images_128.zip") as pictures:
            files = {Path(name).name: name for name in pictures.namelist()}
            for place in _shuffled(len(rows)):
                row = rows[place]
                name = Path(row["file"]).name
                yield row["split"], _sample(Path(name).stem.replace(".", "_"), row, webp=pictures.read(files[name]))

    write("openclipart", samples(), ("none",), 500)


# ------------------------------------------------------------------------------------------------- translations


def multi30k(folder: Path) -> None:
    """Sentences in English and German, and a vocabulary of both that is learned from the training split alone."""

    def pairs(split: str) -> list[tuple[str, ...]]:
        files = [(folder / f"{split}.{language}.gz").read_bytes() for language in ("en", "de")]
        return list(zip(*(gzip.decompress(file).decode().splitlines() for file in files), strict=True))

    def samples() -> Iterator[tuple[str, RawSample]]:
        for split, own in (("train", "train"), ("val", "val"), ("test_2016_flickr", "test")):
            rows = pairs(split)
            for place in _shuffled(len(rows)) if own == "train" else range(len(rows)):
                english, german = rows[place]
                yield own, _sample(f"{split}-{place:05d}", {"en": english, "de": german})

    write("multi30k", samples(), (), 5000)
    learned = VocabularySpec(size=8192).train(text.strip() for pair in pairs("train") for text in pair)
    learned.save(OUTPUT / "multi30k" / "en-de.model")


SETS: dict[str, Callable[[Path], None]] = {
    "fsdd": fsdd,
    "fashion_mnist": fashion_mnist,
    "mnist_20k": mnist_20k,
    "easy_vqa": easy_vqa,
    "openclipart": openclipart,
    "multi30k": multi30k,
}

if __name__ == "__main__":
    raise SystemExit(main())
