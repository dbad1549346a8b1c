"""The files of a bundle: what it holds for every modality, each once, and nothing from outside of it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
from bundles import TRANSFORMS, change, pixels, refused, save_dual, save_trimodal, tone, trimodal_model
from tiny import ROOT, VOCABULARY

import mmformer
from mmformer.bundle import load_bundle, save_bundle
from mmformer.data.sound import AudioTransformSpec
from mmformer.errors import InputError
from mmformer.tokenizers.text import TextTokensSpec

AUDIBLE = dataclasses.replace(TRANSFORMS, audio=AudioTransformSpec(8000, seconds=0.5), classes={})


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_trimodal(tmp_path_factory.mktemp("three") / "bundle")


def test_equal_vocabularies_are_held_once_and_others_by_the_names_of_their_parts(tmp_path: Path) -> None:
    spec = trimodal_model()
    paths = {name: tmp_path / f"{name}.model" for name in ("same", "other")}
    shutil.copyfile(VOCABULARY, paths["same"])
    shutil.copyfile(ROOT / "tokenizers" / "emoji-en.model", paths["other"])
    for name, files in (("same", {"text.model"}), ("other", {"text.model", "caption.model"})):
        words = TextTokensSpec(str(paths[name]), context_length=16)
        decoders = {part: dataclasses.replace(old, tokenizer=words) for part, old in spec.decoders.items()}
        model = dataclasses.replace(spec, decoders=decoders).build()
        model.initialise(0)
        save_bundle(tmp_path / "bundle", model, AUDIBLE, "# Card\n")
        assert {path.name for path in (tmp_path / "bundle").glob("*.model")} == files
        loaded, transforms = load_bundle(tmp_path / "bundle")
        assert transforms == AUDIBLE
        for part, held in (("text", VOCABULARY), ("caption", paths[name]), ("hear", paths[name])):
            tokenizer: Any = (loaded.spec.encoders | loaded.spec.decoders)[part].tokenizer  # type: ignore[operator]
            assert Path(tokenizer.vocabulary).read_bytes() == Path(held).read_bytes()


def test_a_bundle_from_before_sounds_and_decoders_opens(tmp_path: Path) -> None:
    bundle = save_dual(tmp_path / "bundle")
    expected = mmformer.load(bundle).embed(text="a cat")

    def edit(data: Any) -> None:
        model = data["model"]
        del data["files"]  # the hash of its vocabulary
        del model["decoders"], model["heads"]["contrastive"]["init_args"]["bias"]
        for encoder in model["encoders"].values():
            del encoder["packed"]

    change(bundle / "model.yaml", edit)
    change(bundle / "transforms.yaml", lambda data: data.pop("audio"))
    assert load_bundle(bundle)[1] == TRANSFORMS
    assert mmformer.load(bundle).embed(text="a cat").equal(expected)


def test_transforms_that_lack_what_the_model_reads(three: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(three, tmp_path / "bundle"))
    change(bundle / "transforms.yaml", lambda data: {"audio": None, "image": None})
    model = mmformer.load(bundle)
    with pytest.raises(InputError, match=r"transforms\.yaml of the bundle has no audio"):
        model.embed(audio=(tone(300), 8000))
    with pytest.raises(InputError, match=r"transforms\.yaml of the bundle has no image"):
        model.embed(image=pixels(0))


SECRET = "SECRET CONTENT"


@pytest.mark.parametrize("part", [("encoders", "text"), ("decoders", "caption")], ids=str)
@pytest.mark.parametrize("name", ["../x.model", "deep/x.model", "{}/x.model", "..", ".", "", "none.model"])
def test_a_vocabulary_outside_of_the_bundle_is_not_read(
    three: Path, tmp_path: Path, part: tuple[str, str], name: str
) -> None:
    bundle = Path(shutil.copytree(three, tmp_path / "bundle"))
    for folder in (bundle.parent, bundle / "deep"):
        folder.mkdir(exist_ok=True)
        (folder / "x.model").write_text(SECRET)
    name = name.format(bundle.parent)

    def edit(data: Any) -> None:
        tokenizers = [other["tokenizer"]["init_args"] for other in data["model"][part[0]].values()]
        for arguments in tokenizers:  # of decoders all, which have to agree
            if "vocabulary" in arguments:
                arguments["vocabulary"] = name

    change(bundle / "model.yaml", edit)
    refused(bundle, f"'{name}', which {part[1]} reads, is not a file of the bundle")
