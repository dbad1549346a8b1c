"""Mamba as transformers keeps it (``models/mamba``)."""

from __future__ import annotations

from mmformer.interop import state_spaces
from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import Field, fixed, same
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, tied
from mmformer.interop.rules import same as named

_STACK, _TEXT = "stacks.text", "decoders.text"
_MIXER = f"{_STACK}.layer.mixer"
_SIZES = ("hidden_size", "expand", "intermediate_size")


def _rules(config: Data) -> list[Rule]:
    layer, theirs = "stacks.text.layers.{i}", "{base}layers.{i}"
    channels, kernel = config["intermediate_size"], config["conv_kernel"]
    return [
        named("decoders.text.tokenizer.weight", "{base}embeddings.weight"),
        named(f"{layer}.mixer_residual.norm.weight", f"{theirs}.norm.weight"),
        named(f"{layer}.mixer.out.{{p}}", f"{theirs}.mixer.out_proj.{{p}}"),
        *state_spaces.mixer_rules(f"{layer}.mixer", f"{theirs}.mixer", channels, kernel),
        named("stacks.text.norm.weight", "{base}norm_f.weight"),
        named("decoders.text.output.weight", "lm_head.weight"),
        tied("decoders.text.tokenizer.weight", "lm_head.weight"),
    ]


def _expanded(width: int, expand: int, channels: int) -> tuple[int, int]:
    if int(expand * width) != channels or expand != int(expand):
        raise ValueError("a whole multiple of hidden_size, as expand says")
    return width, int(expand)


FAMILY = Family(
    library="hf",
    name="mamba",
    template="mamba.yaml",
    layouts={"MambaForCausalLM": Layout("backbone."), "MambaModel": Layout("", (f"{_TEXT}.tied",))},
    fields=(
        same("vocab_size", f"{_TEXT}.tokenizer.rows"),
        Field(
            _SIZES,
            (f"{_STACK}.width", f"{_MIXER}.expand"),
            _expanded,
            lambda width, times: (width, times, times * width),
        ),
        same("num_hidden_layers", f"{_STACK}.depth"),
        same("state_size", f"{_MIXER}.states"),
        same("conv_kernel", f"{_MIXER}.convolution"),
        Field(
            ("time_step_rank",),
            (f"{_MIXER}.rank",),
            lambda rank: [state_spaces.read_rank(rank)],
            lambda rank: [rank or "auto"],
        ),
        Field(("time_step_min", "time_step_max"), (f"{_MIXER}.steps",), lambda *ends: [list(ends)], lambda ends: ends),
        same("use_bias", f"{_MIXER}.bias"),
        same("use_conv_bias", f"{_MIXER}.convolution_bias"),
        same("layer_norm_epsilon", f"{_STACK}.layer.norm.eps"),
        same("tie_word_embeddings", f"{_TEXT}.tied"),
        fixed("hidden_act", "silu"),
    ),
    rules=_rules,
    defaults={
        **{"intermediate_size": lambda config: int(config["expand"] * config["hidden_size"])},
        **{"expand": 2, "state_size": 16, "conv_kernel": 4, "time_step_rank": "auto", "hidden_act": "silu"},
        **{"time_step_min": 0.001, "time_step_max": 0.1, "use_bias": False, "use_conv_bias": True},
        **{"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
    },
    ignored=(
        *("residual_in_fp32", "rescale_prenorm_residual", "time_step_*", "use_mambapy", "use_associative_scan"),
        *("d_model", "d_inner", "n_layer", "ssm_cfg", "rms_norm", "fused_add_norm"),  # which published ones have, too
        "pad_vocab_size_multiple",  # which vocab_size is already
    ),
    text=(f"{_TEXT}.tokenizer",),
)
