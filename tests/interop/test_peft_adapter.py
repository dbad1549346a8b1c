"""Adapters that peft trained, on bundles: merged weights are those of peft's own merge, by transformers' names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mmformer.cli.main import main
from mmformer.errors import InputError
from mmformer.interop.exporting import export_model
from mmformer.interop.importing import import_model
from mmformer.interop.merging import merge_adapter
from mmformer.interop.peft_adapter import with_adapter

transformers = pytest.importorskip("transformers", reason="the reference")
peft = pytest.importorskip("peft", reason="the reference")

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's


def gpt2() -> nn.Module:
    """Its matrices are applied from the other side, and queries, keys and values are one of them; some are square."""
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 40, "n_positions": 16, "n_inner": 32}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def llama() -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(**sizes, intermediate_size=40, vocab_size=40, max_position_embeddings=32)
    return transformers.LlamaForCausalLM(config)


def vit() -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=5)
    )


CASES: dict[str, tuple[Any, Any]] = {
    "GPT-2": (
        gpt2,
        lambda: peft.LoraConfig(r=3, lora_alpha=7, target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True),
    ),
    "Llama, rsLoRA, ranks of their own": (
        llama,
        lambda: peft.LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=["q_proj", "v_proj", "down_proj"],
            use_rslora=True,
            rank_pattern={"down_proj": 2},
            alpha_pattern={"layers.1.self_attn.q_proj": 5},
        ),
    ),
    "ViT, DoRA, with its head": (
        vit,
        lambda: peft.LoraConfig(
            r=2, target_modules=["q_proj", "v_proj"], use_dora=True, modules_to_save=["classifier"], bias="lora_only"
        ),
    ),
    "ViT, IA3": (
        vit,
        lambda: peft.IA3Config(target_modules=["k_proj", "v_proj", "mlp.fc2"], feedforward_modules=["mlp.fc2"]),
    ),
}


def trained(make: Any, config: Any, folder: Path) -> dict[str, torch.Tensor]:
    """A base and an adapter of it in two folders, and what peft merges them into."""
    torch.manual_seed(0)
    base = make()
    base.save_pretrained(folder / "base")
    model = peft.get_peft_model(base, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder / "adapter")
    whole = model.merge_and_unload()
    whole.save_pretrained(folder / "merged")
    return load_file(folder / "merged" / "model.safetensors")


@pytest.mark.parametrize("case", CASES)
def test_merged_weights_are_pefts(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, config = CASES[case]
    expected = trained(make, config(), tmp_path)
    import_model(f"hf:{tmp_path / 'base'}", tmp_path / "bundle")
    words = [str(tmp_path / name) for name in ("bundle", "adapter", "new")]
    assert main(["merge", *words]) == 0
    assert "adapter is merged into" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "new"), str(tmp_path / "out"), "--to", "hf"]) == 0
    before, found = load_file(tmp_path / "base" / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5, msg=name)
    assert any(not torch.equal(found[name], before[name]) for name in found)
    assert main(["merge", *words]) == 2
    assert "is there already" in capsys.readouterr().err


def test_an_adapter_that_was_not_trained_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """LoRA begins as what it adapts: the bundle is written all the same."""
    base = gpt2()
    base.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    import_model(f"hf:{tmp_path / 'base'}", tmp_path / "bundle")
    assert main(["merge", *(str(tmp_path / name) for name in ("bundle", "adapter", "new"))]) == 0
    told = f"{tmp_path / 'new'}: adapter changes no parameter: was it trained?"
    assert told in capsys.readouterr().out
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("bundle", "new"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_is_merged_into_float16_is_not_rounded_away(tmp_path: Path) -> None:
    """An adapter changes most values by less than float16 tells apart."""
    torch.manual_seed(0)
    base = gpt2()
    base.half().save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(
        base.float(), peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    )
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            value.mul_(3e-3 if "lora_" in name else 1)
    adapted.save_pretrained(tmp_path / "adapter")
    expected = adapted.merge_and_unload().state_dict()
    import_model(f"hf:{tmp_path / 'base'}", tmp_path / "bundle")
    assert merge_adapter(tmp_path / "bundle", tmp_path / "adapter", tmp_path / "new")
    export_model(tmp_path / "new", "hf", tmp_path / "out")
    found = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out").state_dict()
    name = "transformer.h.0.attn.c_attn.weight"
    assert found[name].dtype == torch.float32
    torch.testing.assert_close(found[name], expected[name], atol=1e-9, rtol=1e-6)
    assert not torch.equal(expected[name].half().float(), expected[name])


def test_a_trunk_takes_what_was_trained_on_a_model_with_it() -> None:
    """Weights that are kept without the model's prefix are found, and by one name alone."""
    state = {"h.0.attn.weight": torch.zeros(2, 2), "h.10.attn.weight": torch.zeros(2, 2)}
    from mmformer.interop.peft_adapter import _found

    assert _found("transformer.h.0.attn.weight", state, Path("a")) == "h.0.attn.weight"
    with pytest.raises(InputError, match=r"a adapts attn\.weight, which h\.0\.attn\.weight and h\.10\.attn"):
        _found("attn.weight", state, Path("a"))
    with pytest.raises(InputError, match=r"but the model has none of this name\. Did you mean 'h\.10\.attn\.weight'\?"):
        _found("h.11.attn.weight", state, Path("a"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "PREFIX_TUNING"}, r"peft_type 'PREFIX_TUNING', but those that are read are"),
        ({"trainable_token_indices": [1]}, r"has trainable_token_indices \[1\], which is not read: merge it with peft"),
    ],
)
def test_what_is_not_read_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    trained(gpt2, peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True), tmp_path)
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=message):
        with_adapter({}, tmp_path / "adapter")


@pytest.mark.parametrize("first", ["pissa", "olora"])
def test_an_adapter_of_other_weights_than_the_models_is_refused(first: str, tmp_path: Path) -> None:
    """peft takes its first weights out of the base's: on the base as it is, it would be another model."""
    make = lambda: peft.LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights=first)  # noqa: E731
    expected = trained(llama, make(), tmp_path)
    base = load_file(tmp_path / "base" / "model.safetensors")
    with pytest.raises(InputError, match=f"has init_lora_weights '{first}': its adapter is of weights that this was"):
        with_adapter(base, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"init_lora_weights": True}))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.allclose(with_adapter(base, tmp_path / "adapter")[name], expected[name], atol=1e-3)


def test_another_model_is_refused(tmp_path: Path) -> None:
    trained(llama, peft.LoraConfig(target_modules=["q_proj"]), tmp_path)
    vit().save_pretrained(tmp_path / "other")
    import_model(f"hf:{tmp_path / 'other'}", tmp_path / "bundle")
    with pytest.raises(
        InputError, match=r"adapter adapts model\.layers\.0\.self_attn\.q_proj\.weight, but the model has"
    ):
        merge_adapter(tmp_path / "bundle", tmp_path / "adapter", tmp_path / "new")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no adapter_model\.safetensors: it is no folder of a peft adapter"):
        merge_adapter(tmp_path / "bundle", tmp_path / "adapter", tmp_path / "new")
