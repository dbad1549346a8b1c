"""The front door with sounds and captions: any two modalities, one value or several, alone and in a batch."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from bundles import pixels, save_answering, save_dual, save_trimodal, save_two_eyed, tone, write_sounds
from tiny import ROOT, SIDE

import mmformer
from mmformer.data.image_transform import ImageTransformSpec
from mmformer.data.manifest import Manifest
from mmformer.data.shards import ShardReader
from mmformer.errors import CutWarning, InputError
from mmformer.generation.beam import BeamSpec
from mmformer.generation.packs import Packed
from mmformer.generation.sampling import GreedySpec, SamplingSpec
from mmformer.predictor import Predictor
from mmformer.types import Batch

TEXTS = ["a red square", "blue", "a longer text about nothing"]
PICTURES = [pixels(seed) for seed in range(3)]
SOUNDS = [(tone(300, 0.3), 8000), (tone(500, 0.1), 8000), (tone(800, 0.45), 8000)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_trimodal(tmp_path_factory.mktemp("trimodal") / "bundle")


@pytest.fixture(scope="module")
def model(bundle: Path) -> Predictor:
    return mmformer.load(bundle)


def test_a_bundle_holds_a_vocabulary_once(bundle: Path) -> None:
    names = {path.name for path in bundle.iterdir()}
    assert names == {"README.md", "model.safetensors", "model.yaml", "transforms.yaml", "text.model"}


def test_sounds_are_embedded_one_or_several(model: Predictor, tmp_path: Path) -> None:
    several = model.embed(audio=SOUNDS)
    assert several.shape == (3, 12)
    assert torch.allclose(several.norm(dim=1), torch.ones(3), atol=1e-6)
    for sound, wanted in zip(SOUNDS, several, strict=True):
        assert torch.allclose(model.embed(audio=sound), wanted, atol=1e-5), "alone as in a batch of longer ones"
    files = write_sounds(tmp_path / "sounds")
    assert model.embed(audio=files).shape == (4, 12)
    assert torch.allclose(model.embed(audio=files[0].read_bytes()), model.embed(audio=files)[0], atol=1e-5)


def test_emoji_that_speak_are_embedded_from_their_files(model: Predictor) -> None:
    reader = ShardReader(Manifest.load(ROOT / "data" / "emoji"), "test")
    files = [reader[number].members["en-0.ogg"] for number in range(3)]
    decoded = [soundfile.read(io.BytesIO(file), dtype="float32") for file in files]
    found = model.embed(audio=files)
    assert torch.allclose(found, model.embed(audio=decoded), atol=1e-6)
    assert (found @ found.T).triu(1).max() < 1 - 1e-4, "they say different words"


def test_progress_counts_values_of_both(bundle: Path) -> None:
    done: list[int] = []
    mmformer.load(bundle, batch_size=2).similarity(PICTURES, TEXTS[:1], progress=done.append)
    assert done == [2, 1, 1]


def test_small_batches_give_the_same_in_the_given_order(bundle: Path, model: Predictor) -> None:
    small = mmformer.load(bundle, batch_size=1)
    assert torch.allclose(small.embed(audio=SOUNDS * 8), model.embed(audio=SOUNDS * 8), atol=1e-5)


def test_long_sounds_are_cut_to_what_the_model_reads(model: Predictor) -> None:
    assert torch.equal(model.embed(audio=(tone(300, 2.0), 8000)), model.embed(audio=(tone(300, 0.5), 8000)))


def test_any_two_modalities_are_compared(model: Predictor) -> None:
    values: dict[str, Any] = {"image": PICTURES, "audio": SOUNDS[:2], "text": TEXTS[:1]}
    for first, second in (("image", "text"), ("image", "audio"), ("audio", "text")):
        found = model.similarity(**{first: values[first], second: values[second]})
        wanted = model.embed(**{first: values[first]}) @ model.embed(**{second: values[second]}).T
        assert torch.allclose(found, wanted, atol=1e-6)
    assert torch.equal(model.similarity(PICTURES, TEXTS), model.similarity(image=PICTURES, text=TEXTS))
    assert model.similarity(audio=SOUNDS[0], text="blue").ndim == 0


def test_any_modality_finds_any_other(model: Predictor) -> None:
    matches = model.retrieve(audio=SOUNDS[0], images=PICTURES, top=2)
    scores = model.similarity(audio=SOUNDS[0], image=PICTURES)
    assert [match.candidate for match in matches] == scores.argsort(descending=True)[:2].tolist()
    (again,) = model.retrieve(audio=SOUNDS[1:2], audios=SOUNDS, top=1)
    assert again[0].candidate == 1
    assert model.retrieve(text=TEXTS[0], audios=SOUNDS, top=9)[0].score <= 1


def test_sounds_are_classified_by_any_labels(model: Predictor) -> None:
    answers = model.classify(audio=SOUNDS, labels=["cat", "dog"])
    assert len(answers) == 3
    logits = model.similarity(audio=SOUNDS, text=["cat", "dog"]) / 0.07
    for answer, row in zip(answers, logits.softmax(-1), strict=True):
        assert answer["cat"] == pytest.approx(float(row[0]), abs=1e-4)


def test_captions_are_of_each_value(model: Predictor) -> None:
    several = model.caption(PICTURES)
    assert len(several) == 3
    assert len(set(several)) > 1
    assert all(isinstance(text, str) for text in several)
    assert model.caption(PICTURES[1]) == several[1]
    heard = model.caption(audio=SOUNDS)
    assert [model.caption(audio=sound) for sound in SOUNDS] == heard


def test_weights_are_packed_once_for_many_batches(bundle: Path) -> None:
    """Or not at all, where PyTorch has no packing."""
    small, made, of = mmformer.load(bundle, batch_size=4), list[int](), Packed.of
    way = GreedySpec(12, 12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Packed, "of", staticmethod(lambda *given: (made.append(given[2]), of(*given))[1]))
        whole = small.caption(PICTURES[:1] * 8, spec=way)
    assert made == ([4] if torch.backends.mkl.is_available() else [4, 4])
    assert whole == small.caption(PICTURES[:1] * 4, spec=way) * 2


def test_a_caption_begins_with_its_prompt(model: Predictor) -> None:
    free = model.caption(PICTURES, prompt="a photo")
    assert all(text.startswith("a photo") for text in free)
    own = model.caption(PICTURES, prompt=["", "one", "two words"])
    assert own[2].startswith("two words")
    assert own[0] == model.caption(PICTURES[0])


def test_captions_are_drawn_by_the_place_in_the_list(bundle: Path, model: Predictor) -> None:
    spec = SamplingSpec(temperature=2.0, seed=5)
    same = [(tone(300, 0.3), 8000)] * 5
    drawn = model.caption(audio=same, spec=spec)
    assert len(set(drawn)) > 1, "equal sounds, but not equal draws"
    assert mmformer.load(bundle, batch_size=2).caption(audio=same, spec=spec) == drawn
    assert model.caption(PICTURES, spec=BeamSpec(beams=3)) == [
        model.caption(p, spec=BeamSpec(beams=3)) for p in PICTURES
    ]


def test_what_belongs_together_is_read_together(tmp_path: Path) -> None:
    model = mmformer.load(save_answering(tmp_path / "bundle"))
    answers = model.caption(PICTURES, text=TEXTS)
    assert len(set(answers)) == 3
    for picture, text, answer in zip(PICTURES, TEXTS, answers, strict=True):
        assert model.caption(picture, text=text) == answer
    asked = model.caption(PICTURES[0], text=TEXTS)
    assert asked == model.caption([PICTURES[0]] * 3, text=TEXTS), "one goes with all"
    assert len(set(asked)) > 1, "what is asked counts"
    assert model.caption(PICTURES, text=TEXTS[0]) == [model.caption(picture, text=TEXTS[0]) for picture in PICTURES]
    both = model.caption(PICTURES, audio=SOUNDS)
    assert both == [model.caption(p, audio=s) for p, s in zip(PICTURES, SOUNDS, strict=True)]
    assert mmformer.load(tmp_path / "bundle", batch_size=1).caption(PICTURES, audio=SOUNDS) == both
    assert model.caption(PICTURES, audio=SOUNDS[::-1]) != both
    assert model.caption(text=TEXTS) == [model.caption(text=text) for text in TEXTS], "a translation"
    with pytest.raises(InputError, match=r"reads image alone .* answer reads image and text; both reads image and sou"):
        model.caption(PICTURES)


def test_texts_that_are_cut_are_told(bundle: Path, model: Predictor) -> None:
    long = "one two three " * 20
    with pytest.warns(CutWarning, match="^2 of 3 texts were cut: the model reads 16 tokens at most"):
        mmformer.load(bundle, batch_size=1).embed(text=["a", long, long + "four"])
    with pytest.warns(CutWarning, match="^The text was cut"):
        model.retrieve(text=long, images=PICTURES)
    with pytest.warns(CutWarning, match="^1 of 2 texts were cut"):
        model.classify(PICTURES[0], ["a", long])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.embed(), "embed takes exactly one of text=..., image=..., audio=..., but was handed none"),
        (lambda m: m.similarity(image=PICTURES), "similarity takes two of .* but was handed image"),
        (lambda m: m.similarity(PICTURES, TEXTS, audio=SOUNDS), "but was handed image and audio and text"),
        (lambda m: m.caption(), "caption takes image=..., audio=..., text=..., or several of them"),
        (lambda m: m.caption(PICTURES, audio=SOUNDS), "a decoder that reads image and audio alone .* caption reads"),
        (lambda m: m.caption(PICTURES, text=TEXTS[:2]), "There are 3 pictures and 2 texts: give as many of each"),
        (lambda m: m.caption(PICTURES, prompt=3), "A text must be a string, or a list of them, but is int"),
        (lambda m: m.caption(PICTURES, prompt=["a", 3, "b"]), "A text must be a string, but is int"),
        (lambda m: m.caption(PICTURES, spec="beam"), r"such as BeamSpec\(beams=4\), but is str"),
        (lambda m: m.caption(PICTURES, prompt=["a"]), "There are 1 prompts for 3 pictures: give one for each"),
        (
            lambda m: m.caption(PICTURES, decoder="hear"),
            r"reads image alone \(hear\), but .* hear reads sound",
        ),
        (lambda m: m.caption(PICTURES, decoder="captoin"), "Did you mean 'caption'"),
        (lambda m: m.embed(audio=np.zeros(5)), "is an array alone: say how many samples a second"),
        (lambda m: m.embed(audio=[]), "There are no sounds: the list is empty"),
        (lambda m: m.embed(audio=[SOUNDS[0], (tone(300) * 2**15, 8000)]), "sound 1: .* lie within -1 and 1, but span"),
        (lambda m: m.embed(audio=["nowhere.wav"]), "nowhere.wav: the sound cannot be read"),
        (lambda m: m.embed(audio=[SOUNDS[0], b"x"]), "sound 1: not a whole WAV"),
    ],
)
def test_wrong_calls_say_what_is_wrong(model: Predictor, call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(model)


# ---- several encoders of one modality, several heads


@pytest.fixture(scope="module")
def two_eyed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_two_eyed(tmp_path_factory.mktemp("two") / "bundle")


def test_the_encoder_that_is_chosen_embeds(two_eyed: Path) -> None:
    transform = ImageTransformSpec((SIDE, SIDE))
    pictures = np.stack([transform(picture) for picture in PICTURES])
    batch = Batch((), {}, image=torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous())
    for name in ("image", "other"):
        model = mmformer.load(two_eyed, encoders=[name])
        with torch.inference_mode():
            wanted = torch.nn.functional.normalize(model.model(batch, decode=False).embedding[name], dim=-1)
        assert torch.allclose(model.embed(image=PICTURES), wanted, atol=1e-6)
        assert torch.allclose(model.similarity(PICTURES, TEXTS), wanted @ model.embed(text=TEXTS).T, atol=1e-6)
        best = model.similarity(PICTURES, TEXTS[0]).argmax()
        assert model.retrieve(text=TEXTS[0], images=PICTURES)[0].candidate == best


def test_which_encoder_is_not_guessed(two_eyed: Path) -> None:
    model = mmformer.load(two_eyed)
    message = (
        r"2 encoders of image: image, other\. Choose one when it is loaded: mmformer.load\(..., encoders=\['image'\]\)"
    )
    for call in (
        lambda: model.embed(image=PICTURES),
        lambda: model.similarity(PICTURES, TEXTS),
        lambda: model.retrieve(text="a", images=PICTURES),
        lambda: model.classify(PICTURES, ["cat", "dog"], head="warm"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    assert model.embed(text=TEXTS).shape == (3, 12), "of texts there is one"
    assert len(model.caption(PICTURES)) == 3, "the decoder says what it reads"


@pytest.mark.parametrize(
    ("encoders", "message"),
    [
        (["imag"], "The model has no encoder 'imag'; .* Did you mean 'image'?"),
        (["image", "other"], "The encoders 'image' and 'other' both read image: choose one"),
    ],
)
def test_encoders_that_cannot_be_chosen(two_eyed: Path, encoders: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        mmformer.load(two_eyed, encoders=encoders)


def test_the_contrastive_head_is_chosen(two_eyed: Path) -> None:
    model = mmformer.load(two_eyed, encoders="other")
    cosines = model.similarity(PICTURES[0], ["cat", "dog"])
    for head, temperature in (("warm", 0.5), ("cold", 0.1)):
        found = model.classify(PICTURES[0], ["cat", "dog"], head=head)
        assert found["cat"] == pytest.approx(float((cosines / temperature).softmax(0)[0]), abs=1e-5)
    with pytest.raises(InputError, match=r"contrastive head \(none was named\), but the model's are warm, cold"):
        model.classify(PICTURES[0], ["cat", "dog"])


def test_embeddings_of_other_widths_are_not_compared(two_eyed: Path) -> None:
    model = mmformer.load(two_eyed, encoders="other")
    for call in (
        lambda: model.similarity(audio=SOUNDS, text=TEXTS),
        lambda: model.retrieve(audio=SOUNDS[0], images=PICTURES),
        lambda: model.classify(audio=SOUNDS, labels=["cat"], head="warm"),
    ):
        with pytest.raises(InputError, match=r"of sound are 10 wide.* cannot be compared"):
            call()
    assert model.retrieve(audio=SOUNDS[0], audios=SOUNDS)[0].candidate == 0


def test_a_model_without_sounds_or_decoders_says_so(tmp_path: Path) -> None:
    dual = mmformer.load(save_dual(tmp_path / "bundle"))
    with pytest.raises(InputError, match="This model reads no audio, only image, text"):
        dual.embed(audio=SOUNDS)
    with pytest.raises(InputError, match=r"caption needs a decoder that reads image .* the decoders: none"):
        dual.caption(PICTURES)
