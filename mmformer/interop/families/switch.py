"""Switch Transformers as transformers keeps them (``models/switch_transformers``): T5 with experts in some layers.

Where they differ from the reference: an expert's places are counted in the encoder alone, for the reason that
``configs/models/switch.yaml`` tells; in training, jitter moves what the router reads, as in the paper, and not what the
experts read; what routers ask to be minimised is a mean over all of them, not the encoder's plus the decoder's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmformer.interop import plain
from mmformer.interop.families.t5 import (
    ENCODER_ALONE,
    PARTS,
    SHARED,
    SHARED_DEFAULTS,
    STACKS,
    UNREAD,
    at_each,
    whole_rules,
)
from mmformer.interop.family import Family, Layout
from mmformer.interop.fields import ACTIVATIONS, Field, fixed, same
from mmformer.interop.plain import Data
from mmformer.interop.rules import Rule, joined
from mmformer.interop.rules import same as named

_SAID = {
    **{"num_heads": "mixer.heads", "d_kv": "mixer.head_width", "dropout_rate": "mixer.dropout"},
    **{"d_ff": "feedforward.expert.hidden_width", "layer_norm_epsilon": "norm.eps"},
    **{"num_experts": "feedforward.experts", "router_jitter_noise": "feedforward.router.jitter"},
    "router_z_loss_coef": "feedforward.router.z_loss",
    "router_aux_loss_coef": "feedforward.router.balance_loss",
}
"""Where a layer with experts says what a config says."""


def _layer(said: Data, cross: bool, sparse: bool) -> Data:
    dropout, activation = said["dropout_rate"], said["dense_act_fn"]
    heads = {"heads": said["num_heads"], "head_width": said["d_kv"]}
    mixer = {"class_path": "AttentionSpec", "init_args": {**heads, "scale": 1.0, "bias": False, "dropout": dropout}}
    made = ACTIVATIONS[activation].over(None)
    made["init_args"] |= {"hidden_width": said["d_ff"], "bias": False, "dropout": dropout}
    if sparse:
        asked = {"z_loss": said["router_z_loss_coef"], "balance_loss": said["router_aux_loss_coef"]}
        places = {"places": said.get("expert_capacity"), "jitter": said["router_jitter_noise"]}
        router = {"class_path": "TokenChoiceSpec", "init_args": {"top": 1, "renormalise": False, **places, **asked}}
        experts = {"experts": said["num_experts"], "expert": made, "router": router}
        made = {"class_path": "MixtureOfExpertsSpec", "init_args": experts}
    norm = {"class_path": "RMSNormSpec", "init_args": {"eps": said["layer_norm_epsilon"]}}
    return {"mixer": mixer, "cross": mixer if cross else None, "feedforward": made, "norm": norm, "dropout": dropout}


def _layers(stack: str, depth: str, step: str, cross: bool, *more: str) -> Field:
    """A stack's: of ``step`` layers, the second has experts, and where it is 1, all have."""
    keys = (depth, step, f"num_sparse_{stack}_layers", "dense_act_fn", *more, *_SAID)

    def read(depth: int, step: int, *found: Any) -> Sequence[Any]:
        said = dict(zip(keys[2:], found, strict=True))
        if not 1 <= step <= depth or said["dense_act_fn"] not in ACTIVATIONS:
            raise ValueError(f"a step of 1 to all layers, and an activation of {', '.join(ACTIVATIONS)}")
        return [depth, [_layer(said, cross, step == 1 or place == 1) for place in range(step)]]

    def write(depth: int, pattern: Sequence[Data]) -> Sequence[Any]:
        try:
            layer = pattern[min(1, len(pattern) - 1)]
            expert = plain.get(layer, "feedforward.expert")
            activation = next(name for name, kind in ACTIVATIONS.items() if kind.describes(expert))
            places = [plain.get(layer, "feedforward.router.places")] * len(more)
            said = [plain.get(layer, path) for path in _SAID.values()]
        except (KeyError, IndexError, StopIteration):
            raise ValueError("layers of which the second has experts, each token one") from None
        return [depth, len(pattern), depth // len(pattern), activation, *places, *said]

    path = STACKS[cross]
    return Field(keys, (f"{path}.depth", f"{path}.pattern"), read, write)


def _tied(tied: bool, width: int) -> Sequence[Any]:
    return [tied, width**-0.5 if tied else 1.0, width]


def _rules(config: Data) -> list[Rule]:
    rules, width, hidden = whole_rules(config, "mlp"), config["d_model"], config["d_ff"]
    for path, theirs in zip(STACKS, ("encoder.block.{i}.layer.1.mlp", "decoder.block.{i}.layer.2.mlp"), strict=True):
        ours = f"{path}.layers.{{i}}.feedforward"
        up, down = (
            [f"{theirs}.experts.expert_{number}.{name}.weight" for number in range(config["num_experts"])]
            for name in ("wi", "wo")
        )
        rules += [
            named(f"{ours}.router.weight", f"{theirs}.router.classifier.weight"),
            joined(f"{ours}.experts.up.weight", up, shape=(hidden, width)),
            joined(f"{ours}.experts.down.weight", down, shape=(width, hidden)),
        ]
    return rules


_READER = _layers("encoder", "num_layers", "encoder_sparse_step", False, "expert_capacity")
_WRITER = _layers("decoder", "num_decoder_layers", "decoder_sparse_step", True)

SWITCH = Family(
    library="hf",
    name="switch_transformers",
    template="switch.yaml",
    layouts={
        "SwitchTransformersForConditionalGeneration": Layout(unread=(UNREAD,)),
        "SwitchTransformersEncoderModel": Layout(without=ENCODER_ALONE, unread=("decoder.*", "lm_head.*")),
    },
    fields=(
        *SHARED,
        same("d_kv", *at_each(STACKS, "initialisation.head_width")),
        same("dropout_rate", *at_each(STACKS, "input_dropout", "output_dropout")),
        _WRITER,
        _READER,  # what both say is the encoder's where there is no decoder
        Field(
            ("tie_word_embeddings", "d_model"),
            ("decoders.target.tied", "decoders.target.logit_scale", "stacks.reader.width"),
            _tied,
            lambda tied, _, width: [tied, width],
        ),
        fixed("router_bias", False),
        fixed("router_dtype", "float32"),
    ),
    rules=_rules,
    defaults={
        **SHARED_DEFAULTS,
        **{"expert_capacity": 64, "num_sparse_encoder_layers": 3, "num_sparse_decoder_layers": 3, "num_experts": 8},
        **{"router_bias": False, "router_jitter_noise": 0.01, "router_dtype": "float32", "dense_act_fn": "relu"},
        **{"router_z_loss_coef": 0.001, "router_aux_loss_coef": 0.001},
        "encoder_sparse_step": lambda config: config["num_layers"] // (config["num_sparse_encoder_layers"] or 1),
        "decoder_sparse_step": lambda config: (
            config["num_decoder_layers"] // (config["num_sparse_decoder_layers"] or 1)
        ),
    },
    ignored=(
        *("is_encoder_decoder", "add_cross_attention", "add_router_probs", "router_ignore_padding_tokens"),
        *("router_type", "num_selected_experts", "batch_prioritized_routing", "feed_forward_proj", "is_gated_act"),
    ),
    text=PARTS,
)
