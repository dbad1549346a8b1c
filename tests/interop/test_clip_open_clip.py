"""CLIP as open_clip keeps it, and OpenAI's own weights: the way in, the numbers of open_clip's own, the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import DEEP, SHALLOW, Case, check_gradients, close, imported, randomise
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from mmformer.errors import InputError
from mmformer.interop.exporting import export_model
from mmformer.interop.importing import import_model
from mmformer.models.model import Model
from mmformer.surgery.edit import EditSpec, edit_bundle
from mmformer.types import Batch, Outputs, Text

open_clip = pytest.importorskip("open_clip", reason="the reference")

PICTURE = {"image_size": 32, "patch_size": 8, "layers": 3, "width": 40, "head_width": 10}
TEXT = {"context_length": 12, "vocab_size": 99, "width": 32, "heads": 4, "layers": 3}
MODEL = {"embed_dim": 24, "vision_cfg": PICTURE, "text_cfg": TEXT}
COLOURS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
PICTURES = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
LENGTHS = torch.tensor([12, 5, 8])
IDS = torch.randint(1, 97, (3, 12), generator=torch.Generator().manual_seed(1))
VALID = torch.arange(12) < LENGTHS[:, None]
IDS[torch.arange(3), LENGTHS - 1] = 98
IDS[~VALID] = 0


def saved(config: dict[str, Any], folder: Path) -> Case:
    """A model of open_clip with random weights, in a folder as it is pushed to the hub."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": COLOURS}))
    reference = opened(folder, load_weights=False)
    randomise(reference)
    save_file(reference.state_dict(), folder / "open_clip_model.safetensors")
    return Case(reference, folder)


def opened(folder: Path, **options: Any) -> Any:
    return open_clip.create_model(f"local-dir:{folder}", **options).eval()


def normalised(pictures: Tensor, colours: dict[str, Any] = COLOURS) -> Tensor:
    mean, std = (torch.tensor(colours[name])[:, None, None] for name in ("mean", "std"))
    return (pictures / 255 - mean) / std


def outputs(model: Model, valid: Tensor | None = VALID) -> Outputs:
    made: Outputs = model(Batch((), {}, image=PICTURES, text=Text(IDS, torch.full((3,), 12), valid)))
    return made


def scores(made: Outputs) -> Tensor:
    image, text = (F.normalize(made.embedding[name], dim=-1) for name in ("image", "text"))
    scaled = made.scale["contrastive"] * image @ text.T
    return scaled + made.bias["contrastive"] if made.bias else scaled


def check_embeddings(
    case: Case, model: Model, valid: Tensor | None = VALID, colours: Any = COLOURS, tolerance: float = SHALLOW
) -> None:
    with torch.no_grad():
        ours, pixels = outputs(model, valid), normalised(PICTURES, colours)
        close(ours.embedding["image"], case.reference.encode_image(pixels), tolerance, measured="image embeddings")
        close(ours.embedding["text"], case.reference.encode_text(IDS), tolerance, measured="text embeddings")
        close(scores(ours), case.reference.get_logits(pixels, IDS)[0], tolerance, measured="logits")


def check_out(case: Case, bundle: Path, folder: Path) -> None:
    """What came goes out to the bit, with its config, and open_clip opens it."""
    export_model(bundle, "open_clip", folder)
    first, second = (load_file(where / "open_clip_model.safetensors") for where in (case.folder, folder))
    assert first.keys() == second.keys()
    assert all(value.dtype == second[name].dtype and torch.equal(value, second[name]) for name, value in first.items())
    configs = [json.loads((where / "open_clip_config.json").read_text()) for where in (case.folder, folder)]
    assert configs[0] == configs[1]
    again = opened(folder)
    with torch.no_grad():
        theirs = case.reference.get_logits(normalised(PICTURES), IDS)[0]
        assert torch.equal(again.get_logits(normalised(PICTURES), IDS)[0], theirs)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return saved(MODEL, tmp_path_factory.mktemp("clip"))


