"""Llama and Mixtral as transformers keeps them (``models/llama``, ``models/mixtral``)."""

from __future__ import annotations

from mmformer.interop import rotary
from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import Field, choice, fixed, same
from mmformer.interop.plain import Data, Named
from mmformer.interop.rules import Rule, joined, tied
from mmformer.interop.rules import same as named

_STACK, _TEXT = "stacks.text", "decoders.text"
_LAYER, _THEIRS = "stacks.text.layers.{i}", "{base}layers.{i}"
_EXPERTS = f"{_STACK}.layer.feedforward"

GATED = {
    "silu": Named("SwiGLUFeedForwardSpec"),
    "gelu": Named("GLUFeedForwardSpec", {"gate": "gelu"}),
    "gelu_pytorch_tanh": Named("GLUFeedForwardSpec", {"gate": "gelu_tanh"}),
    "relu": Named("GLUFeedForwardSpec", {"gate": "relu"}),
}


def trunk_rules(config: Data) -> list[Rule]:
    key_values = config["num_key_value_heads"] * config["head_dim"]
    sizes = (config["num_attention_heads"] * config["head_dim"], key_values, key_values)
    heads = [f"{_THEIRS}.self_attn.{name}_proj.{{p}}" for name in "qkv"]
    return [
        named("decoders.text.tokenizer.weight", "{base}embed_tokens.weight"),
        named(f"{_LAYER}.mixer_residual.norm.weight", f"{_THEIRS}.input_layernorm.weight"),
        joined(f"{_LAYER}.mixer.qkv.{{p}}", heads, sizes),
        named(f"{_LAYER}.mixer.out.{{p}}", f"{_THEIRS}.self_attn.o_proj.{{p}}"),
        named(f"{_LAYER}.feedforward_residual.norm.weight", f"{_THEIRS}.post_attention_layernorm.weight"),
        named("stacks.text.norm.weight", "{base}norm.weight"),
        named("decoders.text.output.weight", "lm_head.weight"),
        tied("decoders.text.tokenizer.weight", "lm_head.weight"),
    ]


def dense_rules(config: Data) -> list[Rule]:
    entering = [f"{_THEIRS}.mlp.{name}_proj.{{p}}" for name in ("gate", "up")]
    down = named(f"{_LAYER}.feedforward.down.{{p}}", f"{_THEIRS}.mlp.down_proj.{{p}}")
    return [*trunk_rules(config), joined(f"{_LAYER}.feedforward.gate_up.{{p}}", entering), down]


def _experts(config: Data) -> list[Rule]:
    theirs, numbers = f"{_THEIRS}.block_sparse_moe", range(config["num_local_experts"])
    width, hidden = config["hidden_size"], config["intermediate_size"]
    up = [f"{theirs}.experts.{number}.{name}.weight" for number in numbers for name in ("w1", "w3")]
    down = [f"{theirs}.experts.{number}.w2.weight" for number in numbers]
    return [
        *trunk_rules(config),
        named(f"{_LAYER}.feedforward.router.weight", f"{theirs}.gate.weight"),
        joined(f"{_LAYER}.feedforward.experts.up.weight", up, shape=(hidden, width)),
        joined(f"{_LAYER}.feedforward.experts.down.weight", down, shape=(width, hidden)),
    ]


def trunk_fields(at: str = "") -> tuple[Field, ...]:
    """What Llama's and Mixtral's configs both say; ``at`` stands before its keys."""
    return (
        same(f"{at}vocab_size", f"{_TEXT}.tokenizer.rows"),
        same(f"{at}max_position_embeddings", f"{_TEXT}.tokenizer.context_length"),
        same(f"{at}hidden_size", f"{_STACK}.width"),
        same(f"{at}num_hidden_layers", f"{_STACK}.depth"),
        same(f"{at}num_attention_heads", f"{_STACK}.layer.mixer.heads"),
        same(f"{at}num_key_value_heads", f"{_STACK}.layer.mixer.key_value_heads"),
        same(f"{at}head_dim", f"{_STACK}.layer.mixer.head_width"),
        same(f"{at}attention_dropout", f"{_STACK}.layer.mixer.dropout"),
        same(f"{at}rms_norm_eps", f"{_STACK}.layer.norm.eps"),
        rotary.rotary(f"{_STACK}.position", key=f"{at}rope_parameters"),
        same(f"{at}tie_word_embeddings", f"{_TEXT}.tied"),
    )


def dense_fields(at: str = "") -> tuple[Field, ...]:
    """What Llama's config says."""
    return (
        *trunk_fields(at),
        choice(f"{at}hidden_act", GATED, f"{_STACK}.layer.feedforward"),
        same(f"{at}intermediate_size", f"{_STACK}.layer.feedforward.hidden_width"),
        same(f"{at}attention_bias", f"{_STACK}.layer.mixer.bias"),
        same(f"{at}mlp_bias", f"{_STACK}.layer.feedforward.bias"),
    )


_TRUNK: Data = {
    "num_key_value_heads": lambda config: config["num_attention_heads"],
    "head_dim": lambda config: config["hidden_size"] // config["num_attention_heads"],
    "rope_parameters": rotary.parameters_of,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
}

DENSE: Data = {
    **_TRUNK,
    **{"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    **{"vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "hidden_act": "silu"},
    **{"attention_bias": False, "mlp_bias": False},
}
"""What transformers means where a Llama's config says nothing."""
IGNORED = (*rotary.OLD, "pretraining_tp")  # the latter is a way to compute the same products

LLAMA = Family(
    library="hf",
    name="llama",
    template="llama.yaml",
    layouts={"LlamaForCausalLM": Layout("model.")},
    fields=dense_fields(),
    rules=dense_rules,
    defaults=DENSE,
    ignored=IGNORED,
    text=(f"{_TEXT}.tokenizer",),
)


def _window(length: int | None) -> list[Data | None]:
    return [None if length is None else {"class_path": "WindowSpec", "init_args": {"before": length - 1, "after": 0}}]


def _length(pattern: Data | None) -> list[int | None]:
    if pattern is None:
        return [None]
    made = pattern["init_args"] if pattern["class_path"] == "WindowSpec" else {}
    if not made or made.get("dilation", 1) != 1:
        raise ValueError("None or a window")
    return [made["before"] + 1]


_BALANCE = Field(  # theirs adds up the shares of each of the choices, ours has their mean
    ("router_aux_loss_coef", "num_experts_per_tok"),
    (f"{_EXPERTS}.router.balance_loss", f"{_EXPERTS}.router.top"),
    lambda weight, top: [weight * top, top],
    lambda weight, top: [weight / top, top],
)

MIXTRAL = Family(
    library="hf",
    name="mixtral",
    template="mixtral.yaml",
    layouts={"MixtralForCausalLM": Layout("model.")},
    fields=(
        *trunk_fields(),
        choice("hidden_act", GATED, f"{_EXPERTS}.expert"),
        same("intermediate_size", f"{_EXPERTS}.expert.hidden_width"),
        same("num_local_experts", f"{_EXPERTS}.experts"),
        _BALANCE,
        same("router_jitter_noise", f"{_EXPERTS}.router.jitter"),
        Field(("sliding_window",), (f"{_STACK}.layer.mixer.pattern",), _window, _length),
        fixed("output_router_logits", False),
    ),
    rules=_experts,
    defaults={
        **_TRUNK,
        "router_jitter_noise": 0.0,
        "router_aux_loss_coef": 0.001,
        "sliding_window": None,
        "output_router_logits": False,
    },
    ignored=rotary.OLD,
    text=(f"{_TEXT}.tokenizer",),
)
