"""Classification, by a head and by prompts: accuracy, chance, and the ensembling of templates against plain loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import VOCABULARY, tiny_batch, tiny_model
from torch import Tensor
from torch.nn import functional as F

from mmformer.errors import InputError
from mmformer.evaluation.classification import AccuracySpec
from mmformer.evaluation.metric import evaluate
from mmformer.evaluation.zero_shot import ZeroShotSpec, check_templates, embed_classes
from mmformer.models.head import ClassificationHeadSpec, ContrastiveHeadSpec
from mmformer.models.model import Model
from mmformer.spec import Parts
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.types import Batch, Outputs

ENCODERS = {"text": TextTokensSpec(VOCABULARY, context_length=16).encoder()}
NAMES = ["red", "a very light blue", "green", "", "black"]
TEMPLATES = ("{}", "a {} square", "the colour {}!")
CPU = torch.device("cpu")


def build() -> Model:
    model = tiny_model(classes=5).build().eval()
    model.initialise(3)
    return model


def by_hand(model: Model, templates: tuple[str, ...]) -> Tensor:
    """Each prompt by itself; unit length; mean; unit length."""
    rows = []
    for name in NAMES:
        each = [
            model(Batch((), {}, text=ENCODERS["text"].encode([template.replace("{}", name)]))).embedding["text"][0]
            for template in templates
        ]
        mean = torch.stack([e / e.norm() for e in each]).sum(0) / len(each)
        rows.append(mean / mean.norm())
    return torch.stack(rows)


@pytest.mark.parametrize("templates", [("{}",), TEMPLATES], ids=["name", "ensemble"])
@pytest.mark.parametrize("batch_size", [1, 4, 256])
@torch.no_grad()
def test_prompts_are_ensembled(templates: tuple[str, ...], batch_size: int) -> None:
    model = build()
    found = embed_classes(model, ENCODERS["text"], [[name] for name in NAMES], templates, "text", CPU, batch_size)
    assert found.shape == (5, 12)
    assert torch.allclose(found, by_hand(model, templates), atol=1e-5)
    assert torch.allclose(found.norm(dim=1), torch.ones(5), atol=1e-6)


def classes_file(folder: Path) -> str:
    path = folder / "classes.txt"
    path.write_text("\n".join(name or "nothing" for name in NAMES))
    return str(path)


def test_zero_shot_is_the_nearest_prompt(tmp_path: Path) -> None:
    model, batch = build(), tiny_batch(["x"] * 40)
    target = torch.arange(40) % 6 - 1  # -1: without a label
    batch = batch._replace(labels={"colour": target})
    spec = ZeroShotSpec("colour", classes_file(tmp_path), TEMPLATES)
    score = evaluate(model, [batch], {"z": spec}, ENCODERS)["z/accuracy"]
    with torch.no_grad():
        prompts = embed_classes(
            model, ENCODERS["text"], [[name or "nothing"] for name in NAMES], TEMPLATES, "text", CPU
        )
        images = model(batch).embedding["image"]
    right = seen = 0
    for image, label in zip(images, target.tolist(), strict=True):
        nearest = max(range(5), key=lambda c, x=image: float(F.cosine_similarity(x, prompts[c], dim=0)))  # type: ignore[misc]
        seen += label >= 0
        right += nearest == label
    assert seen == 33
    assert score.value == pytest.approx(100 * right / seen)
    assert score.chance == pytest.approx(20)
    assert score.unit == "%"


def test_templates_change_the_score_or_at_least_the_prompts(tmp_path: Path) -> None:
    model = build()
    one = ZeroShotSpec("colour", classes_file(tmp_path)).build()
    one.start(model, ENCODERS, CPU)
    one.finish()
    other = ZeroShotSpec("colour", classes_file(tmp_path), TEMPLATES).build()
    other.start(model, ENCODERS, CPU)
    other.finish()
    assert one.prompts is not None
    assert other.prompts is not None
    assert not torch.allclose(one.prompts, other.prompts, atol=1e-3)


def test_alternative_names_of_a_class_are_ensembled_too() -> None:
    model = build()
    with torch.no_grad():
        found = embed_classes(model, ENCODERS["text"], [["red", "scarlet"], ["blue"]], TEMPLATES, "text", CPU)
        each = embed_classes(model, ENCODERS["text"], [["red"], ["scarlet"], ["blue"]], ("{}",), "text", CPU)
        plain = embed_classes(model, ENCODERS["text"], [["red", "scarlet"], ["blue"]], ("{}",), "text", CPU)
    assert found.shape == (2, 12)
    assert torch.allclose(plain[0], F.normalize(each[0] + each[1], dim=0), atol=1e-5)
    assert torch.allclose(plain[1], each[2], atol=1e-5)


@torch.no_grad()
def test_alternatives_are_split_in_the_file_of_classes_alone(tmp_path: Path) -> None:
    model, path = build(), tmp_path / "classes.txt"
    path.write_text("red | scarlet\nblue\n")
    metric = ZeroShotSpec("colour", str(path)).build()
    metric.start(model, ENCODERS, CPU)
    metric.finish()
    assert metric.prompts is not None
    split = embed_classes(model, ENCODERS["text"], [["red", "scarlet"], ["blue"]], ("{}",), "text", CPU)
    literal = embed_classes(model, ENCODERS["text"], [["red | scarlet"], ["blue"]], ("{}",), "text", CPU)
    assert torch.allclose(metric.prompts, split, atol=1e-6)
    assert not torch.allclose(literal[0], split[0], atol=1e-3)
    for line in ("red |", "| red", "red || scarlet", "|"):
        path.write_text(f"blue\n{line}\n")
        with pytest.raises(InputError) as caught:
            metric.start(model, ENCODERS, CPU)
        assert f"the class '{line}' has an empty name beside a '|'" in str(caught.value)


def test_logits_that_are_not_numbers_are_no_answer() -> None:
    nan = float("nan")
    logits = torch.tensor([[nan, nan, nan], [0, nan, 1], [nan, 3, 1], [0, 3, 1], [0, float("inf"), 1]])
    metric = AccuracySpec("colour").build()
    batch = Batch((), {"colour": torch.tensor([0, 1, 1, 1, 1])})
    metric.update(Outputs.empty()._replace(logits={"colour": logits}), batch)
    assert metric.compute()["accuracy"].value == pytest.approx(40)


def test_zero_shot_with_embeddings_that_are_not_numbers_is_always_wrong(tmp_path: Path) -> None:
    metric = ZeroShotSpec("colour", classes_file(tmp_path)).build()
    metric.start(build(), ENCODERS, CPU)
    batch = Batch((), {"colour": torch.arange(5)})
    metric.update(Outputs.empty()._replace(embedding={"image": torch.full((5, 12), float("nan"))}), batch)
    metric.finish()
    assert metric.compute()["accuracy"].value == 0


def test_accuracy_counts_what_has_a_label() -> None:
    logits = torch.tensor([[0.0, 2, 1], [5, 1, 0], [0, 0, 9], [1, 0, 0]])
    metric = AccuracySpec("colour").build()
    for rows in (slice(0, 1), slice(1, 4)):
        batch = Batch((), {"colour": torch.tensor([1, 1, 2, -1])[rows]})
        metric.update(Outputs.empty()._replace(logits={"colour": logits[rows]}), batch)
    score = metric.compute()["accuracy"]
    assert score.value == pytest.approx(200 / 3)
    assert score.chance == pytest.approx(100 / 3)


def test_accuracy_reads_the_head_and_the_label_that_it_names() -> None:
    metric = AccuracySpec("hue", "colour").build()
    batch = Batch((), {"colour": torch.tensor([0]), "hue": torch.tensor([1])})
    metric.update(Outputs.empty()._replace(logits={"hue": torch.tensor([[1.0, 0.0]])}), batch)
    assert metric.compute()["accuracy"].value == 100


def test_a_split_without_the_label_is_refused() -> None:
    metric = AccuracySpec("colour").build()
    batch = Batch((), {"colour": torch.tensor([-1])})
    metric.update(Outputs.empty()._replace(logits={"colour": torch.zeros(1, 3)}), batch)
    with pytest.raises(InputError, match="Accuracy over the label 'colour' was asked for, but no sample has it"):
        metric.compute()


def test_a_label_past_the_classes_is_refused() -> None:
    metric = AccuracySpec("colour").build()
    batch = Batch((), {"colour": torch.tensor([3])})
    metric.update(Outputs.empty()._replace(logits={"colour": torch.zeros(1, 3)}), batch)
    with pytest.raises(InputError, match=r"The label 'colour' has class 3, but there are only 3 classes \(0 to 2\)"):
        metric.compute()


def test_zero_shot_needs_a_text_encoder(tmp_path: Path) -> None:
    metric = ZeroShotSpec("colour", classes_file(tmp_path)).build()
    with pytest.raises(InputError, match="needs a text encoder, but the model has none"):
        metric.start(build(), {}, CPU)


HEADS: dict[str, Any] = {"contrastive": ContrastiveHeadSpec(), "colour": ClassificationHeadSpec("image", 5)}
CHECKS: list[tuple[Any, str]] = [
    (AccuracySpec("color", "colour"), "AccuracySpec.head is 'color', but .* are colour. Did you mean 'colour'"),
    (AccuracySpec("contrastive", "colour"), "AccuracySpec.head is 'contrastive', but the model's classification heads"),
    (AccuracySpec("colour", "hug"), "AccuracySpec reads the label 'hug', but data.labels has colour, hue. Did you"),
    (ZeroShotSpec("colr", "x"), "ZeroShotSpec reads the label 'colr', but data.labels has colour, hue. Did you"),
    (ZeroShotSpec("colour", "x", image="imag"), "ZeroShotSpec.image and text is 'imag', but .* Did you mean 'image'"),
    (ZeroShotSpec("colour", "x", text="txt"), "ZeroShotSpec.image and text is 'txt', but .* Did you mean 'text'"),
    (ZeroShotSpec("colour", "x", text="wide"), "'image' against 'wide', but their embeddings are 4 and 7 wide"),
    (
        ZeroShotSpec("colour", "x", head="colour"),
        "ZeroShotSpec.head must be one of the model's contrastive heads, contr",
    ),
]


@pytest.mark.parametrize(("spec", "message"), CHECKS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_run_that_does_not_fit_is_refused(spec: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        spec.check(Parts({"image": 4, "text": 4, "wide": 7}, HEADS, {}, ("colour", "hue")))


def test_a_run_that_fits_is_not() -> None:
    AccuracySpec("colour").check(Parts({"image": 4, "text": 4}, HEADS, {}, ("colour",)))
    ZeroShotSpec("colour", "x").check(Parts({"image": 4, "text": 4}, HEADS, {}, ("colour",)))


@pytest.mark.parametrize("template", ["", "no place", "{} {}", "{name}", "{0} {0}", "{1}", "{", "{!r", "{}{x}"])
def test_a_template_has_one_place(template: str) -> None:
    with pytest.raises(InputError, match=r"A prompt template must hold \{\} once"):
        check_templates(["{}", template])
    with pytest.raises(InputError, match=r"A prompt template must hold \{\} once"):
        ZeroShotSpec("colour", "x", (template,))


def test_some_template_is_needed_and_two_encoders() -> None:
    with pytest.raises(InputError, match="There are no prompt templates"):
        ZeroShotSpec("colour", "x", ())
    with pytest.raises(
        InputError, match=r"templates are a list of strings, but are the string 'a {}': write it in \[\]"
    ):
        check_templates("a {}")
    with pytest.raises(InputError, match=r"ZeroShotSpec.text must be another encoder than image"):
        ZeroShotSpec("colour", "x", image="text")
    check_templates(["{}", "a {}, really", "{{braces}} {}"])
