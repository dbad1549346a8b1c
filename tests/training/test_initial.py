"""Weights from a bundle or a file: exactly those that were asked for, and both sides of whatever does not fit."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest
import torch
from bundles import TRANSFORMS, save_dual
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from tiny import COLOURS, tiny_model, tiny_run, write_shards
from torch import Tensor

from mmformer.bundle import Transforms, save_bundle
from mmformer.errors import InputError
from mmformer.models.language_head import LanguageHeadSpec
from mmformer.models.model import Model, ModelSpec
from mmformer.nn.bias import RelativeGridPositionSpec
from mmformer.nn.position import LearnedPositionSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.tokenizers.vocabulary import VocabularySpec
from mmformer.training.fit import fit
from mmformer.training.initial import InitialSpec, load_initial


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dual(tmp_path_factory.mktemp("dual") / "bundle", seed=5)


def model(classes: int = len(COLOURS)) -> Model:
    built = tiny_model(classes=classes).build()
    built.initialise(0)
    return built


def weights(bundle: Path) -> dict[str, Tensor]:
    return load_file(bundle / "model.safetensors")


def equal(built: Model, name: str, values: dict[str, Tensor]) -> bool:
    return torch.equal(built.state_dict()[name], values[name])


@pytest.mark.parametrize("inside", ["", "model.safetensors"])
def test_all_weights_are_those_of_a_bundle_or_a_file(inside: str, bundle: Path) -> None:
    built, first = model(), model().state_dict()
    loaded = load_initial(built, InitialSpec(str(bundle / inside))).names
    assert loaded == first.keys()
    assert all(equal(built, name, weights(bundle)) for name in loaded)
    assert not all(equal(built, name, first) for name in loaded)


def test_patterns_choose_what_is_taken_and_the_rest_is_drawn(bundle: Path) -> None:
    """The classes differ: the head is not taken, and need not fit."""
    built, first = model(classes=3), model(classes=3).state_dict()
    loaded = load_initial(built, InitialSpec(str(bundle), ("stacks.*", "encoders.image.*"))).names
    assert loaded == {name for name in first if name.startswith(("stacks.", "encoders.image."))}
    for name in first:
        assert equal(built, name, weights(bundle) if name in loaded else first), name


def test_half_precision_becomes_single(bundle: Path, tmp_path: Path) -> None:
    half = {name: value.half() for name, value in weights(bundle).items()}
    save_file(half, tmp_path / "half.safetensors")
    built = model()
    load_initial(built, InitialSpec(str(tmp_path / "half.safetensors")))
    assert all(value.dtype == torch.float32 for value in built.state_dict().values())
    assert all(equal(built, name, {name: value.float()}) for name, value in half.items())


def test_what_does_not_fit_is_told_from_both_sides(bundle: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_initial(model(classes=3), InitialSpec(str(bundle)))
    file = bundle / "model.safetensors"
    assert f"initial.path: {file}: 2 parameters do not fit" in str(caught.value)
    assert "heads.colour.projection.weight: the model has (3, 12), the file (8, 12)" in str(caught.value)
    with pytest.raises(InputError, match=r"unknown: heads\.colour\.projection\.bias \(8,\)"):
        load_initial(model(classes=0), InitialSpec(str(bundle)))


def test_what_the_file_lacks_is_told(bundle: Path, tmp_path: Path) -> None:
    few = {name: value for name, value in weights(bundle).items() if not name.startswith("heads.")}
    save_file(few, tmp_path / "few.safetensors")
    built, first = model(), model().state_dict()
    with pytest.raises(InputError, match=r"missing: heads\.contrastive\.log_scale \(1,\)"):
        load_initial(built, InitialSpec(str(tmp_path / "few.safetensors")))
    assert all(equal(built, name, first) for name in first), "nothing was loaded"


def test_what_cannot_be_read_is_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no weights")
    for path, parameters, message in (
        (tmp_path / "nowhere", ("*",), r"initial\.path: there is no file .*nowhere: name a bundle"),
        (tmp_path, ("*",), r"initial\.path: there is no file .*model\.safetensors: name a bundle"),
        (tmp_path / "text.safetensors", ("*",), r"text\.safetensors: damaged, it cannot be read"),
        (bundle, ("stack.*",), r"initial\.parameters: no parameter .* like 'stack\.\*'\. Did you mean 'stacks\.\*'\?"),
    ):
        with pytest.raises(InputError, match=message):
            load_initial(model(), InitialSpec(str(path), parameters))
    with pytest.raises(InputError, match=r"InitialSpec\.parameters must be at least one pattern"):
        InitialSpec("a", ())


def test_a_run_begins_with_them_and_may_freeze_them(bundle: Path, tmp_path: Path) -> None:
    """Locked-image tuning (LiT, Zhai et al. 2022): the image tower is another model's, and stays."""
    run = dataclasses.replace(
        tiny_run(write_shards(tmp_path / "shards"), steps=2),
        initial=InitialSpec(str(bundle), ("*.image.*",)),
        freeze=("*.image.*",),
    )
    fit(run, tmp_path / "run")
    ended, given = weights(tmp_path / "run" / "bundle"), weights(bundle)
    same = {name for name in ended if torch.equal(ended[name], given[name])}
    image = {name for name in ended if ".image." in name}
    assert image
    assert same == image
    with (tmp_path / "run" / "parameters.tsv").open() as file:
        rows = {row["parameter"]: (row["trains"], row["loaded"]) for row in csv.DictReader(file, delimiter="\t")}
    assert rows == {name: ("no", "yes") if name in image else ("yes", "no") for name in ended}


