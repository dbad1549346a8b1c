"""Jamba as transformers keeps it (``models/jamba``): Mamba and attention by turns, with experts and without."""

from __future__ import annotations

from mmformer.interop import hybrids, llamas, state_spaces
from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import Field, fixed, same
from mmformer.interop.llamas import LAYER, STACK, TEXT, THEIRS
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule
from mmformer.interop.rules import same as named

_NORMS, _CHOSEN = f"{LAYER}.mixer.forwards.norms", tuple(enumerate(("dt", "b", "c")))


def _rules(config: Data) -> list[Rule]:
    width, fed, names = config["hidden_size"], f"{THEIRS}.feed_forward", ("gate_proj", "up_proj", "down_proj")
    channels, period, first = config["mamba_expand"] * width, config["attn_layer_period"], config["attn_layer_offset"]
    return [
        *llamas.table_rules(),
        named(f"{LAYER}.mixer_residual.norm.weight", f"{THEIRS}.input_layernorm.weight"),
        *state_spaces.mixer_rules(f"{LAYER}.mixer", f"{THEIRS}.mamba", channels, config["mamba_d_conv"]),
        *(named(f"{_NORMS}.{n}.weight", f"{THEIRS}.mamba.{name}_layernorm.weight") for n, name in _CHOSEN),
        llamas.heads_rule(config, width // config["num_attention_heads"]),
        *(_out(place, place % period == first) for place in range(config["num_hidden_layers"])),
        named(f"{LAYER}.feedforward_residual.norm.weight", f"{THEIRS}.pre_ff_layernorm.weight"),
        *llamas.gated_rules(fed),
        *llamas.expert_rules(fed, "router", names, config, config["num_experts"]),
        named(f"{STACK}.norm.weight", "{base}final_layernorm.weight"),
    ]


def _out(number: int, attends: bool) -> Rule:
    """Of one layer: both kinds of mixers have what ours call so."""
    theirs = "self_attn.o_proj" if attends else "mamba.out_proj"
    return named(f"{STACK}.layers.{number}.mixer.out.{{p}}", f"{{base}}layers.{number}.{theirs}.{{p}}")


FAMILY = Family(
    library="hf",
    name="jamba",
    template="jamba.yaml",
    layouts={"JambaForCausalLM": Layout("model."), "JambaModel": Layout("", (f"{TEXT}.tied",))},
    fields=(
        same("vocab_size", f"{TEXT}.tokenizer.rows"),
        same("max_position_embeddings", f"{TEXT}.tokenizer.context_length"),
        same("hidden_size", f"{STACK}.width"),
        Field(hybrids.KEYS, (f"{STACK}.pattern", f"{STACK}.depth"), hybrids.read_layers, hybrids.write_layers),
        same("tie_word_embeddings", f"{TEXT}.tied"),
        fixed("hidden_act", "silu"),
        fixed("output_router_logits", False),
        fixed("sliding_window", None),
        fixed("mamba_inner_layernorms", True),
    ),
    rules=_rules,
    defaults={
        **{"max_position_embeddings": 262144, "tie_word_embeddings": False, "hidden_act": "silu"},
        **{"num_key_value_heads": llamas.eight_or_null, "attention_dropout": 0.0},
        **{"mamba_expand": 2, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_dt_rank": "auto"},
        **{"mamba_proj_bias": False, "mamba_conv_bias": True, "mamba_inner_layernorms": True},
        **{"num_experts": 16, "num_experts_per_tok": 2, "expert_layer_period": 2, "expert_layer_offset": 1},
        **{"attn_layer_period": 8, "attn_layer_offset": 4, "sliding_window": None, "rms_norm_eps": 1e-6},
        **{"output_router_logits": False, "router_aux_loss_coef": 0.001},
    },
    ignored=("use_mamba*", "use_associative_scan", "num_logits_to_keep", "calc_logits_for_entire_prompt", "n_ctx"),
    text=(f"{TEXT}.tokenizer",),
)
