"""What decoders that are made like Llama have in common with it: Mixtral, LLaVA's, and for a part Jamba."""

from __future__ import annotations

from collections.abc import Sequence

from mmformer.interop import expert_layers, rotary
from mmformer.interop.fields import Field, choice, same
from mmformer.interop.plain import Data, Named
from mmformer.interop.rules import Rule, joined, tied
from mmformer.interop.rules import same as named

STACK, TEXT = "stacks.text", "decoders.text"
HIDDEN = f"{STACK}.layer.feedforward"
LAYER, THEIRS = "stacks.text.layers.{i}", "{base}layers.{i}"

GATED = {
    "silu": Named("SwiGLUFeedForwardSpec"),
    "gelu": Named("GLUFeedForwardSpec", {"gate": "gelu"}),
    "gelu_pytorch_tanh": Named("GLUFeedForwardSpec", {"gate": "gelu_tanh"}),
    "relu": Named("GLUFeedForwardSpec", {"gate": "relu"}),
}


def eight_or_null(config: Data) -> int:
    """Heads of keys and values of Mixtral and Jamba, which have eight, and where null stands for them, as many as
    queries have."""
    number: int = config["num_attention_heads"] if "num_key_value_heads" in config else 8
    return number


TRUNK: Data = {
    "num_key_value_heads": lambda config: config["num_attention_heads"],
    "head_dim": lambda config: config["hidden_size"] // config["num_attention_heads"],
    "rope_parameters": rotary.parameters_of,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
}
DENSE: Data = {
    **TRUNK,
    **{"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    **{"vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "hidden_act": "silu"},
    **{"attention_bias": False, "mlp_bias": False},
}
"""What transformers means where a config says nothing: of any of them, and of a Llama."""
UNREAD = ("*.rotary_emb.inv_freq",)  # of older weights; the config says it
IGNORED = (*rotary.OLD, "pretraining_tp")  # the latter is a way to compute the same products


def trunk_fields(at: str = "") -> tuple[Field, ...]:
    """What configs say but for feed-forwards; ``at`` stands before their keys."""
    return (
        same(f"{at}vocab_size", f"{TEXT}.tokenizer.rows"),
        same(f"{at}max_position_embeddings", f"{TEXT}.tokenizer.context_length"),
        same(f"{at}hidden_size", f"{STACK}.width"),
        same(f"{at}num_hidden_layers", f"{STACK}.depth"),
        same(f"{at}num_attention_heads", f"{STACK}.layer.mixer.heads"),
        same(f"{at}num_key_value_heads", f"{STACK}.layer.mixer.key_value_heads"),
        same(f"{at}head_dim", f"{STACK}.layer.mixer.head_width"),
        same(f"{at}attention_dropout", f"{STACK}.layer.mixer.dropout"),
        same(f"{at}rms_norm_eps", f"{STACK}.layer.norm.eps"),
        rotary.rotary(f"{STACK}.position", key=f"{at}rope_parameters"),
        same(f"{at}tie_word_embeddings", f"{TEXT}.tied"),
    )


def dense_fields(at: str = "") -> tuple[Field, ...]:
    """What a Llama's config says."""
    return (
        *trunk_fields(at),
        choice(f"{at}hidden_act", GATED, HIDDEN),
        same(f"{at}intermediate_size", f"{HIDDEN}.hidden_width"),
        same(f"{at}attention_bias", f"{STACK}.layer.mixer.bias"),
        same(f"{at}mlp_bias", f"{HIDDEN}.bias"),
    )


def table_rules() -> list[Rule]:
    """The table of ids, and that of the logits, which may be the same."""
    return [
        named(f"{TEXT}.tokenizer.weight", "{base}embed_tokens.weight"),
        named(f"{TEXT}.output.weight", "lm_head.weight"),
        tied(f"{TEXT}.tokenizer.weight", "lm_head.weight"),
    ]


def heads_rule(config: Data, width: int) -> Rule:
    """Queries, keys and values, whose heads are so wide."""
    numbers = (config["num_attention_heads"], config["num_key_value_heads"], config["num_key_value_heads"])
    theirs = [f"{THEIRS}.self_attn.{name}_proj.{{p}}" for name in "qkv"]
    return joined(f"{LAYER}.mixer.qkv.{{p}}", theirs, [number * width for number in numbers])


def trunk_rules(config: Data) -> list[Rule]:
    """All but feed-forwards."""
    return [
        *table_rules(),
        named(f"{LAYER}.mixer_residual.norm.weight", f"{THEIRS}.input_layernorm.weight"),
        heads_rule(config, config["head_dim"]),
        named(f"{LAYER}.mixer.out.{{p}}", f"{THEIRS}.self_attn.o_proj.{{p}}"),
        named(f"{LAYER}.feedforward_residual.norm.weight", f"{THEIRS}.post_attention_layernorm.weight"),
        named(f"{STACK}.norm.weight", "{base}norm.weight"),
    ]


def gated_rules(theirs: str) -> list[Rule]:
    """A feed-forward with a gate; ``theirs`` is what its names begin with."""
    return [
        joined(f"{LAYER}.feedforward.gate_up.{{p}}", [f"{theirs}.{name}_proj.{{p}}" for name in ("gate", "up")]),
        named(f"{LAYER}.feedforward.down.{{p}}", f"{theirs}.down_proj.{{p}}"),
    ]


def dense_rules(config: Data) -> list[Rule]:
    """A Llama's."""
    return [*trunk_rules(config), *gated_rules(f"{THEIRS}.mlp")]


def expert_rules(theirs: str, router: str, names: Sequence[str], config: Data, number: int) -> list[Rule]:
    """So many experts with gates; ``names`` are those of an expert's matrices: gate, up and down."""
    experts = [f"{theirs}.experts.{each}" for each in range(number)]
    up = [f"{expert}.{name}.weight" for expert in experts for name in names[:2]]
    down = [f"{expert}.{names[2]}.weight" for expert in experts]
    sizes = config["hidden_size"], config["intermediate_size"]
    return expert_layers.rules(f"{LAYER}.feedforward", f"{theirs}.{router}.weight", up, down, *sizes)