def seeing(size: tuple[int, int], offsets: bool = False) -> Model:
    """Of pictures alone, whose patches have learned positions."""
    dual, sizes = tiny_model(), (size[0] // 8, size[1] // 8)
    position = RelativeGridPositionSpec((1, 2), sizes) if offsets else LearnedPositionSpec((1, 2), sizes)
    stack = dataclasses.replace(dual.stacks["image"], position=position)
    built = ModelSpec({"image": stack}, {"image": dual.encoders["image"]}).build()
    built.initialise(0)
    return built


@pytest.mark.parametrize("offsets", [False, True])
def test_positions_that_were_learned_at_another_size_are_resized(offsets: bool, tmp_path: Path) -> None:
    small, large = seeing((24, 32), offsets), seeing((48, 64), offsets)
    save_bundle(tmp_path / "small", small, TRANSFORMS, "# A tiny model\n")
    loaded = load_initial(large, InitialSpec(str(tmp_path / "small"), resize=True)).names
    assert loaded == small.state_dict().keys()
    key, table = "stacks.image.position.weight", small.state_dict()["stacks.image.position.weight"]
    others = [name for name in loaded if name != key]
    assert all(torch.equal(large.state_dict()[name], small.state_dict()[name]) for name in others)
    old, new, special = ((5, 7), (11, 15), slice(-3, None)) if offsets else ((3, 4), (6, 8), slice(0, 1))
    grid = table[:-3] if offsets else table[1:]
    expected = resample_abs_pos_embed(grid[None], list(new), list(old), num_prefix_tokens=0)[0]
    found = large.state_dict()[key]
    assert torch.allclose(found[:-3] if offsets else found[1:], expected, atol=1e-6)
    assert torch.equal(found[special], table[special])


def test_positions_of_another_size_are_refused_where_nobody_asked(tmp_path: Path) -> None:
    save_bundle(tmp_path / "small", seeing((24, 32)), TRANSFORMS, "# A tiny model\n")
    for size, sizes in (((48, 64), "6, 8"), ((16, 48), "2, 6")):  # of the second, there are as many as there were
        words = rf"image\.position\.weight as .*sizes=\(3, 4\).* model has .*sizes=\({sizes}\).*set initial\.resize"
        with pytest.raises(InputError, match=words):
            load_initial(seeing(size), InitialSpec(str(tmp_path / "small")))
    with pytest.raises(InputError, match=r"initial\.resize: .*model\.safetensors does not say for which sizes"):
        load_initial(seeing((48, 64)), InitialSpec(str(tmp_path / "small" / "model.safetensors"), resize=True))
    with pytest.raises(InputError, match=r"position\.weight: the model has \(49, 16\), the file \(13, 16\)"):
        load_initial(seeing((48, 64)), InitialSpec(str(tmp_path / "small" / "model.safetensors")))


def test_a_part_is_taken_where_that_is_asked_and_all_is_told(bundle: Path) -> None:
    """Of the same names and shapes; the rest is drawn, or not read."""
    spec = tiny_model(classes=3, caption=True)
    built, first = spec.build(), spec.build()
    built.initialise(0), first.initialise(0)
    loaded = load_initial(built, InitialSpec(str(bundle), partial=True))
    drawn = {name for name in first.state_dict() if name.startswith(("heads.colour.", "stacks.caption.", "decoders."))}
    assert loaded.names == first.state_dict().keys() - drawn
    for name in first.state_dict():
        assert equal(built, name, weights(bundle) if name in loaded.names else first.state_dict()), name
    assert loaded.report == [
        f"initial: {len(loaded.names)} of the model's {len(first.state_dict())} parameters begin as in {bundle}",
        *("  drawn    stacks.caption.*", "  drawn    decoders.caption.tokenizer.weight", "  drawn    heads.colour.*"),
        "  not read heads.colour.*",
    ]
    with pytest.raises(InputError, match=r"has nothing that initial\.parameters names in the model's shapes"):
        load_initial(built, InitialSpec(str(bundle), ("heads.colour.*",), partial=True))


@pytest.mark.parametrize("size", [(48, 64), (16, 48)])
def test_a_part_leaves_positions_of_other_sizes_or_resizes_them(size: tuple[int, int], tmp_path: Path) -> None:
    """Of the second size, there are as many."""
    save_bundle(tmp_path / "small", seeing((24, 32)), TRANSFORMS, "# A tiny model\n")
    key, large = "stacks.image.position.weight", seeing(size)
    before = large.state_dict()[key].clone()
    left = load_initial(large, InitialSpec(str(tmp_path / "small"), partial=True))
    assert left.report[1:] == [f"  drawn    {key}", f"  not read {key}"]
    assert torch.equal(large.state_dict()[key], before)
    resized = load_initial(large, InitialSpec(str(tmp_path / "small"), partial=True, resize=True))
    assert resized.report[1:] == [f"  resized  {key}: (13, 16) to {tuple(before.shape)}"]


def test_a_part_leaves_the_rows_of_other_words(bundle: Path, tmp_path: Path) -> None:
    VocabularySpec(size=300).train(["a red square", "a blue one"] * 9).save(tmp_path / "other.model")
    spec = tiny_model(classes=len(COLOURS))
    text = dataclasses.replace(spec.encoders["text"], tokenizer=TextTokensSpec(str(tmp_path / "other.model"), 16))
    built = dataclasses.replace(spec, encoders={**spec.encoders, "text": text}).build()
    loaded = load_initial(built, InitialSpec(str(bundle), partial=True))
    assert loaded.report[1:] == [f"  {what} encoders.text.tokenizer.weight" for what in ("drawn   ", "not read")]


def test_a_part_leaves_what_logits_over_other_words_are_made_by(tmp_path: Path) -> None:
    """There is a row or a number for each piece in heads over words and in decoders, besides the embeddings."""
    VocabularySpec(size=300).train(["a red square", "a blue one"] * 9).save(tmp_path / "other.model")
    made = tiny_model(caption=True)
    heads = {"mask": LanguageHeadSpec("text", tied=False)}
    caption = dataclasses.replace(made.decoders["caption"], tied=False, logit_bias=True)
    specs = []
    for file in (made.encoders["text"].tokenizer.vocabulary, str(tmp_path / "other.model")):  # type: ignore[attr-defined]
        words = TextTokensSpec(file, 16, rows=2**14)  # as many of both: their shapes do not tell them apart
        encoders = {**made.encoders, "text": dataclasses.replace(made.encoders["text"], tokenizer=words)}
        decoders = {"caption": dataclasses.replace(caption, tokenizer=words)}
        specs.append(dataclasses.replace(made, encoders=encoders, decoders=decoders, heads=heads))
    old, new = (spec.build() for spec in specs)
    old.initialise(0)
    save_bundle(tmp_path / "old", old, Transforms(), "# A tiny model\n")
    loaded = load_initial(new, InitialSpec(str(tmp_path / "old"), partial=True))
    assert set(new.state_dict()) - loaded.names == {
        *(f"{part}.tokenizer.weight" for part in ("encoders.text", "decoders.caption")),
        *("decoders.caption.output.weight", "decoders.caption.logit_bias"),
        *("heads.mask.output.weight", "heads.mask.bias"),
    }
    with pytest.raises(InputError, match=r"another vocabulary than .*other\.model: .* leave heads\.mask\.bias out of"):
        load_initial(new, InitialSpec(str(tmp_path / "old"), ("heads.mask.bias",)))
