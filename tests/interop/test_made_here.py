"""Text models that were never anybody else's: they go out, transformers opens them, and says the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parity import close, randomise

from mmformer.bundle import Transforms, save_bundle
from mmformer.config import parse, to_data
from mmformer.errors import InputError
from mmformer.interop import plain
from mmformer.interop.exporting import export_model
from mmformer.interop.families.bert import FAMILY as BERT
from mmformer.interop.families.distilbert import FAMILY as DISTILBERT
from mmformer.interop.families.marian import FAMILY as MARIAN
from mmformer.interop.families.t5 import T5
from mmformer.interop.family import Family
from mmformer.models.logits import text_logits, text_of
from mmformer.models.model import ModelSpec
from mmformer.types import Batch

transformers = pytest.importorskip("transformers", reason="the reference")

DRAWN = torch.Generator().manual_seed(1)
IDS, WRITTEN = (torch.randint(104, 200, (2, length), generator=DRAWN) for length in (9, 7))
ALL = {"vocab_size": 200}
PLACES = {**ALL, "max_position_embeddings": 20}
BERT_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SIDE = {"layers": 2, "ffn_dim": 48, "attention_heads": 4}
SIDES = {f"{side}_{what}": number for side in ("encoder", "decoder") for what, number in SIDE.items()}
T5_SIZES = {**ALL, "d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
NEWER = {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new", "is_gated_act": True}
UNTIED = {"tie_word_embeddings": False, "scale_decoder_outputs": False}
CASES: dict[str, tuple[Family, str, dict[str, Any]]] = {
    "bert": (BERT, "BertForMaskedLM", PLACES | BERT_SIZES),
    "distilbert": (
        DISTILBERT,
        "DistilBertForMaskedLM",
        {**PLACES, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    ),
    "marian": (
        MARIAN,
        "MarianMTModel",
        {**SIDES, "max_position_embeddings": 20, "d_model": 32, "scale_embedding": True},
    ),
    "t5": (T5, "T5ForConditionalGeneration", T5_SIZES),
    "t5 1.1": (T5, "T5ForConditionalGeneration", T5_SIZES | NEWER | UNTIED),
}


@pytest.mark.parametrize("name", CASES)
def test_a_model_that_was_made_here_goes_out(name: str, tmp_path: Path) -> None:
    family, layout, config = CASES[name]
    whole = transformers.AutoConfig.for_model(family.name).to_dict() | config
    model = family.spec(whole, layout, name).build().eval()
    randomise(model)
    save_bundle(tmp_path / "bundle", model, Transforms(), "")
    assert export_model(tmp_path / "bundle", "hf", tmp_path / "out") == f"{family.name} ({layout})"
    reference = getattr(transformers, layout).from_pretrained(tmp_path / "out").eval()
    decodes = bool(model.decoders)
    with torch.no_grad():
        theirs = reference(IDS, decoder_input_ids=WRITTEN) if decodes else reference(IDS)
        ours = text_logits(model, None, text_of(IDS), text_of(WRITTEN) if decodes else None, {})
    close(ours, theirs.logits, measured="logits")


def test_an_encoder_alone_goes_out_at_any_width(tmp_path: Path) -> None:
    """What only a decoder has, a factor that follows from the width, is the template's, whose width is another."""
    spec = T5.spec(transformers.T5Config(**T5_SIZES).to_dict(), "T5EncoderModel", "t5")
    model = spec.build().eval()
    randomise(model)
    save_bundle(tmp_path / "bundle", model, Transforms(), "")
    assert "T5EncoderModel" in export_model(tmp_path / "bundle", "hf", tmp_path / "out")
    reference = transformers.T5EncoderModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        ours = model(Batch((), {}, text=text_of(IDS))).tokens["source"].x
        close(ours, reference(IDS).last_hidden_state)


@pytest.mark.parametrize(
    ("name", "path"), [("t5", "decoders.target.logit_scale"), ("marian", "encoders.source.tokenizer.scale")]
)
def test_a_factor_that_no_config_can_say_is_refused(name: str, path: str) -> None:
    family, layout, config = CASES[name]
    spec = family.spec(transformers.AutoConfig.for_model(family.name).to_dict() | config, layout, name)
    data = to_data(spec)
    plain.put(data, path, 3.0)
    with pytest.raises(InputError, match=rf"its {path} is 3\.0, and such a model's would be"):
        family.config(parse(ModelSpec, data, name), layout, name)
