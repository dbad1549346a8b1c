"""What a model can be used for, by the commands' names: what its parts allow."""

from __future__ import annotations

from mmformer.models.head import ClassHeadSpec, ContrastiveHeadSpec
from mmformer.models.model import ModelSpec


def uses(spec: ModelSpec) -> list[str]:
    """The commands, which are also methods of ``Predictor``, that find the parts that they need."""
    modality = {name: encoder.tokenizer.modality for name, encoder in spec.encoders.items()}
    widths = spec.embedding_widths
    comparable = {
        frozenset((modality[a], modality[b]))
        for a in modality
        for b in modality
        if widths[a] == widths[b] and modality[a] != modality[b]
    }
    kinds = [type(head) for head in spec.heads.values()]
    named = ContrastiveHeadSpec in kinds and any("text" in pair for pair in comparable)
    reads = [spec.modalities_of(decoder.reads) for decoder in spec.decoders.values()]
    can = {
        "classify": named or any(issubclass(kind, ClassHeadSpec) for kind in kinds),
        "caption": any(each & {"image", "audio"} for each in reads),
        "translate": {"text"} in reads,
        "transcribe": {"audio"} in reads,
        "generate": set() in reads,
        "retrieve": bool(modality),
        "similarity": bool(comparable),
        "embed": bool(modality),
    }
    return [name for name, able in can.items() if able]
