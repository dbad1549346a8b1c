"""Configs as they were published, by old versions of transformers, and how large the models are that they describe."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmformer.errors import InputError
from mmformer.interop.families.bert import FAMILY as BERT
from mmformer.interop.families.blip import BLIP
from mmformer.interop.families.distilbert import FAMILY as DISTILBERT
from mmformer.interop.families.llava import LLAVA
from mmformer.interop.families.mamba import FAMILY as MAMBA
from mmformer.interop.families.marian import FAMILY as MARIAN
from mmformer.interop.families.t5 import T5
from mmformer.interop.family import Family
from mmformer.interop.fields import complete
from mmformer.interop.source import families_of
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.rotary import RotaryPositionSpec
from mmformer.nn.rotary_scaling import LinearScalingSpec

BERT_BASE = {
    **{"attention_probs_dropout_prob": 0.1, "gradient_checkpointing": False, "hidden_act": "gelu"},
    **{"hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072},
    **{"layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert", "num_attention_heads": 12},
    **{"num_hidden_layers": 12, "pad_token_id": 0, "position_embedding_type": "absolute", "type_vocab_size": 2},
    **{"transformers_version": "4.6.0.dev0", "use_cache": True, "vocab_size": 30522},
}
DISTILBERT_BASE = {
    **{"activation": "gelu", "attention_dropout": 0.1, "dim": 768, "dropout": 0.1, "hidden_dim": 3072},
    **{"initializer_range": 0.02, "max_position_embeddings": 512, "model_type": "distilbert", "n_heads": 12},
    **{"n_layers": 6, "pad_token_id": 0, "qa_dropout": 0.1, "seq_classif_dropout": 0.2, "vocab_size": 30522},
    **{"sinusoidal_pos_embds": False, "tie_weights_": True, "transformers_version": "4.10.0.dev0"},
}
T5_SMALL = {
    **{"d_ff": 2048, "d_kv": 64, "d_model": 512, "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1},
    **{"initializer_factor": 1.0, "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06, "model_type": "t5"},
    **{"n_positions": 512, "num_heads": 8, "num_layers": 6, "output_past": True, "pad_token_id": 0},
    **{"relative_attention_num_buckets": 32, "task_specific_params": {}, "use_cache": True, "vocab_size": 32128},
}
FLAN_T5_SMALL = {
    **T5_SMALL,
    **{"d_ff": 1024, "dense_act_fn": "gelu_new", "feed_forward_proj": "gated-gelu", "is_gated_act": True},
    **{"num_decoder_layers": 8, "num_heads": 6, "num_layers": 8, "relative_attention_max_distance": 128},
    **{"tie_word_embeddings": False},
}
OPUS = {
    **{"_num_labels": 3, "activation_dropout": 0.0, "activation_function": "swish", "add_bias_logits": False},
    **{"add_final_layer_norm": False, "attention_dropout": 0.0, "bad_words_ids": [[58100]], "bos_token_id": 0},
    **{"classif_dropout": 0.0, "classifier_dropout": 0.0, "d_model": 512, "decoder_attention_heads": 8},
    **{"decoder_ffn_dim": 2048, "decoder_layerdrop": 0.0, "decoder_layers": 6, "decoder_start_token_id": 58100},
    **{"decoder_vocab_size": 58101, "dropout": 0.1, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048},
    **{"encoder_layerdrop": 0.0, "encoder_layers": 6, "eos_token_id": 0, "forced_eos_token_id": 0, "init_std": 0.02},
    **{"is_encoder_decoder": True, "max_length": 512, "max_position_embeddings": 512, "model_type": "marian"},
    **{"normalize_before": False, "normalize_embedding": False, "num_beams": 4, "num_hidden_layers": 6},
    **{"pad_token_id": 58100, "scale_embedding": True, "share_encoder_decoder_embeddings": True},
    **{"static_position_embeddings": True, "use_cache": True, "vocab_size": 58101},
}
_BEFORE_5 = {
    **{"_name_or_path": "", "add_cross_attention": False, "architectures": None, "bad_words_ids": None},
    **{"begin_suppress_tokens": None, "chunk_size_feed_forward": 0, "cross_attention_hidden_size": None},
    **{"decoder_start_token_id": None, "diversity_penalty": 0.0, "do_sample": False, "early_stopping": False},
    **{"encoder_no_repeat_ngram_size": 0, "exponential_decay_length_penalty": None, "finetuning_task": None},
    **{"forced_bos_token_id": None, "forced_eos_token_id": None, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}},
    **{"is_encoder_decoder": False, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "length_penalty": 1.0, "max_length": 20},
    **{"min_length": 0, "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1},
    **{"output_attentions": False, "output_hidden_states": False, "output_scores": False, "prefix": None},
    **{"problem_type": None, "pruned_heads": {}, "remove_invalid_values": False, "repetition_penalty": 1.0},
    **{"return_dict": True, "return_dict_in_generate": False, "suppress_tokens": None, "task_specific_params": None},
    **{"temperature": 1.0, "tf_legacy_loss": False, "tie_encoder_decoder": False, "tie_word_embeddings": True},
    **{"tokenizer_class": None, "top_k": 50, "top_p": 1.0, "torch_dtype": None, "torchscript": False},
    **{"transformers_version": "4.26.0.dev0", "typical_p": 1.0, "use_bfloat16": False},
}
"""What transformers wrote into a config that is inside another."""
_TOWER = {"hidden_act": "gelu", "hidden_size": 768, "initializer_factor": 1.0, "initializer_range": 0.02}
_TOWER |= {"intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
BLIP_CAPTIONS = {
    **{"_commit_hash": None, "image_text_hidden_size": 256, "initializer_factor": 1.0, "model_type": "blip"},
    **{"logit_scale_init_value": 2.6592, "projection_dim": 512, "torch_dtype": "float32", "transformers_version": None},
    "text_config": {
        **_BEFORE_5,
        **_TOWER,
        **{"attention_probs_dropout_prob": 0.0, "bos_token_id": 30522, "eos_token_id": 2, "hidden_dropout_prob": 0.0},
        **{"is_decoder": True, "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "pad_token_id": 0},
        **{"model_type": "blip_text_model", "projection_dim": 768, "sep_token_id": 102, "use_cache": True},
        "vocab_size": 30524,
    },
    "vision_config": {
        **_BEFORE_5,
        **_TOWER,
        **{"attention_dropout": 0.0, "bos_token_id": None, "dropout": 0.0, "eos_token_id": None, "image_size": 384},
        **{"is_decoder": False, "layer_norm_eps": 1e-05, "model_type": "blip_vision_model", "num_channels": 3},
        **{"pad_token_id": None, "patch_size": 16, "projection_dim": 512, "sep_token_id": None},
    },
}
LLAVA_15 = {
    **{"ignore_index": -100, "image_token_index": 32000, "model_type": "llava", "pad_token_id": 32001},
    **{"projector_hidden_act": "gelu", "tie_word_embeddings": False, "torch_dtype": "float16", "vocab_size": 32064},
    **{"vision_feature_layer": -2, "vision_feature_select_strategy": "default", "transformers_version": "4.36.0.dev0"},
    "text_config": {
        **{"_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"], "model_type": "llama"},
        **{"max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "torch_dtype": "float16", "vocab_size": 32064},
    },
    "vision_config": {
        **{"hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model"},
        **{"num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768},
        "vocab_size": 32000,
    },
}
MAMBA_130M = {
    **{"bos_token_id": 0, "conv_kernel": 4, "d_inner": 1536, "d_model": 768, "eos_token_id": 0, "expand": 2},
    **{"fused_add_norm": True, "hidden_act": "silu", "hidden_size": 768, "initializer_range": 0.1, "n_layer": 24},
    **{"intermediate_size": 1536, "layer_norm_epsilon": 1e-05, "model_type": "mamba", "num_hidden_layers": 24},
    **{"pad_token_id": 0, "pad_vocab_size_multiple": 8, "rescale_prenorm_residual": False, "residual_in_fp32": True},
    **{"rms_norm": True, "ssm_cfg": {}, "state_size": 16, "time_step_floor": 0.0001, "time_step_max": 0.1},
    **{"time_step_init_scheme": "random", "time_step_min": 0.001, "time_step_rank": 48, "time_step_scale": 1.0},
    **{"torch_dtype": "float32", "use_bias": False, "use_cache": True, "use_conv_bias": True, "vocab_size": 50280},
}


@pytest.mark.parametrize(
    ("family", "layout", "config", "parameters"),
    [
        (BERT, "BertForMaskedLM gamma", BERT_BASE, 109_514_298),
        (DISTILBERT, "DistilBertForMaskedLM", DISTILBERT_BASE, 66_985_530),
        (T5, "T5ForConditionalGeneration", T5_SMALL, 60_506_624),
        (T5, "T5ForConditionalGeneration", FLAN_T5_SMALL, 76_961_152),
        (MARIAN, "MarianMTModel", OPUS, 73_886_208 + 58_101),  # a bias on logits is no parameter there
        (BLIP, "BlipForConditionalGeneration", BLIP_CAPTIONS, 223_971_644),
        (LLAVA, "LlavaForConditionalGeneration", LLAVA_15, 7_063_427_072),
        (MAMBA, "MambaForCausalLM", MAMBA_130M, 129_135_360),
    ],
    ids=[
        *("bert-base-uncased", "distilbert-base-uncased", "t5-small", "flan-t5-small", "opus-mt-en-de"),
        *("blip-image-captioning-base", "llava-1.5-7b-hf", "mamba-130m-hf"),
    ],
)
def test_a_published_config_is_read(family: Family, layout: str, config: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        model = family.spec({"architectures": [layout.split()[0]], **config}, layout, "config.json").build()
    assert sum(value.numel() for value in model.parameters()) == parameters
    assert family.says(config, model.spec, layout, "config.json")


@pytest.mark.parametrize("newer", [False, True])
def test_how_a_text_inside_turns_is_what_its_own_config_says(newer: bool) -> None:
    """Not what the config around it says, or does not: LLaVA of Llama 3."""
    said = {"rope_theta": 500_000.0, "rope_scaling": {"type": "linear", "factor": 4.0}}
    if newer:
        said = {"rope_parameters": {"rope_theta": 500_000.0, "rope_type": "linear", "factor": 4.0}}
    sizes = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2, "num_hidden_layers": 2}
    config = {**LLAVA_15, "text_config": {**LLAVA_15["text_config"], **sizes, **said}}  # type: ignore[dict-item]
    spec = LLAVA.spec(config, "LlavaForConditionalGeneration", "config.json").stacks["text"]
    assert spec.position == RotaryPositionSpec(base=500_000.0, scaling=LinearScalingSpec(4.0))
    assert isinstance(spec.layer.mixer, AttentionSpec)
    assert (spec.layer.mixer.key_value_heads, spec.layer.mixer.head_width) == (2, 8)


def test_a_key_that_all_configs_had_is_refused_where_it_means_something() -> None:
    with pytest.raises(InputError, match=r"has vision_config\.is_decoder True, which mmformer does not know"):
        seen = {**LLAVA_15["vision_config"], "is_decoder": True}  # type: ignore[dict-item]
        LLAVA.spec({**LLAVA_15, "vision_config": seen}, "LlavaForConditionalGeneration", "config.json")
    fewer = {
        key: value for key, value in MAMBA_130M.items() if key not in ("hidden_size", "intermediate_size", "expand")
    }
    with pytest.raises(InputError, match=r"config\.json has no hidden_size, which says what the model is"):
        MAMBA.spec(fewer, "MambaForCausalLM", "config.json")


def test_mixtral_turns_slower_than_llama_where_a_config_does_not_say() -> None:
    sizes = {"vocab_size": 99, "max_position_embeddings": 64, "hidden_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 96}
    config = {**sizes, "hidden_act": "silu", "rms_norm_eps": 1e-5, "num_local_experts": 4, "num_experts_per_tok": 2}
    (mixtral,) = (family for family in families_of("hf") if family.name == "mixtral")
    position = mixtral.spec(config, "MixtralForCausalLM", "config.json").stacks["text"].position
    assert position == RotaryPositionSpec(base=1e6)


@pytest.mark.parametrize("name", ["mixtral", "jamba"])
def test_heads_of_keys_that_a_config_does_not_number_are_eight(name: str) -> None:
    """Null stands for as many as queries have."""
    (family,) = (family for family in families_of("hf") if family.name == name)
    config = {"num_attention_heads": 16}
    counts = [complete({**config, **said}, family.defaults) for said in ({}, {"num_key_value_heads": None})]
    assert [count["num_key_value_heads"] for count in counts] == [8, 16]
