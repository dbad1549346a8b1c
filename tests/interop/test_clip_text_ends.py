"""Where CLIPs that were made here read their texts once they are elsewhere: at their ends, or they do not go out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import vocabulary_folders
from parity import Case, close, imported, randomise, saved
from torch import Tensor

import mmformer
from mmformer.bundle import Transforms, save_bundle
from mmformer.errors import InputError
from mmformer.interop.exporting import export_model
from mmformer.interop.families import clip, clip_towers
from mmformer.interop.family import Family
from mmformer.interop.importing import import_model
from mmformer.models.logits import text_of
from mmformer.models.model import Model
from mmformer.tokenizers.special import SpecialIds
from mmformer.types import Batch, Text

transformers = pytest.importorskip("transformers", reason="a reference")

TEXT = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"vocab_size": 99, "max_position_embeddings": 16},
}
PICTURE = {
    **{"hidden_size": 40, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"image_size": 32, "patch_size": 8},
}
BOTH = {"text_config": TEXT, "vision_config": PICTURE, "projection_dim": 24}
KINDS: dict[str, tuple[Family, dict[str, Any]]] = {
    "CLIPModel": (clip.CLIP, BOTH),
    "CLIPTextModelWithProjection": (clip_towers.TEXTS, {**TEXT, "projection_dim": 24}),
}
OWN = {"vocabulary": tiny.VOCABULARY, "rows": tiny.vocabulary().padded_size(64), "ids": None, "begin": False}
"""A vocabulary that was made here."""
WORDS = torch.randint(50, 90, (3, 13), generator=torch.Generator().manual_seed(1))
LENGTHS = torch.tensor([13, 6, 9])
VALID = torch.arange(13) < LENGTHS[:, None]


def ending(eos: int) -> Tensor:
    """Texts of several lengths, with 0 after their ends."""
    return WORDS.scatter(1, LENGTHS[:, None] - 1, eos).where(VALID, 0)


def made_here(bundle: Path, kind: str = "CLIPModel", **changes: Any) -> Model:
    """A model of a class, whose texts are read otherwise than the class's own."""
    family, config = KINDS[kind]
    spec = family.spec(config, kind, kind)
    encoder = spec.encoders["text"]
    tokenizer = dataclasses.replace(encoder.tokenizer, **changes)
    encoders = {**spec.encoders, "text": dataclasses.replace(encoder, tokenizer=tokenizer)}
    model = dataclasses.replace(spec, encoders=encoders).build().eval()
    randomise(model)
    save_bundle(bundle, model, Transforms(), "# It\n")
    return model


def ours(model: Model, ids: Text) -> Tensor:
    with torch.no_grad():
        embedding: Tensor = model(Batch((), {}, text=ids)).embedding["text"]
    return embedding


def theirs(kind: str, folder: Path, ids: Tensor) -> Tensor:
    reference = getattr(transformers, kind).from_pretrained(folder).eval()
    with torch.no_grad():
        if kind == "CLIPModel":
            made: Tensor = reference.get_text_features(ids).pooler_output
        else:
            made = reference(ids).text_embeds
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eos", [3, 98])
def test_transformers_reads_a_text_at_its_end(kind: str, eos: int, tmp_path: Path) -> None:
    """Words have higher ids than 3, and lower ones than 98."""
    model = made_here(tmp_path / "bundle", kind, ids=SpecialIds(pad=0, bos=1, eos=(eos,)))
    export_model(tmp_path / "bundle", "hf", tmp_path / "out")
    ids = ending(eos)
    assert bool((ids.argmax(1) == LENGTHS - 1).all()) == (eos == 98)
    close(ours(model, text_of(ids, VALID)), theirs(kind, tmp_path / "out", ids), measured="text embeddings")