def test_embeddings_tokens_and_logits(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle", "open_clip").model
    check_embeddings(case, model)
    with torch.no_grad():
        made, reference = outputs(model), case.reference
        seen = reference.visual.transformer(reference.visual._embeds(normalised(PICTURES)))
        close(made.tokens["image"].x, reference.visual.ln_post(seen))
        read = reference.token_embedding(IDS) + reference.positional_embedding
        read = reference.ln_final(reference.transformer(read, attn_mask=reference.attn_mask))
        close(made.tokens["text"].x[VALID], read[VALID])


def test_gradients(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle", "open_clip").model.train()
    theirs = case.reference.train().get_logits(normalised(PICTURES), IDS)[0]
    check_gradients(scores(outputs(model)), model, theirs, case, "open_clip")
    case.reference.eval()


def test_the_way_out(case: Case, tmp_path: Path) -> None:
    imported(case, tmp_path / "bundle", "open_clip")
    check_out(case, tmp_path / "bundle", tmp_path / "out")


@pytest.mark.parametrize("change", [{"image_size": (48, 48)}, {"context_length": 16}], ids=["picture", "text"])
def test_an_edited_model_reads_colours_as_before(case: Case, change: dict[str, Any], tmp_path: Path) -> None:
    imported(case, tmp_path / "bundle", "open_clip")
    assert edit_bundle(tmp_path / "bundle", tmp_path / "edited", EditSpec(**change)).beside == []
    export_model(tmp_path / "edited", "open_clip", tmp_path / "out")
    prepared = opened(tmp_path / "out").visual.preprocess_cfg
    size = change.get("image_size", (32, 32))
    assert {key: prepared[key] for key in (*COLOURS, "size")} == {**COLOURS, "size": size}


TEXTS = [
    "a photo of a cat",
    "Two  DOGS &amp; a bird!!",
    "I can't \u2026 42 \U0001f600",
    "a text that is longer than its context is " * 4,
]


@pytest.mark.filterwarnings("ignore::mmformer.errors.CutWarning")
def test_texts_and_pictures_as_people_have_them(tmp_path: Path) -> None:
    """With CLIP's vocabulary beside the model, and the way in which it reads pictures in its config."""
    case = saved({**MODEL, "text_cfg": TEXT | {"vocab_size": 49408}}, tmp_path / "in")
    merges = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    (tmp_path / "in" / merges.name).write_bytes(merges.read_bytes())
    model = imported(case, tmp_path / "bundle", "open_clip")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{case.folder}")
    pictures = [Image.fromarray(PICTURES[row].permute(1, 2, 0).numpy()).resize((37, 53)) for row in range(3)]
    prepare = open_clip.create_model_and_transforms(f"local-dir:{case.folder}")[2]
    with torch.no_grad():
        close(model.embed(text=TEXTS), case.reference.encode_text(tokenizer(TEXTS), normalize=True))
        pixels = torch.stack([prepare(picture) for picture in pictures])
        close(model.embed(image=pictures), case.reference.encode_image(pixels, normalize=True))


@pytest.mark.slow
def test_at_published_depth(tmp_path: Path) -> None:
    case = saved({**MODEL, "vision_cfg": PICTURE | {"layers": 24}, "text_cfg": TEXT | {"layers": 12}}, tmp_path / "in")
    check_embeddings(case, imported(case, tmp_path / "bundle", "open_clip").model, tolerance=DEEP)


CLIPA = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True, "norm_kwargs": {"eps": 1e-3}}
EVERYWHERE = {"no_causal_mask": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-2}}


@pytest.mark.parametrize(
    ("top", "picture", "text", "padded"),
    [
        (
            {"quick_gelu": True},
            {"ls_init_value": 1e-4},
            {"ls_init_value": 0.1, "pool_type": "eos", "eos_id": 98},
            False,
        ),
        ({"custom_text": True, "init_logit_bias": -10}, CLIPA | {"mlp_ratio": 4.9231}, EVERYWHERE, True),
        (
            {"custom_text": True},
            {"image_size": [32, 32], "act_kwargs": {"approximate": "tanh"}},
            {"proj_bias": True},
            False,
        ),
        ({"nonscalar_logit_scale": True}, {"patch_dropout": 0.5}, {"pool_type": "last"}, True),
    ],
    ids=["QuickGELU", "CLIPA", "custom text", "last"],
)
def test_variants(top: Any, picture: Any, text: Any, padded: bool, tmp_path: Path) -> None:
    case = saved({**MODEL, **top, "vision_cfg": PICTURE | picture, "text_cfg": TEXT | text}, tmp_path / "in")
    model = imported(case, tmp_path / "bundle", "open_clip").model
    check_embeddings(case, model, None if padded else VALID)
    check_out(case, tmp_path / "bundle", tmp_path / "out")


