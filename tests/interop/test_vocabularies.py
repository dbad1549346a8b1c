"""Vocabularies from elsewhere give the ids and the texts that the libraries they are from give: string by string."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sentencepiece
import torch
from tiny import tiny_model
from vocabulary_folders import FOLDERS, bert, byte_level, lists, marian, write
from vocabulary_texts import WRITTEN, texts

import mmformer
from mmformer.bundle import Transforms, load_bundle, save_bundle
from mmformer.errors import InputError
from mmformer.interop.vocabularies import FoundVocabulary, from_folder, from_open_clip, write_folder, write_vocabularies
from mmformer.models.model import ModelSpec
from mmformer.tokenizers.any_vocabulary import AnyVocabulary
from mmformer.tokenizers.archive import Options, pack, unpack
from mmformer.tokenizers.opening import from_content
from mmformer.tokenizers.special import SpecialIds
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.types import Batch, Text

pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")  # its Marian does not use it

FEW, MANY = 300, 10_000


class Pair(NamedTuple):
    """A vocabulary as we have it, and as its own library does."""

    folder: Path
    found: FoundVocabulary
    ours: AnyVocabulary
    theirs: Any


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    transformers = pytest.importorskip("transformers", reason="its tokenizers are what these are compared with")
    made: dict[str, Pair] = {}

    def pair(name: str) -> Pair:
        if name not in made:
            folder = FOLDERS[name](tmp_path_factory.mktemp("vocabulary"))
            found, theirs = from_folder(folder), transformers.AutoTokenizer.from_pretrained(folder)
            assert found is not None
            made[name] = Pair(folder, found, from_content(found.content, found.ids), theirs)
        return made[name]

    return pair


def same_ids(pair: Pair, number: int) -> None:
    """Of as many texts: without special tokens, with those around a text, and decoded again."""
    for text in texts(number):
        ids = pair.ours.encode_many([text])[0]
        assert ids == pair.theirs(text, add_special_tokens=False)["input_ids"], repr(text)
        assert [*pair.found.before, *ids, *pair.found.after] == pair.theirs(text)["input_ids"], repr(text)
        assert pair.ours.decode(ids) == pair.theirs.decode(ids, skip_special_tokens=True), repr(text)


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_and_texts_are_those_of_transformers(name: str, pairs: Callable[[str], Pair]) -> None:
    same_ids(pairs(name), FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_ids_and_texts_are_those_of_transformers_on_many(name: str, pairs: Callable[[str], Pair]) -> None:
    same_ids(pairs(name), MANY)


def open_clip_merges() -> bytes:
    tokenizer = pytest.importorskip("open_clip.tokenizer", reason="its wheel has CLIP's merges, its code the reference")
    return Path(tokenizer.default_bpe()).read_bytes()


def same_as_open_clip(clean: Any, number: int) -> None:
    merges = open_clip_merges()
    from open_clip.tokenizer import SimpleTokenizer

    found, theirs = from_open_clip(merges, clean), SimpleTokenizer(clean=clean)
    ours = from_content(found.content, found.ids)
    assert len(ours) == found.size == theirs.vocab_size
    odd = ["half \ud800 a pair", "'ſ ſ 'K", "<START_OF_TEXT> a", "a<end_of_text>b !<end_of_text>", "'s<start_of_text>"]
    for text in [*odd, *texts(number)]:
        # What is a letter depends on the edition of Unicode that a regex library has: newest characters are left out.
        known = "".join(c for c in text if unicodedata.category(c) != "Cn")
        ids = ours.encode_many([known])[0]
        assert ids == theirs.encode(known), repr(known)
        shown = theirs.decode([index for index in ids if index not in theirs.all_special_ids])
        assert ours.decode(ids) == shown.strip(), repr(known)


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_ids_and_texts_are_those_of_open_clip(clean: str) -> None:
    same_as_open_clip(clean, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_ids_and_texts_are_those_of_open_clip_on_many(clean: str) -> None:
    same_as_open_clip(clean, MANY)


def spec_of(found: FoundVocabulary, folder: Path, **changes: Any) -> TextTokensSpec:
    path = folder / "words.zip"
    path.write_bytes(found.content)
    said = {"begin": found.begin, "end": found.end, "prefix_space": False, "ids": found.ids, **changes}
    return TextTokensSpec(str(path), **{"context_length": 16, **said})


def test_rows_are_those_of_open_clip(tmp_path: Path) -> None:
    """Cut to the context, ended, and padded with 0."""
    merges = open_clip_merges()
    from open_clip.tokenizer import SimpleTokenizer

    written = [text for text in WRITTEN if text.isascii()]
    theirs = SimpleTokenizer(context_length=16)(written)
    ours = spec_of(from_open_clip(merges), tmp_path).encoder().encode(written)
    assert ours.ids.shape == theirs.shape == (len(written), 16)
    assert torch.equal(ours.ids, theirs)
    assert from_open_clip(merges).context_length == 77


@pytest.mark.parametrize("name", ["bert", "clip", "t5", "roberta", "llama", "marian"])
def test_rows_are_those_of_transformers(name: str, pairs: Callable[[str], Pair], tmp_path: Path) -> None:
    """With what begins and ends a text, cut to the context and padded."""
    pair = pairs(name)
    ours = spec_of(pair.found, tmp_path).encoder().encode(WRITTEN)
    theirs = pair.theirs(WRITTEN, truncation=True, max_length=16)["input_ids"]
    for row, length, expected in zip(ours.ids.tolist(), ours.lengths.tolist(), theirs, strict=True):
        assert row[:length] == (expected or [pair.found.ids.eos[0]])
        assert set(row[length:]) <= {pair.found.ids.pad or 0}


def test_special_ids_are_what_the_folders_say(pairs: Callable[[str], Pair]) -> None:
    """Those of the tokenizer where it names them, those of the configs besides."""
    for name in FOLDERS:
        folder, found, _, theirs = pairs(name)
        if theirs.pad_token_id is not None:
            assert found.ids.pad == theirs.pad_token_id
        assert found.ids.mask == theirs.mask_token_id
        assert found.ids.eos[0] == (theirs.eos_token_id if theirs.sep_token_id is None else theirs.sep_token_id)
        assert found.ids.bos == (theirs.bos_token_id if theirs.cls_token_id is None else theirs.cls_token_id)
        assert found.size == len(theirs), name
        config = json.loads((folder / "config.json").read_text())
        assert found.ids.start == config.get("decoder_start_token_id")
    assert len(pairs("llama3").found.ids.eos) == 2, "generation_config.json says the second"
    assert pairs("whisper").found.ids.unwritten == (1, 2, 7)
    assert pairs("marian").found.ids.unwritten == (pairs("marian").found.ids.pad,)


def test_what_stands_around_a_text_is_found(pairs: Callable[[str], Pair]) -> None:
    around = {
        **{"gpt2": (False, False), "bert": (True, True), "clip": (True, True), "t5": (False, True)},
        **{"llama": (True, False), "llama3": (True, False), "marian": (False, True), "whisper": (False, True)},
    }
    for name, (begin, end) in around.items():
        found = pairs(name).found
        assert (found.begin, found.end) == (begin, end), name
    whisper = pairs("whisper")
    assert whisper.theirs.convert_ids_to_tokens(whisper.found.before) == ["<|startoftranscript|>", "<|notimestamps|>"]


def test_context_lengths_are_found(pairs: Callable[[str], Pair]) -> None:
    expected = {"gpt2": 64, "bert": 48, "clip": 77, "roberta": 62, "llama3": 131072, "t5": None, "marian": 512}
    assert {name: pairs(name).found.context_length for name in expected} == expected


@pytest.mark.parametrize("separate", [False, True])
def test_what_marian_writes_is_cut_by_the_other_sides_model(separate: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="its Marian is what this is compared with")
    folder = marian(tmp_path, separate)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    found, read = from_folder(folder, side="target"), from_folder(folder)
    assert found is not None and read is not None
    ours = from_content(found.content, found.ids)
    for text in texts(100):
        expected = theirs(text_target=text)["input_ids"]
        assert [*ours.encode_many([text])[0], *found.after] == expected, repr(text)
        assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True)
    other = from_content(read.content, read.ids)
    assert other.encode_many(WRITTEN) != ours.encode_many(WRITTEN)
    assert other.fingerprint != ours.fingerprint


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "llama saved", "marian"])
def test_the_files_go_back_out_as_they_came(name: str, pairs: Callable[[str], Pair], tmp_path: Path) -> None:
    folder, found, _, theirs = pairs(name)
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


def test_what_decoding_tidies_is_tidied_alike(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="its tokenizers are what this is compared with")
    folder = bert(tmp_path, clean_up_tokenization_spaces=True)
    found, theirs = from_folder(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert found is not None
    ours = from_content(found.content, found.ids)
    for text in texts(100):
        ids = ours.encode_many([text])[0]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.decode(ours.encode_many(["it is, he said."])[0]) == "it is, he said."


def test_broken_unicode_is_refused_where_the_reference_raises(pairs: Callable[[str], Pair]) -> None:
    for name in ("gpt2", "bert", "t5", "marian"):
        pair = pairs(name)
        with pytest.raises((TypeError, UnicodeEncodeError, RuntimeError)):
            pair.theirs("half \ud83d a pair")
        with pytest.raises(InputError, match=r"not valid Unicode: character 5 is '.ud83d', half of a surrogate pair"):
            pair.ours.encode_many(["half \ud83d a pair"])
        with pytest.raises(InputError, match="A text to encode must be a string, not int"):
            pair.ours.encode_many([7])  # type: ignore[list-item]
        with pytest.raises(InputError, match="Id -1 is not in the vocabulary"):
            pair.ours.decode([-1])


def test_an_empty_text_is_empty_and_never_an_empty_row(pairs: Callable[[str], Pair], tmp_path: Path) -> None:
    for name in FOLDERS:
        assert pairs(name).ours.encode_many([""]) == [[]]
    row = spec_of(pairs("gpt2").found, tmp_path).encoder().encode([""])
    assert (row.ids[0, 0], row.lengths[0]) == (pairs("gpt2").found.ids.eos[0], 1)


def test_vocabularies_travel_to_workers_and_tell_others_apart(pairs: Callable[[str], Pair]) -> None:
    prints = []
    for name in ("gpt2", "bert", "bert cased", "marian"):
        ours = pairs(name).ours
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
    refused("four", r"tokenizer.json cannot be read by tokenizers", config__json=config, tokenizer__json="{}")
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


def test_a_damaged_archive_is_refused(tmp_path: Path, pairs: Callable[[str], Pair]) -> None:
    content = pairs("gpt2").found.content
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


def test_texts_that_need_mending_need_the_library_that_mends(monkeypatch: pytest.MonkeyPatch) -> None:
    found = from_open_clip(open_clip_merges())
    ours = from_content(found.content, found.ids)
    plain, curly = ours.encode_many(["A plain text, isn't it?", "a “curly” one"])
    monkeypatch.setitem(__import__("sys").modules, "ftfy", None)
    assert ours.encode_many(["A plain text, isn't it?"]) == [plain]
    with pytest.raises(InputError, match="mends texts beyond ASCII with ftfy, as open_clip does; it is not installed"):
        ours.encode_many(["a “curly” one"])
    assert ours.decode(curly) == 'a " curly " one'


def test_an_older_tokenizer_json_is_taken_as_it_is(pairs: Callable[[str], Pair], tmp_path: Path) -> None:
    """Llama 2's, as transformers 4 wrote it: as SentencePiece cuts, where transformers 5 loses a space at the start."""
    newer = pairs("llama")
    data = json.loads(unpack(newer.found.content).vocabulary or b"")
    space = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    data |= {"pre_tokenizer": None, "normalizer": {"type": "Sequence", "normalizers": space}}
    settings = (newer.folder / "tokenizer_config.json").read_text(encoding="utf-8")
    found = from_folder(write(tmp_path, tokenizer__json=data, tokenizer_config__json=settings))
    assert found is not None
    ours, processor = from_content(found.content, found.ids), sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto((newer.folder / "tokenizer.model").read_bytes())
    for text in texts(FEW):
        if not any(token in text for token in ("<s>", "</s>", "<unk>")):  # special tokens, which its file finds
            assert ours.encode_many([text])[0] == processor.EncodeAsIds(text), repr(text)
    assert ours.encode_many([" a"]) != newer.ours.encode_many([" a"])


