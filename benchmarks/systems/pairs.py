"""Systems that read pictures and texts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.systems.case import (
    DEEP,
    IDS,
    PICTURES,
    SHORT,
    Case,
    Reference,
    case,
    logits,
    open_clip_model,
    transformers_model,
)
from mmformer.models.logits import text_of
from mmformer.models.model import Model
from mmformer.types import Batch, Outputs


def _embedded(made: Outputs) -> tuple[Tensor, ...]:
    return tuple(F.normalize(made.embedding[name], dim=-1) for name in ("image", "text"))


def _ended(length: int) -> Tensor:
    """As CLIP's texts are: the highest id ends them."""
    return IDS[:, :length].index_fill(1, torch.tensor(length - 1), 49407)


def _paired(reference: Reference, ids: Tensor, pictures: int = 8) -> Case:
    """Embeddings of pictures, and of texts."""
    pixels = PICTURES[:pictures]

    def theirs(model: Any) -> tuple[Tensor, ...]:
        if reference.library == "open_clip":
            return tuple(model(pixels, ids)[:2])
        made = model(input_ids=ids, pixel_values=pixels)
        return made.image_embeds, made.text_embeds

    return Case(
        reference,
        f"{pictures} pictures, {len(ids)} × {ids.shape[1]} ids",
        theirs,
        lambda m: _embedded(m(Batch((), {}, pixels, text_of(ids)))),
    )


TOWERS: dict[str, Any] = {"text_config": DEEP, "vision_config": DEEP}


@case
def clip() -> Case:
    return _paired(transformers_model("CLIP", "Model", **TOWERS), _ended(77))


@case
def clip_open_clip() -> Case:
    return _paired(open_clip_model("ViT-B-32", vision_cfg={"layers": 4}, text_cfg={"layers": 4}), _ended(77))


@case
def siglip() -> Case:
    return _paired(transformers_model("Siglip", "Model", **TOWERS), SHORT)


@case
def siglip_open_clip() -> Case:
    """Its pictures' tower is timm's by name, all twelve layers of it."""
    return _paired(open_clip_model("ViT-B-16-SigLIP", text_cfg={"layers": 4}), SHORT, pictures=2)


@case
def coca() -> Case:
    """Both embeddings, and the captions' loss."""
    pixels = PICTURES[:4]
    ids = _ended(76).index_fill(1, torch.tensor(0), 49406)
    text = text_of(ids)._replace(begun=True)
    depths = {part: {"layers": 4} for part in ("vision_cfg", "text_cfg", "multimodal_cfg")}

    def theirs(model: Any) -> tuple[Tensor, ...]:
        made = model(pixels, ids)
        loss = F.cross_entropy(made["logits"].flatten(0, 1), made["labels"].flatten())
        return made["image_features"], made["text_features"], loss

    def ours(model: Model) -> tuple[Tensor, ...]:
        made = model(Batch((), {}, pixels, text))
        loss = made.losses["caption"]
        return *_embedded(made), loss.total / loss.items

    return Case(open_clip_model("coca_ViT-B-32", **depths), "4 pictures, 4 × 76 ids", theirs, ours)


@case
def blip() -> Case:
    sizes: dict[str, Any] = {"vision_config": {**DEEP, "image_size": 224}, "text_config": DEEP}
    return Case(
        transformers_model("Blip", "ForConditionalGeneration", **sizes),
        "4 pictures, 4 × 64 ids",
        lambda m: (m(input_ids=SHORT, pixel_values=PICTURES[:4]).logits,),
        lambda m: logits(m, SHORT, image=PICTURES[:4]),
    )


@case
def llava() -> Case:
    text = {"model_type": "llama", "hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8}
    sizes: dict[str, Any] = {
        "vision_config": {"model_type": "clip_vision_model", **DEEP},
        "text_config": {**text, "vocab_size": 4096, **DEEP},
        "image_token_index": 4000,
    }
    ids = IDS[:, :128].index_fill(1, torch.arange(5, 54), 4000)
    return Case(
        transformers_model("Llava", "ForConditionalGeneration", **sizes),
        "4 pictures, 4 × 128 ids",
        lambda m: (m(input_ids=ids, pixel_values=PICTURES[:4], use_cache=False).logits,),
        lambda m: logits(m, ids, image=PICTURES[:4]),
    )
