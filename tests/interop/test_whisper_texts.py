"""Whisper from sounds to texts: transformers' vocabulary, languages and tasks, by ``transcribe``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from parity import Case, imported, saved
from vocabulary_folders import FOLDERS

from mmformer.generation.sampling import GreedySpec
from mmformer.interop.whisper_prompt import begin_of
from mmformer.predictor import Predictor

transformers = pytest.importorskip("transformers", reason="the reference")

SOUNDS = [(0.1 * np.random.default_rng(seed).standard_normal(4000 * seed)).astype(np.float32) for seed in (1, 2, 3, 4)]

SAID = {"lang_to_id": {"<|en|>": 7, "<|zh|>": 17}, "task_to_id": {"transcribe": 8}, "no_timestamps_token_id": 9}


class Both(NamedTuple):
    reference: Any
    tokenizer: Any
    extractor: Any
    ours: Predictor

    def theirs(self, **options: Any) -> list[str]:
        heard = self.extractor(SOUNDS, sampling_rate=16_000, return_tensors="pt")["input_features"]
        with torch.no_grad():
            rows = self.reference.generate(heard, max_new_tokens=12, do_sample=False, **options)
        return [self.tokenizer.decode(row, skip_special_tokens=True) for row in rows]

    def written(self, **options: Any) -> list[str]:
        found = self.ours.transcribe([(sound, 16_000) for sound in SOUNDS], spec=GreedySpec(max_length=12), **options)
        assert isinstance(found, list)
        return found


def made(folder: Path, languages: bool) -> Both:
    folder.mkdir()
    FOLDERS["whisper"](folder)
    tokenizer = transformers.WhisperTokenizer.from_pretrained(folder)
    ids = tokenizer.get_added_vocab()
    end, stamps = ids["<|endoftext|>"], [index for token, index in ids.items() if token[2].isdigit()]
    config = transformers.WhisperConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=40,
        vocab_size=len(tokenizer),
        num_mel_bins=20,
        max_source_positions=50,
        max_target_positions=40,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=ids["<|startoftranscript|>"],
        begin_suppress_tokens=[end],
        suppress_tokens=[1, 2, 7, *stamps],
    )
    reference = transformers.WhisperForConditionalGeneration(config)
    said = reference.generation_config
    said.no_timestamps_token_id, said.is_multilingual = ids["<|notimestamps|>"], languages
    if languages:
        said.lang_to_id = {name: ids[name] for name in ("<|en|>", "<|zh|>")}
        said.task_to_id = {name: ids[f"<|{name}|>"] for name in ("transcribe", "translate")}
    extractor = transformers.WhisperFeatureExtractor(feature_size=20, chunk_length=1)
    extractor.save_pretrained(folder)
    case = saved(reference, folder)
    return Both(case.reference, tokenizer, extractor, imported(case, folder.parent / "bundle"))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return made(tmp_path_factory.mktemp("whisper") / "in", languages=True)


def retold(both: Both, folder: Path, config: dict[str, Any], **said: Any) -> Both:
    """The same from a folder whose config.json and generation_config.json say something more."""
    shutil.copytree(both.tokenizer.name_or_path, folder)
    own = {"_from_model_config": False}  # with which transformers reads what Whisper alone has
    for name, more in (("config.json", config), ("generation_config.json", own | said)):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | more))
    reference = type(both.reference).from_pretrained(folder).eval()
    return both._replace(reference=reference, ours=imported(Case(reference, folder), folder.parent / "bundle"))


def test_the_language_is_heard(several: Both, tmp_path: Path) -> None:
    assert several.written() == several.theirs()
    transcribing = retold(several, tmp_path / "in", {}, task="transcribe")
    theirs = transcribing.theirs()
    assert transcribing.written() == theirs
    assert len(set(theirs)) > 1
    one = [several.theirs(language=name, task="transcribe") for name in ("en", "zh")]
    chosen = [[text == other[row] for other in one].index(True) for row, text in enumerate(theirs)]
    assert len(set(chosen)) > 1, "some sounds are taken for the one, some for the other"


@pytest.mark.parametrize(
    ("said", "forced"),
    [
        ({"language": "Chinese", "task": "translate"}, None),
        ({"language": "en"}, [(1, "<|zh|>")]),
        ({}, [(1, None), (2, "<|translate|>")]),
    ],
)
def test_language_and_task_are_those_that_its_folder_says(
    several: Both, said: dict[str, str], forced: list[tuple[int, str | None]] | None, tmp_path: Path
) -> None:
    ids = several.tokenizer.get_added_vocab()
    older = {} if forced is None else {"forced_decoder_ids": [[at, ids.get(name)] for at, name in forced]}
    both = retold(several, tmp_path / "in", older, **said)
    assert both.written() == both.theirs()


@pytest.mark.parametrize(
    ("said", "prompt", "languages"),
    [
        ({"forced_decoder_ids": [[1, 7], [2, 8]]}, [6, 7, 8, 9], [7, 17]),
        ({"forced_decoder_ids": [[1, None], [2, 8], [3, 9]]}, [6, 8, 9], [7, 17]),
        ({"forced_decoder_ids": [[1, 8]]}, [6, 8, 9], []),
        ({"language": "<|ZH|>", "forced_decoder_ids": [[1, 7]]}, [6, 17, 8, 9], [7, 17]),
    ],
)
def test_what_it_begins_with(said: dict[str, Any], prompt: list[int], languages: list[int]) -> None:
    """A prompt of the user's own may say another of its languages, also where the folder says one."""
    assert begin_of(SAID | said, {}, 6, []) == (prompt, languages)
    assert begin_of(said | {"forced_decoder_ids": None}, {}, 6, []) == (None, [])


@pytest.mark.parametrize(
    ("said", "prompt", "told"),
    [
        ({"language": "Klingon"}, [6, 8, 9], "language 'Klingon' is none of its languages: what is heard decides"),
        ({"task": "sing"}, [6, 9], "task 'sing' is none of its tasks, which are transcribe"),
        ({"forced_decoder_ids": [[2, 5]]}, [6, 9], "forced_decoder_ids [[2, 5]] are not of the places from 1 on"),
    ],
)
def test_what_cannot_be_followed_is_told(said: dict[str, Any], prompt: list[int], told: str) -> None:
    notes: list[str] = []
    assert begin_of(SAID | said, {}, 6, notes) == (prompt, [7, 17])
    assert notes[0].startswith(told) and len(notes) == 1


@pytest.mark.parametrize(("language", "task"), [("zh", "translate"), ("en", "transcribe")])
def test_a_prompt_says_language_and_task(several: Both, language: str, task: str) -> None:
    theirs = several.theirs(language=language, task=task)
    assert several.written(prompt=f"<|{language}|><|{task}|><|notimestamps|>") == theirs


def test_where_there_is_one_language_none_is_put(tmp_path: Path) -> None:
    both = made(tmp_path / "in", languages=False)
    assert both.written() == both.theirs()
