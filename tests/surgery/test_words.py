"""Other vocabularies and longer texts: pieces keep their rows wherever they stand, and so do places."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import TRANSFORMS
from safetensors.torch import load_file, save
from tiny import VOCABULARY, tiny_batch, tiny_model
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor

from mmformer.bundle import Transforms, load_bundle, save_bundle
from mmformer.errors import InputError
from mmformer.interop.exporting import export_model
from mmformer.interop.families.mt5 import MT5
from mmformer.interop.families.t5 import T5
from mmformer.interop.family import Family
from mmformer.interop.origin import Origin, read_origin
from mmformer.models.encoder import EncoderSpec
from mmformer.models.language_head import LanguageHeadSpec
from mmformer.models.model import Model, ModelSpec
from mmformer.nn.position import LearnedPositionSpec
from mmformer.surgery.edit import EditSpec, edit, edit_bundle
from mmformer.tokenizers.special import SpecialIds
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.tokenizers.vocabulary import Vocabulary, VocabularySpec
from mmformer.types import Batch, Text
from tokenizers import Tokenizer

ENCODER, DECODER = "encoders.text.tokenizer.weight", "decoders.caption.tokenizer.weight"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A vocabulary that has some pieces of the emoji's, at other places, and others."""
    texts = ["a red square on a blue sky", "green grass grows", "the grinning face of a cat", "zebra crossing ahead"]
    file = tmp_path_factory.mktemp("words") / "other.model"
    VocabularySpec(size=330).train(texts * 20).save(file)
    return str(file)


def captioning(tied: bool = True) -> Model:
    spec = tiny_model(caption=True)
    decoder = dataclasses.replace(spec.decoders["caption"], tied=tied)
    model = dataclasses.replace(spec, decoders={"caption": decoder}).build()
    model.initialise(0)
    return model.eval()


def pieces(file: str) -> list[str]:
    vocabulary = Vocabulary.load(file)
    return vocabulary.pieces(range(len(vocabulary)))


def rows(table: Tensor, file: str) -> dict[str, Tensor]:
    return dict(zip(pieces(file), table, strict=False))


@pytest.mark.parametrize("new_rows", ["mean", "random"])
@pytest.mark.parametrize("tied", [True, False])
def test_pieces_of_both_keep_their_rows(new_rows: str, tied: bool, other: str) -> None:
    model = captioning(tied)
    edited = edit(model, TRANSFORMS, EditSpec(vocabulary=other, new_rows=new_rows))  # type: ignore[arg-type]
    before, after = model.state_dict(), edited.model.state_dict()
    tables = [ENCODER, DECODER, *([] if tied else ["decoders.caption.output.weight"])]
    assert list(edited.report.remade) == tables
    both = set(pieces(VOCABULARY)) & set(pieces(other))
    assert 260 < len(both) < len(pieces(other)), "bytes, special tokens and some words"
    for name in tables:
        theirs, ours = rows(before[name], VOCABULARY), rows(after[name], other)
        assert all(torch.equal(ours[piece], theirs[piece]) for piece in both)
        new = torch.stack([ours[piece] for piece in ours if piece not in both])
        mean = torch.stack(list(theirs.values())).mean(0)
        torch.testing.assert_close(new, mean.expand_as(new)) if new_rows == "mean" else None
        assert (new_rows == "mean") == torch.allclose(new, mean.expand_as(new), atol=1e-6)
        assert len(after[name]) % 64 == 0
    assert edited.report.remade[ENCODER].startswith(f"the rows of {len(both)} of {len(pieces(VOCABULARY))} pieces are")


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_over_words_goes_with_them(tied: bool, other: str) -> None:
    dual = tiny_model()
    heads = {"mask": LanguageHeadSpec("text", tied=tied)}
    model = ModelSpec({"text": dual.stacks["text"]}, {"text": dual.encoders["text"]}, heads=heads).build()
    model.initialise(0)
    with torch.no_grad():
        model.get_parameter("heads.mask.bias").copy_(torch.randn(len(pieces(VOCABULARY))))
    edited = edit(model, Transforms(), EditSpec(vocabulary=other))
    tables = {ENCODER, "heads.mask.bias", *(() if tied else ("heads.mask.output.weight",))}
    assert set(edited.report.remade) == tables
    for name in tables:
        theirs, ours = rows(model.state_dict()[name], VOCABULARY), rows(edited.model.state_dict()[name], other)
        assert all(torch.equal(ours[piece], theirs[piece]) for piece in ours.keys() & theirs.keys()), name


