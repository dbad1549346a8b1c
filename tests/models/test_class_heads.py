"""Heads over classes and over a vocabulary, against their arithmetic; and what does not fit them."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from tiny import VOCABULARY, tiny_batch, tiny_model
from torch import Tensor, nn
from torch.testing import assert_close

from mmformer.errors import InputError
from mmformer.models.encoder import EncoderSpec
from mmformer.models.exits import EarlyExitHeadSpec
from mmformer.models.head import ClassificationHeadSpec, HeadSpec, MeanLogitsHeadSpec
from mmformer.models.language_head import LanguageHead, LanguageHeadSpec
from mmformer.models.model import Model, ModelSpec
from mmformer.models.transform import TransformSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.norm import LayerNormSpec, RMSNormSpec
from mmformer.nn.pool import ClassTokenPoolSpec, JoinedPoolSpec, MeanPoolSpec
from mmformer.nn.resampler import AttentionResamplerSpec
from mmformer.nn.stack import StackSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.types import Outputs

TEXTS = ["red", "a small blue square", "green on the left"]
TINY = tiny_model()
OWN, TAUGHT = ClassTokenPoolSpec(), ClassTokenPoolSpec(index=1)


def spec(**heads: HeadSpec) -> ModelSpec:
    """Pictures have a class token and two registers, texts one register; embeddings are narrower than tokens."""
    encoders = {
        "image": dataclasses.replace(TINY.encoders["image"], class_token=True, registers=2),
        "text": dataclasses.replace(TINY.encoders["text"], registers=1),
    }
    return dataclasses.replace(TINY, encoders=encoders, heads=heads)


def build(made: ModelSpec) -> Model:
    model = made.build().eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.4)
    return model


def linear(module: nn.Module, name: str, x: Tensor) -> Tensor:
    state = dict(module.named_parameters())
    y = x @ state[f"{name}.weight"].T
    return y + state[f"{name}.bias"] if f"{name}.bias" in state else y


def normed(module: nn.Module, x: Tensor, eps: float) -> Tensor:
    state, centred = dict(module.named_parameters()), x - x.mean(-1, keepdim=True)
    x = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return x * state["norm.weight"] + state["norm.bias"]


def test_a_classifier_reads_the_embedding_or_pools_for_itself() -> None:
    """The class token, DeiT's distillation token, what DINOv2's classifier reads."""
    pools = {"own": OWN, "taught": TAUGHT, "both": JoinedPoolSpec((OWN, MeanPoolSpec())), "embedding": None}
    model = build(spec(**{name: ClassificationHeadSpec("image", 5, pool=pool) for name, pool in pools.items()}))
    outputs = model(tiny_batch(TEXTS))
    x = outputs.tokens["image"].x  # with three special tokens
    reads = {"own": x[:, 0], "taught": x[:, 1], "both": torch.cat((x[:, 0], x[:, 3:].mean(1)), dim=1)}
    for name, read in (*reads.items(), ("embedding", outputs.embedding["image"])):
        assert_close(outputs.logits[name], linear(model.heads[name], "projection", read))


ACTIVATIONS: dict[str, Any] = {
    "relu": lambda x: x.clamp(min=0),
    "tanh": lambda x: 1 - 2 / ((2 * x).exp() + 1),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_norm_and_hidden_units_come_before(activation: Any) -> None:
    head = ClassificationHeadSpec("image", 5, norm=LayerNormSpec(eps=0.3), hidden=7, activation=activation, bias=False)
    model = build(spec(k=head))
    outputs, module = model(tiny_batch(TEXTS)), model.heads["k"]
    x = normed(module, outputs.embedding["image"], 0.3)
    x = ACTIVATIONS[activation](linear(module, "hidden", x))
    assert_close(outputs.logits["k"], linear(module, "projection", x))
    assert "projection.bias" not in module.state_dict()


def test_dropout_is_on_what_is_mapped_to_logits() -> None:
    head = ClassificationHeadSpec("image", 5, dropout=0.5, hidden=64)
    model = build(spec(k=head))
    module, embedding = model.heads["k"], torch.ones(1, 12)
    outputs = Outputs.empty()
    outputs.embedding["image"] = embedding
    with torch.no_grad():
        module.projection.weight.fill_(1.0)  # type: ignore[union-attr, operator]
        module.projection.bias.zero_()  # type: ignore[union-attr, operator]
    hidden = linear(module, "hidden", embedding).clamp(min=0)
    found = module.train()(outputs, tiny_batch(TEXTS)).logits[0, 0]
    assert 0 < found < 2 * hidden.sum()
    counts = [(hidden * 2 * torch.bernoulli(torch.full_like(hidden, 0.5))).sum() for _ in range(200)]
    assert min(counts) < found < max(counts)


def test_every_field_of_a_classifier_changes_it() -> None:
    base = ClassificationHeadSpec("image", 5, hidden=7)
    changes: list[dict[str, Any]] = [
        {"encoder": "text"},
        {"classes": 4},
        {"pool": ClassTokenPoolSpec()},
        {"norm": RMSNormSpec()},
        {"hidden": 8},
        {"activation": "tanh"},
        {"bias": False},
    ]
    names = {field.name for field in dataclasses.fields(base)}
    assert {name for change in changes for name in change} == names - {"dropout"}
    reference = build(spec(k=base))(tiny_batch(TEXTS)).logits["k"]
    for change in changes:
        found = build(spec(k=dataclasses.replace(base, **change)))(tiny_batch(TEXTS)).logits["k"]
        assert found.shape != reference.shape or not torch.allclose(found, reference, atol=1e-4)


# ------------------------------------------------------------------------------------------------- means of heads


def test_a_mean_of_heads_is_deits() -> None:
    both = {
        "own": ClassificationHeadSpec("image", 5, pool=OWN),
        "taught": ClassificationHeadSpec("image", 5, pool=TAUGHT),
    }
    model = build(spec(**both, mean=MeanLogitsHeadSpec("image", 5, ("own", "taught"))))
    logits = model(tiny_batch(TEXTS)).logits
    assert_close(logits["mean"], (logits["own"] + logits["taught"]) / 2)
    assert not torch.allclose(logits["own"], logits["taught"])
    assert model(tiny_batch(TEXTS)._replace(image=None)).logits == {}
    assert not list(model.heads["mean"].parameters())


# ------------------------------------------------------------------------------------------------- vocabularies


def words(tied: bool = True, **more: Any) -> LanguageHeadSpec:
    return LanguageHeadSpec("text", tied=tied, transform=TransformSpec(norm=LayerNormSpec(eps=0.2), **more))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu"])
def test_language_logits_are_products_with_the_table(tied: bool, activation: Any) -> None:
    model, batch = build(spec(w=words(tied, activation=activation))), tiny_batch(TEXTS)
    outputs, module, tokens = model(batch), model.heads["w"], model.encoders["text"].tokenizer
    assert isinstance(module, LanguageHead)
    x = linear(module.transform, "dense", outputs.tokens["text"].x[:, 1:])
    if activation == "gelu_tanh":
        x = x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    else:
        x = ACTIVATIONS[activation](x)
    x = normed(module.transform, x, 0.2)
    table = tokens.weight if tied else module.output.weight  # type: ignore[union-attr]
    assert isinstance(table, Tensor)
    size = tokens.size  # type: ignore[union-attr]
    assert isinstance(size, int)
    expected = x @ table[:size].T + module.bias
    assert batch.text is not None
    assert outputs.logits["w"].shape == (*batch.text.ids.shape, size), "one for each id, none for the register"
    assert_close(outputs.logits["w"], expected, rtol=1e-5, atol=1e-5)


def test_a_tied_table_is_registered_once_and_gets_both_gradients() -> None:
    model = build(spec(w=words()))
    names = [name for name, _ in model.named_parameters()]
    assert [name for name in names if name.startswith("heads.w.")] == [
        f"heads.w.{name}"
        for name in (
            "bias",
            *(f"transform.{part}" for part in ("dense.weight", "dense.bias", "norm.weight", "norm.bias")),
        )
    ]
    outputs = model(tiny_batch(["red"])._replace(image=None))
    outputs.logits["w"][..., 100].sum().backward()
    table = model.encoders["text"].tokenizer.weight
    assert isinstance(table, nn.Parameter)
    assert table.grad is not None
    assert table.grad[100].any(), "of the product, though the text has no such piece"
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.encoders["text"].tokenizer.weight.mul_(2)  # type: ignore[union-attr, operator]
    assert_close(
        model(tiny_batch(["red"])).logits["w"], outputs.logits["w"], msg="a copy has a table of its own, and it alone"
    )
    assert not torch.allclose(copied(tiny_batch(["red"])).logits["w"], outputs.logits["w"])


def test_the_other_encoder_alone_has_no_language() -> None:
    assert build(spec(w=words()))(tiny_batch(TEXTS)._replace(text=None)).logits == {}
    assert LanguageHeadSpec("text").writes
    assert not ClassificationHeadSpec("image", 2).writes


# ------------------------------------------------------------------------------------------------- refusals

PLAIN = ClassificationHeadSpec("image", 5)
WRONG: list[tuple[Any, str]] = [
    (lambda: ClassificationHeadSpec("image", 5, hidden=0), "ClassificationHeadSpec.hidden must be None or at least 1"),
    (
        lambda: ClassificationHeadSpec("image", 5, hidden=4, activation="silu"),  # type: ignore[arg-type]
        "ClassificationHeadSpec.activation must be one of 'relu', 'gelu', 'tanh', but is 'silu'.",
    ),
    (
        lambda: ClassificationHeadSpec("image", 5, activation="tanh"),
        "ClassificationHeadSpec.activation must be left alone where hidden is None",
    ),
    (
        lambda: spec(k=ClassificationHeadSpec("image", 5, pool=ClassTokenPoolSpec(3))),
        "model.heads.k.pool is ClassTokenPoolSpec(index=3), which reads 4 special tokens, but model.encoders.image has",
    ),
    (
        lambda: EarlyExitHeadSpec("image", 5, pool=OWN, exits=(0,)),
        "EarlyExitHeadSpec.pool must be None: each exit is a linear map",
    ),
    (lambda: MeanLogitsHeadSpec("image", 5, ("k",)), "MeanLogitsHeadSpec.heads must be two or more, but is ('k',)."),
    (
        lambda: spec(k=PLAIN, m=MeanLogitsHeadSpec("image", 5, ("k", "kk"))),
        "model.heads.m.heads has 'kk', but the heads over classes that the model names before it are k.",
    ),
    (
        lambda: spec(m=MeanLogitsHeadSpec("image", 5, ("k", "k")), k=PLAIN),
        "model.heads.m.heads has 'k', but the heads over classes that the model names before it are none.",
    ),
    (
        lambda: spec(k=PLAIN, m=MeanLogitsHeadSpec("image", 6, ("k", "k"))),
        "model.heads.m.classes is 6, but that of its head 'k' is 5.",
    ),
    (
        lambda: spec(k=PLAIN, m=MeanLogitsHeadSpec("text", 5, ("k", "k"))),
        "model.heads.m.encoder is 'text', but that of its head 'k' is 'image'.",
    ),
    (
        lambda: TransformSpec("tanh"),  # type: ignore[arg-type]
        "TransformSpec.activation must be one of 'gelu', 'gelu_tanh', 'relu', but is 'tanh'.",
    ),
    (
        lambda: spec(w=LanguageHeadSpec("image")),
        "model.heads.w.encoder is 'image', whose tokens are not those of a text, one for each id",
    ),
    (
        lambda: ModelSpec(
            {"s": StackSpec(8, 1, LayerSpec(AttentionSpec(2)))},
            {
                "text": EncoderSpec(
                    TextTokensSpec(VOCABULARY), "s", resampler=AttentionResamplerSpec(4, attention=AttentionSpec(2))
                )
            },
            heads={"w": LanguageHeadSpec("text")},
        ),
        "model.heads.w.encoder is 'text', whose tokens are not those of a text, one for each id",
    ),
]


@pytest.mark.parametrize(("make", "message"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value).startswith(message)
