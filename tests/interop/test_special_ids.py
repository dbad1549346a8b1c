"""Special ids: what a vocabulary and the files beside it say, and what a config says of a model that was made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vocabulary_folders import FOLDERS

from mmformer.config import parse, read_yaml, to_data
from mmformer.interop import plain
from mmformer.interop.families.blip import BLIP
from mmformer.interop.families.gpt2 import FAMILY as GPT2
from mmformer.interop.families.llama import LLAMA
from mmformer.interop.families.llava import LLAVA
from mmformer.interop.families.marian import FAMILY as MARIAN
from mmformer.interop.families.t5 import T5
from mmformer.interop.families.whisper import FAMILY as WHISPER
from mmformer.interop.family import Family
from mmformer.interop.ids import read_ids, with_ids, with_special
from mmformer.interop.origin import Origin
from mmformer.interop.source import Found
from mmformer.interop.vocabularies import from_folder
from mmformer.interop.whisper_prompt import CODES
from mmformer.models.model import ModelSpec
from mmformer.tokenizers.special import SpecialIds


def found(family: Family, folder: Path, config: dict[str, Any], **said: Any) -> Found:
    """A model in a folder whose generation_config.json says something; none where that is nothing."""
    if said:
        (folder / "generation_config.json").write_text(json.dumps(said))
    return Found(family, next(iter(family.layouts)), config, {}, folder, "config.json")


@pytest.mark.parametrize(
    ("own", "said", "config", "written", "read"),
    [
        ((1,), {"eos_token_id": 7}, {"eos_token_id": 5}, (7,), (1,)),
        ((1,), {"eos_token_id": [7, 1]}, {}, (1, 7), (1,)),
        ((1,), {"pad_token_id": 3}, {"eos_token_id": 5}, (5,), (1,)),
        ((1,), {}, {}, (1,), (1,)),
        ((), {}, {"eos_token_id": [5, 6]}, (5, 6), (5, 6)),
    ],
)
def test_what_is_written_ends_where_generate_stops(
    own: tuple[int, ...],
    said: dict[str, Any],
    config: dict[str, Any],
    written: tuple[int, ...],
    read: tuple[int, ...],
    tmp_path: Path,
) -> None:
    """And what is read as its vocabulary ends it; of several, the vocabulary's own stands first."""
    source, notes = found(GPT2, tmp_path, config, **said), list[str]()
    assert read_ids(source, SpecialIds(eos=own), 9, True, notes).eos == written
    assert read_ids(source, SpecialIds(eos=own), 9, False, notes).eos == read
    assert not notes


def test_what_the_config_inside_another_says(tmp_path: Path) -> None:
    """LLaVA's is that of what writes, where no generation_config.json says it."""
    text = {"eos_token_id": 4, "pad_token_id": 5}
    ids = read_ids(found(LLAVA, tmp_path, {"text_config": text}), SpecialIds(eos=(2,)), 9, True, [])
    assert (ids.eos, ids.pad) == ((4,), 5)
    ids = read_ids(found(LLAVA, tmp_path, {"text_config": text}, eos_token_id=6), SpecialIds(eos=(2,)), 9, True, [])
    assert ids.eos == (6,)


@pytest.mark.parametrize("text", [{}, {"bos_token_id": 8, "sep_token_id": 7}])
def test_a_blip_begins_and_ends_as_its_class_does(text: dict[str, int], tmp_path: Path) -> None:
    """Whatever stands around a text in its vocabulary, and whatever a generation_config.json says."""
    notes: list[str] = []
    source = found(BLIP, tmp_path, {"text_config": text}, eos_token_id=3, bos_token_id=4, suppress_tokens=[5])
    ids = read_ids(source, SpecialIds(bos=101, eos=(100,)), 30524, True, notes)
    assert (ids.first, ids.eos) == (text.get("bos_token_id", 30522), (text.get("sep_token_id", 102),))
    assert (ids.unwritten, notes) == ((), [])


def test_words_that_are_banned(tmp_path: Path) -> None:
    """One by one; ends are not banned, as in transformers."""
    notes: list[str] = []
    said = {"bad_words_ids": [[3], [4, 5], [2], [3]], "suppress_tokens": [6, 3], "eos_token_id": [1, 2]}
    ids = read_ids(found(GPT2, tmp_path, {}, **said), SpecialIds(), 9, True, notes)
    assert ids.unwritten == (3, 6)
    assert notes == ["bad_words_ids has [4, 5], but ids are banned one by one here: such words may be written"]


def test_ids_beyond_the_table_are_told_once(tmp_path: Path) -> None:
    notes: list[str] = []
    source = found(MARIAN, tmp_path, {"eos_token_id": 4}, pad_token_id=9, suppress_tokens=[-1, 3])
    made = [read_ids(source, SpecialIds(), 9, writes, notes) for writes in (False, True)]
    assert [ids.pad for ids in made] == [None, None] and made[1].unwritten == (3,)
    assert notes == [
        "pad_token_id 9 is beyond the table of 9 rows: there is no such token",
        "suppress_tokens -1 is beyond the table of 9 rows: there is no such token",
    ]