def test_a_vocabulary_of_our_own_says_what_ends_a_text(tmp_path: Path) -> None:
    words = tiny.vocabulary()
    model = made_here(tmp_path / "bundle", **OWN)
    export_model(tmp_path / "bundle", "hf", tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["text_config"]["eos_token_id"] == words.ids.eos[0] < len(words) - 1
    ids = model.spec.encoders["text"].tokenizer.encoder().encode(["a red square", "two", "a large blue circle"])
    close(ours(model, ids), theirs("CLIPModel", tmp_path / "out", ids.ids), measured="text embeddings")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            OWN | {"rows": None},
            f"no encoders.text.tokenizer.rows, .* set it in its model.yaml to {OWN['rows']}, as many",
        ),
        (
            {"ids": SpecialIds(bos=0, eos=(2,))},
            "last token, which is 2, but a clip .* eos_token_id, where 2 means its hi",
        ),
        ({"ids": SpecialIds(bos=0)}, "looks for the id that ends it, and its .*tokenizer.ids has no eos"),
        ({"ids": SpecialIds(bos=0, eos=(98,)), "end": False}, "tokenizer.end is false: set it, if it was trained"),
        ({"ids": SpecialIds(bos=98, eos=(98,))}, "looks for the first 98, which begins its texts, too"),
    ],
)
def test_what_would_be_read_elsewhere_does_not_go_out(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    made_here(tmp_path / "bundle", **changes)
    with pytest.raises(InputError, match=told):
        export_model(tmp_path / "bundle", "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_end_of_2_that_is_the_highest_goes_out(tmp_path: Path) -> None:
    made_here(tmp_path / "bundle", ids=SpecialIds(bos=0, eos=(2,)), rows=3)
    export_model(tmp_path / "bundle", "hf", tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["text_config"]["eos_token_id"] == 2


@pytest.mark.parametrize("eos", [2, 3, 98])
def test_open_clip_reads_a_text_at_its_end(eos: int, tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip", reason="a reference")
    model = made_here(tmp_path / "bundle", ids=SpecialIds(pad=0, bos=1, eos=(eos,)))
    export_model(tmp_path / "bundle", "open_clip", tmp_path / "out")
    said = json.loads((tmp_path / "out/open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    assert (said["pool_type"], said.get("eos_id")) == (("argmax", None) if eos == 98 else ("eos", eos))
    ids, padding = ending(eos), torch.zeros(3, 3, dtype=torch.int64)  # it wants the whole context
    with torch.no_grad():
        reference = open_clip.create_model(f"local-dir:{tmp_path}/out").eval()
        read = reference.encode_text(torch.cat((ids, padding), dim=1))
    close(ours(model, text_of(ids, VALID)), read, measured="text embeddings")


@pytest.mark.parametrize(("said", "eos"), [(3, 3), (2, 98)])
def test_the_end_is_known_of_a_model_without_a_vocabulary(said: int, eos: int, tmp_path: Path) -> None:
    """Where transformers' config says 2, it means the highest id: it goes to open_clip as that."""
    config = transformers.CLIPConfig(
        text_config=TEXT | {"eos_token_id": said}, vision_config=PICTURE, projection_dim=24
    )
    case = saved(transformers.CLIPModel(config), tmp_path / "in")
    model = imported(case, tmp_path / "bundle").model
    assert model.spec.encoders["text"].tokenizer.ids.eos == (eos,)
    with torch.no_grad():
        read = case.reference.get_text_features(ending(eos)).pooler_output
    close(ours(model, text_of(ending(eos), VALID)), read)
    export_model(tmp_path / "bundle", "open_clip", tmp_path / "out")
    text = json.loads((tmp_path / "out/open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    assert (text["pool_type"], text.get("eos_id")) == (("argmax", None) if eos == 98 else ("eos", eos))


def test_the_end_that_open_clip_says_goes_to_transformers(tmp_path: Path) -> None:
    """As in its multilingual models; and back to open_clip, all comes back as it was."""
    open_clip = pytest.importorskip("open_clip", reason="a reference")
    model = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 40, "head_width": 10},
        "text_cfg": {"context_length": 13, "vocab_size": 99, "width": 32, "heads": 4, "layers": 2, "pool_type": "eos"},
    }
    for eos in (3, 2):
        folder = tmp_path / str(eos)
        folder.mkdir()
        model["text_cfg"]["eos_id"] = eos
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
        reference = open_clip.create_model(f"local-dir:{folder}", load_weights=False).eval()
        randomise(reference)
        torch.save(reference.state_dict(), folder / "open_clip_pytorch_model.bin")
        imported(Case(reference, folder), tmp_path / f"bundle{eos}", "open_clip")
        export_model(tmp_path / f"bundle{eos}", "open_clip", tmp_path / f"back{eos}")
        back = json.loads((tmp_path / f"back{eos}/open_clip_config.json").read_text())["model_cfg"]
        assert back == model
        if eos == 2:
            with pytest.raises(InputError, match="where 2 means its highest id: export it --to open_clip"):
                export_model(tmp_path / f"bundle{eos}", "hf", tmp_path / "out2")
            continue
        export_model(tmp_path / f"bundle{eos}", "hf", tmp_path / "out3")
        with torch.no_grad():
            close(theirs("CLIPModel", tmp_path / "out3", ending(3)), reference.encode_text(ending(3)))


@pytest.mark.parametrize(("eos", "fits"), [(None, True), (2, True), (7, False)], ids=["its own", "highest", "another"])
def test_a_vocabulary_that_ends_texts_otherwise_is_refused(eos: int | None, fits: bool, tmp_path: Path) -> None:
    """CLIP's own has its end as the highest id."""
    folder = vocabulary_folders.clip(tmp_path / "in")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    own = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id if eos is None else eos}
    config = transformers.CLIPConfig(text_config=TEXT | own, vision_config=PICTURE, projection_dim=24)
    saved(transformers.CLIPModel(config), folder)
    if fits:
        import_model(f"hf:{folder}", tmp_path / "bundle")
        spec = mmformer.load(tmp_path / "bundle").model.spec
        assert spec.encoders["text"].tokenizer.words().ids.eos == (tokenizer.eos_token_id,)
        return
    told = f"texts read at the id 7, but the vocabulary beside it ends them with {tokenizer.eos_token_id}"
    with pytest.raises(InputError, match=told):
        import_model(f"hf:{folder}", tmp_path / "bundle")
