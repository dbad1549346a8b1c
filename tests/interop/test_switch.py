"""Switch Transformers: the way in, the numbers of transformers' own, tokens that find no place, the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import Case, check_gradients, check_round_trip, close, imported, saved
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmformer.errors import InputError
from mmformer.generation.decoding import Decoding
from mmformer.generation.sampling import GreedySpec
from mmformer.interop.exporting import export_model
from mmformer.interop.importing import import_model
from mmformer.models.logits import text_logits, text_of
from mmformer.types import Batch

transformers = pytest.importorskip("transformers", reason="the reference")

SIZES = {
    **{"vocab_size": 99, "d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 4, "num_decoder_layers": 3},
    **{"num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 1, "num_experts": 3, "expert_capacity": 64},
    **{"num_heads": 4, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12},
    **{"dropout_rate": 0.0, "router_jitter_noise": 0.0, "layer_norm_epsilon": 1e-4, "decoder_start_token_id": 0},
}
"""Experts in every other layer of the encoder, and in the second of the decoder's three."""
DRAWN = torch.Generator().manual_seed(1)
IDS = torch.randint(2, 99, (3, 17), generator=DRAWN)
WRITTEN = torch.cat((torch.zeros(3, 1, dtype=torch.int64), torch.randint(2, 99, (3, 14), generator=DRAWN)), dim=1)
VALID = torch.arange(17) < torch.tensor([[17], [9], [4]])


def switch(folder: Path, size: float = 1.0, **more: Any) -> Case:
    config = transformers.SwitchTransformersConfig(**SIZES | more)
    case = saved(transformers.SwitchTransformersForConditionalGeneration(config), folder, size)
    if not config.tie_word_embeddings:  # transformers would have three tables besides
        for part in (case.reference.encoder, case.reference.decoder):
            part.embed_tokens.weight.data.copy_(case.reference.shared.weight)
        case.reference.save_pretrained(folder)
    return case


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return switch(tmp_path_factory.mktemp("switch"))


def theirs_of(case: Case, valid: Tensor | None = None) -> Any:
    mask = None if valid is None else valid.long()
    return case.reference(IDS, attention_mask=mask, decoder_input_ids=WRITTEN)


