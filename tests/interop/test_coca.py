"""CoCa of open_clip: the way in, the numbers of open_clip's own, what it writes, the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import SHALLOW, Case, check_gradients, close, imported, randomise
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from mmformer.errors import InputError
from mmformer.generation.decoding import Decoding
from mmformer.generation.sampling import GreedySpec
from mmformer.interop.exporting import export_model
from mmformer.interop.importing import import_model
from mmformer.models.logits import text_logits
from mmformer.models.model import Model
from mmformer.types import Batch, Outputs, Text

open_clip = pytest.importorskip("open_clip", reason="the reference")

PICTURE = {
    **{"image_size": 32, "patch_size": 8, "layers": 2, "width": 40, "head_width": 10, "output_tokens": True},
    **{"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 6},
}
TEXT = {
    **{"context_length": 11, "vocab_size": 99, "width": 32, "heads": 4, "layers": 2},
    **{"embed_cls": True, "output_tokens": True},
}
CAPTIONER = {"context_length": 11, "vocab_size": 99, "width": 32, "heads": 8, "layers": 2, "attn_pooler_heads": 4}
MODEL = {"embed_dim": 32, "vision_cfg": PICTURE, "text_cfg": TEXT, "multimodal_cfg": CAPTIONER, "custom_text": True}
PICTURES = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
LENGTHS = torch.tensor([11, 5, 8])
IDS = torch.randint(1, 97, (3, 11), generator=torch.Generator().manual_seed(1))
VALID = torch.arange(11) < LENGTHS[:, None]
IDS[~VALID] = 0
PIXELS = (PICTURES / 255 - 0.5) / 0.5


def saved(config: dict[str, Any], folder: Path) -> Case:
    folder.mkdir(parents=True, exist_ok=True)
    colours = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": colours}))
    reference = opened(folder, load_weights=False)
    randomise(reference)
    save_file(reference.state_dict(), folder / "open_clip_model.safetensors")
    return Case(reference, folder)


def opened(folder: Path, **options: Any) -> Any:
    return open_clip.create_model(f"local-dir:{folder}", **options).eval()


def text(number: int = 11) -> Text:
    return Text(IDS[:, :number], torch.full((3,), number), VALID[:, :number])


def outputs(model: Model) -> Outputs:
    made: Outputs = model(Batch((), {}, image=PICTURES, text=text()), decode=False)
    return made


def scores(made: Outputs) -> Tensor:
    image, read = (F.normalize(made.embedding[name], dim=-1) for name in ("image", "text"))
    return made.scale["contrastive"] * image @ read.T


def check_all(case: Case, model: Model, tolerance: float = SHALLOW) -> None:
    with torch.no_grad():
        made, theirs, read = outputs(model), case.reference(PIXELS, IDS), VALID[:, :-1]
        seen, cosines = (
            case.reference._encode_image(PIXELS, normalize=False),
            theirs["image_features"] @ theirs["text_features"].T,
        )
        close(made.embedding["image"], seen[0], tolerance, measured="image embeddings")
        close(made.tokens["image"].x, seen[1], tolerance)
        words = case.reference.encode_text(IDS, normalize=False)
        close(made.embedding["text"], words, tolerance, measured="text embeddings")
        close(scores(made), theirs["logit_scale"] * cosines, tolerance, measured="similarities")
        ours = text_logits(model, None, text(10), None, {"image": PICTURES})
        close(ours[read], theirs["logits"][read], tolerance, measured="logits")


def check_out(case: Case, bundle: Path, folder: Path) -> None:
    export_model(bundle, "open_clip", folder)
    first, second = (load_file(where / "open_clip_model.safetensors") for where in (case.folder, folder))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    configs = [json.loads((where / "open_clip_config.json").read_text()) for where in (case.folder, folder)]
    assert configs[0] == configs[1]
    with torch.no_grad():
        assert torch.equal(opened(folder)(PIXELS, IDS)["logits"], case.reference(PIXELS, IDS)["logits"])


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return saved(MODEL, tmp_path_factory.mktemp("coca"))


def test_embeddings_tokens_and_logits(case: Case, tmp_path: Path) -> None:
    check_all(case, imported(case, tmp_path / "bundle", "open_clip").model)


def test_texts_need_no_padding_of_their_own(case: Case, tmp_path: Path) -> None:
    """The reference reads the first token of padding: it is put there, wherever a batch was cut."""
    model = imported(case, tmp_path / "bundle", "open_clip").model
    with torch.no_grad():
        cut = model(Batch((), {}, text=Text(IDS[1:, :8], LENGTHS[1:]))).embedding["text"]
        close(cut, case.reference.encode_text(IDS[1:], normalize=False))


def test_gradients(case: Case, tmp_path: Path) -> None:
    model = imported(case, tmp_path / "bundle", "open_clip").model.train()
    theirs = case.reference.train()(PIXELS, IDS)
    cosines = theirs["logit_scale"] * theirs["image_features"] @ theirs["text_features"].T
    read = VALID[:, :-1]
    ours = text_logits(model, None, text(10), None, {"image": PICTURES})
    both = torch.cat((ours[read].flatten(), scores(outputs(model)).flatten()))
    check_gradients(both, model, torch.cat((theirs["logits"][read].flatten(), cosines.flatten())), case, "open_clip")
    case.reference.eval()


@pytest.mark.slow
def test_at_published_depth(tmp_path: Path) -> None:
    parts = {"vision_cfg": PICTURE, "text_cfg": TEXT, "multimodal_cfg": CAPTIONER}
    case = saved({**MODEL, **{name: part | {"layers": 12} for name, part in parts.items()}}, tmp_path / "in")
    check_all(case, imported(case, tmp_path / "bundle", "open_clip").model, 1e-4)


def test_texts_as_people_have_them(tmp_path: Path) -> None:
    """With CLIP's vocabulary beside the model; the reference's is padded with zeros, of which it reads the first."""
    parts = {"text_cfg": TEXT | {"vocab_size": 49408}, "multimodal_cfg": CAPTIONER | {"vocab_size": 49408}}
    case = saved({**MODEL, **parts}, tmp_path / "in")
    merges = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    (tmp_path / "in" / merges.name).write_bytes(merges.read_bytes())
    model, texts = imported(case, tmp_path / "bundle", "open_clip"), ["a cat", "two dogs and a bird", "ten " * 9]
    ids = open_clip.get_tokenizer(f"local-dir:{case.folder}")(texts)
    with torch.no_grad():
        close(model.embed(text=texts), case.reference.encode_text(ids))
        ids = torch.tensor([[49406]])
        for _ in range(5):
            logits = case.reference(PIXELS[:1], ids, output_labels=False)["logits"]
            ids = torch.cat((ids, logits[:, -1:].argmax(-1)), dim=1)
    picture = Image.fromarray(PICTURES[0].permute(1, 2, 0).numpy())
    words = model.reader.text_encoders["target"].vocabulary
    assert model.caption(picture, spec=GreedySpec(max_length=5)) == words.decode(ids[0, 1:].tolist())


def test_both_embeddings_and_the_loss_of_one_pass(tmp_path: Path) -> None:
    """The layers that read texts alone run once for the embedding and the caption, as the reference's do."""
    parts = {"text_cfg": TEXT | {"vocab_size": 49408}, "multimodal_cfg": CAPTIONER | {"vocab_size": 49408}}
    case = saved({**MODEL, **parts}, tmp_path / "in")
    merges = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    (tmp_path / "in" / merges.name).write_bytes(merges.read_bytes())
    model = imported(case, tmp_path / "bundle", "open_clip").model.train()
    ids = IDS.clamp(min=1)
    ids[:, 0], ids[:, -1] = 49406, 49407
    theirs = case.reference.train()(PIXELS, ids)
    runs: list[int] = []
    model.stack_of("text").layers[0].register_forward_hook(lambda *_: runs.append(1))
    made = model(Batch((), {}, image=PICTURES, text=Text(ids, torch.full((3,), 11), begun=True)))
    assert len(runs) == 1
    written = made.losses["caption"]
    loss = written.total / written.items
    wanted = F.cross_entropy(theirs["logits"].flatten(0, 1), theirs["labels"].flatten())
    cosines = theirs["logit_scale"] * theirs["image_features"] @ theirs["text_features"].T
    close(loss.detach()[None], wanted.detach()[None], varied=False, measured="loss")
    close(scores(made).detach(), cosines.detach(), measured="similarities")
    ours = torch.cat((loss[None], scores(made).flatten()))
    check_gradients(ours, model, torch.cat((wanted[None], cosines.flatten())), case, "open_clip")