@pytest.mark.parametrize(
    ("name", "family", "expected"),
    [
        ("llama3", LLAMA, lambda ids: len(ids.eos) == 2),  # generation_config.json says the second
        ("whisper", MARIAN, lambda ids: ids.unwritten == (1, 2, 7) and ids.start is not None),
        ("marian", MARIAN, lambda ids: ids.unwritten == (ids.pad,) and ids.start == ids.pad),
    ],
)
def test_folders_say_more_than_their_vocabularies(name: str, family: Family, expected: Any, tmp_path: Path) -> None:
    folder = FOLDERS[name](tmp_path)
    vocabulary, config = from_folder(folder), json.loads((folder / "config.json").read_text())
    assert vocabulary is not None
    assert expected(read_ids(found(family, folder, config), vocabulary.ids, 10**6, True, []))


def test_a_prompt_may_say_an_id_twice(tmp_path: Path) -> None:
    """As ``generate`` puts it before a text; ids beyond the table are still none."""
    said = {"forced_decoder_ids": [[1, 5], [2, 6], [3, 5], [4, 9]], "decoder_start_token_id": 3}
    notes: list[str] = []
    ids = read_ids(found(WHISPER, tmp_path, {}, **said), SpecialIds(), 9, True, notes)
    assert ids.prompt == (3, 5, 6, 5)
    assert notes == ["an id that texts begin with, 9 is beyond the table of 9 rows: there is no such token"]


def test_a_config_says_them_where_its_class_looks() -> None:
    """Of a model that was made here, and of one with other words; what the config says besides stays."""
    data = to_data(parse(ModelSpec, read_yaml("configs/models/llava.yaml"), "llava"))
    plain.put(data, "decoders.text.tokenizer.ids", {"bos": 1, "eos": [2, 3], "unwritten": [9]})
    spec = parse(ModelSpec, data, "llava")
    config = with_special({"text_config": {"hidden_size": 8}}, spec, LLAVA, next(iter(LLAVA.layouts)))
    assert config["text_config"] == {"hidden_size": 8, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": [2, 3]}
    assert config["suppress_tokens"] == [9]
    data = to_data(parse(ModelSpec, read_yaml("configs/models/blip.yaml"), "blip"))
    plain.put(data, "decoders.text.tokenizer.ids", {"bos": 4, "eos": [5]})
    spec = parse(ModelSpec, data, "blip")
    origin = Origin("hf", "blip", "BlipForConditionalGeneration", {"text_config": {"sep_token_id": 102}, "x": 1})
    said = {"bos_token_id": 4, "sep_token_id": 5, "pad_token_id": None}
    assert with_ids(origin, spec).config == {"text_config": said, "x": 1}


def test_ids_of_other_words_are_not_said_any_more() -> None:
    data = to_data(parse(ModelSpec, read_yaml("configs/models/marian.yaml"), "marian"))
    plain.put(data, "decoders.target.tokenizer.ids", {"eos": [3], "start": 4, "unwritten": [4]})
    before = {"bad_words_ids": [[58100]], "forced_eos_token_id": 0, "d_model": 512}
    config = with_ids(Origin("hf", "marian", "MarianMTModel", before), parse(ModelSpec, data, "marian")).config
    assert (config["bad_words_ids"], config["forced_eos_token_id"], config["suppress_tokens"]) == (None, None, [4])
    assert (config["eos_token_id"], config["decoder_start_token_id"], config["d_model"]) == (3, 4, 512)


@pytest.mark.parametrize(("family", "layout"), [(T5, "T5ForConditionalGeneration"), (MARIAN, "MarianMTModel")])
def test_ids_of_a_model_without_its_decoder_are_those_of_what_it_reads(family: Family, layout: str) -> None:
    """An origin says the class that a model came as, which had a decoder, also where an edit has dropped that."""
    data = to_data(parse(ModelSpec, read_yaml(f"configs/models/{family.template}"), family.name))
    plain.put(data, "encoders.source.tokenizer.ids", {"eos": [3], "pad": 5})
    data["decoders"], data["stacks"] = {}, {"reader": data["stacks"]["reader"]}
    before = Origin("hf", family.name, layout, {"eos_token_id": 1, "pad_token_id": 0})
    config = with_ids(before, parse(ModelSpec, data, family.name)).config
    assert (config["eos_token_id"], config["pad_token_id"]) == (3, 5)


def test_names_of_languages_are_whispers() -> None:
    theirs = pytest.importorskip("transformers.models.whisper.tokenization_whisper", reason="the reference")
    assert theirs.TO_LANGUAGE_CODE == CODES
