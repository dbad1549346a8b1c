"""T5, Marian and BERT from texts to texts, with vocabularies found beside them: as transformers and its tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import vocabulary_folders
from parity import close, imported, saved
from torch.nn import functional as F

from mmformer.generation.beam import BeamSpec
from mmformer.generation.sampling import GreedySpec

pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
"""Of Marian's tokenizer, which would mend punctuation with it: what is read here has none to mend."""

transformers = pytest.importorskip("transformers", reason="the reference")

TEXTS = ["a red square beside two circles", "grinning face with big eyes: 2024!", "das Haus", "x"]


def t5(folder: Path) -> tuple[Any, Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(vocabulary_folders.t5(folder))
    config = transformers.T5Config(
        vocab_size=2560, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return tokenizer, saved(transformers.T5ForConditionalGeneration(config), folder, size=2.5)


def marian(folder: Path, separate: bool = False) -> tuple[Any, Any]:
    tokenizer = transformers.MarianTokenizer.from_pretrained(vocabulary_folders.marian(folder, separate))
    pad = tokenizer.pad_token_id
    config = transformers.MarianConfig(
        vocab_size=len(tokenizer.encoder),
        d_model=32,
        **{f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in SIZES.items()},
        pad_token_id=pad,
        eos_token_id=0,
        decoder_start_token_id=pad,
        forced_eos_token_id=None,
        share_encoder_decoder_embeddings=not separate,
        decoder_vocab_size=len(tokenizer.target_encoder) if separate else None,
    )
    reference = transformers.MarianMTModel(config)
    reference.generation_config.bad_words_ids = [[pad]]
    case = saved(reference, folder)
    with torch.no_grad():
        for part in (reference.model.encoder, reference.model.decoder):
            part.embed_positions.weight.copy_(part.embed_positions.create_weight())
            part.embed_tokens.weight.mul_(0.1 if separate else 0.1**0.5)
        for name, value in reference.named_parameters():
            if name.endswith(".bias"):
                value.mul_(0.1)
    reference.save_pretrained(folder)
    return tokenizer, case


SIZES = {"layers": 2, "attention_heads": 4, "ffn_dim": 48}
MAKERS: dict[str, Callable[[Path], tuple[Any, Any]]] = {
    "t5": t5,
    "marian": marian,
    "marian, two": lambda folder: marian(folder, separate=True),
}


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_written_of_a_text(name: str, tmp_path: Path) -> None:
    tokenizer, case = MAKERS[name](tmp_path / "in")
    model = imported(case, tmp_path / "bundle")
    read = tokenizer(TEXTS, padding=True, return_tensors="pt")
    read = {key: read[key] for key in ("input_ids", "attention_mask")}
    beams = {"num_beams": 3, "early_stopping": "never", "length_penalty": 1.0}
    for spec, options in ((GreedySpec(max_length=9), {"num_beams": 1}), (BeamSpec(beams=3, max_length=9), beams)):
        theirs = case.reference.generate(**read, do_sample=False, max_new_tokens=9, **options)
        told = [tokenizer.decode(row, skip_special_tokens=True) for row in theirs]
        assert model.translate(TEXTS, spec=spec) == told
        assert len(set(told)) > 1 and all(told), "it says something, and not always the same"


def test_what_bert_makes_of_a_text(tmp_path: Path) -> None:
    tokenizer = transformers.BertTokenizer.from_pretrained(vocabulary_folders.bert(tmp_path / "in"))
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    case = saved(transformers.BertForPreTraining(config), tmp_path / "in", size=3.0)
    model = imported(case, tmp_path / "bundle")
    read = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        pooled = case.reference.bert(**read).pooler_output
    close(torch.as_tensor(model.embed(text=TEXTS)), F.normalize(pooled, dim=-1), measured="embeddings")
