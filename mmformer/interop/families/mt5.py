"""mT5 as transformers keeps it (``models/mt5``): T5, whose decoder's outputs are never scaled."""

from __future__ import annotations

from dataclasses import replace

from mmformer.interop import t5_stacks
from mmformer.interop.families import t5
from mmformer.interop.fields import always

MT5 = replace(
    t5.T5,
    name="mt5",
    layouts=t5_stacks.layouts("MT5"),
    fields=(*t5.FIELDS, always(t5.SCALE, 1.0)),
    defaults={"feed_forward_proj": "gated-gelu", **t5.DEFAULTS},
    ignored=("classifier_dropout", "scale_decoder_outputs"),
    variant=True,
)
