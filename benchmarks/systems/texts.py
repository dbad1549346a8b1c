"""Systems that read and write texts."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.systems.case import DEEP, IDS, SHORT, Case, Reference, case, logits, transformers_model
from mmformer.models.logits import text_of
from mmformer.types import Batch

LONG = IDS.repeat(1, 8)[:1]


def _written(reference: Reference) -> Case:
    """A decoder alone."""
    return Case(reference, "4 × 256 ids", lambda m: (m(IDS, use_cache=False).logits,), lambda m: logits(m, IDS))


def _filled(reference: Reference) -> Case:
    """An encoder and its language head."""
    return Case(reference, "4 × 256 ids", lambda m: (m(IDS).logits,), lambda m: logits(m, IDS))


def _translated(reference: Reference) -> Case:
    """An encoder and a decoder."""
    return Case(
        reference,
        "4 × 256 ids, 4 × 64 written",
        lambda m: (m(input_ids=IDS, decoder_input_ids=SHORT, use_cache=False).logits,),
        lambda m: logits(m, IDS, SHORT),
    )


@case
def gpt2() -> Case:
    return _written(transformers_model("GPT2", "LMHeadModel", n_layer=4))


@case
def llama() -> Case:
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 4}
    return _written(transformers_model("Llama", "ForCausalLM", **sizes, **DEEP))


NARROW: dict[str, Any] = {
    **{"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 2},
    **{"vocab_size": 4096, **DEEP},
}


@case
def mixtral() -> Case:
    return _written(transformers_model("Mixtral", "ForCausalLM", **NARROW))


@case
def mamba() -> Case:
    return _written(transformers_model("Mamba", "ForCausalLM", hidden_size=512, vocab_size=4096, **DEEP))


@case
def jamba() -> Case:
    """Of its four layers, two are of attention, and two have experts."""
    turns = {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 8}
    return _written(transformers_model("Jamba", "ForCausalLM", **NARROW, **turns))


@case
def bert() -> Case:
    return _filled(transformers_model("Bert", "ForMaskedLM", **DEEP))


@case
def distilbert() -> Case:
    return _filled(transformers_model("DistilBert", "ForMaskedLM", n_layers=4))


@case
def big_bird() -> Case:
    return _filled(transformers_model("BigBird", "ForMaskedLM", attention_type="original_full", **DEEP))


@case
def big_bird_sparse() -> Case:
    """In blocks, as its published folders are."""
    return Case(
        transformers_model("BigBird", "Model", attention_type="block_sparse", **DEEP),
        "1 × 2048 ids",
        lambda m: (m(LONG).last_hidden_state,),
        lambda m: (m(Batch((), {}, text=text_of(LONG))).tokens["text"].x,),
    )


@case
def longformer() -> Case:
    """The first id sees all, and is seen by all."""
    first = torch.zeros_like(LONG, dtype=torch.bool).index_fill(1, torch.tensor(0), True)
    return Case(
        transformers_model("Longformer", "Model", max_position_embeddings=4098, **DEEP),
        "1 × 2048 ids",
        lambda m: (m(LONG, global_attention_mask=first.long()).last_hidden_state,),
        lambda m: (m(Batch((), {}, text=text_of(LONG, None, None, first))).tokens["text"].x,),
    )


@case
def t5() -> Case:
    return _translated(transformers_model("T5", "ForConditionalGeneration", num_layers=4))


@case
def switch() -> Case:
    """Experts in every other layer, with room for all ids: what finds no place is another matter."""
    sizes = {"d_model": 512, "num_heads": 8, "num_layers": 4, "num_decoder_layers": 4, "expert_capacity": 256}
    experts = {"num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2}
    return _translated(transformers_model("SwitchTransformers", "ForConditionalGeneration", **sizes, **experts))


@case
def marian() -> Case:
    sizes = {"d_model": 512, "vocab_size": 8192, "pad_token_id": 0, "decoder_start_token_id": 0}
    halves = {
        f"{half}_{name}": number
        for half in ("encoder", "decoder")
        for name, number in (("layers", 4), ("attention_heads", 8), ("ffn_dim", 2048))
    }
    return _translated(transformers_model("Marian", "MTModel", **sizes, **halves))
