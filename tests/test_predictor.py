"""``mmformer.load`` and what a loaded model answers."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_overloads, get_type_hints

import numpy as np
import pytest
import torch
from bundles import pixels, save_classifier, save_dual
from PIL import Image
from tiny import COLOURS, tiny_batch
from torch import Tensor

import mmformer
from mmformer import reader as module
from mmformer.errors import InputError
from mmformer.predictor import Match, Predictor

LABELS = ["cat", "a large dog on a skateboard", "pizza"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dual(tmp_path_factory.mktemp("dual") / "bundle")


@pytest.fixture(scope="module")
def model(bundle: Path) -> Predictor:
    return mmformer.load(bundle)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return mmformer.load(str(save_classifier(tmp_path_factory.mktemp("classifier") / "bundle")))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.fromarray(pixels(0)).save(path)
    return path


def as_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.copy()).permute(2, 0, 1)


KINDS: dict[str, Callable[[Path], Any]] = {
    "path": str,
    "Path": Path,
    "bytes": Path.read_bytes,
    "PIL": Image.open,
    "PIL, in memory": lambda path: Image.fromarray(pixels(0)),
    "uint8 H W 3": lambda path: pixels(0),
    "uint8, mirrored twice": lambda path: np.ascontiguousarray(pixels(0)[::-1])[::-1],
    "float32 H W 3": lambda path: pixels(0).astype(np.float32) / 255,
    "float16 H W 3": lambda path: (pixels(0) / 255).astype(np.float16),
    "uint8 3 H W": lambda path: as_tensor(pixels(0)),
    "float 3 H W": lambda path: as_tensor(pixels(0)) / 255,
    "float 3 H W, needing a gradient": lambda path: (as_tensor(pixels(0)) / 255).requires_grad_(),
    "numpy 3 H W": lambda path: as_tensor(pixels(0)).numpy(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_gives_the_same_answer(model: Predictor, file: Path, kind: str) -> None:
    expected = model.embed(image=file)
    picture = KINDS[kind](file)
    torch.testing.assert_close(model.embed(image=picture), expected, rtol=0, atol=0)
    torch.testing.assert_close(model.embed(image=[picture, file])[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("as_array", [np.asarray, torch.from_numpy])
def test_an_array_of_four_axes_is_several_pictures(model: Predictor, as_array: Callable[[Any], Any]) -> None:
    several = np.stack([pixels(seed) for seed in range(3)])
    assert torch.equal(model.embed(image=as_array(several)), model.embed(image=list(several)))


def test_one_value_gives_one_answer_and_a_list_gives_a_list(model: Predictor, file: Path) -> None:
    one, several = model.classify(file, LABELS), model.classify([file], LABELS)
    assert isinstance(one, dict)
    assert several == [one]
    width = model.model.spec.embedding_widths["image"]
    assert model.embed(image=file).shape == (width,)
    assert model.embed(image=[file]).shape == (1, width)
    assert model.embed(text="cat").shape == (width,)
    assert model.embed(text=("cat", "dog")).shape == (2, width)
    assert model.similarity(file, "cat").shape == ()
    assert model.similarity(file, ["cat", "dog"]).shape == (2,)
    assert model.similarity([file] * 3, "cat").shape == (3,)
    assert model.similarity([file] * 3, ["cat", "dog"]).shape == (3, 2)
    assert [type(match) for match in model.retrieve(text="cat", images=[file])] == [Match]
    assert len(model.retrieve(text=["cat", "dog"], images=[file])) == 2


def test_similarity_is_the_cosine(model: Predictor) -> None:
    pictures = [pixels(seed) for seed in range(3)]
    expected = model.embed(image=pictures) @ model.embed(text=LABELS).T
    torch.testing.assert_close(model.similarity(pictures, LABELS), expected, rtol=0, atol=0)
    torch.testing.assert_close(model.similarity(pictures[1], LABELS[2]), expected[1, 2], rtol=0, atol=1e-6)
    assert expected.abs().max() <= 1 + 1e-6


@pytest.mark.filterwarnings("ignore::mmformer.errors.CutWarning")
def test_the_batch_size_changes_nothing(bundle: Path, model: Predictor) -> None:
    pictures = [pixels(seed, 10 + seed, 30 - seed) for seed in range(7)]
    texts = [
        ".",
        "a",
        "a very long text about cats, dogs and what they eat " * 9,
        "dog",
        "a large red square",
        "b",
        "c",
    ]
    for size in (1, 3):
        other = mmformer.load(bundle, batch_size=size)
        torch.testing.assert_close(other.embed(image=pictures), model.embed(image=pictures), rtol=0, atol=1e-6)
        torch.testing.assert_close(other.embed(text=texts), model.embed(text=texts), rtol=0, atol=1e-6)
        for labels in (LABELS, None):
            pairs = zip(other.classify(pictures, labels), model.classify(pictures, labels), strict=True)
            for found, expected in pairs:
                assert found == pytest.approx(expected, abs=1e-6)


def test_texts_come_back_in_their_order(model: Predictor) -> None:
    texts = ["bb", "a longer text than that", ".", "c", "ninety-nine"]
    alone = torch.stack([model.embed(text=text) for text in texts])
    torch.testing.assert_close(model.embed(text=texts), alone, rtol=0, atol=1e-6)


def test_embeddings_have_unit_length_and_can_be_trained_on(model: Predictor, file: Path) -> None:
    for embedded in (model.embed(image=[file, pixels(5)]), model.embed(text=LABELS), model.embed(text="x")[None]):
        assert embedded.dtype == torch.float32
        torch.testing.assert_close(embedded.norm(dim=-1), torch.ones(len(embedded)), rtol=0, atol=1e-6)
        probe = torch.nn.Linear(embedded.shape[1], 1)
        probe(embedded).sum().backward()  # inference-mode tensors would refuse


@pytest.mark.parametrize("labels", [LABELS, None])
def test_probabilities_are_sorted_and_sum_to_one(model: Predictor, labels: list[str] | None) -> None:
    pictures = [pixels(seed) for seed in range(4)]
    answers = model.classify(pictures, labels)
    for answer in answers:
        assert set(answer) == set(labels or COLOURS)
        assert list(answer.values()) == sorted(answer.values(), reverse=True)
        assert sum(answer.values()) == pytest.approx(1, abs=1e-6)
    cut = model.classify(pictures, labels, top=2)
    assert cut == [dict(list(answer.items())[:2]) for answer in answers]
    if labels:
        for found, expected in zip(model.classify(pictures, labels[::-1]), answers, strict=True):
            assert found == pytest.approx(expected, abs=1e-6)


def test_zero_shot_probabilities_are_the_softmax_of_scaled_cosines(model: Predictor) -> None:
    templates = ["{}", "a drawing of {}"]
    prompts = torch.stack([model.embed(text=[t.format(label) for t in templates]).mean(0) for label in LABELS])
    cosines = torch.nn.functional.normalize(prompts, dim=-1) @ model.embed(image=pixels(6))
    expected = (cosines / 0.07).softmax(0)  # the untrained head's temperature
    found = model.classify(pixels(6), LABELS, templates=templates)
    torch.testing.assert_close(torch.tensor([found[label] for label in LABELS]), expected, rtol=0, atol=1e-5)
    assert found != model.classify(pixels(6), LABELS)


def test_labels_are_taken_as_they_are_written(model: Predictor) -> None:
    labels = ["cat | kitten", "dog"]
    cosines = model.similarity(text=labels, image=pixels(6))
    found = model.classify(pixels(6), labels)
    torch.testing.assert_close(
        torch.tensor([found[label] for label in labels]), (cosines / 0.07).softmax(0), rtol=0, atol=1e-5
    )
    assert list(model.classify(pixels(6), ["{", "a|", "{}"])), "braces and bars are letters"


def test_the_scale_is_the_heads_and_bounded(bundle: Path) -> None:
    other = mmformer.load(bundle)
    head = other.model.heads["contrastive"]
    assert other.scale() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        head.log_scale.fill_(50.0)  # type: ignore[operator, union-attr]
    assert other.scale() == pytest.approx(100) == other.model(tiny_batch(["a"])).scale["contrastive"].item()


def test_answers_have_types() -> None:
    """A type checker knows one answer from several; arrays may be either."""
    for method, one, several in (
        (Predictor.classify, dict[str, float], list[dict[str, float]]),
        (Predictor.caption, str, list[str]),
        (Predictor.retrieve, list[Match], list[list[Match]]),
    ):
        returns = [get_type_hints(overload)["return"] for overload in get_overloads(method)]
        assert one in returns
        assert several in returns
        assert returns[-1] == one | several == get_type_hints(method)["return"]


def test_retrieval_finds_the_same_picture_first(model: Predictor) -> None:
    pictures = [pixels(seed) for seed in range(6)]
    for wanted, picture in enumerate(pictures):
        matches = model.retrieve(image=picture, images=pictures, top=3)
        assert matches[0].candidate == wanted
        assert matches[0].score == pytest.approx(1, abs=1e-5)
        assert [match.score for match in matches] == sorted((match.score for match in matches), reverse=True)
    assert [found[0].candidate for found in model.retrieve(image=pictures, images=np.stack(pictures))] == [*range(6)]
    assert model.retrieve(text="dog", texts=["cat", "dog", "a dog"])[0].candidate == 1


def test_retrieval_orders_by_similarity_and_equals_by_place(model: Predictor) -> None:
    pictures = [pixels(seed) for seed in (3, 1, 2, 1)]
    expected = model.similarity(pictures, "a cat").argsort(descending=True, stable=True).tolist()
    matches = model.retrieve(text="a cat", images=pictures, top=99)
    assert [match.candidate for match in matches] == expected
    assert expected.index(1) + 1 == expected.index(3)


@pytest.mark.parametrize("candidates", [{"images": pixels(0)}, {"images": Image.new("RGB", (9, 9))}, {"texts": "cat"}])
def test_a_candidate_alone_is_a_list_of_one(model: Predictor, candidates: dict[str, Any]) -> None:
    assert [match.candidate for match in model.retrieve(text="a cat", **candidates)] == [0]


def test_the_head_answers_without_labels(classifier: Predictor, model: Predictor, file: Path) -> None:
    assert set(classifier.classify(file)) == set(COLOURS)
    assert classifier.classify(file, head="colour") == classifier.classify(file)
    assert classifier.embed(image=file).shape == (12,)
    assert set(model.classify(file, head="colour")) == set(COLOURS)


def test_the_model_itself_is_at_hand(model: Predictor) -> None:
    outputs = model.model(tiny_batch(["a cat", "a dog"]))
    assert outputs.embedding["image"].shape == (2, 12)
    assert outputs.logits["colour"].shape == (2, len(COLOURS))
    assert not model.model.training


def test_progress_counts_every_value_once(bundle: Path) -> None:
    small = mmformer.load(bundle, batch_size=2)
    pictures = [pixels(seed) for seed in range(5)]
    done: list[int] = []
    small.classify(pictures, LABELS, progress=done.append)
    assert done == [2, 2, 1]
    small.classify(pictures, progress=done.append)
    small.embed(text=["a", "b", "c"], progress=done.append)
    small.retrieve(text="x", images=pictures, progress=done.append)
    assert done[3:] == [2, 2, 1, 2, 1, 2, 2, 1]


def test_pictures_are_decoded_a_batch_at_a_time(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    read, model = module.read_picture, mmformer.load(bundle, batch_size=2)
    monkeypatch.setattr(module, "read_picture", lambda *arguments: (events.append("read"), read(*arguments))[1])
    model.model.register_forward_pre_hook(lambda *_: events.append("embed"))
    model.embed(image=[pixels(seed) for seed in range(5)])
    assert events == ["read", "read", "embed", "read", "read", "embed", "read", "embed"]


def test_a_damaged_file_among_several_is_named(model: Predictor, tmp_path: Path, file: Path) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(file.read_bytes()[:200])
    with pytest.raises(InputError, match=rf"{damaged}: not a whole PNG"):
        model.classify([file, damaged], LABELS)
    lazy = Image.open(io.BytesIO(file.read_bytes()[:200]))
    with pytest.raises(InputError, match="picture 1: the PIL image cannot be read: image file is truncated"):
        model.classify([file, lazy], LABELS)


def call(method: str, *arguments: Any, **options: Any) -> Callable[[Predictor], Any]:
    return lambda model: getattr(model, method)(*arguments, **options)


PICTURE = pixels(0)
WRONG_CALLS = [
    (call("classify", PICTURE, "cat, dog"), r"but are the string 'cat, dog': write \['cat', 'dog'\]"),
    (call("classify", PICTURE, "cat"), r"Labels are a list of strings, but are the string 'cat': write \['cat'\]"),
    (call("classify", PICTURE, ""), r"write \['cat', 'dog'\]"),
    (call("classify", PICTURE, ["cat"], templates="a {}"), "Prompt templates are a list .* the string 'a {}'"),
    (call("classify", PICTURE, []), "The list of labels is empty"),
    (call("classify", PICTURE, ["cat", " "]), "a label in it is"),
    (call("classify", PICTURE, ["cat", "dog", "cat"]), "The label 'cat' is there more than once"),
    (call("classify", PICTURE, ["cat"], templates=[]), "There are no prompt templates"),
    (call("classify", PICTURE, ["cat"], templates=["a photo"]), "must hold {} once.*'a photo'"),
    (call("classify", PICTURE, ["cat"], head="colour"), "head='colour' chooses among its own classes"),
    (call("classify", PICTURE, templates=["a {}"]), "Prompt templates are for labels"),
    (call("classify", PICTURE, head="color"), "classification head is asked.*colour.*Did you mean 'colour'?"),
    (call("classify", PICTURE, ["cat"], top=0), "top must be at least 1, but is 0"),
    (call("embed"), r"embed takes exactly one of text=..., image=..., audio=..., but was handed none"),
    (call("embed", text="cat", image=PICTURE), "but was handed text and image"),
    (call("embed", text=[]), "There are no texts: the list is empty"),
    (call("embed", text=["cat", 5]), "A text must be a string, but is int"),
    (call("embed", text=5), "A text must be a string, or a list of them, but is int"),
    (call("embed", text=b"cat"), "A text must be a string, or a list of them, but is bytes"),
    (call("classify", PICTURE, ["cat"], head="contrasive"), "by a contrastive head .* Did you mean 'contrastive'?"),
    (call("retrieve", text="cat"), r"exactly one of texts=..., images=..., audios=..., but was handed none"),
    (call("retrieve", text="cat", texts=["a"], images=[PICTURE]), "but was handed texts and images"),
    (call("retrieve", images=[PICTURE]), r"exactly one of text=..., image=..., audio=..., but was handed none"),
    (call("retrieve", text="cat", image=PICTURE, images=[PICTURE]), "but was handed text and image"),
    (call("retrieve", text="cat", images=[]), "There are no pictures: the list is empty"),
    (call("retrieve", text="cat", texts=[]), "There are no texts: the list is empty"),
    (call("retrieve", text="cat", images=[PICTURE], top=0), "top must be at least 1, but is 0"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG_CALLS, ids=range(len(WRONG_CALLS)))
def test_wrong_calls_say_what_is_wrong(model: Predictor, wrong: Callable[[Predictor], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        wrong(model)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (call("classify", PICTURE, ["cat"]), "This model reads no text, only image"),
        (call("embed", text="cat"), "This model reads no text, only image"),
        (call("similarity", PICTURE, "cat"), "This model reads no text, only image"),
        (call("classify", PICTURE, head="kind"), r"is asked \(kind\), but the model's are colour"),
    ],
)
def test_what_a_classifier_cannot_do(classifier: Predictor, wrong: Callable[[Predictor], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        wrong(classifier)


@pytest.mark.parametrize("device", ["banana", "mps" if not torch.backends.mps.is_available() else "", "meta", "hpu"])
def test_a_device_that_is_not_there(bundle: Path, device: str) -> None:
    with pytest.raises(InputError, match=rf"^The device '{device}' cannot be used here: [^\n]+\.$"):
        mmformer.load(bundle, device=device)


def test_a_batch_holds_something(bundle: Path) -> None:
    with pytest.raises(InputError, match="batch_size must be at least 1, but is 0"):
        mmformer.load(bundle, batch_size=0)
