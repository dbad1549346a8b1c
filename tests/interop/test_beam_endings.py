"""Searches by beams end where transformers' do, in each of its three ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parity import imported, randomise, saved

from mmformer.bundle import Transforms, save_bundle
from mmformer.generation.beam import BeamSpec, Stop
from mmformer.generation.decoding import Decoding
from mmformer.interop.exporting import export_model
from mmformer.models.logits import text_of
from mmformer.models.model import Model

transformers = pytest.importorskip("transformers", reason="the reference")

WAYS: dict[Stop, bool | str] = {"certain": "never", "likely": False, "full": True}
"""Ours, and ``early_stopping``."""

EOS, BEAMS, LENGTH, ROWS = 8, 2, 16, 12
Pair = tuple[Model, Any]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Ours and theirs, of so few ids and so sure of them that some texts end early, and others would become better."""
    folder = tmp_path_factory.mktemp("ends")
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 9, "n_positions": 32}
    config = transformers.GPT2Config(**sizes, bos_token_id=EOS, eos_token_id=EOS)
    model = imported(saved(transformers.GPT2LMHeadModel(config), folder / "in"), folder / "bundle").model
    randomise(model, seed=1, size=2.0)
    save_bundle(folder / "sure", model, Transforms(), "")
    export_model(folder / "sure", "hf", folder / "out")
    return model, transformers.GPT2LMHeadModel.from_pretrained(folder / "out").eval()


def written(pair: Pair, stop: Stop, penalty: float) -> list[list[int]]:
    """What ours writes, which has to be what transformers does."""
    model, reference = pair
    prompts = torch.randint(0, EOS, (ROWS, 3), generator=torch.Generator().manual_seed(5))
    spec = BeamSpec(max_length=LENGTH, beams=BEAMS, length_penalty=penalty, stop=stop)
    ours = [text.ids for text in spec.write(Decoding(model, "text", {}, rows=ROWS), text_of(prompts))]
    options = {"num_beams": BEAMS, "length_penalty": penalty, "early_stopping": WAYS[stop]}
    found = reference.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=False,
        max_new_tokens=LENGTH,
        pad_token_id=EOS,
        **options,
    )
    theirs = found[:, 3:].tolist()
    assert ours == [ids[: ids.index(EOS)] if EOS in ids else ids for ids in theirs]
    return ours


@pytest.mark.parametrize("penalty", [1.0, 2.0])
def test_searches_end_as_theirs(penalty: float, pair: Pair) -> None:
    ways = [written(pair, stop, penalty) for stop in WAYS]
    ended = [sum(len(ids) < LENGTH for ids in texts) for texts in ways]
    assert 0 < ended[0] < ended[2]
    assert ways[0] != ways[1] != ways[2], "it makes a difference"
