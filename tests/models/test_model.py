"""A model is named stacks, encoders and heads: sharing, absent modalities, initialisation, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from tiny import VOCABULARY, tiny_batch, tiny_model

from mmformer.errors import InputError
from mmformer.models.encoder import EncoderSpec
from mmformer.models.head import ClassificationHeadSpec, ContrastiveHeadSpec, HeadSpec
from mmformer.models.model import Model, ModelSpec
from mmformer.models.projection import ProjectionSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.norm import LayerNormSpec, RMSNormSpec
from mmformer.nn.pool import AttentionPoolSpec, ClassTokenPoolSpec, FirstPoolSpec, LastPoolSpec, MeanPoolSpec
from mmformer.nn.position import LearnedPositionSpec, SinusoidalPositionSpec
from mmformer.nn.resampler import AttentionResamplerSpec
from mmformer.nn.rotary import RotaryPositionSpec
from mmformer.nn.stack import StackSpec
from mmformer.tokenizers.image import ConvolutionalStemSpec, ImagePatchesSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.types import Batch, is_special

TEXTS = ["red", "a small blue square", "", "green on the left"]
PATCHES = ImagePatchesSpec(patch=8)
IDS = TextTokensSpec(VOCABULARY, context_length=16)
TRUNK = StackSpec(16, 2, LayerSpec(AttentionSpec(heads=2)))
SHARED = ModelSpec(
    stacks={"trunk": TRUNK},
    encoders={"image": EncoderSpec(PATCHES, "trunk"), "text": EncoderSpec(IDS, "trunk", embedding=12)},
)
RICH = ModelSpec(
    stacks={
        "image": dataclasses.replace(TRUNK, position=LearnedPositionSpec((1, 2), (2, 2)), input_norm=True),
        "text": StackSpec(24, 1, LayerSpec(AttentionSpec(4, 2, qk_norm=True), layer_scale=0.1), RotaryPositionSpec()),
    },
    encoders={
        "image": EncoderSpec(
            ConvolutionalStemSpec(channels=(4, 6)), "image", ClassTokenPoolSpec(), 12, class_token=True, registers=2
        ),
        "text": EncoderSpec(IDS, "text", AttentionPoolSpec(AttentionSpec(4)), 12, registers=1),
    },
    heads={"contrastive": ContrastiveHeadSpec(), "colour": ClassificationHeadSpec("image", 5, 0.1)},
)


def build(spec: ModelSpec, seed: int = 0) -> Model:
    model = spec.build().eval()
    model.initialise(seed)
    return model


def states_equal(a: Model, b: Model) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ------------------------------------------------------------------------------------------------- parts


def test_outputs_go_by_the_names_of_the_parts() -> None:
    outputs = build(RICH)(tiny_batch(TEXTS))
    assert {name: tuple(x.shape) for name, x in outputs.embedding.items()} == {"image": (4, 12), "text": (4, 12)}
    assert outputs.tokens["image"].x.shape == (4, 1 + 2 + 4, 16)
    assert outputs.tokens["text"].x.shape == (4, 1 + 8, 24)
    assert {name: tuple(x.shape) for name, x in outputs.logits.items()} == {"colour": (4, 5)}
    assert {name: tuple(x.shape) for name, x in outputs.scale.items()} == {"contrastive": (1,)}
    assert outputs.losses == {}
    assert outputs.intermediates == {}
    assert RICH.embedding_widths == {"image": 12, "text": 12}
    assert SHARED.embedding_widths == {"image": 16, "text": 12}


def test_encoders_that_name_one_stack_share_its_weights() -> None:
    model = build(SHARED)
    twice = build(dataclasses.replace(SHARED, stacks={"trunk": TRUNK, "other": TRUNK}, encoders={
        **SHARED.encoders, "text": dataclasses.replace(SHARED.encoders["text"], stack="other")
    }))  # fmt: skip
    count = sum(p.numel() for p in model.parameters())
    stack = sum(p.numel() for p in model.stacks["trunk"].parameters())
    assert sum(p.numel() for p in twice.parameters()) == count + stack
    batch = tiny_batch(TEXTS)
    model(batch).embedding["image"].square().sum().backward()
    from_image = {n: p.grad.clone() for n, p in model.stacks["trunk"].named_parameters() if p.grad is not None}
    model(batch).embedding["text"].square().sum().backward()
    assert from_image
    for name, parameter in model.stacks["trunk"].named_parameters():
        assert parameter.grad is not None
        assert not torch.equal(parameter.grad, from_image[name]), "both encoders train it"
    assert not [name for name in model.state_dict() if name.startswith("encoders") and "stack" in name]


def test_absent_modalities_are_left_out() -> None:
    model, batch = build(RICH), tiny_batch(TEXTS)
    both = model(batch)
    image, text = model(batch._replace(text=None)), model(batch._replace(image=None))
    assert list(image.embedding) == ["image"]
    assert list(text.embedding) == ["text"]
    assert torch.allclose(image.embedding["image"], both.embedding["image"], atol=1e-6)
    assert torch.allclose(text.embedding["text"], both.embedding["text"], atol=1e-6)
    assert list(image.logits) == ["colour"]
    assert text.logits == {}, "a head whose encoder did not run"
    assert list(text.scale) == ["contrastive"]
    with pytest.raises(InputError, match="This model reads image and text, but the batch has none of it"):
        model(Batch(("a",), {}))


def test_images_of_any_size_that_divides() -> None:
    model = build(SHARED)
    for side in ((8, 8), (8, 24), (32, 16)):
        tokens = model(tiny_batch(["a"], side)).tokens["image"]
        assert tokens.x.shape[1] == side[0] * side[1] // 64


def test_intermediates_are_what_left_the_layers() -> None:
    model, batch = build(SHARED), tiny_batch(TEXTS)
    outputs = model(batch, intermediates=["image/0", "image/1", "text/1"])
    assert set(outputs.intermediates) == {"image/0", "image/1", "text/1"}
    normed = model.stacks["trunk"].norm(outputs.intermediates["image/1"])
    assert torch.equal(normed, outputs.tokens["image"].x)
    assert not torch.equal(outputs.intermediates["image/0"], outputs.intermediates["image/1"])
    for wrong in ("image", "image/x", "txt/0", "image/-1", "/0", ""):
        with pytest.raises(InputError, match="names no hidden state: write encoder/layer, such as image/0 or text/0"):
            model(batch, intermediates=[wrong])
    with pytest.raises(InputError, match="the layers are 0 to 1"):
        model(batch, intermediates=["image/2"])


def test_heads_read_what_they_name() -> None:
    model, batch = build(RICH), tiny_batch(TEXTS)
    outputs = model(batch)
    head = model.heads["colour"].projection
    expected = outputs.embedding["image"] @ head.weight.T + head.bias  # type: ignore[operator, union-attr]
    assert torch.allclose(outputs.logits["colour"], expected, atol=1e-6)
    assert math.isclose(outputs.scale["contrastive"].item(), 1 / 0.07, rel_tol=1e-6)
    model.train()
    assert not torch.equal(model(batch).logits["colour"], model(batch).logits["colour"]), "dropout"


def test_the_temperature_is_learned() -> None:
    model = ModelSpec(SHARED.stacks, SHARED.encoders, heads={"c": ContrastiveHeadSpec(0.05, 0.02)}).build()
    model.initialise(0)
    scale = model(tiny_batch(TEXTS)).scale["c"]  # what is past the floor: tests/models/test_heads.py
    assert math.isclose(scale.item(), 20, rel_tol=1e-6)
    scale.sum().backward()
    parameter = model.heads["c"].log_scale
    assert isinstance(parameter, torch.nn.Parameter)
    assert parameter.shape == (1,)
    assert parameter.grad is not None
    assert math.isclose(parameter.grad.item(), 20, rel_tol=1e-5)


# ------------------------------------------------------------------------------------------------- special tokens


def test_special_tokens_stand_first_and_nowhere() -> None:
    model = build(RICH)
    outputs = model(tiny_batch(TEXTS))
    image, text = outputs.tokens["image"], outputs.tokens["text"]
    assert image.pos[0, :3].tolist() == [[-1] * 3, [-2] * 3, [-3] * 3], "each can be told from the others"
    assert is_special(image.pos)[:, :3].all()
    assert not is_special(image.pos)[:, 3:].any()
    assert image.valid is None
    assert text.valid is not None
    assert text.valid[:, 0].all()
    assert text.valid[2].tolist() == [True, True] + [False] * 7, "a register, and the end of an empty text"
    special = model.encoders["image"].special
    assert isinstance(special, torch.nn.Parameter)
    assert special.shape == (3, 16)


def test_registers_and_class_tokens_change_the_embedding() -> None:
    batch = tiny_batch(TEXTS)
    for change in ({"registers": 1}, {"class_token": True}):
        encoders = {**SHARED.encoders, "image": dataclasses.replace(SHARED.encoders["image"], **change)}
        model = build(dataclasses.replace(SHARED, encoders=encoders))
        before = model(batch).embedding["image"]
        with torch.no_grad():
            model.encoders["image"].special.mul_(-50)  # type: ignore[operator, union-attr]
        after = model(batch).embedding["image"]
        assert not torch.allclose(before, after, atol=1e-3), "they are attended to"
        assert not torch.allclose(before, build(SHARED)(batch).embedding["image"], atol=1e-4)


def test_a_mean_leaves_special_tokens_out() -> None:
    spec = dataclasses.replace(SHARED, encoders={"image": EncoderSpec(PATCHES, "trunk", registers=3)})
    outputs = build(spec)(tiny_batch(TEXTS)._replace(text=None))
    assert torch.allclose(outputs.embedding["image"], outputs.tokens["image"].x[:, 3:].mean(1), atol=1e-6)


def test_a_causal_text_encoder_with_the_last_token_is_clips() -> None:
    """A later word changes no earlier token; the last one has read all."""
    text = EncoderSpec(IDS, "trunk", LastPoolSpec(), causal=True)
    stack = dataclasses.replace(TRUNK, position=SinusoidalPositionSpec())
    model = build(ModelSpec({"trunk": stack}, {"text": text}))

    def run(*texts: str) -> Any:
        return model(tiny_batch(list(texts))._replace(image=None))

    one, two = run("a red square"), run("a red circle")
    assert torch.allclose(one.tokens["text"].x[0, :2], two.tokens["text"].x[0, :2], atol=1e-6)
    assert not torch.allclose(one.embedding["text"], two.embedding["text"], atol=1e-3)
    for word in ("blue red square", "a blue square"):
        assert not torch.allclose(run(word).embedding["text"], one.embedding["text"], atol=1e-3)
    length = int(tiny_batch(["a red square"]).text.lengths[0])  # type: ignore[union-attr]
    assert torch.equal(one.embedding["text"][0], one.tokens["text"].x[0, length - 1])
    sees_all = build(ModelSpec({"trunk": stack}, {"text": dataclasses.replace(text, causal=False)}))
    batches = [tiny_batch([t])._replace(image=None) for t in ("a red square", "a red circle")]
    first, second = (sees_all(batch).tokens["text"].x[0, :2] for batch in batches)
    assert not torch.allclose(first, second, atol=1e-3)


# ------------------------------------------------------------------------------------------------- initialisation


@pytest.mark.parametrize("spec", [SHARED, RICH], ids=["shared", "rich"])
def test_initialisation_is_a_function_of_the_seed(spec: ModelSpec) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model = build(spec, 3)
    torch.set_rng_state(before)
    model.initialise(3)
    assert torch.equal(torch.get_rng_state(), before), "the global stream is left alone"
    torch.manual_seed(17)
    assert states_equal(build(spec, 3), model)
    assert not states_equal(build(spec, 4), model)
    again = build(spec, 4)
    again.initialise(3)
    assert states_equal(again, model), "every parameter is drawn anew"


@pytest.mark.parametrize("spec", [SHARED, RICH, tiny_model(classes=3)], ids=["shared", "rich", "tiny"])
def test_a_model_built_on_meta_is_the_same(spec: ModelSpec) -> None:
    with torch.device("meta"):
        model = spec.build()
    assert all(parameter.is_meta for parameter in model.parameters())
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(float("nan"))
    model.initialise(7)
    assert states_equal(model, build(spec, 7))
    batch = tiny_batch(TEXTS)
    found, expected = model.eval()(batch).embedding, build(spec, 7)(batch).embedding
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_part_more_or_less_leaves_the_others_as_they_were() -> None:
    full = build(RICH).state_dict()
    alone = ModelSpec({"image": RICH.stacks["image"]}, {"image": RICH.encoders["image"]})
    deeper = {**RICH.stacks, "image": dataclasses.replace(RICH.stacks["image"], depth=3)}
    for spec in (alone, dataclasses.replace(RICH, heads={}), dataclasses.replace(RICH, stacks=deeper)):
        state = build(spec).state_dict()
        shared = state.keys() & full.keys()
        assert len(shared) >= min(len(state), len(full)) - 2
        assert all(torch.equal(state[name], full[name]) for name in shared)


def test_no_two_modules_start_alike() -> None:
    model = build(SHARED)
    weights = [p for p in model.parameters() if p.ndim == 2]
    for index, one in enumerate(weights):
        assert all(one.shape != other.shape or not torch.equal(one, other) for other in weights[index + 1 :])


# ------------------------------------------------------------------------------------------------- refusals

WRONG: list[tuple[Any, str]] = [
    (lambda: EncoderSpec(PATCHES, "t", embedding=0), "EncoderSpec.embedding must be None or at least 1"),
    (lambda: EncoderSpec(PATCHES, "t", registers=-1), "EncoderSpec.registers must be at least 0"),
    (lambda: EncoderSpec(PATCHES, "t", ClassTokenPoolSpec()), "EncoderSpec.class_token must be true for ClassToken"),
    (
        lambda: EncoderSpec(IDS, "t", ClassTokenPoolSpec(), causal=True, class_token=True),
        "EncoderSpec.causal must be false with ClassTokenPoolSpec: the first token would see itself alone",
    ),
    (
        lambda: EncoderSpec(IDS, "t", FirstPoolSpec(), causal=True),
        "EncoderSpec.causal must be false with FirstPoolSpec",
    ),
    (
        lambda: EncoderSpec(PATCHES, "t", ClassTokenPoolSpec(1), class_token=True),
        "EncoderSpec.registers must be at least 1 for ClassTokenPoolSpec(index=1), but is 0.",
    ),
    (
        lambda: EncoderSpec(PATCHES, "t", ClassTokenPoolSpec(), class_token=True, resampler=AttentionResamplerSpec()),
        "EncoderSpec.resampler must be one with as many class tokens as ClassTokenPoolSpec() reads, 1, but is",
    ),
    (lambda: with_encoder(EncoderSpec(PATCHES, "trnk")), "model.encoders.image.stack is 'trnk', but the stacks are"),
    (lambda: with_head(ClassificationHeadSpec("imag", 2)), "model.heads.h is 'imag', but the encoders are image"),
    (lambda: ClassificationHeadSpec("image", 1), "ClassificationHeadSpec.classes must be at least 2"),
    (lambda: ClassificationHeadSpec("image", 2, 1.0), "ClassificationHeadSpec.dropout must be at least 0 and below 1"),
    (lambda: ContrastiveHeadSpec(0.001), "ContrastiveHeadSpec.temperature must be at least lowest_temperature (0.01)"),
    (lambda: ContrastiveHeadSpec(0.1, 0.0), "ContrastiveHeadSpec.lowest_temperature must be None or positive"),
    (lambda: ContrastiveHeadSpec(0.0, None), "ContrastiveHeadSpec.temperature must be positive"),
    (lambda: ContrastiveHeadSpec(bias=float("nan")), "ContrastiveHeadSpec.bias must be None or finite, but is nan"),
    (
        lambda: ModelSpec({"trunk": TRUNK, "more": TRUNK}, {"image": EncoderSpec(PATCHES, "trunk")}),
        "model.stacks.more is named by no encoder",
    ),
    (
        lambda: ModelSpec({"trunk": TRUNK}, {"a.b": EncoderSpec(PATCHES, "trunk")}),
        "model.encoders has the name 'a.b'; letters, digits and _ alone",
    ),
    (lambda: ModelSpec({}, {}), "model.encoders and model.decoders are empty"),
]


def with_encoder(encoder: EncoderSpec) -> ModelSpec:
    return ModelSpec({"trunk": TRUNK}, {"image": encoder})


def with_head(head: HeadSpec) -> ModelSpec:
    return ModelSpec({"trunk": TRUNK}, {"image": EncoderSpec(PATCHES, "trunk")}, heads={"h": head})


@pytest.mark.parametrize(("make", "message"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value).startswith(message)


def test_every_field_of_an_encoder_changes_the_model() -> None:
    base, batch = EncoderSpec(IDS, "trunk"), tiny_batch(TEXTS)._replace(image=None)
    changes: list[dict[str, Any]] = [
        {"tokenizer": dataclasses.replace(IDS, vocabulary=VOCABULARY, context_length=8, begin=True)},
        {"pool": LastPoolSpec()},
        {"embedding": 5},
        {"embedding": 12, "projection": ProjectionSpec(bias=True, activation="tanh")},
        {"causal": True},
        {"class_token": True},
        {"registers": 1},
        {"norm": RMSNormSpec(eps=1.0)},
        {"resampler": AttentionResamplerSpec(3, attention=AttentionSpec(2))},
    ]
    assert {name for change in changes for name in change} == {
        field.name for field in dataclasses.fields(EncoderSpec)
    } - {*("stack", "packed", "patch_dropout", "layers", "class_last", "class_shifted")}, (
        "test_packing.py, test_patch_dropout.py, test_insertion.py and test_class_last.py have these"
    )
    reference = build(with_text(base))(batch).embedding["text"]
    for change in changes[1:]:
        found = build(with_text(dataclasses.replace(base, **change)))(batch).embedding["text"]
        assert found.shape != reference.shape or not torch.allclose(found, reference, atol=1e-4)


def with_text(encoder: EncoderSpec) -> ModelSpec:
    return ModelSpec({"trunk": TRUNK}, {"text": encoder})


def test_mean_pool_is_the_default() -> None:
    assert EncoderSpec(IDS, "t").pool == MeanPoolSpec()
    assert LayerSpec().norm == LayerNormSpec()