def test_logits_and_hidden_states(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle")
    with torch.no_grad():
        theirs = theirs_of(case)
        close(model.logits(IDS, decoder_ids=WRITTEN), theirs.logits, measured="logits")
        close(model.model(Batch((), {}, text=text_of(IDS))).tokens["source"].x, theirs.encoder_last_hidden_state)


def test_padded_rows(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle")
    with torch.no_grad():
        theirs = theirs_of(case, VALID)
        close(model.logits(IDS, decoder_ids=WRITTEN, valid=VALID), theirs.logits, measured="logits")


@pytest.mark.parametrize(
    "more",
    [
        {"num_sparse_encoder_layers": 4, "num_sparse_decoder_layers": 3},  # all layers, as Switch-C
        {"tie_word_embeddings": False, "dense_act_fn": "gelu_new"},
        {"num_layers": 5, "num_sparse_encoder_layers": 0, "num_sparse_decoder_layers": 0},  # one, for transformers
    ],
)
def test_other_sizes(more: dict[str, Any], tmp_path: Path) -> None:
    case = switch(tmp_path / "in", **more)
    model = imported(case, tmp_path / "bundle")
    with torch.no_grad():
        close(model.logits(IDS, decoder_ids=WRITTEN), theirs_of(case).logits, measured="logits")
    load = transformers.SwitchTransformersForConditionalGeneration.from_pretrained
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out", load)


def test_tokens_of_the_encoder_that_find_no_place(tmp_path: Path) -> None:
    """An expert takes the first three of a row that choose it, in evaluation, too; padding comes after all."""
    few, many = switch(tmp_path / "few", expert_capacity=3), switch(tmp_path / "many")
    model = imported(few, tmp_path / "bundle").model
    with torch.no_grad():
        theirs = [each.reference.encoder(IDS, attention_mask=VALID.long()).last_hidden_state for each in (few, many)]
        ours = model(Batch((), {}, text=text_of(IDS, VALID)), decode=False).tokens["source"].x
    close(ours[VALID], theirs[0][VALID], measured="hidden states, places")
    assert float((theirs[0] - theirs[1])[VALID].abs().max()) > 0.1


def test_gradients(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle").model.train()
    ours = text_logits(model, None, text_of(IDS, VALID), text_of(WRITTEN), {})
    case.reference.train()
    check_gradients(ours, model, theirs_of(case, VALID).logits, case)
    case.reference.eval()


def test_greedy_writing(tmp_path: Path) -> None:
    """Token for token, over rows that are padded, to more tokens than an expert of the encoder has places."""
    case = switch(tmp_path / "in", size=8.0, expert_capacity=6)
    model = imported(case, tmp_path / "bundle").model
    encoded = model(Batch((), {}, text=text_of(IDS, VALID)), decode=False)
    theirs = case.reference.generate(IDS, attention_mask=VALID.long(), do_sample=False, max_new_tokens=20)[:, 1:]
    decoding = Decoding(model, "target", encoded.tokens, rows=3)
    ours = GreedySpec(max_length=20).write(decoding, text_of(torch.zeros(3, 1).long()))
    for row, written in zip(theirs.tolist(), ours, strict=True):
        assert written.ids == (row[: row.index(1)] if 1 in row else row)
    assert any(len(set(written.ids)) > 3 for written in ours), "more than one id over and over"


def test_the_way_out(case: Case, tmp_path: Path) -> None:
    imported(case, tmp_path / "bundle")
    load = transformers.SwitchTransformersForConditionalGeneration.from_pretrained
    check_round_trip(case, tmp_path / "bundle", tmp_path / "out", load)


def test_a_weight_that_is_not_read(case: Case, tmp_path: Path) -> None:
    """Published models have a bias for the cross attention, as T5's have."""
    state = load_file(case.folder / "model.safetensors")
    state["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.randn(8, 4)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((case.folder / "config.json").read_bytes())
    import_model(f"hf:{tmp_path}", tmp_path / "bundle")
    export_model(tmp_path / "bundle", "hf", tmp_path / "out")
    written = load_file(tmp_path / "out/model.safetensors")
    assert written.keys() == state.keys() and all(torch.equal(value, written[name]) for name, value in state.items())


def test_the_encoder_alone(tmp_path: Path) -> None:
    config = transformers.SwitchTransformersConfig(**SIZES)
    alone = saved(transformers.SwitchTransformersEncoderModel(config), tmp_path / "in")
    model = imported(alone, tmp_path / "bundle").model
    with torch.no_grad():
        theirs = alone.reference(IDS, attention_mask=VALID.long()).last_hidden_state
        close(model(Batch((), {}, text=text_of(IDS, VALID))).tokens["source"].x[VALID], theirs[VALID])
    load = transformers.SwitchTransformersEncoderModel.from_pretrained
    check_round_trip(alone, tmp_path / "bundle", tmp_path / "out", load)


@pytest.mark.slow
def test_at_full_depth(tmp_path: Path) -> None:
    more = {"num_layers": 12, "num_decoder_layers": 12, "num_experts": 8}
    case = switch(tmp_path / "in", num_sparse_encoder_layers=6, num_sparse_decoder_layers=6, **more)
    model = imported(case, tmp_path / "bundle")
    with torch.no_grad():
        theirs = theirs_of(case).logits
        close(model.logits(IDS, decoder_ids=WRITTEN), theirs, 1e-4, measured="logits, full depth")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"dense_act_fn": "mish"}, "has .*dense_act_fn 'mish'.* is a step of 1 to all layers, and an activation of"),
        ({"encoder_sparse_step": 0}, "encoder_sparse_step 0 .* is a step of 1 to all layers"),
        ({"router_bias": True}, "router_bias True, but .* is False"),
        ({"expert_capacities": 4}, "has expert_capacities 4, which mmformer does not know .*expert_capacity"),
        ({"num_experts": 4}, "missing: encoder.block.1.layer.1.mlp.experts.expert_3.wi.weight"),
        ({"encoder_sparse_step": 4}, "encoder.block.3.layer.1.mlp"),
    ],
)
def test_what_does_not_fit_is_told(case: Case, tmp_path: Path, change: dict[str, object], told: str) -> None:
    config = json.loads((case.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    (tmp_path / "model.safetensors").write_bytes((case.folder / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=told):
        import_model(f"hf:{tmp_path}", tmp_path / "bundle")
