"""Switch Transformers as transformers keeps them (``models/switch_transformers``): T5 with experts in some layers.

Where they differ from the reference: an expert's places are counted in the encoder alone, for the reason that
``configs/models/switch.yaml`` tells; in training, jitter moves what the router reads, as in the paper, and not what the
experts read; what routers ask to be minimised is a mean over all of them, not the encoder's plus the decoder's.
"""

from __future__ import annotations

from mmformer.interop import expert_layers, t5_stacks
from mmformer.interop.family import Family
from mmformer.interop.fields import Field, all_fixed, same, scaled
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule

_FIXED = {"router_bias": False, "router_dtype": "float32"}
_EXPERTS = (
    same("num_experts", "layer.feedforward.experts"),
    same("router_jitter_noise", "layer.feedforward.router.jitter"),
    same("router_z_loss_coef", "layer.feedforward.router.z_loss"),
    same("router_aux_loss_coef", "layer.feedforward.router.balance_loss"),
)
_PLACES = same("expert_capacity", "layer.feedforward.router.places")  # the encoder's alone


def _layers(stack: str, depth: str, side: str, mixers: list[str], *more: Field) -> Field:
    return expert_layers.stepped(
        (depth, f"{side}_sparse_step", f"num_sparse_{side}_layers"),
        "dense_act_fn",
        lambda feedforward: t5_stacks.layer_fields(["layer"], mixers, [feedforward]),
        (*_EXPERTS, *more),
        template="switch.yaml",
        stack=stack,
    )


def _expert_rules(stack: str, theirs: str, config: Data) -> list[Rule]:
    ours, router = f"{stack}.layers.{{i}}.feedforward", f"{theirs}.router.classifier.weight"
    each = [f"{theirs}.experts.expert_{number}" for number in range(config["num_experts"])]
    up, down = ([f"{expert}.{name}.weight" for expert in each] for name in ("wi", "wo"))
    return expert_layers.rules(ours, router, up, down, config["d_model"], config["d_ff"])


def _rules(config: Data) -> list[Rule]:
    return [
        *t5_stacks.rules("mlp"),
        *_expert_rules("stacks.reader", "encoder.block.{i}.layer.1.mlp", config),
        *_expert_rules("stacks.writer", "decoder.block.{i}.layer.2.mlp", config),
    ]


SWITCH = Family(
    library="hf",
    name="switch_transformers",
    template="switch.yaml",
    layouts=t5_stacks.layouts("SwitchTransformers"),
    fields=(
        *t5_stacks.FIELDS,
        scaled("tie_word_embeddings", "d_model", "stacks.reader.width", -0.5, "decoders.target.logit_scale"),
        _layers("stacks.writer", "num_decoder_layers", "decoder", ["layer.mixer", "layer.cross"]),
        _layers("stacks.reader", "num_layers", "encoder", ["layer.mixer"], _PLACES),  # last: some have no decoder
        *all_fixed(_FIXED),
    ),
    rules=_rules,
    defaults={
        **t5_stacks.DEFAULTS,
        **{"num_sparse_encoder_layers": 3, "num_sparse_decoder_layers": 3, "num_experts": 8, "expert_capacity": 64},
        **{"router_jitter_noise": 0.01, "router_z_loss_coef": 0.001, "router_aux_loss_coef": 0.001},
        "dense_act_fn": "relu",
        "encoder_sparse_step": expert_layers.step("num_layers", "num_sparse_encoder_layers"),
        "decoder_sparse_step": expert_layers.step("num_decoder_layers", "num_sparse_decoder_layers"),
        **_FIXED,
    },
    ignored=(
        *("is_encoder_decoder", "add_cross_attention", "add_router_probs", "router_ignore_padding_tokens"),
        *("router_type", "num_selected_experts", "batch_prioritized_routing", "feed_forward_proj", "is_gated_act"),
    ),
    text=t5_stacks.PARTS,
)