def test_greedy_captions(case: Case, tmp_path: Path) -> None:
    """Token by token, with a cache, against the reference, which begins anew for each."""
    model = imported(case, tmp_path / "bundle", "open_clip").model
    with torch.no_grad():
        memory = outputs(model).tokens
        written = GreedySpec(max_length=7).write(
            Decoding(model, "caption", memory, rows=3), Text(IDS[:, :2], LENGTHS.clamp(max=2))
        )
        ids = IDS[:, :2]
        for _ in range(7):
            theirs = case.reference(PIXELS, ids, output_labels=False)["logits"]
            ids = torch.cat((ids, theirs[:, -1:].argmax(-1)), dim=1)
    assert [each.ids for each in written] == ids[:, 2:].tolist()


def test_the_way_out(case: Case, tmp_path: Path) -> None:
    imported(case, tmp_path / "bundle", "open_clip")
    check_out(case, tmp_path / "bundle", tmp_path / "out")


@pytest.mark.parametrize(
    ("top", "picture", "words", "captioner"),
    [
        ({"quick_gelu": True}, {"width": 32, "head_width": 8}, {"proj_bias": True}, {"ls_init_value": 0.1}),
        (
            {"init_logit_bias": -5.0},
            {"ls_init_value": 0.3, "no_ln_pre": True},
            {"mlp_ratio": 2.5, "ls_init_value": 0.2},
            {"layers": 3},
        ),
    ],
    ids=["pooler as wide as the pictures", "sizes"],
)
def test_variants(top: Any, picture: Any, words: Any, captioner: Any, tmp_path: Path) -> None:
    parts = {"vision_cfg": PICTURE | picture, "text_cfg": TEXT | words, "multimodal_cfg": CAPTIONER | captioner}
    case = saved({**MODEL, **top, **parts}, tmp_path / "in")
    check_all(case, imported(case, tmp_path / "bundle", "open_clip").model)
    check_out(case, tmp_path / "bundle", tmp_path / "out")
    (tmp_path / "bundle/origin/origin.json").unlink()  # as a model that was made here goes out
    export_model(tmp_path / "bundle", "open_clip", tmp_path / "made")
    with torch.no_grad():
        theirs = case.reference(PIXELS, IDS)["logits"]
        assert torch.equal(opened(tmp_path / "made")(PIXELS, IDS)["logits"], theirs)


