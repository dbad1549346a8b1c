"""Vocabularies from elsewhere travel: into bundles and workers, and back out; what is damaged or foreign is refused."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import random
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model
from vocabulary_folders import FOLDERS, byte_level, lists, write
from vocabulary_pairs import open_clip_merges, pair_of, spec_of
from vocabulary_texts import WRITTEN

import mmformer
from mmformer.bundle import Transforms, load_bundle, save_bundle
from mmformer.cli.main import main
from mmformer.errors import InputError
from mmformer.interop.exporting import export_model
from mmformer.interop.importing import import_model
from mmformer.interop.vocabularies import from_folder, from_open_clip, write_folder, write_vocabularies
from mmformer.models.model import ModelSpec
from mmformer.surgery.edit import EditSpec, edit_bundle
from mmformer.tokenizers.archive import Options, pack, unpack
from mmformer.tokenizers.opening import from_content
from mmformer.tokenizers.special import SpecialIds
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.types import Batch, Text

pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")  # its Marian does not use it


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "llama saved", "marian"])
def test_the_files_go_back_out_as_they_came(name: str, tmp_path: Path) -> None:
    folder, found, _, theirs = pair_of(name)
    names = write_folder(found.content, tmp_path)
    assert set(names) == {path.name for path in folder.iterdir()} - {"config.json", "generation_config.json"}
    for file in names:
        assert (tmp_path / file).read_bytes() == (folder / file).read_bytes()
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    from transformers import AutoTokenizer

    back = AutoTokenizer.from_pretrained(tmp_path)
    assert back(WRITTEN)["input_ids"] == theirs(WRITTEN)["input_ids"]
    again = from_folder(tmp_path)
    assert again == found, "to the byte"


def test_broken_unicode_is_refused_where_the_reference_raises() -> None:
    for name in ("gpt2", "bert", "t5", "marian"):
        pair = pair_of(name)
        with pytest.raises((TypeError, UnicodeEncodeError, RuntimeError)):
            pair.theirs("half \ud83d a pair")
        with pytest.raises(InputError, match=r"not valid Unicode: character 5 is '.ud83d', half of a surrogate pair"):
            pair.ours.encode_many(["half \ud83d a pair"])
        with pytest.raises(InputError, match="A text to encode must be a string, not int"):
            pair.ours.encode_many([7])  # type: ignore[list-item]
        with pytest.raises(InputError, match="Id -1 is not in the vocabulary"):
            pair.ours.decode([-1])


def test_an_empty_text_is_empty_and_never_an_empty_row(tmp_path: Path) -> None:
    for name in FOLDERS:
        assert pair_of(name).ours.encode_many([""]) == [[]]
    row = spec_of(pair_of("gpt2").found, tmp_path).encoder().encode([""])
    assert (row.ids[0, 0], row.lengths[0]) == (pair_of("gpt2").found.ids.eos[0], 1)


def test_vocabularies_travel_to_workers_and_tell_others_apart() -> None:
    prints = []
    for name in ("gpt2", "bert", "bert cased", "marian"):
        ours = pair_of(name).ours
        sent = pickle.loads(pickle.dumps(ours))
        assert sent.encode_many(WRITTEN) == ours.encode_many(WRITTEN)
        assert (sent.fingerprint, sent.ids) == (ours.fingerprint, ours.ids)
        prints.append(ours.fingerprint)
    assert len(set(prints)) == 4


def test_a_tokenizer_json_is_a_vocabulary_too(tmp_path: Path) -> None:
    path = write(tmp_path, words__json=byte_level("<end>").to_str()) / "words.json"
    spec = TextTokensSpec(str(path), 16, prefix_space=False, ids=SpecialIds(eos=(0,)))
    text = spec.encoder().encode(["some words"])
    assert spec.encoder().vocabulary.decode(text.ids[0, : text.lengths[0]].tolist()) == "some words"
    assert text.ids[0, text.lengths[0] - 1] == 0
    with pytest.raises(InputError, match=r"TextTokensSpec.end adds the vocabulary's eos, but .*words.json has none"):
        TextTokensSpec(str(path)).encoder()
    with pytest.raises(InputError, match=r"TextTokensSpec.begin adds the vocabulary's bos, but .*words.json has none"):
        TextTokensSpec(str(path), begin=True, end=False).build(8)


def test_a_folder_without_a_vocabulary_has_none(tmp_path: Path) -> None:
    assert from_folder(write(tmp_path, config__json={"model_type": "gpt2"})) is None


def test_what_cannot_be_read_exactly_is_refused(tmp_path: Path) -> None:
    def refused(name: str, match: str, **files: Any) -> None:
        with pytest.raises(InputError, match=match):
            from_folder(write(tmp_path / name, **files))

    made = lists(byte_level("<|endoftext|>"))
    config = {"model_type": "gpt2"}
    refused("one", r"needs merges.txt, which is not there", config__json=config, vocab__json=made["vocab__json"])
    refused("two", r"merges.txt has a line that is not two", config__json=config, **{**made, "merges__txt": "a b c\n"})
    refused(
        "three",
        r"but no tokenizer.json, .* not Deberta\. .*AutoTokenizer",
        config__json={"model_type": "x"},
        tokenizer_config__json={"tokenizer_class": "DebertaTokenizer"},
        **made,
    )
    refused(
        "four",
        r"tokenizer.json is no tokenizer.json that tokenizers can read",
        config__json=config,
        tokenizer__json="{}",
    )
    refused(
        "five",
        r"split_special_tokens",
        tokenizer_config__json={"split_special_tokens": True},
        config__json=config,
        **made,
    )
    refused(
        "six", r"spiece.model is no SentencePiece model", config__json={"model_type": "t5"}, spiece__model=b"\xff\xff"
    )
    far = {"5000": {"content": "<far>", "special": True}}
    refused(
        "seven",
        r"added tokens have '<far>' at 5000, but there is room for it at 900",
        config__json=config,
        tokenizer_config__json={"added_tokens_decoder": far},
        **made,
    )
    refused("eight", r"config.json is no JSON", config__json="{", **made)
    refused("nine", r"must hold a mapping, but holds list", config__json=[], **made)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    content = pair_of("gpt2").found.content
    path = tmp_path / "words.zip"
    for damaged, match in (
        (content[: len(content) // 2], "damaged, it cannot be unpacked"),
        (content.replace(b"options.json", b"optional.jsn"), "has no options.json of a vocabulary"),
        (content.replace(b"vocabulary.json", b"vocabularyXjson"), "has no vocabulary.json"),
        (b"{}", "no tokenizer.json that tokenizers can read"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=match):
            TextTokensSpec(str(path)).encoder()
    for name in ("../out", "in/side", ".."):
        with pytest.raises(InputError, match="which is no plain name"):
            unpack(pack(Options(), {name: b""}, "{}"))
    with pytest.raises(InputError, match=r"format version 2, but this mmformer reads up to 1"):
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as archive:
            archive.writestr("options.json", '{"version": 2, "more": 1}')
        unpack(made.getvalue())
    with pytest.raises(InputError, match=r"gone.zip cannot be read: No such file"):
        TextTokensSpec(str(tmp_path / "gone.zip")).encoder()
    assert "merges.txt" in unpack(content).published


def test_no_damage_is_more_than_an_input_error() -> None:
    draw, content = random.Random(0), pair_of("gpt2").found.content
    outcomes: Counter[str] = Counter()
    for _ in range(300):
        damaged = bytearray(content)
        place = draw.choice([draw.randrange(len(content)), len(content) - draw.randrange(1, 600)])
        if draw.random() < 0.7:
            damaged[place] ^= 1 << draw.randrange(8)
        else:
            del damaged[place : place + draw.randrange(1, 50)]
        try:
            from_content(bytes(damaged), SpecialIds())
            outcomes["read"] += 1
        except InputError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 200, "a checksum covers what is in it"


def test_where_the_library_panics_is_an_input_error_too(capfd: pytest.CaptureFixture[str]) -> None:
    vocabulary = unpack(pair_of("t5").found.content).vocabulary
    assert vocabulary is not None
    damaged = vocabulary.replace(b'"precompiled_charsmap":"', b'"precompiled_charsmap":"(')
    assert damaged != vocabulary
    with pytest.raises(InputError, match=r"no tokenizer.json that tokenizers can read: Precompiled"):
        from_content(damaged, SpecialIds())
    assert "panicked" in capfd.readouterr().err, "otherwise there is nothing that this tests"


def test_texts_that_need_mending_need_the_library_that_mends(monkeypatch: pytest.MonkeyPatch) -> None:
    found = from_open_clip(open_clip_merges())
    ours = from_content(found.content, found.ids)
    plain, curly = ours.encode_many(["A plain text, isn't it?", "a “curly” one"])
    monkeypatch.setitem(__import__("sys").modules, "ftfy", None)
    assert ours.encode_many(["A plain text, isn't it?"]) == [plain]
    with pytest.raises(InputError, match="mends texts beyond ASCII with ftfy, as open_clip does; it is not installed"):
        ours.encode_many(["a “curly” one"])
    assert ours.decode(curly) == 'a " curly " one'


def text_model(tokenizer: TextTokensSpec) -> ModelSpec:
    spec = tiny_model()
    encoder = dataclasses.replace(spec.encoders["text"], tokenizer=tokenizer)
    return dataclasses.replace(spec, stacks={"text": spec.stacks["text"]}, encoders={"text": encoder}, heads={})


def test_a_bundle_carries_a_vocabulary_and_the_files_that_it_came_in(tmp_path: Path) -> None:
    found = pair_of("bert").found
    spec = text_model(spec_of(found, tmp_path, rows=3000, types=2))
    model = spec.build().eval()
    model.initialise(0)
    save_bundle(tmp_path / "bundle", model, Transforms(), "")
    back, _ = load_bundle(tmp_path / "bundle")
    assert (tmp_path / "bundle" / "text.zip").read_bytes() == found.content
    ours, theirs = spec.text_encoders()["text"], back.spec.text_encoders()["text"]
    text = ours.encode(WRITTEN)
    assert torch.equal(theirs.encode(WRITTEN).ids, text.ids)
    batch = Batch((), {}, text=text)
    assert torch.allclose(back(batch).embedding["text"], model(batch).embedding["text"], atol=1e-6)
    (tmp_path / "bundle" / "text.zip").write_bytes(pair_of("bert cased").found.content)
    with pytest.raises(InputError, match="this is another vocabulary than the one that the model was trained with"):
        load_bundle(tmp_path / "bundle")


def test_a_bundle_without_a_vocabulary_takes_ids(tmp_path: Path) -> None:
    model = text_model(TextTokensSpec(None, 16, rows=50)).build().eval()
    model.initialise(0)
    save_bundle(tmp_path / "bundle", model, Transforms(), "")
    back, _ = load_bundle(tmp_path / "bundle")
    batch = Batch((), {}, text=Text(torch.tensor([[7, 49]]), torch.tensor([2])))
    assert torch.allclose(back(batch).embedding["text"], model(batch).embedding["text"], atol=1e-6)
    with pytest.raises(InputError, match="The model takes ids only, not texts"):
        mmformer.load(tmp_path / "bundle").embed(text="a text")


def test_a_model_gives_back_the_files_of_all_its_vocabularies(tmp_path: Path) -> None:
    """Whatever was done to it since: a bundle that was trained on has them in its vocabularies."""
    folder, found, _, _ = pair_of("gpt2")
    spec = text_model(spec_of(found, tmp_path))
    assert write_vocabularies(spec, tmp_path) == ["merges.txt", "vocab.json"]
    assert (tmp_path / "merges.txt").read_bytes() == (folder / "merges.txt").read_bytes()
    assert write_vocabularies(tiny_model(), tmp_path) == []


def test_the_longest_text_is_the_models(tmp_path: Path) -> None:
    """transformers cuts texts there; what is edited goes out with its own, and what was not as it came."""
    transformers = pytest.importorskip("transformers", reason="the reference")
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": 900}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(tmp_path / "in")
    settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 60}
    write(tmp_path / "in", tokenizer_config__json=settings, **lists(byte_level("<|endoftext|>")))
    import_model(f"hf:{tmp_path / 'in'}", tmp_path / "bundle")
    edit_bundle(tmp_path / "bundle", tmp_path / "longer", EditSpec(context_length=96))
    for name in ("bundle", "longer"):
        export_model(tmp_path / name, "hf", tmp_path / "out" / name)
    files = [folder / "tokenizer_config.json" for folder in (tmp_path / "in", tmp_path / "out" / "bundle")]
    assert files[0].read_bytes() == files[1].read_bytes()
    cut = transformers.AutoTokenizer.from_pretrained(tmp_path / "out" / "longer")
    assert len(cut("a red square " * 99, truncation=True).input_ids) == 96
    unlimited = {**settings, "model_max_length": 10**30}
    write(tmp_path / "in", tokenizer_config__json=unlimited)
    import_model(f"hf:{tmp_path / 'in'}", tmp_path / "free")
    edit_bundle(tmp_path / "free", tmp_path / "freer", EditSpec(context_length=96))
    export_model(tmp_path / "freer", "hf", tmp_path / "out" / "freer")
    assert json.loads((tmp_path / "out/freer/tokenizer_config.json").read_text()) == unlimited


def test_the_command_shows_how_they_cut_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("gpt2", "t5", "marian", "siglip"):
        pair = pair_of(name)
        path = tmp_path / "words.zip"
        path.write_bytes(pair.found.content)
        assert main(["vocabulary", "encode", str(path), "some words"]) == 0
        ids = pair.theirs("some words", add_special_tokens=False)["input_ids"]
        pieces = " ".join(map(repr, pair.theirs.convert_ids_to_tokens(ids)))
        assert capsys.readouterr().out == f"{len(ids)} tokens: {pieces}\n{' '.join(map(str, ids))}\n"
        assert pair.ours.pieces([10**6]) == ["<1000000>"]
