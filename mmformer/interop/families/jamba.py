"""Jamba as transformers keeps it (``models/jamba``): Mamba and attention by turns, with experts and without."""

from __future__ import annotations

from mmformer.interop import hybrids, state_spaces
from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import Field, fixed, same
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, joined, tied
from mmformer.interop.rules import same as named

_STACK, _TEXT = "stacks.text", "decoders.text"
_LAYER, _THEIRS = "stacks.text.layers.{i}", "{base}layers.{i}"
_NORMS, _CHOSEN = f"{_LAYER}.mixer.forwards.norms", tuple(enumerate(("dt", "b", "c")))


def _rules(config: Data) -> list[Rule]:
    width, heads = config["hidden_size"], config["num_attention_heads"]
    sizes = (width, *(config["num_key_value_heads"] * (width // heads),) * 2)
    attention = [f"{_THEIRS}.self_attn.{name}_proj.{{p}}" for name in "qkv"]
    fed, hidden, each = f"{_THEIRS}.feed_forward", config["intermediate_size"], range(config["num_experts"])
    up = [f"{fed}.experts.{number}.{name}_proj.weight" for number in each for name in ("gate", "up")]
    down = [f"{fed}.experts.{number}.down_proj.weight" for number in each]
    channels, period, first = config["mamba_expand"] * width, config["attn_layer_period"], config["attn_layer_offset"]
    return [
        named(f"{_TEXT}.tokenizer.weight", "{base}embed_tokens.weight"),
        named(f"{_LAYER}.mixer_residual.norm.weight", f"{_THEIRS}.input_layernorm.weight"),
        *state_spaces.mixer_rules(f"{_LAYER}.mixer", f"{_THEIRS}.mamba", channels, config["mamba_d_conv"]),
        *(named(f"{_NORMS}.{n}.weight", f"{_THEIRS}.mamba.{name}_layernorm.weight") for n, name in _CHOSEN),
        joined(f"{_LAYER}.mixer.qkv.{{p}}", attention, sizes),
        *(_out(place, place % period == first) for place in range(config["num_hidden_layers"])),
        named(f"{_LAYER}.feedforward_residual.norm.weight", f"{_THEIRS}.pre_ff_layernorm.weight"),
        joined(f"{_LAYER}.feedforward.gate_up.{{p}}", [f"{fed}.{name}_proj.{{p}}" for name in ("gate", "up")]),
        named(f"{_LAYER}.feedforward.down.{{p}}", f"{fed}.down_proj.{{p}}"),
        named(f"{_LAYER}.feedforward.router.weight", f"{fed}.router.weight"),
        joined(f"{_LAYER}.feedforward.experts.up.weight", up, shape=(hidden, width)),
        joined(f"{_LAYER}.feedforward.experts.down.weight", down, shape=(width, hidden)),
        named(f"{_STACK}.norm.weight", "{base}final_layernorm.weight"),
        named(f"{_TEXT}.output.weight", "lm_head.weight"),
        tied(f"{_TEXT}.tokenizer.weight", "lm_head.weight"),
    ]


def _out(number: int, attends: bool) -> Rule:
    """Of one layer: both kinds of mixers have what ours call so."""
    theirs = "self_attn.o_proj" if attends else "mamba.out_proj"
    return named(f"{_STACK}.layers.{number}.mixer.out.{{p}}", f"{{base}}layers.{number}.{theirs}.{{p}}")


FAMILY = Family(
    library="hf",
    name="jamba",
    template="jamba.yaml",
    layouts={"JambaForCausalLM": Layout("model."), "JambaModel": Layout("", (f"{_TEXT}.tied",))},
    fields=(
        same("vocab_size", f"{_TEXT}.tokenizer.rows"),
        same("max_position_embeddings", f"{_TEXT}.tokenizer.context_length"),
        same("hidden_size", f"{_STACK}.width"),
        Field(hybrids.KEYS, (f"{_STACK}.pattern", f"{_STACK}.depth"), hybrids.read_layers, hybrids.write_layers),
        same("tie_word_embeddings", f"{_TEXT}.tied"),
        fixed("hidden_act", "silu"),
        fixed("output_router_logits", False),
        fixed("sliding_window", None),
        fixed("mamba_inner_layernorms", True),
    ),
    rules=_rules,
    defaults={
        **{"max_position_embeddings": 262144, "tie_word_embeddings": False, "hidden_act": "silu"},
        **{"num_key_value_heads": lambda config: config["num_attention_heads"], "attention_dropout": 0.0},
        **{"mamba_expand": 2, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_dt_rank": "auto"},
        **{"mamba_proj_bias": False, "mamba_conv_bias": True, "mamba_inner_layernorms": True},
        **{"num_experts": 16, "num_experts_per_tok": 2, "expert_layer_period": 2, "expert_layer_offset": 1},
        **{"attn_layer_period": 8, "attn_layer_offset": 4, "sliding_window": None, "rms_norm_eps": 1e-6},
        **{"output_router_logits": False, "router_aux_loss_coef": 0.001},
    },
    ignored=("use_mamba*", "use_associative_scan", "num_logits_to_keep", "calc_logits_for_entire_prompt", "n_ctx"),
    text=(f"{_TEXT}.tokenizer",),
)
