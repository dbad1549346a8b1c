"""The smallest data and run that have everything: pictures of coloured squares with captions, and a model that fits."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from mmformer.data.augment import ColorJitterSpec, HorizontalFlipSpec, RandomAffineSpec, RandomEraseSpec
from mmformer.data.caption import FieldCaptionSpec, SampledCaptionSpec
from mmformer.data.inputs import ImageInputSpec, ImageTransformSpec, LabelInputSpec, TextInputSpec
from mmformer.data.order import OrderSpec
from mmformer.data.shards import RawSample, ShardWriter
from mmformer.data.sources import DataSpec
from mmformer.evaluation.retrieval import RetrievalSpec
from mmformer.models.decoder import DecoderSpec
from mmformer.models.encoder import EncoderSpec
from mmformer.models.head import ClassificationHeadSpec, ContrastiveHeadSpec, HeadSpec
from mmformer.models.model import Model, ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.feedforward import GELUFeedForwardSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.position import SinusoidalPositionSpec
from mmformer.nn.rotary import RotaryPositionSpec
from mmformer.nn.stack import StackSpec
from mmformer.objectives.contrastive import ContrastiveSpec
from mmformer.tokenizers.image import ImagePatchesSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.tokenizers.vocabulary import Vocabulary
from mmformer.training.optimizers.adamw import AdamWSpec
from mmformer.training.run import CheckpointSpec, EvaluationSpec, LoggingSpec, RunSpec, TrainerSpec
from mmformer.training.schedule import CosineScheduleSpec
from mmformer.types import Batch

ROOT = Path(__file__).parents[1]
VOCABULARY = str(ROOT / "tokenizers" / "emoji-12.model")
SIDE = 16
COLOURS = {
    "black": (10, 10, 10),
    "blue": (20, 60, 220),
    "green": (30, 160, 40),
    "orange": (250, 140, 20),
    "pink": (240, 130, 190),
    "purple": (130, 40, 170),
    "red": (220, 30, 30),
    "yellow": (240, 220, 40),
}
AUGMENTATIONS = (RandomAffineSpec(), HorizontalFlipSpec(), ColorJitterSpec(hue=0.05), RandomEraseSpec())


def write_shards(folder: Path) -> Path:
    """48 samples of 8 colours, 3 places and 2 sizes: 32 to train on in 4 shards, 8 and 8 held out; and colours.txt."""
    made = [(colour, place, large) for large in (0, 1) for place in range(3) for colour in COLOURS]
    with ShardWriter(folder, "tiny", samples_per_shard=8) as writer:
        for index, (colour, place, large) in enumerate(made):
            split = "val" if index % 6 == 4 else "test" if index % 6 == 5 else "train"
            writer.write(sample(f"{index:02d}", colour, place, large), split)
    (folder / "colours.txt").write_text("\n".join(COLOURS) + "\n", encoding="utf-8")
    return folder


def sample(key: str, colour: str, place: int, large: int) -> RawSample:
    """A square on white; its json has a name, keywords, and the colour as a word and as a number."""
    side, words = (6, 10)[large], [("left", "middle", "right")[place], ("small", "large")[large], colour]
    pixels = np.full((20, 24, 3), 255, dtype=np.uint8)
    left = place * (24 - side) // 2
    pixels[5 : 5 + side, left : left + side] = COLOURS[colour]
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    fields = {
        "names": {"en": f"{words[1]} {colour} square, {words[0]}"},
        "keywords": {"en": words},
        "colour": colour,
        "number": list(COLOURS).index(colour),
    }
    return RawSample(key, {"png": png.getvalue(), "json": json.dumps(fields).encode()})


def write_few(folder: Path, number: int = 4, **members: list[bytes]) -> Path:
    """Small squares s0, s1, … with these members besides, or in place of, their own; an empty one is left out."""
    with ShardWriter(folder, "made") as writer:
        for index in range(number):
            raw = sample(f"s{index}", list(COLOURS)[index], 0, 0)
            more = {extension: data[index] for extension, data in members.items()}
            own = {name: data for name, data in (raw.members | more).items() if data}
            writer.write(RawSample(raw.key, own))
    (folder / "colours.txt").write_text("\n".join(COLOURS))
    return folder


def tiny_data(shards: Path, **changes: Any) -> DataSpec:
    """Everything random in training: order, augmentations, captions."""
    image = ImageInputSpec("png", ImageTransformSpec((SIDE, SIDE), "pad"), AUGMENTATIONS)
    text = TextInputSpec("json", FieldCaptionSpec("names.en"), SampledCaptionSpec("keywords.en", least=2, most=3))
    spec = DataSpec(
        source=str(shards),
        validation="val",
        test="test",
        image=image,
        text=text,
        batch_size=8,
        evaluation_batch_size=3,
        order=OrderSpec(lanes=2, block=8),
        cache_mib=1,
    )
    return dataclasses.replace(spec, **changes)


def tiny_model(dropout: float = 0.0, classes: int = 0, width: int = 16, caption: bool = False) -> ModelSpec:
    """Two towers; with ``classes``, a classification head ``colour`` over the image's embedding too; with ``caption``,
    a decoder of that name which reads the image.
    """
    layer = LayerSpec(AttentionSpec(heads=2), GELUFeedForwardSpec(ratio=2, dropout=dropout), dropout=dropout)
    heads: dict[str, HeadSpec] = {"contrastive": ContrastiveHeadSpec()}
    if classes:
        heads["colour"] = ClassificationHeadSpec("image", classes, dropout=dropout)
    words = TextTokensSpec(VOCABULARY, context_length=16)
    stacks = {
        "image": StackSpec(width, 2, layer, SinusoidalPositionSpec(axes=(1, 2))),
        "text": StackSpec(width, 1, layer, RotaryPositionSpec()),
    }
    decoders = {}
    if caption:
        crossed = dataclasses.replace(layer, cross=AttentionSpec(heads=2))
        stacks["caption"] = StackSpec(width, 1, crossed, RotaryPositionSpec())
        decoders["caption"] = DecoderSpec(words, "caption", {"image": "cross"}, chunk=7)
    return ModelSpec(
        stacks,
        encoders={
            "image": EncoderSpec(ImagePatchesSpec(patch=8), "image", embedding=12),
            "text": EncoderSpec(words, "text", embedding=12),
        },
        decoders=decoders,
        heads=heads,
    )


def tiny_run(
    shards: Path, dropout: float = 0.0, data: dict[str, Any] | None = None, steps: int = 6, **changes: Any
) -> RunSpec:
    """A run of six updates; ``changes`` are fields of RunSpec."""
    run = RunSpec(
        model=tiny_model(dropout),
        objectives={"contrastive": ContrastiveSpec()},
        data=tiny_data(shards, **(data or {})),
        optimizer=AdamWSpec(lr=3e-3),
        schedule=CosineScheduleSpec(warmup_steps=2),
        trainer=TrainerSpec(steps, accelerator="cpu", log_every_n_steps=2, enable_progress_bar=False),
        checkpoint=CheckpointSpec(every_steps=2),
        evaluation=EvaluationSpec({"retrieval": RetrievalSpec(recall=(1, 3))}),
        logging=LoggingSpec(tensorboard=False),
    )
    return dataclasses.replace(run, **changes)


def labels(shards: Path, field: str = "colour") -> dict[str, LabelInputSpec]:
    """The label ``colour``."""
    return {"colour": LabelInputSpec(str(shards / "colours.txt"), field)}


def tiny_batch(texts: list[str], side: tuple[int, int] = (SIDE, SIDE), seed: int = 0) -> Batch:
    """Random pictures, these captions, and colours by turns."""
    number = len(texts)
    pixels = torch.randint(0, 256, (number, 3, *side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    encoder = TextTokensSpec(VOCABULARY, context_length=16).encoder()
    colours = torch.arange(number) % len(COLOURS)
    return Batch(tuple(map(str, range(number))), {"colour": colours}, pixels, encoder.encode(texts))


def vocabulary() -> Vocabulary:
    return Vocabulary.load(VOCABULARY)


def in_double(model: Model) -> Model:
    """A model in float64, that reads pictures in float32 as they are: what two ways of one sum differ by is no rounding
    of the processor's then."""
    for module in model.double().modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_pre_hook(lambda _, given: (given[0].double(), *given[1:]))
    return model