def test_one_table_for_what_is_read_and_written_stays_one(other: str) -> None:
    spec = tiny_model(caption=True)
    decoder = dataclasses.replace(spec.decoders["caption"], shares="text", logit_bias=True)
    model = dataclasses.replace(spec, decoders={"caption": decoder}).build()
    model.initialise(0)
    with torch.no_grad():
        model.get_parameter("decoders.caption.logit_bias").copy_(torch.randn(len(pieces(VOCABULARY))))
    edited = edit(model, TRANSFORMS, EditSpec(vocabulary=other))
    assert list(edited.report.remade) == [ENCODER, "decoders.caption.logit_bias"]
    for name in edited.report.remade:
        theirs, ours = rows(model.state_dict()[name], VOCABULARY), rows(edited.model.state_dict()[name], other)
        assert all(torch.equal(ours[piece], theirs[piece]) for piece in ours.keys() & theirs.keys()), name


def test_a_text_of_old_pieces_means_what_it_did(other: str) -> None:
    """Whatever ids its pieces have now."""
    model = captioning()
    edited = edit(model, TRANSFORMS, EditSpec(vocabulary=other))
    both = [piece for piece in pieces(other) if piece in set(pieces(VOCABULARY))][-9:]
    ids = [[pieces(file).index(piece) for piece in both] for file in (VOCABULARY, other)]
    assert ids[0] != ids[1]
    batches = [Batch(("a",), {}, text=Text(torch.tensor([row]), torch.tensor([len(both)]))) for row in ids]
    expected, found = model(batches[0], decode=False), edited.model(batches[1], decode=False)
    assert torch.equal(found.embedding["text"], expected.embedding["text"])


def test_a_bundle_takes_its_new_vocabulary_along(other: str, tmp_path: Path) -> None:
    save_bundle(tmp_path / "old", captioning(), Transforms(TRANSFORMS.image), "# A tiny model\n")
    edit_bundle(tmp_path / "old", tmp_path / "new", EditSpec(vocabulary=other))
    model, _ = load_bundle(tmp_path / "new")
    tokenizer = model.spec.encoders["text"].tokenizer
    assert isinstance(tokenizer, TextTokensSpec)
    assert tokenizer.words().fingerprint == Vocabulary.load(other).fingerprint


PREPARED, ELSEWHERE = ("preprocessor_config.json", "processor_config.json"), "open_clip_config.json"
"""Which an export to its library mends, and what that does not look at."""


def beside(**unread: int) -> dict[str, bytes]:
    """Files that came with a model, and tensors of some lengths that it does not read."""
    origin = Origin("hf", "none", "None", {}, dtypes={"": "float16", "counted": "int64"})
    files = {"origin.json": origin.to_bytes(), "tokenizer.json": b"{}", "more.json": b"{}"}
    files |= dict.fromkeys(("generation_config.json", *PREPARED, ELSEWHERE), b"{}")
    files |= {"unread.safetensors": save({name: torch.ones(length) for name, length in unread.items()})}
    return {f"origin/{name}": content for name, content in files.items()}


@pytest.mark.parametrize(
    ("change", "left", "told"),
    [
        ("vocabulary", [*PREPARED, "origin.json"], ["more.json", "generation_config.json", ELSEWHERE, "words"]),
        ("context_length", [*PREPARED, "generation_config.json", "origin.json"], ["more.json", ELSEWHERE]),
        (
            "image_size",
            [*PREPARED, "generation_config.json", "more.json", "origin.json", "tokenizer.json"],
            [ELSEWHERE],
        ),
        ("drop", None, []),
    ],
)
def test_what_came_with_a_model_stays_as_long_as_it_is_true(
    change: str, left: list[str] | None, told: list[str], other: str, tmp_path: Path
) -> None:
    """Weights that it does not read are its own; files that an export writes anew are not missed."""
    model, files = captioning(), beside(pooler=7, words=len(captioning().state_dict()[ENCODER]))
    save_bundle(tmp_path / "old", model, Transforms(TRANSFORMS.image), "# A tiny model\n", files)
    values: dict[str, Any] = {"vocabulary": other, "context_length": 12, "image_size": (32, 32)}
    spec = EditSpec(**{change: values.get(change, ("heads.contrastive",))})
    report = edit_bundle(tmp_path / "old", tmp_path / "new", spec)
    found = sorted(path.name for path in (tmp_path / "new" / "origin").iterdir())
    names = [name.removeprefix("origin/") for name in files]
    assert found == sorted(names if left is None else [*left, "unread.safetensors"])
    assert sorted(report.beside) == sorted(told)
    origin = read_origin(tmp_path / "new")
    assert origin is not None
    half = {"": "float16", "counted": "int64"}
    assert origin.dtypes == (half | {"": "float32"} if report.remade else half), "what is remade is not rounded"
    assert all(f"dropped  {name}, which came with the model" in report.lines() for name in told)
    kept = load_file(tmp_path / "new/origin/unread.safetensors")
    assert kept.keys() == {"pooler", *({"words"} - set(told))}


