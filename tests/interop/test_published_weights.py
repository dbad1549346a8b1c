"""Weights as they were published, by old versions of transformers: they hold what is not read any more."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import Case, check_round_trip, close, imported, saved
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmformer.errors import InputError
from mmformer.interop.importing import import_model

transformers = pytest.importorskip("transformers", reason="the reference")

IDS = torch.randint(3, 99, (3, 11), generator=torch.Generator().manual_seed(1))
WIDE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 99}
State = dict[str, Tensor]


def gpt2() -> Any:
    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 99, "n_positions": 20}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=98, eos_token_id=98))


def first_gpt2(state: State) -> State:
    """OpenAI's: named as the trunk alone, without logits, and with who sees whom."""
    old = {name.removeprefix("transformer."): value for name, value in state.items() if name != "lm_head.weight"}
    return old | {f"h.{layer}.attn.bias": torch.ones(1, 1, 20, 20).tril() for layer in range(3)}


def distil_gpt2(state: State) -> State:
    """With what hides those who are not seen, and logits of their own, which are the table's."""
    masks = {f"transformer.h.{layer}.attn.bias": torch.ones(1, 1, 20, 20).tril().bool() for layer in range(3)}
    hidden = {f"transformer.h.{layer}.attn.masked_bias": torch.tensor(-1e4) for layer in range(3)}
    return {**state, **masks, **hidden, "lm_head.weight": state["transformer.wte.weight"].clone()}


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**WIDE, max_position_embeddings=32))


def llama_2(state: State) -> State:
    """With how fast each feature of a head turns."""
    return state | {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.rand(4) for layer in range(3)}


KINDS: dict[str, tuple[Callable[[], Any], Callable[[State], State]]] = {
    "gpt2": (gpt2, first_gpt2),
    "distilgpt2": (gpt2, distil_gpt2),
    "llama-2": (llama, llama_2),
}


def older(kind: str, folder: Path) -> Case:
    """A reference, and its weights as they would have been published."""
    make, old = KINDS[kind]
    case = saved(make(), folder / "now")
    shutil.copytree(case.folder, folder / "then")
    state = load_file(case.folder / "model.safetensors")
    save_file(old(state), folder / "then" / "model.safetensors", {"format": "pt"})
    return Case(case.reference, folder / "then")


@pytest.mark.parametrize("kind", KINDS)
def test_they_come_in_and_go_out(kind: str, tmp_path: Path) -> None:
    case = older(kind, tmp_path)
    model = imported(case, tmp_path / "bundle")
    with torch.no_grad():
        theirs = case.reference(IDS).logits
        close(model.logits(IDS), theirs, measured="logits")
    again = check_round_trip(case, tmp_path / "bundle", tmp_path / "out", type(case.reference).from_pretrained)
    with torch.no_grad():
        close(again(IDS).logits, theirs)


def test_a_mask_that_is_another_is_refused(tmp_path: Path) -> None:
    """It would have hidden others than ours does."""
    file = older("gpt2", tmp_path).folder / "model.safetensors"
    state = load_file(file)
    state["h.2.attn.bias"] = torch.ones(1, 1, 20, 20)
    save_file(state, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"h\.2\.attn\.bias differs from what is computed in its place"):
        import_model(f"hf:{file.parent}", tmp_path / "bundle")


def test_a_scale_of_100_may_be_kept_in_half_precision(tmp_path: Path) -> None:
    """Which rounds its logarithm up."""
    tower = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    words = {"vocab_size": 99, "max_position_embeddings": 16, "bos_token_id": 97, "eos_token_id": 98}
    config = transformers.CLIPConfig(
        text_config=tower | words, vision_config=tower | {"image_size": 16, "patch_size": 8}, projection_dim=24
    )
    model = transformers.CLIPModel(config).half()
    for scale, bound in ((math.log(100), True), (4.62, False)):
        model.logit_scale.data.fill_(scale)
        model.save_pretrained(tmp_path / "in")
        assert model.logit_scale.item() > math.log(100)
        if bound:
            import_model(f"hf:{tmp_path / 'in'}", tmp_path / "bundle")
            continue
        with pytest.raises(InputError, match=r"logit_scale is 4\.6\d+, a scale above 100"):
            import_model(f"hf:{tmp_path / 'in'}", tmp_path / "refused")
