"""Scaled rotations and T5's buckets are those of transformers."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.t5.modeling_t5 import T5Attention

from mmformer.nn.bias import RelativeBucketPosition, RelativeBucketPositionSpec
from mmformer.nn.position import Heads, rates
from mmformer.nn.rotary_scaling import (
    LinearScalingSpec,
    Llama3ScalingSpec,
    NTKScalingSpec,
    RotaryScalingSpec,
    YaRNScalingSpec,
)

LENGTH = 2048
CPU = torch.device("cpu")
SCALINGS: list[tuple[RotaryScalingSpec, dict[str, object]]] = [
    (LinearScalingSpec(4.0), {"rope_type": "linear", "factor": 4.0}),
    # At four times the length; where its factor is 1, the static form is the dynamic one at one length.
    (NTKScalingSpec(4.0), {"rope_type": "dynamic", "factor": 1.0}),
    (YaRNScalingSpec(4.0, LENGTH), {"rope_type": "yarn", "factor": 4.0}),
    (YaRNScalingSpec(32.0, LENGTH), {"rope_type": "yarn", "factor": 32.0}),
    (YaRNScalingSpec(2.0, LENGTH, 8.0, 2.0), {"rope_type": "yarn", "factor": 2.0, "beta_fast": 8.0, "beta_slow": 2.0}),
    (
        YaRNScalingSpec(4.0, LENGTH, attention_factor=1.3),
        {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.3},
    ),
    (
        Llama3ScalingSpec(8.0, LENGTH),
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ),
]


@pytest.mark.parametrize("base", [1e4, 5e5])
@pytest.mark.parametrize("width", [16, 128])
@pytest.mark.parametrize(("scaling", "theirs"), SCALINGS, ids=lambda value: type(value).__name__)
def test_scaled_rates(scaling: RotaryScalingSpec, theirs: dict[str, object], width: int, base: float) -> None:
    several = {} if theirs["rope_type"] in ("linear", "dynamic") else {"original_max_position_embeddings": LENGTH}
    config = LlamaConfig(
        hidden_size=4 * width,
        num_attention_heads=4,
        max_position_embeddings=LENGTH * 4 if several else LENGTH,
        rope_parameters={"rope_theta": base, **several, **theirs},
    )
    expected, gain = ROPE_INIT_FUNCTIONS[theirs["rope_type"]](config, CPU, seq_len=4 * LENGTH)
    assert_close(scaling.scaled(rates(width // 2, base, CPU), base), expected, rtol=2e-6, atol=0)
    assert scaling.gain == pytest.approx(gain)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (16, 64), (6, 5), (64, 300)])
def test_buckets(buckets: int, distance: int, bidirectional: bool) -> None:
    spec = RelativeBucketPositionSpec(buckets=buckets, max_distance=distance, bidirectional=bidirectional)
    module = spec.build(8, Heads(1, 8))
    assert isinstance(module, RelativeBucketPosition)
    with torch.no_grad():
        module.weight.copy_(torch.arange(buckets)[:, None])
    place = torch.zeros(1, 500, 3, dtype=torch.int64)
    place[0, :, 0] = torch.arange(500)
    ahead = place[0, None, :, 0] - place[0, :, None, 0]
    expected = T5Attention._relative_position_bucket(ahead, bidirectional, buckets, distance)
    assert torch.equal(module.bias(place, place)[0, 0].long(), expected)