def test_pictures_with_more_columns_than_rows(tmp_path: Path) -> None:
    case = saved({**MODEL, "vision_cfg": PICTURE | {"image_size": [16, 40]}}, tmp_path / "in")
    model = imported(case, tmp_path / "bundle", "open_clip").model
    pictures = torch.randint(0, 256, (2, 3, 16, 40), dtype=torch.uint8)
    with torch.no_grad():
        ours = model(Batch((), {}, image=pictures)).embedding["image"]
        close(ours, case.reference.encode_image(normalised(pictures)))


def test_weights_of_a_training_run_in_their_old_names(tmp_path: Path) -> None:
    """What several processes saved, with a text tower that is the model's own where the config says it is a part."""
    case = saved({**MODEL, "custom_text": True}, tmp_path / "in")
    old = {name.removeprefix("text."): value for name, value in case.reference.state_dict().items()}
    (tmp_path / "in/open_clip_model.safetensors").unlink()
    kept = {"state_dict": {f"module.{name}": value for name, value in old.items()}, "epoch": 3}
    torch.save(kept, tmp_path / "in/epoch_3.pt")
    import_model(f"open_clip:{tmp_path}/in/epoch_3.pt", tmp_path / "bundle")
    export_model(tmp_path / "bundle", "open_clip", tmp_path / "out")
    again = opened(tmp_path / "out")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in case.reference.state_dict().items())


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights as OpenAI published them: in half the precision for the most part, with numbers among them."""
    sizes = {**MODEL, "quick_gelu": True, "vision_cfg": PICTURE | {"width": 64, "head_width": 64}}
    case = saved({**sizes, "text_cfg": TEXT | {"width": 64, "heads": 1}}, tmp_path_factory.mktemp("openai"))
    open_clip.model.convert_weights_to_fp16(case.reference)
    state = dict(case.reference.state_dict())
    numbers = {"input_resolution": 32, "context_length": 12, "vocab_size": 99}
    folder = tmp_path_factory.mktemp("original")
    save_file(state | {name: torch.tensor(value) for name, value in numbers.items()}, folder / "ViT.safetensors")
    return folder / "ViT.safetensors"


def test_weights_of_openai(original: Path, tmp_path: Path) -> None:
    import_model(str(original), tmp_path / "bundle")
    from mmformer import load

    state = load_file(original)
    reference = open_clip.model.build_model_from_openai_state_dict(dict(state)).float()
    model = load(tmp_path / "bundle").model
    colours = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    check_embeddings(Case(reference, original.parent), model, colours=colours)
    assert model.spec.stacks["text"].layer.feedforward.approximate == "sigmoid"
    export_model(tmp_path / "bundle", "open_clip", tmp_path / "out")
    back = load_file(tmp_path / "out/open_clip_model.safetensors")
    assert back.keys() == state.keys() - {"input_resolution", "context_length", "vocab_size"}
    assert all(value.dtype == state[name].dtype and torch.equal(value, state[name]) for name, value in back.items())
    assert opened(tmp_path / "out").visual.transformer.resblocks[0].mlp.gelu.__class__.__name__ == "QuickGELU"


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:'torch.load' received:UserWarning")
def test_an_archive_with_code_is_refused(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "ViT-B-32.pt")
    with pytest.raises(InputError, match="cannot be read as tensors alone"):
        import_model(str(tmp_path / "ViT-B-32.pt"), tmp_path / "bundle")


def test_weights_that_do_not_say_their_activation_are_refused(case: Case, original: Path, tmp_path: Path) -> None:
    alone = tmp_path / "model.safetensors"
    alone.write_bytes((case.folder / "open_clip_model.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"has no open_clip_config\.json beside it, and is not as OpenAI published"):
        import_model(f"open_clip:{alone}", tmp_path / "bundle")
    state = load_file(original)
    for change, told in (
        ({"vocab_size": torch.tensor(98)}, "has vocab_size 98, but its tensors are of a model with 99"),
        ({"visual.proj": None}, "has no vision transformer, but a ResNet"),
    ):
        kept = {name: value for name, value in (state | change).items() if value is not None}
        save_file(kept, alone)
        with pytest.raises(InputError, match=told):
            import_model(str(alone), tmp_path / "bundle")


def test_from_transformers_to_open_clip(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the other library")
    text = {"hidden_size": 32, "intermediate_size": 100, "num_hidden_layers": 2, "num_attention_heads": 4}
    picture = {"hidden_size": 40, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"vocab_size": 99, "max_position_embeddings": 12, "eos_token_id": 98}
    picture |= {"image_size": 32, "patch_size": 8}
    theirs = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=picture, projection_dim=24)
    ).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "in")
    import_model(f"hf:{tmp_path}/in", tmp_path / "bundle")
    export_model(tmp_path / "bundle", "open_clip", tmp_path / "out")
    again = opened(tmp_path / "out")
    pixels = normalised(PICTURES)
    with torch.no_grad():
        close(again.get_logits(pixels, IDS)[0], theirs(IDS, pixels).logits_per_image)


def test_from_open_clip_to_transformers(case: Case, tmp_path: Path) -> None:
    """Texts end at the highest id in both, and how pictures are prepared differs by what is told."""
    transformers = pytest.importorskip("transformers", reason="the other library")
    import_model(f"open_clip:{case.folder}", tmp_path / "bundle")
    told = export_model(tmp_path / "bundle", "hf", tmp_path / "out")
    assert told.startswith("clip (CLIPModel); pictures are prepared with rounding 'down' in place of 'even'")
    again = transformers.CLIPModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        close(
            again(IDS, normalised(PICTURES)).logits_per_image, case.reference.get_logits(normalised(PICTURES), IDS)[0]
        )
    processor = json.loads((tmp_path / "out/preprocessor_config.json").read_text())
    assert processor["image_mean"] == COLOURS["mean"] and processor["crop_size"] == {"height": 32, "width": 32}


@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, r"layers \[3, 4, 6, 3\], but .* and no ResNet"),
        ("vision_cfg", {"timm_model_name": "fastvit_mci2"}, "timm_model_name 'fastvit_mci2', but of timm's towers"),
        ("vision_cfg", {"qk_norm": True}, "vision_cfg.qk_norm True, but .* is False"),
        ("vision_cfg", {"pos_embed_type": "sin_cos_2d"}, "pos_embed_type 'sin_cos_2d', but .* 'learnable'"),
        ("vision_cfg", {"image_size": 7}, "image_size 7 and vision_cfg.patch_size 8, but .* leaves the same"),
        ("vision_cfg", {"norm_kwargs": {"bias": False}}, "norm_kwargs .* of eps alone"),
        ("vision_cfg", {"attentional_pool": True}, "attentional_pool True, but .* is False"),
        ("vision_cfg", {"rope": True}, "vision_cfg.rope True, which mmformer does not know"),
        ("text_cfg", {"no_causal_mask": True}, "no_causal_mask True and .*pool_type 'argmax', but .* 'last'"),
        ("text_cfg", {"pool_type": "first"}, "pool_type 'first', but .* 'last'"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "hf_model_name 'roberta-base', but .* is None"),
        ("text_cfg", {"tokenizer_kwargs": {"strip_sep_token": True}}, "tokenizer_kwargs .* and nothing else"),
        ("text_cfg", {"layers": 2}, "left over: transformer.resblocks.2"),
        (None, {"quick_gelu": True, "text_cfg": TEXT | {"act_kwargs": {"approximate": "tanh"}}}, "QuickGELU for all"),
        (None, {"embed_dim": 32}, r"visual.proj \(40, 24\), but the config asks for \(32, 40\)"),
        (None, {"text_cfg": None}, "has no text_cfg, which says what the model is"),
    ],
)
def test_what_does_not_fit_is_told(case: Case, tmp_path: Path, part: str | None, change: Any, told: str) -> None:
    found = json.loads((case.folder / "open_clip_config.json").read_text())
    (found["model_cfg"] if part is None else found["model_cfg"][part]).update(change)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(found))
    state = (case.folder / "open_clip_model.safetensors").read_bytes()
    (tmp_path / "open_clip_model.safetensors").write_bytes(state)
    with pytest.raises(InputError, match=told):
        import_model(f"open_clip:{tmp_path}", tmp_path / "bundle")
