"""One tower of CLIP with its projection, as transformers keeps it (``models/clip``)."""

from __future__ import annotations

from typing import Any

from mmformer.interop import clips
from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import Field, same
from mmformer.interop.towers import picture_fields, text_fields


def _tower(kind: str, own: str, other: str, *fields: Field, **more: Any) -> Family:
    """One tower and its projection, ``own`` with us; ``other`` is the one that is not there."""
    return Family(
        library="hf",
        name=f"clip_{kind.lower()}_model",
        template="clip.yaml",
        layouts={f"CLIP{kind}ModelWithProjection": Layout(without=(f"stacks.{other}", f"encoders.{other}", "heads"))},
        fields=(*fields, same("projection_dim", f"encoders.{own}.embedding")),
        ignored=clips.IGNORED,
        **more,
    )


PICTURES = _tower(
    "Vision",
    "image",
    "text",
    *picture_fields(""),
    rules=clips.picture_rules,
    defaults=clips.PICTURE,
    picture="encoders.image.tokenizer",
)
TEXTS = _tower(
    "Text",
    "text",
    "image",
    *text_fields(""),
    rules=clips.text_rules,
    defaults=clips.TEXT,
    text=("encoders.text.tokenizer",),
    text_end=clips.text_end(""),
    special={"pad": "pad_token_id", "bos": "bos_token_id"},
)
