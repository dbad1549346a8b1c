"""Bundles, vocabularies, weights and folders of other libraries: opened, or refused in words."""

from __future__ import annotations

import functools
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from attempts import SIZES, damaged, fuzz, strange
from bundles import save_dual
from tiny import VOCABULARY

import mmformer
from mmformer.bundle import Transforms, read_state, save_bundle
from mmformer.config import read_yaml
from mmformer.interop.checkpoint import read_tensors
from mmformer.interop.exporting import export_model
from mmformer.interop.families.bert import FAMILY as BERT
from mmformer.interop.families.gpt2 import FAMILY as GPT2
from mmformer.interop.importing import import_model
from mmformer.tokenizers.archive import Options, pack
from mmformer.tokenizers.opening import open_vocabulary
from mmformer.tokenizers.special import SpecialIds

LONG = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dual(tmp_path_factory.mktemp("bundle") / "bundle")


def use(folder: Path) -> None:
    """All that a stranger's bundle may be opened for."""
    model = mmformer.load(folder)
    model.embed(text="a cat")


FILES = ("model.yaml", "transforms.yaml", "model.safetensors", "text.model", "README.md")


def test_these_are_all_files_of_a_bundle(bundle: Path) -> None:
    assert {path.name for path in bundle.iterdir()} == set(FILES)


@pytest.mark.parametrize("budget", [3, pytest.param(100, marks=LONG)])
@pytest.mark.parametrize("name", FILES)
def test_each_file_of_a_bundle_with_bytes_changed(name: str, bundle: Path, tmp_path: Path, budget: int) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))

    def attempt(data: bytes) -> None:
        (copy / name).write_bytes(data)
        use(copy)

    found = fuzz(f"bundles, {name}", damaged((bundle / name).read_bytes()), attempt, budget)
    assert "read" in found if name == "README.md" else sum(found.values()) >= budget


@pytest.mark.parametrize("budget", [4, pytest.param(150, marks=LONG)])
@pytest.mark.parametrize("name", ["model.yaml", "transforms.yaml"])
def test_a_bundle_with_strange_values(name: str, bundle: Path, tmp_path: Path, budget: int) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))

    def attempt(tree: Any) -> None:
        (copy / name).write_text(yaml.safe_dump(tree), encoding="utf-8")
        use(copy)

    tree = read_yaml(bundle / name)
    tree.pop("files", None)
    fuzz(f"bundles, {name}", strange(tree), attempt, budget)


