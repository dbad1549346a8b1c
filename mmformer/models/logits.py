"""Logits over a vocabulary, of ids as they are: a decoder's, or those of a head over a text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmformer.errors import InputError, nearest
from mmformer.models.decoder import Decoder
from mmformer.models.model import Model
from mmformer.types import Batch, Text, Tokens


def text_of(
    ids: Tensor, valid: Tensor | None = None, types: Tensor | None = None, everywhere: Tensor | None = None
) -> Text:
    """Ids as they are, B L.

    Raises:
        InputError: they, or what goes with them, have other shapes.
    """
    if ids.ndim != 2 or ids.is_floating_point():
        raise InputError(f"Ids must be whole numbers of shape (batch, length), but are {_told(ids)}.")
    for name, value in (("valid", valid), ("type_ids", types), ("global_mask", everywhere)):
        if value is not None and value.shape != ids.shape:
            raise InputError(f"{name} must have the shape of ids, {tuple(ids.shape)}, but is {_told(value)}.")
    lengths = torch.full((len(ids),), ids.shape[1], dtype=torch.int64, device=ids.device)
    return Text(
        ids.long(),
        lengths,
        None if valid is None else valid.bool(),
        None if types is None else types.long(),
        None if everywhere is None else everywhere.bool(),
    )


def text_logits(
    model: Model, part: str | None, ids: Text | None, decoder_ids: Text | None, others: Mapping[str, Any]
) -> Tensor:
    """What a model says of the id that follows each id, or of each id that is hidden: B L V.

    Args:
        part: the decoder or head that says it; None: the only one.
        ids: what a text encoder reads; where the decoder reads none, what it has written so far.
        decoder_ids: what a decoder has written so far.
        others: "image" and "audio", as Batch has them.

    Raises:
        InputError: the model has no such part, or several; or what it reads is missing, or is not read.
    """
    name = _chosen(model, part)
    if name not in model.decoders:
        _require_given({"ids": ids}, {"decoder_ids": decoder_ids, **others}, name)
        outputs = model(Batch((), {}, text=ids), decode=False)
        logits: Tensor = outputs.logits[name]
        return logits
    decoder = model.decoders[name]
    assert isinstance(decoder, Decoder)
    read = model.spec.modalities_of(decoder.spec.reads)
    written = decoder_ids if "text" in read or ids is None else ids
    needed: dict[str, Any] = {"decoder_ids" if "text" in read else "ids": written}
    needed |= {name: others.get(name) for name in ("image", "audio") if name in read}
    unread = {name: value for name, value in others.items() if name not in read}
    if "text" in read:
        needed["ids"] = ids
    elif ids is not None:
        unread |= {"decoder_ids": decoder_ids, "global_mask": ids.everywhere}
    _require_given(needed, unread, name)
    memory: Mapping[str, Tokens] = {}
    if read:
        batch = Batch((), {}, others.get("image"), ids if "text" in read else None, others.get("audio"))
        memory = model(batch, decode=False).tokens
    assert written is not None
    decoded = decoder(written, memory, model.stack_of(decoder.spec.stack))
    made: Tensor = decoder.logits(decoded.x)
    return made


def _chosen(model: Model, part: str | None) -> str:
    heads = [name for name, head in model.spec.heads.items() if getattr(head, "writes", False)]
    known = [*model.spec.decoders, *heads]
    if part is None and len(known) == 1:
        return known[0]
    if part not in known:
        raise InputError(
            f"Logits over a vocabulary are asked of a decoder or a language head ({part or 'none was named'}), but the "
            f"model's are {', '.join(known)}: name one of them.{nearest(part or '', known)}"
            if known
            else "The model has no logits over a vocabulary: it has neither a decoder nor a language head."
        )
    return part


def _require_given(needed: Mapping[str, Any], unread: Mapping[str, Any], name: str) -> None:
    missing = [key for key, value in needed.items() if value is None]
    if missing:
        raise InputError(f"'{name}' needs {' and '.join(needed)}, but {' and '.join(missing)} was not handed in.")
    more = [key for key, value in unread.items() if value is not None]
    if more:
        raise InputError(f"'{name}' reads {' and '.join(needed)} alone, but {' and '.join(more)} was handed in.")


def _told(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