@pytest.mark.parametrize("family", [T5, MT5], ids=lambda family: family.name)
def test_other_words_for_a_model_without_its_decoder(family: Family, other: str, tmp_path: Path) -> None:
    """A T5 that came whole: what is left goes out as its class of an encoder alone, with the new special ids."""
    whole, alone = family.layouts
    words = {"vocab_size": 8192, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4}
    spec = family.spec({**words, "eos_token_id": 1}, whole, "here")
    tokenizer = TextTokensSpec(VOCABULARY, 16, rows=8192)
    encoders = {"source": dataclasses.replace(spec.encoders["source"], tokenizer=tokenizer)}
    decoders = {"target": dataclasses.replace(spec.decoders["target"], tokenizer=tokenizer)}
    model = dataclasses.replace(spec, encoders=encoders, decoders=decoders).build()
    model.initialise(0)
    origin = Origin("hf", family.name, whole, {**words, "eos_token_id": 1})
    save_bundle(tmp_path / "old", model, Transforms(), "", {"origin/origin.json": origin.to_bytes()})
    edit_bundle(tmp_path / "old", tmp_path / "new", EditSpec(drop=("decoders.target",), vocabulary=other))
    assert export_model(tmp_path / "new", "hf", tmp_path / "out") == f"{family.name} ({alone})"
    eos = Vocabulary.load(other).ids.eos
    for file in (tmp_path / "new" / "origin" / "origin.json", tmp_path / "out" / "config.json"):
        said = json.loads(file.read_text())
        assert [said.get("config", said)["eos_token_id"]] == list(eos)


def test_tokens_are_put_in_the_places_of_the_same_piece(other: str) -> None:
    """Wherever it stands; a vocabulary that has no such piece is refused, and so is an id that none could have."""
    here = pieces(VOCABULARY).index("▁red")
    assert here != pieces(other).index("▁red")

    def inserting(placeholder: int) -> Model:
        spec = tiny_model(caption=True)
        reads = {"reads": {"image": "insert"}, "content": True, "placeholder": placeholder}
        decoder = dataclasses.replace(spec.decoders["caption"], **reads)  # type: ignore[arg-type]
        layer = dataclasses.replace(spec.stacks[decoder.stack].layer, cross=None)
        stacks = {**spec.stacks, decoder.stack: dataclasses.replace(spec.stacks[decoder.stack], layer=layer)}
        return dataclasses.replace(spec, stacks=stacks, decoders={"caption": decoder}).build()

    edited = edit(inserting(here), TRANSFORMS, EditSpec(vocabulary=other))
    assert edited.model.spec.decoders["caption"].placeholder == pieces(other).index("▁red")
    lost = next(piece for piece in pieces(VOCABULARY) if piece not in set(pieces(other)))
    with pytest.raises(InputError, match=f"--vocabulary has no {lost!r}, which is one of the model's special tokens"):
        edit(inserting(pieces(VOCABULARY).index(lost)), TRANSFORMS, EditSpec(vocabulary=other))


def reading(places: int) -> Model:
    dual = tiny_model()
    stack = dataclasses.replace(dual.stacks["text"], position=LearnedPositionSpec((0,), (places,)))
    model = ModelSpec({"text": stack}, {"text": EncoderSpec(TextTokensSpec(VOCABULARY, 16), "text")}).build()
    model.initialise(0)
    return model.eval()


