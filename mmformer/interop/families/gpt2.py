"""GPT-2 as transformers keeps it (``models/gpt2``)."""

from __future__ import annotations

import torch

from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import ACTIVATIONS, choice, fixed, same
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, constant, tied, transposed
from mmformer.interop.rules import same as named

_STACK, _TEXT = "stacks.text", "decoders.text"


def _masks(config: Data) -> list[Rule]:
    """What older weights hold in each layer: who sees whom, and what hides the others."""
    places, layers = config["n_positions"], [f"{{base}}h.{layer}.attn" for layer in range(config["n_layer"])]
    return [
        *(constant(f"{layer}.bias", lambda: torch.ones(1, 1, places, places).tril()) for layer in layers),
        *(constant(f"{layer}.masked_bias", lambda: torch.tensor(-1e4)) for layer in layers),
    ]


def _rules(config: Data) -> list[Rule]:
    layer, theirs = "stacks.text.layers.{i}", "{base}h.{i}"
    return [
        *_masks(config),
        named("decoders.text.tokenizer.weight", "{base}wte.weight"),
        named("stacks.text.position.weight", "{base}wpe.weight"),
        named(f"{layer}.mixer_residual.norm.{{p}}", f"{theirs}.ln_1.{{p}}"),
        transposed(f"{layer}.mixer.qkv.{{p}}", f"{theirs}.attn.c_attn.{{p}}"),
        transposed(f"{layer}.mixer.out.{{p}}", f"{theirs}.attn.c_proj.{{p}}"),
        named(f"{layer}.feedforward_residual.norm.{{p}}", f"{theirs}.ln_2.{{p}}"),
        transposed(f"{layer}.feedforward.up.{{p}}", f"{theirs}.mlp.c_fc.{{p}}"),
        transposed(f"{layer}.feedforward.down.{{p}}", f"{theirs}.mlp.c_proj.{{p}}"),
        named("stacks.text.norm.{p}", "{base}ln_f.{p}"),
        named("decoders.text.output.weight", "lm_head.weight"),
        tied("decoders.text.tokenizer.weight", "lm_head.weight"),
    ]


FAMILY = Family(
    library="hf",
    name="gpt2",
    template="gpt2.yaml",
    layouts={
        "GPT2LMHeadModel": Layout("transformer."),
        "GPT2LMHeadModel bare": Layout(mark="wte."),  # as OpenAI's are published
        "GPT2Model": Layout(),
    },
    fields=(
        same("vocab_size", f"{_TEXT}.tokenizer.rows"),
        same("n_positions", f"{_TEXT}.tokenizer.context_length", f"{_STACK}.position.sizes.0"),
        same("n_embd", f"{_STACK}.width"),
        same("n_layer", f"{_STACK}.depth"),
        same("n_head", f"{_STACK}.layer.mixer.heads"),
        choice("activation_function", ACTIVATIONS, f"{_STACK}.layer.feedforward"),
        same("n_inner", f"{_STACK}.layer.feedforward.hidden_width"),
        same("resid_pdrop", f"{_STACK}.layer.dropout"),
        same("embd_pdrop", f"{_STACK}.input_dropout"),
        same("attn_pdrop", f"{_STACK}.layer.mixer.dropout"),
        same("layer_norm_epsilon", f"{_STACK}.layer.norm.eps"),
        same("tie_word_embeddings", f"{_TEXT}.tied"),
        fixed("scale_attn_weights", True),
        fixed("scale_attn_by_inverse_layer_idx", False),
        fixed("add_cross_attention", False),
    ),
    rules=_rules,
    defaults={
        "n_inner": lambda config: 4 * config["n_embd"],
        "tie_word_embeddings": True,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    ignored=("n_ctx", "summary_*", "reorder_and_upcast_attn"),
    text=(f"{_TEXT}.tokenizer",),
)
