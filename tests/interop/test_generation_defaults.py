"""What a folder says of how texts are written is how its bundle writes them: ids as ``generate`` has them, unasked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import Case, ended, saved, written

import mmformer
from mmformer.bundle import Transforms, load_bundle, save_bundle
from mmformer.generation.beam import BeamSpec
from mmformer.generation.generation import GenerationSpec
from mmformer.generation.sampling import GreedySpec, SamplingSpec
from mmformer.interop.exporting import export_model
from mmformer.interop.importing import import_model
from mmformer.models.logits import text_of
from mmformer.types import Batch

transformers = pytest.importorskip("transformers", reason="the reference")

DRAWN = torch.Generator().manual_seed(1)
IDS = torch.randint(2, 98, (3, 7), generator=DRAWN)
ENDS = {"pad_token_id": 0, "eos_token_id": 1}


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Case:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 99, "n_positions": 40}
    config = transformers.T5Config(**sizes, **ENDS, dropout_rate=0.0, decoder_start_token_id=0)
    return saved(transformers.T5ForConditionalGeneration(config), tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Case:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99, "n_positions": 40}
    config = transformers.GPT2Config(**sizes, bos_token_id=98, eos_token_id=98)
    return saved(transformers.GPT2LMHeadModel(config), tmp_path_factory.mktemp("gpt2"))


def said(case: Case, folder: Path, **more: Any) -> list[str]:
    """The case's folder with defaults of its own, and a bundle of it beside it; what the import told."""
    folder.mkdir()
    for file in case.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    return import_model(f"hf:{folder}", folder.parent / "bundle").notes


def default(bundle: Path) -> GenerationSpec:
    return load_bundle(bundle)[1].generation or GreedySpec()


def theirs(case: Case, folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """What the reference writes of a folder, asked for nothing."""
    opened = type(case.reference).from_pretrained(folder).eval()
    made: torch.Tensor = opened.generate(input_ids=ids, attention_mask=torch.ones_like(ids))
    return made


@pytest.mark.parametrize(
    ("defaults", "spec"),
    [
        ({"max_length": 11}, GreedySpec(total_length=11)),
        ({"max_new_tokens": 9, "no_repeat_ngram_size": 1}, GreedySpec(max_length=9, no_repeat_ngram=1)),
        ({"max_new_tokens": 9, "repetition_penalty": 1.7}, GreedySpec(max_length=9, repetition_penalty=1.7)),
        ({"max_length": 12, "min_length": 8}, GreedySpec(total_length=12, total_min_length=8)),
        ({"max_length": 12, "forced_eos_token_id": 1}, GreedySpec(total_length=11)),
        (
            {"max_new_tokens": 10, "num_beams": 3, "length_penalty": 0.3, "early_stopping": True},
            BeamSpec(beams=3, length_penalty=0.3, stop="full", max_length=10),
        ),
        (
            {"max_length": 10, "num_beams": 4, "no_repeat_ngram_size": 2, "min_new_tokens": 4},
            BeamSpec(beams=4, stop="likely", no_repeat_ngram=2, total_length=10, min_length=4),
        ),
        (
            {"max_length": 10, "num_beams": 2, "early_stopping": "never", "min_length": 7},
            BeamSpec(beams=2, total_length=10, total_min_length=7),
        ),
    ],
)
def test_an_encoder_decoder_writes_what_its_folder_says(
    t5: Case, tmp_path: Path, defaults: dict[str, Any], spec: GenerationSpec
) -> None:
    assert not said(t5, tmp_path / "in", **defaults)[1:]  # but that it has no vocabulary
    assert default(tmp_path / "bundle") == spec
    model = mmformer.load(tmp_path / "bundle").model
    read = Batch((), {}, text=text_of(IDS))
    ours = written(model, spec, torch.zeros(3, 1, dtype=torch.int64), read)
    assert ours == ended(theirs(t5, tmp_path / "in", IDS)[:, 1:], 1)
    assert any(ours)


@pytest.mark.parametrize(
    ("defaults", "spec"),
    [
        ({"max_length": 15, "min_length": 12}, GreedySpec(total_length=15, total_min_length=12)),
        ({"max_new_tokens": 6, "num_beams": 3}, BeamSpec(beams=3, stop="likely", max_length=6)),
    ],
)
def test_a_language_model_writes_what_its_folder_says(
    gpt2: Case, tmp_path: Path, defaults: dict[str, Any], spec: GenerationSpec
) -> None:
    said(gpt2, tmp_path / "in", **defaults)
    assert default(tmp_path / "bundle") == spec
    ours = written(mmformer.load(tmp_path / "bundle").model, spec, IDS)
    assert ours == ended(theirs(gpt2, tmp_path / "in", IDS)[:, IDS.shape[1] :], 98)


@pytest.mark.parametrize(
    ("defaults", "spec", "told"),
    [
        ({"do_sample": True}, SamplingSpec(top_k=50), None),
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 0, "top_p": 0.9},
            SamplingSpec(temperature=0.6, top_p=0.9),
            None,
        ),
        ({"temperature": 0.6, "length_penalty": 2.0, "typical_p": 1.0}, GreedySpec(), None),  # of ways that it has not
        ({"do_sample": True, "num_beams": 2}, BeamSpec(beams=2, stop="likely"), "do_sample True"),
        ({"num_beams": 2, "repetition_penalty": 2.0}, BeamSpec(beams=2, stop="likely"), "repetition_penalty 2.0"),
        ({"min_length": 5, "guidance_scale": 1, "min_p": 0.0}, GreedySpec(total_min_length=5), None),
        ({"guidance_scale": 2}, GreedySpec(), "guidance_scale 2"),
        (
            {"num_beams": 2, "early_stopping": "soon"},
            GreedySpec(),
            "early_stopping is 'soon', but must be true",
        ),
        ({"max_new_tokens": 9, "forced_eos_token_id": 98}, GreedySpec(max_length=8), None),
        ({"max_new_tokens": 9, "forced_eos_token_id": 5}, GreedySpec(max_length=8), "forced_eos_token_id 5"),
        ({"return_timestamps": True}, GreedySpec(), "return_timestamps True"),
        ({"typical_p": 0.9, "forced_bos_token_id": 3}, GreedySpec(), "forced_bos_token_id 3"),
        ({"num_beams": 2, "length_penalty": -1.0}, GreedySpec(), "length_penalty must be from 0 to 10, but is -1.0"),
    ],
)
def test_what_is_taken_and_what_is_told(
    gpt2: Case, tmp_path: Path, defaults: dict[str, Any], spec: GenerationSpec, told: str | None
) -> None:
    notes = [note for note in said(gpt2, tmp_path / "in", **defaults) if "writing" in note or "written" in note]
    assert default(tmp_path / "bundle") == spec
    assert any(told in note for note in notes) if told else not notes