@pytest.mark.parametrize("budget", [150, pytest.param(5000, marks=LONG)])
def test_yaml(budget: int, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    texts = [
        (bundle / "transforms.yaml").read_bytes(),
        b"a: &x {b: [1, 2.5, null]}\nc: *x\nd: !!str 5\ne: 2001-12-14\n",
    ]

    def attempt(data: bytes) -> None:
        file.write_bytes(data)
        assert isinstance(read_yaml(file), dict)

    assert set(fuzz("YAML", damaged(*texts), attempt, budget)) == {"read", "refused"}


def safetensors(header: Any) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(64)


HEADER = {
    "a": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
    "b": {"dtype": "I64", "shape": [4], "data_offsets": [32, 64]},
    "__metadata__": {"format": "pt"},
}


@pytest.mark.parametrize("budget", [150, pytest.param(5000, marks=LONG)])
def test_headers_of_safetensors(budget: int, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"

    def attempt(data: bytes) -> None:
        file.write_bytes(data)
        assert all(value.nbytes <= 64 for value in read_state(file).values())

    inputs = strange(HEADER).map(safetensors) | damaged(safetensors(HEADER))
    assert set(fuzz("headers of safetensors", inputs, attempt, budget)) == {"read", "refused"}


@pytest.mark.parametrize("budget", [60, pytest.param(3000, marks=LONG)])
@pytest.mark.parametrize("legacy", [False, True])
def test_weights_of_pytorch(budget: int, legacy: bool, tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    torch.save({"a": torch.zeros(2, 4)}, file, _use_new_zipfile_serialization=not legacy)

    def attempt(data: bytes) -> None:
        file.write_bytes(data)
        read_tensors(file)

    assert "refused" in fuzz("weights of PyTorch", damaged(file.read_bytes()), attempt, budget)


PIECES = {"<unk>": 0, "<s>": 1, "</s>": 2, **{letter: 3 + at for at, letter in enumerate("abcdefghijklmnop ")}}
BPE = {
    "version": "1.0",
    "added_tokens": [
        {"id": 1, "content": "<s>", "special": True, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False}
    ],
    "normalizer": {"type": "Lowercase"},
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None,
    "decoder": {"type": "BPEDecoder", "suffix": "</w>"},
    "model": {"type": "BPE", "unk_token": "<unk>", "vocab": PIECES | {"ab": 30}, "merges": [["a", "b"]]},
}
SPECIAL = SpecialIds(bos=1, eos=(2,))
MARIAN = Options(cutter="source", special=("<unk>", "</s>"))


@functools.cache
def model_file() -> bytes:
    return Path(VOCABULARY).read_bytes()


def archives() -> dict[str, tuple[str, bytes]]:
    """What each kind of vocabulary is read from, by a name that tells them apart: the file's suffix, its content."""
    numbers = json.dumps({"<unk>": 0, "</s>": 1, "a": 2}).encode()
    sides = {"source.spm": model_file(), "target.spm": model_file(), "vocab.json": numbers}
    siglip = Options(cutter="siglip", special=("<unk>",))
    return {
        "our own": (".model", model_file()),
        "tokenizer.json": (".json", json.dumps(BPE).encode()),
        "tokenizers": (".zip", pack(Options(special=("<s>",)), {}, json.dumps(BPE))),
        "Marian": (".zip", pack(MARIAN, sides)),
        "SigLIP": (".zip", pack(siglip, {"spiece.model": model_file()})),
    }


@pytest.mark.parametrize("budget", [25, pytest.param(800, marks=LONG)])
@pytest.mark.parametrize("kind", ["our own", "tokenizer.json", "tokenizers", "Marian", "SigLIP"])
def test_vocabularies_with_bytes_changed(kind: str, budget: int, tmp_path: Path) -> None:
    suffix, content = archives()[kind]
    fuzz("vocabularies", damaged(content), opener(tmp_path / f"a{suffix}"), budget)


@pytest.mark.parametrize("budget", [25, pytest.param(800, marks=LONG)])
@pytest.mark.parametrize("kind", ["tokenizer.json", "options", "Marian"])
def test_vocabularies_with_strange_values(kind: str, budget: int, tmp_path: Path) -> None:
    if kind == "tokenizer.json":
        inputs = strange(BPE).map(lambda tree: json.dumps(tree).encode())
    elif kind == "options":
        options = {
            "version": 1,
            "clean": "lower",
            "tidy": True,
            "word_end": "</w>",
            "cutter": "source",
            "special": ["a"],
        }
        inputs = strange(options).map(lambda tree: _with_options(archives()["Marian"][1], tree))
    else:
        numbers = {"<unk>": 0, "</s>": 1, "a": 2}
        sides = {"source.spm": model_file(), "target.spm": model_file()}
        inputs = strange(numbers).map(lambda tree: pack(MARIAN, {**sides, "vocab.json": json.dumps(tree).encode()}))
    suffix = ".json" if kind == "tokenizer.json" else ".zip"
    assert "refused" in fuzz("vocabularies", inputs, opener(tmp_path / f"a{suffix}"), budget)


def opener(file: Path) -> Callable[[bytes], None]:
    def attempt(data: bytes) -> None:
        file.write_bytes(data)
        words = open_vocabulary(file, None if file.suffix == ".model" else SPECIAL)
        ids = words.encode_many(["a big cab", "<s>ab"])
        words.decode(ids[0])

    return attempt


def _with_options(archive: bytes, options: Any) -> bytes:
    import io
    import zipfile

    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, json.dumps(options) if name == "options.json" else old.read(name))
    return made.getvalue()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models as transformers keeps them, with a tokenizer beside each."""
    made = {}
    for family in (GPT2, BERT):
        layout = next(iter(family.layouts))
        model = family.spec(SIZES[family.name], layout, family.name).build()
        model.initialise(0)
        scratch, folder = tmp_path_factory.mktemp(family.name) / "bundle", tmp_path_factory.mktemp("out") / "folder"
        save_bundle(scratch, model, Transforms(), "")
        export_model(scratch, "hf", folder)
        (folder / "tokenizer.json").write_text(json.dumps(BPE))
        (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "bad_words_ids": [[3]]}))
        made[family.name] = folder
    return made


CONFIGS = ("config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json")


@pytest.mark.parametrize(
    ("family", "name", "budget"),
    [
        *(pytest.param(family, name, 60, marks=LONG) for family in SIZES for name in CONFIGS),
        *(("bert" if name == "config.json" else "gpt2", name, 3) for name in CONFIGS),
    ],
)
def test_folders_of_other_libraries(
    family: str, name: str, folders: dict[str, Path], tmp_path: Path, budget: int
) -> None:
    folder = Path(shutil.copytree(folders[family], tmp_path / "folder"))
    tree = json.loads((folder / name).read_text())

    def attempt(changed: Any) -> None:
        (folder / name).write_text(json.dumps(changed))
        import_model(f"hf:{folder}", tmp_path / "bundle")

    fuzz("folders of other libraries", strange(tree), attempt, budget)
