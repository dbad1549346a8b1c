"""Vocabularies from elsewhere give the ids and the texts that the libraries they are from give: string by string."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from vocabulary_folders import FOLDERS, bert, llama, marian, siglip, write
from vocabulary_pairs import Pair, open_clip_merges, pair_of, spec_of
from vocabulary_texts import WRITTEN, texts

from mmformer.interop.vocabularies import from_folder, from_open_clip
from mmformer.tokenizers.archive import unpack
from mmformer.tokenizers.opening import from_content

pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")  # its Marian does not use it

FEW, MANY = 300, 10_000


def same_ids(pair: Pair, number: int) -> None:
    """Of as many texts: without special tokens, with those around a text, and decoded again."""
    for text in texts(number):
        ids = pair.ours.encode_many([text])[0]
        assert ids == pair.theirs(text, add_special_tokens=False)["input_ids"], repr(text)
        assert [*pair.found.before, *ids, *pair.found.after] == pair.theirs(text)["input_ids"], repr(text)
        assert pair.ours.decode(ids) == pair.theirs.decode(ids, skip_special_tokens=True), repr(text)


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_and_texts_are_those_of_transformers(name: str) -> None:
    same_ids(pair_of(name), FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_ids_and_texts_are_those_of_transformers_on_many(name: str) -> None:
    same_ids(pair_of(name), MANY)


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
def test_rows_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """With what begins and ends a text, cut to the context and padded."""
    pair = pair_of(name)
    ours = spec_of(pair.found, tmp_path).encoder().encode(WRITTEN)
    theirs = pair.theirs(WRITTEN, truncation=True, max_length=16)["input_ids"]
    for row, length, expected in zip(ours.ids.tolist(), ours.lengths.tolist(), theirs, strict=True):
        assert row[:length] == (expected or [pair.found.ids.eos[0]])
        assert set(row[length:]) <= {pair.found.ids.pad or 0}


def test_special_ids_are_what_the_tokenizers_say() -> None:
    for name in FOLDERS:
        _, found, _, theirs = pair_of(name)
        if theirs.pad_token_id is not None:
            assert found.ids.pad == theirs.pad_token_id
        assert found.ids.mask == theirs.mask_token_id
        assert found.ids.eos[0] == (theirs.eos_token_id if theirs.sep_token_id is None else theirs.sep_token_id)
        assert found.ids.bos == (theirs.bos_token_id if theirs.cls_token_id is None else theirs.cls_token_id)
        assert found.size == len(theirs), name


def test_what_stands_around_a_text_is_found() -> None:
    around = {
        **{"gpt2": (False, False), "bert": (True, True), "clip": (True, True), "t5": (False, True)},
        **{"llama": (True, False), "llama3": (True, False), "marian": (False, True), "whisper": (False, True)},
    }
    for name, (begin, end) in around.items():
        found = pair_of(name).found
        assert (found.begin, found.end) == (begin, end), name
    whisper = pair_of("whisper")
    assert whisper.theirs.convert_ids_to_tokens(whisper.found.before) == ["<|startoftranscript|>", "<|notimestamps|>"]


def test_context_lengths_are_found() -> None:
    expected = {"gpt2": 64, "bert": 48, "clip": 77, "roberta": 62, "llama3": 131072, "t5": None, "marian": 512}
    assert {name: pair_of(name).found.context_length for name in expected} == expected


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


@pytest.mark.parametrize("make", [bert, siglip, marian])
def test_what_decoding_tidies_is_tidied_alike(make: Callable[[Path], Path], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="its tokenizers are what this is compared with")
    folder = make(tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    write(folder, tokenizer_config__json=settings | {"clean_up_tokenization_spaces": True})
    found, theirs = from_folder(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert found is not None
    ours = from_content(found.content, found.ids)
    for text in texts(100):
        ids = ours.encode_many([text])[0]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    if make is bert:
        assert ours.decode(ours.encode_many(["it is, he said."])[0]) == "it is, he said."


def test_an_older_tokenizer_json_is_taken_as_it_is(tmp_path: Path) -> None:
    """Llama 2's, as transformers 4 wrote it: as SentencePiece cuts, where transformers 5 loses a space at the start."""
    newer = pair_of("llama")
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


@pytest.mark.parametrize("clean", ["whitespace", "canonicalize"])
@pytest.mark.parametrize("name", ["bert cased", "t5", "siglip"])
def test_open_clip_cleans_texts_for_vocabularies_of_transformers_too(name: str, clean: Any, tmp_path: Path) -> None:
    """Its HFTokenizer, as SigLIP and CLIPA with BERT's pieces have it: rows are whole, cut and padded alike."""
    open_clip = pytest.importorskip("open_clip.tokenizer", reason="its tokenizers are what this is compared with")
    folder = pair_of(name).folder
    found = from_folder(folder, clean)
    assert found is not None
    theirs = open_clip.HFTokenizer(str(folder), context_length=16, clean=clean)(WRITTEN)
    ours = spec_of(found, tmp_path).encoder().encode(WRITTEN)
    assert torch.equal(ours.ids, theirs)


@pytest.mark.parametrize("settings", [{"legacy": True}, {"add_prefix_space": False}, {"add_eos_token": True}], ids=str)
def test_what_llamas_settings_say_is_done(settings: dict[str, bool], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="its tokenizers are what this is compared with")
    folder = llama(tmp_path, **settings)
    found, theirs = from_folder(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert found is not None
    ours, usual = Pair(folder, found, from_content(found.content, found.ids), theirs), pair_of("llama")
    same_ids(ours, 150)
    one, other = (
        [[*p.found.before, *row, *p.found.after] for row in p.ours.encode_many(WRITTEN)] for p in (ours, usual)
    )
    assert one != other