def test_old_configs_say_it_themselves(gpt2: Case, tmp_path: Path) -> None:
    said(gpt2, tmp_path / "in")
    config, file = json.loads((tmp_path / "in/config.json").read_text()), tmp_path / "in/generation_config.json"
    file.unlink()
    (tmp_path / "in/config.json").write_text(json.dumps(config | {"num_beams": 2, "max_length": 12}))
    import_model(f"hf:{tmp_path / 'in'}", tmp_path / "other")
    assert default(tmp_path / "other") == BeamSpec(beams=2, stop="likely", total_length=12)
    export_model(tmp_path / "other", "hf", tmp_path / "out")
    assert not (tmp_path / "out/generation_config.json").exists()


@pytest.mark.parametrize(
    "spec",
    [
        BeamSpec(beams=5, length_penalty=0.5, stop="certain", max_length=6),
        SamplingSpec(temperature=0.5, top_p=0.5, total_length=20),
        GreedySpec(min_length=2, repetition_penalty=1.5, no_repeat_ngram=3),
        GreedySpec(total_min_length=9, total_length=20),
        None,
    ],
)
def test_the_way_out(gpt2: Case, tmp_path: Path, spec: GenerationSpec | None) -> None:
    """As it came, where nothing was changed; what was changed is said, by a model that was made here, too."""
    said(gpt2, tmp_path / "in", num_beams=2, max_length=12, typical_p=0.7)
    export_model(tmp_path / "bundle", "hf", tmp_path / "out")
    name = "generation_config.json"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()
    model, transforms = load_bundle(tmp_path / "bundle")
    kept = {
        str(file.relative_to(tmp_path / "bundle")): file.read_bytes() for file in (tmp_path / "bundle/origin").iterdir()
    }
    save_bundle(tmp_path / "changed", model, dataclasses.replace(transforms, generation=spec), "", kept)
    save_bundle(tmp_path / "made", model, Transforms(generation=spec), "")
    for bundle in ("changed", "made"):
        export_model(tmp_path / bundle, "hf", tmp_path / f"{bundle}_out")
        import_model(f"hf:{tmp_path / f'{bundle}_out'}", tmp_path / f"{bundle}_again")
        assert load_bundle(tmp_path / f"{bundle}_again")[1].generation == spec
        opened = type(gpt2.reference).from_pretrained(tmp_path / f"{bundle}_out").generation_config
        assert opened.eos_token_id == 98
        assert opened.typical_p == (0.7 if bundle == "changed" else None)
        if isinstance(spec, BeamSpec):
            assert (opened.num_beams, opened.early_stopping, opened.max_new_tokens) == (5, "never", 6)


@pytest.mark.parametrize("options", [{"repetition_penalty": 1e3}, {"no_repeat_ngram_size": 1}])
def test_what_a_text_begins_with_counts_as_written(gpt2: Case, tmp_path: Path, options: dict[str, Any]) -> None:
    """Here it ends texts, too: it is as unlikely as all that stands before."""
    said(gpt2, tmp_path / "in", max_new_tokens=12, **options)
    begun = torch.cat((torch.full((3, 1), 98), IDS), dim=1)
    spec = default(tmp_path / "bundle")
    ours = written(mmformer.load(tmp_path / "bundle").model, spec, begun)
    assert ours == ended(theirs(gpt2, tmp_path / "in", begun)[:, begun.shape[1] :], 98)


def test_what_top_k_leaves_is_what_top_p_is_of() -> None:
    logits, uniform = torch.randn(4, 60, generator=DRAWN), torch.linspace(0, 1 - 1e-9, 400, dtype=torch.float64)
    warped = transformers.TopPLogitsWarper(0.7)(None, transformers.TopKLogitsWarper(9)(None, logits.clone()))
    for row, kept in zip(logits, warped > float("-inf"), strict=True):
        chosen = SamplingSpec(top_k=9, top_p=0.7).choose(row.log_softmax(-1).expand(400, -1), uniform)
        assert set(chosen.tolist()) == set(kept.nonzero()[:, 0].tolist())
