"""Named systems against the libraries that they come from: forward passes, one process, one machine, one run.

    python -m benchmarks.systems [--only gpt2 clip …]

Each reference is built at its published width, four layers deep, with random weights; it is saved, imported, and its
outputs are compared with ours first; then both run in the order A B B A, nine times after a warm-up, in evaluation,
2 threads, float32: medians and their ratio with its spread. Writes ``benchmarks/results/systems.md``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import mmformer
from benchmarks.attention import compare
from benchmarks.growth import THREADS
from benchmarks.machine import describe
from mmformer.interop.importing import import_model
from mmformer.models.logits import text_logits, text_of
from mmformer.types import Batch

RESULT = Path("benchmarks/results/systems.md")
BOUND = 1.05
DEEP: dict[str, Any] = {"num_hidden_layers": 4}
IDS = torch.randint(5, 1000, (4, 256), generator=torch.Generator().manual_seed(0))
SHORT = IDS[:, :64]
PICTURES = torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(1))


class Case(NamedTuple):
    """A reference, and one pass of either."""

    reference: Any  # saves itself by save_pretrained
    shape: str
    theirs: Callable[[Any], Tensor]
    ours: Callable[[Any], Tensor]


def _written(model: Any, ids: Tensor, decoder_ids: Tensor | None = None, **others: Any) -> Tensor:
    read = None if decoder_ids is None else text_of(decoder_ids)
    return text_logits(model, None, text_of(ids), read, others)


def _language(config: Any, kind: str) -> Case:
    import transformers

    reference = getattr(transformers, kind)(config)
    return Case(reference, "4 × 256 ids", lambda m: m(IDS, use_cache=False).logits, lambda m: _written(m, IDS))


def gpt2() -> Case:
    from transformers import GPT2Config

    return _language(GPT2Config(n_layer=4), "GPT2LMHeadModel")


def llama() -> Case:
    from transformers import LlamaConfig

    sizes: dict[str, Any] = {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
    }
    return _language(LlamaConfig(**sizes, **DEEP), "LlamaForCausalLM")


def mixtral() -> Case:
    from transformers import MixtralConfig

    sizes: dict[str, Any] = {
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    }
    return _language(MixtralConfig(**sizes, **DEEP, vocab_size=4096), "MixtralForCausalLM")


def mamba() -> Case:
    from transformers import MambaConfig

    return _language(MambaConfig(hidden_size=512, num_hidden_layers=4, vocab_size=4096), "MambaForCausalLM")


def bert() -> Case:
    from transformers import BertConfig, BertForMaskedLM

    return Case(BertForMaskedLM(BertConfig(**DEEP)), "4 × 256 ids", lambda m: m(IDS).logits, lambda m: _written(m, IDS))


def distilbert() -> Case:
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    reference = DistilBertForMaskedLM(DistilBertConfig(n_layers=4))
    return Case(reference, "4 × 256 ids", lambda m: m(IDS).logits, lambda m: _written(m, IDS))


def t5() -> Case:
    from transformers import T5Config, T5ForConditionalGeneration

    reference = T5ForConditionalGeneration(T5Config(num_layers=4))
    return Case(
        reference,
        "4 × 256 ids, 4 × 64 written",
        lambda m: m(input_ids=IDS, decoder_input_ids=SHORT, use_cache=False).logits,
        lambda m: _written(m, IDS, SHORT),
    )


def marian() -> Case:
    from transformers import MarianConfig, MarianMTModel

    layers: dict[str, Any] = {
        "encoder_layers": 4,
        "decoder_layers": 4,
        "vocab_size": 8192,
        "pad_token_id": 0,
        "d_model": 512,
    }
    ends: dict[str, Any] = {"decoder_start_token_id": 0, "encoder_attention_heads": 8, "decoder_attention_heads": 8}
    reference = MarianMTModel(MarianConfig(**layers, **ends, encoder_ffn_dim=2048, decoder_ffn_dim=2048))
    return Case(
        reference,
        "4 × 256 ids, 4 × 64 written",
        lambda m: m(input_ids=IDS, decoder_input_ids=SHORT, use_cache=False).logits,
        lambda m: _written(m, IDS, SHORT),
    )


def _embedded(model: Any, values: Tensor) -> Tensor:
    found: Tensor = model(Batch((), {}, values)).tokens["image"].x
    return found


def vit() -> Case:
    from transformers import ViTConfig, ViTModel

    reference = ViTModel(ViTConfig(**DEEP), add_pooling_layer=False)
    return Case(reference, "8 pictures", lambda m: m(PICTURES).last_hidden_state, lambda m: _embedded(m, PICTURES))


def dinov2() -> Case:
    from transformers import Dinov2Config, Dinov2Model

    reference = Dinov2Model(Dinov2Config(**DEEP, image_size=224))
    return Case(reference, "8 pictures", lambda m: m(PICTURES).last_hidden_state, lambda m: _embedded(m, PICTURES))


def clip() -> Case:
    from transformers import CLIPConfig, CLIPModel

    reference = CLIPModel(CLIPConfig(text_config=DEEP, vision_config=DEEP))
    ids = SHORT.clone()
    ids[:, -1] = 49407

    def theirs(model: Any) -> Tensor:
        made = model(input_ids=ids, pixel_values=PICTURES)
        return torch.cat((made.image_embeds, made.text_embeds))

    def ours(model: Any) -> Tensor:
        made = model(Batch((), {}, PICTURES, text_of(ids))).embedding
        return torch.nn.functional.normalize(torch.cat((made["image"], made["text"])), dim=-1)

    return Case(reference, "8 pictures, 4 × 64 ids", theirs, ours)


def blip() -> Case:
    from transformers import BlipConfig, BlipForConditionalGeneration

    sizes: dict[str, Any] = {"vision_config": {**DEEP, "image_size": 224}, "text_config": DEEP}
    return Case(
        BlipForConditionalGeneration(BlipConfig(**sizes)),
        "4 pictures, 4 × 64 ids",
        lambda m: m(input_ids=SHORT, pixel_values=PICTURES[:4]).logits,
        lambda m: _written(m, SHORT, image=PICTURES[:4]),
    )


def llava() -> Case:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    text = LlamaConfig(hidden_size=512, intermediate_size=1408, num_attention_heads=8, vocab_size=4096, **DEEP)
    config = LlavaConfig(vision_config=CLIPVisionConfig(**DEEP), text_config=text, image_token_index=4000)
    ids = IDS[:, :128].clone()
    ids[:, 5:54] = 4000
    return Case(
        LlavaForConditionalGeneration(config),
        "4 pictures, 4 × 128 ids",
        lambda m: m(input_ids=ids, pixel_values=PICTURES[:4], use_cache=False).logits,
        lambda m: _written(m, ids, image=PICTURES[:4]),
    )


CASES = {
    each.__name__: each
    for each in (gpt2, llama, mixtral, mamba, bert, distilbert, t5, marian, vit, dinov2, clip, blip, llava)
}


def row(name: str) -> str:
    """A line of the table: outputs are compared before anything is timed."""
    torch.manual_seed(0)
    case = CASES[name]()
    case.reference.eval()
    with tempfile.TemporaryDirectory() as folder:
        case.reference.save_pretrained(Path(folder) / "in")
        import_model(f"hf:{folder}/in", Path(folder) / "bundle")
        model = mmformer.load(Path(folder) / "bundle").model
    with torch.inference_mode():
        ours, theirs = case.ours(model), case.theirs(case.reference)
        error = float((ours - theirs).abs().max() / theirs.abs().max())
        assert error < 1e-4, f"{name}: outputs differ by {error:.1e} of the largest"
        mine, other = compare(lambda: case.ours(model), lambda: case.theirs(case.reference))
    ratios = sorted(a / b for a, b in zip(mine, other, strict=True))
    ratio = statistics.median(ratios)
    return (
        f"| {name} | {case.shape} | {statistics.median(mine):.0f} | {statistics.median(other):.0f} "
        f"| **{ratio:.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {'yes' if ratio <= BOUND else 'no'} | {error:.0e} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    warnings.simplefilter("ignore")
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    lines = [
        "# Named systems against their libraries",
        "",
        f"`python -m benchmarks.systems`. {describe()}, transformers {version('transformers')}; {THREADS} threads, "
        f"float32, four layers of the published width unless said otherwise in the code.",
        "",
        f"| system | input | ours, ms | theirs, ms | ratio (least to most) | ≤ {BOUND} | outputs differ by |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in args.only:
        lines.append(row(name))
        print(lines[-1], flush=True)
    if args.only == list(CASES):
        RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
