"""Configs as they were published, by old versions of transformers, and how large the models are that they describe."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmformer.interop.families.bert import FAMILY as BERT
from mmformer.interop.families.distilbert import FAMILY as DISTILBERT
from mmformer.interop.families.marian import FAMILY as MARIAN
from mmformer.interop.families.t5 import T5
from mmformer.interop.family import Family

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


@pytest.mark.parametrize(
    ("family", "layout", "config", "parameters"),
    [
        (BERT, "BertForMaskedLM gamma", BERT_BASE, 109_514_298),
        (DISTILBERT, "DistilBertForMaskedLM", DISTILBERT_BASE, 66_985_530),
        (T5, "T5ForConditionalGeneration", T5_SMALL, 60_506_624),
        (T5, "T5ForConditionalGeneration", FLAN_T5_SMALL, 76_961_152),
        (MARIAN, "MarianMTModel", OPUS, 73_886_208 + 58_101),  # a bias on logits is no parameter there
    ],
    ids=["bert-base-uncased", "distilbert-base-uncased", "t5-small", "flan-t5-small", "opus-mt-en-de"],
)
def test_a_published_config_is_read(family: Family, layout: str, config: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        model = family.spec({"architectures": [layout.split()[0]], **config}, layout, "config.json").build()
    assert sum(value.numel() for value in model.parameters()) == parameters
    assert family.says(config, model.spec, layout, "config.json")
