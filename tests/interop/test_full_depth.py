"""As deep as they were published, and narrow: errors add up over layers, and stay below 1e-4 (families whose own files
have such a test: AST, BERT, CLIP and CoCa of open_clip, Jamba, Longformer, MAE, Mamba, Marian, Switch, T5, Whisper).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from parity import DEEP, close, imported, saved
from torch import Tensor

from mmformer.models.logits import text_of
from mmformer.predictor import Predictor
from mmformer.types import Batch

pytestmark = pytest.mark.slow
transformers = pytest.importorskip("transformers", reason="the reference")

RANDOM = torch.Generator().manual_seed(3)
IDS = torch.randint(3, 90, (2, 24), generator=RANDOM)
VALUES = torch.randn(2, 3, 16, 16, generator=RANDOM)
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
EYE = {**TOWER, "image_size": 16, "patch_size": 8}
LANGUAGE = {**TOWER, "num_key_value_heads": 2, "vocab_size": 99, "num_hidden_layers": 32}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}


class Deep(NamedTuple):
    """A reference at its published depth, and outputs of either."""

    build: Callable[[Any], Any]
    theirs: Callable[[Any], Tensor]
    ours: Callable[[Predictor], Tensor]


def _embeddings(model: Predictor, ids: Tensor) -> Tensor:
    with torch.no_grad():
        made = model.model(Batch((), {}, VALUES, text_of(ids))).embedding
    return torch.nn.functional.normalize(torch.cat((made["image"], made["text"])), dim=-1)


def _hidden(model: Predictor) -> Tensor:
    with torch.no_grad():
        return model.model(Batch((), {}, VALUES)).tokens["image"].x


def _clip(kind: Any) -> Any:
    text = {**TOWER, "vocab_size": 99, "max_position_embeddings": 24, "eos_token_id": 98}
    return kind.CLIPModel(kind.CLIPConfig(text_config=text, vision_config=EYE, projection_dim=24))


def _llava(kind: Any) -> Any:
    eye = kind.CLIPVisionConfig(**EYE, num_hidden_layers=24)
    config = kind.LlavaConfig(vision_config=eye, text_config=kind.LlamaConfig(**LANGUAGE), image_token_id=98)
    return kind.LlavaForConditionalGeneration(config)


def _blip(kind: Any) -> Any:
    text = {**TOWER, "encoder_hidden_size": 32, "vocab_size": 99, "bos_token_id": 98, "sep_token_id": 3}
    return kind.BlipForConditionalGeneration(kind.BlipConfig(text_config=text, vision_config=EYE))


ENDED = torch.cat((IDS[:, :-1], torch.full((2, 1), 98)), dim=1)
SHOWN = torch.cat((IDS[:, :3], torch.full((2, 4), 98), IDS[:, 3:]), dim=1)
CASES: dict[str, Deep] = {
    "gpt2": Deep(
        lambda kind: kind.GPT2LMHeadModel(kind.GPT2Config(n_embd=32, n_head=4, vocab_size=99, **ENDS)),
        lambda model: model(IDS).logits,
        lambda model: model.logits(IDS),
    ),
    "llama": Deep(
        lambda kind: kind.LlamaForCausalLM(kind.LlamaConfig(**LANGUAGE)),
        lambda model: model(IDS).logits,
        lambda model: model.logits(IDS),
    ),
    "mixtral": Deep(
        lambda kind: kind.MixtralForCausalLM(kind.MixtralConfig(**LANGUAGE)),
        lambda model: model(IDS).logits,
        lambda model: model.logits(IDS),
    ),
    "distilbert": Deep(
        lambda kind: kind.DistilBertForMaskedLM(kind.DistilBertConfig(dim=32, hidden_dim=64, n_heads=4, vocab_size=99)),
        lambda model: model(IDS).logits,
        lambda model: model.logits(IDS),
    ),
    "vit": Deep(
        lambda kind: kind.ViTModel(kind.ViTConfig(**EYE), add_pooling_layer=False),
        lambda model: model(VALUES).last_hidden_state,
        _hidden,
    ),
    "dinov2": Deep(
        lambda kind: kind.Dinov2WithRegistersModel(
            kind.Dinov2WithRegistersConfig(hidden_size=32, num_attention_heads=4, image_size=16, patch_size=8)
        ),
        lambda model: model(VALUES).last_hidden_state,
        _hidden,
    ),
    "clip": Deep(
        _clip,
        lambda model: (lambda made: torch.cat((made.image_embeds, made.text_embeds)))(
            model(input_ids=ENDED, pixel_values=VALUES)
        ),
        lambda model: _embeddings(model, ENDED),
    ),
    "llava": Deep(
        _llava,
        lambda model: model(input_ids=SHOWN, pixel_values=VALUES).logits,
        lambda model: model.logits(SHOWN, image=VALUES),
    ),
    "blip": Deep(
        _blip,
        lambda model: model(input_ids=IDS, pixel_values=VALUES).logits,
        lambda model: model.logits(IDS, image=VALUES),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_at_full_depth(name: str, tmp_path: Path) -> None:
    deep = CASES[name]
    case = saved(deep.build(transformers), tmp_path / "in")
    model = imported(case, tmp_path / "bundle")
    with torch.no_grad():
        theirs = deep.theirs(case.reference)
    close(deep.ours(model), theirs, DEEP, measured="outputs at full depth")