def test_whispers_language_and_task_stand_before_a_text(tmp_path: Path) -> None:
    """Of a tokenizer.json that says them, all; of lists alone, the two that the class puts."""
    transformers = pytest.importorskip("transformers", reason="its tokenizers are what this is compared with")
    folder = FOLDERS["whisper"](tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.set_prefix_tokens(task="transcribe", predict_timestamps=True)
    theirs.save_pretrained(folder)
    found = from_folder(folder)
    assert found is not None
    assert theirs.convert_ids_to_tokens(found.before) == ["<|startoftranscript|>", "<|transcribe|>"]
    ids = from_content(found.content, found.ids).encode_many(["a text"])[0]
    assert [*found.before, *ids, *found.after] == theirs("a text")["input_ids"]


def text_model(tokenizer: TextTokensSpec) -> ModelSpec:
    spec = tiny_model()
    encoder = dataclasses.replace(spec.encoders["text"], tokenizer=tokenizer)
    return dataclasses.replace(spec, stacks={"text": spec.stacks["text"]}, encoders={"text": encoder}, heads={})


def test_a_bundle_carries_a_vocabulary_and_the_files_that_it_came_in(
    pairs: Callable[[str], Pair], tmp_path: Path
) -> None:
    found = pairs("bert").found
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
    (tmp_path / "bundle" / "text.zip").write_bytes(pairs("bert cased").found.content)
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


def test_a_model_gives_back_the_files_of_all_its_vocabularies(pairs: Callable[[str], Pair], tmp_path: Path) -> None:
    """Whatever was done to it since: a bundle that was trained on has them in its vocabularies."""
    folder, found, _, _ = pairs("gpt2")
    spec = text_model(spec_of(found, tmp_path))
    assert write_vocabularies(spec, tmp_path) == ["merges.txt", "vocab.json"]
    assert (tmp_path / "merges.txt").read_bytes() == (folder / "merges.txt").read_bytes()
    assert write_vocabularies(tiny_model(), tmp_path) == []


@pytest.mark.parametrize("clean", ["whitespace", "canonicalize"])
@pytest.mark.parametrize("name", ["bert cased", "t5"])
def test_open_clip_cleans_texts_for_vocabularies_of_transformers_too(
    name: str, clean: Any, pairs: Callable[[str], Pair], tmp_path: Path
) -> None:
    """Its HFTokenizer, as SigLIP and CLIPA with BERT's pieces have it: rows are whole, cut and padded alike."""
    open_clip = pytest.importorskip("open_clip.tokenizer", reason="its tokenizers are what this is compared with")
    folder = pairs(name).folder
    found = from_folder(folder, clean)
    assert found is not None
    theirs = open_clip.HFTokenizer(str(folder), context_length=16, clean=clean)(WRITTEN)
    ours = spec_of(found, tmp_path).encoder().encode(WRITTEN)
    assert torch.equal(ours.ids, theirs)