@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        ("vision_cfg", {"attentional_pool": "parallel"}, "attentional_pool 'parallel', but .* is True"),
        ("vision_cfg", {"norm_kwargs": {"eps": 1e-6}}, "vision_cfg.norm_kwargs .* is None"),
        ("vision_cfg", {"pool_type": "avg"}, "pool_type 'avg', but .* is 'tok'"),
        ("text_cfg", {"embed_cls": False}, "embed_cls False, but .* is True"),
        ("text_cfg", {"no_causal_mask": True}, "no_causal_mask True, but .* is False"),
        ("text_cfg", {"pad_id": 1}, "pad_id 1, but .* is 0"),
        ("text_cfg", {"norm_kwargs": {"eps": 1e-6}}, "norm_kwargs .* is None"),
        ("multimodal_cfg", {"width": 64}, "multimodal_cfg.width 64 .* text and decoder as wide as the embeddings"),
        ("multimodal_cfg", {"layers": 1}, "left over: text_decoder.cross_attn.1"),
    ],
)
def test_what_does_not_fit_is_told(case: Case, tmp_path: Path, part: str, change: Any, told: str) -> None:
    found = json.loads((case.folder / "open_clip_config.json").read_text())
    found["model_cfg"][part].update(change)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(found))
    state = (case.folder / "open_clip_model.safetensors").read_bytes()
    (tmp_path / "open_clip_model.safetensors").write_bytes(state)
    with pytest.raises(InputError, match=told):
        import_model(f"open_clip:{tmp_path}", tmp_path / "bundle")
