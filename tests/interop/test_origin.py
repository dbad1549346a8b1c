"""What a bundle says of the model that it was."""

from __future__ import annotations

from mmformer.interop.origin import Origin


def test_what_goes_out_in_float32_says_so_wherever_its_config_says_a_precision() -> None:
    config = {
        "torch_dtype": "float16",
        "text_config": {"dtype": "bfloat16", "layers": 2, "torch_dtype": None},
        "vision_config": {"layers": 3},
    }
    dtypes = {"": "float16", "steps": "int64", "norm": "bfloat16"}
    whole = Origin("hf", "llava", "LlavaModel", config, dtypes=dtypes).in_float32()
    assert whole.dtypes == {"steps": "int64", "": "float32"}
    assert whole.config == {
        "torch_dtype": "float32",
        "text_config": {"dtype": "float32", "layers": 2, "torch_dtype": None},
        "vision_config": {"layers": 3},
    }
    assert config["text_config"] == {"dtype": "bfloat16", "layers": 2, "torch_dtype": None}, "the old one stays"
