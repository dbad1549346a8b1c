"""The tokenizer classes of transformers: what each makes of plain lists of pieces, and puts around a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mmformer.interop import pipelines
from mmformer.interop.pipelines import Files, Settings
from tokenizers import Tokenizer


class TokenizerClass(NamedTuple):
    """A tokenizer class of transformers: what it does with lists of pieces, and its special tokens by default."""

    build: Callable[[Files, Settings], Tokenizer] | None = None  # None: it has no lists that are read here
    special: Mapping[str, str] = {}
    before: tuple[str, ...] = ()  # what it puts before a text, whatever tokenizer.json says
    after: tuple[str, ...] = ()
    word_end: str | None = None  # see ``Options``


_END = "<|endoftext|>"
_ENDS = {"bos_token": _END, "eos_token": _END, "unk_token": _END}
_CLIP = {**_ENDS, "bos_token": "<|startoftext|>", "pad_token": _END}
_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
T5 = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_ROBERTA = {**_LLAMA, "sep_token": "</s>", "pad_token": "<pad>", "cls_token": "<s>", "mask_token": "<mask>"}
_BERT = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}
_BIG_BIRD = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
SIGLIP = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "</s>"}
SAID = ("<|startoftranscript|>", "<|notimestamps|>")
"""What Whisper's puts before a text where no language and task are set."""

CLASSES: Mapping[str, TokenizerClass] = {
    "GPT2": TokenizerClass(pipelines.byte_level, _ENDS),
    "GPTNeoX": TokenizerClass(pipelines.normalised_byte_level, {**_ENDS, "pad_token": "<|padding|>"}),
    "Whisper": TokenizerClass(pipelines.byte_level, _ENDS, SAID, ("eos_token",)),
    "Roberta": TokenizerClass(pipelines.byte_level, _ROBERTA, ("cls_token",), ("sep_token",)),
    "CLIP": TokenizerClass(pipelines.clip, _CLIP, ("bos_token",), ("eos_token",), "</w>"),
    "Bert": TokenizerClass(pipelines.word_piece, _BERT, ("cls_token",), ("sep_token",)),
    "T5": TokenizerClass(pipelines.unigram, T5, (), ("eos_token",)),
    "Llama": TokenizerClass(pipelines.byte_fallback, _LLAMA),
    "BigBird": TokenizerClass(pipelines.big_bird, {**_ROBERTA, **_BIG_BIRD}, ("cls_token",), ("sep_token",)),
}
_SAME = {"DistilBert": "Bert", "Longformer": "Roberta"}
_OF_MODELS = {
    **{"gpt2": "GPT2", "whisper": "Whisper", "roberta": "Roberta", "longformer": "Roberta", "clip": "CLIP"},
    **{"bert": "Bert", "distilbert": "Bert", "blip": "Bert", "t5": "T5", "mt5": "T5", "switch_transformers": "T5"},
    **{"llama": "Llama", "mixtral": "Llama", "marian": "Marian", "clip_text_model": "CLIP"},
    **{
        "gpt_neox": "GPTNeoX",
        "mamba": "GPTNeoX",
        "siglip": "Siglip",
        "siglip_text_model": "Siglip",
        "big_bird": "BigBird",
    },
}
_PLAIN = ("PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend", "PythonBackend")
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Special tokens as tokenizer_config.json calls them."""


def kind_of(config: Mapping[str, Any], settings: Settings) -> str:
    """The tokenizer class, without the word Tokenizer."""
    named = settings.get("tokenizer_class") or config.get("tokenizer_class")
    if not isinstance(named, str):
        return _OF_MODELS.get(str(config.get("model_type")), "")
    kind = "" if named in _PLAIN else named.removesuffix("Fast").removesuffix("Tokenizer")
    return _SAME.get(kind, kind)