def test_longer_texts_have_drawn_places_after_the_learned_ones() -> None:
    model, key = reading(16), "stacks.text.position.weight"
    edited = edit(model, Transforms(), EditSpec(context_length=40))
    before, after = model.state_dict(), edited.model.state_dict()
    assert edited.report.remade == {key: "16 places are kept, 24 are drawn"}
    assert torch.equal(after[key][:17], before[key])
    assert 0.01 < float(after[key][17:].std()) < 0.03
    batch = tiny_batch(["red", "a small blue square"])._replace(image=None)
    assert torch.equal(edited.model(batch).embedding["text"], model(batch).embedding["text"])
    text = edited.model.spec.text_encoders()["text"].encode(["a red square " * 20])
    assert text.ids.shape == (1, 40)
    other = edit(model, Transforms(), EditSpec(context_length=40, seed=1)).model.state_dict()
    assert not torch.equal(other[key], after[key])


@pytest.mark.parametrize(("places", "length"), [(16, 8), (64, 40)])
def test_where_there_is_room_only_the_limit_moves(places: int, length: int) -> None:
    model = reading(places)
    edited = edit(model, Transforms(), EditSpec(context_length=length))
    assert len(edited.report.copied) == len(model.state_dict())
    assert edited.model.spec.encoders["text"].tokenizer == TextTokensSpec(VOCABULARY, length)


def test_what_cannot_be_is_refused(other: str) -> None:
    image = tiny_model()
    blind = ModelSpec({"image": image.stacks["image"]}, {"image": image.encoders["image"]}).build()
    for spec in (EditSpec(vocabulary=other), EditSpec(context_length=9)):
        with pytest.raises(InputError, match="is of texts, but no encoder or decoder of the model reads them"):
            edit(blind, TRANSFORMS, spec)
    learned = dataclasses.replace(tiny_model().stacks["text"], position=LearnedPositionSpec((0, 1), (16, 1)))
    model = reading(16)
    model = dataclasses.replace(model.spec, stacks={"text": learned}).build()
    with pytest.raises(
        InputError, match=r"--context-length 40: model\.stacks\.text has 16 places on axis 0, and Learned"
    ):
        edit(model, Transforms(), EditSpec(context_length=40))
    bare = TextTokensSpec(None, 16, end=False, rows=100)
    model = dataclasses.replace(reading(16).spec, encoders={"text": EncoderSpec(bare, "text")}).build()
    with pytest.raises(
        InputError, match=r"--vocabulary keeps the rows of pieces that both vocabularies have, but the mode"
    ):
        edit(model, Transforms(), EditSpec(vocabulary=other))


def test_words_are_added_to_a_vocabulary_from_elsewhere(tmp_path: Path) -> None:
    """As with transformers' add_tokens: the ids that there were stay, special ones too."""
    cutter = Tokenizer(WordLevel({"<s>": 0, "a": 1, "red": 2, "square": 3, "</s>": 4}, unk_token="a"))
    cutter.pre_tokenizer = Whitespace()  # type: ignore[assignment]  # a property, untyped
    cutter.save(str(tmp_path / "tokenizer.json"))
    cutter.add_tokens(["blue", "green"])
    cutter.save(str(tmp_path / "more.json"))
    ids = SpecialIds(bos=0, eos=(4,))
    words = TextTokensSpec(str(tmp_path / "tokenizer.json"), 16, prefix_space=False, rows=8, ids=ids)
    model = dataclasses.replace(reading(16).spec, encoders={"text": EncoderSpec(words, "text")}).build()
    model.initialise(0)
    edited = edit(model, Transforms(), EditSpec(vocabulary=str(tmp_path / "more.json")))
    tokenizer = edited.model.spec.encoders["text"].tokenizer
    assert isinstance(tokenizer, TextTokensSpec)
    assert (tokenizer.rows, tokenizer.ids) == (7, ids)
    before, after = model.state_dict()[ENCODER], edited.model.state_dict()[ENCODER]
    assert torch.equal(after[:5], before[:5])
    torch.testing.assert_close(after[5:], before[:5].mean(0).expand(2, -1))
    text = edited.model.spec.text_encoders()["text"].encode(["blue square"])
    assert text.ids[0, :3].tolist() == [5, 3, 4]
    fewer = Tokenizer(WordLevel({"<s>": 0, "a": 1}, unk_token="a"))
    fewer.save(str(tmp_path / "fewer.json"))
    with pytest.raises(InputError, match=r"--vocabulary has no '</s>', which is one of the model's special tokens"):
        edit(model, Transforms(), EditSpec(vocabulary=str(tmp_path / "fewer.json")))
