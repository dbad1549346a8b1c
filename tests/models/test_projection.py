"""From a pooled vector to an embedding, against its arithmetic."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_batch, tiny_model
from torch import nn
from torch.testing import assert_close

from mmformer.errors import InputError
from mmformer.models.encoder import EncoderSpec
from mmformer.models.projection import ProjectionSpec
from mmformer.tokenizers.image import ImagePatchesSpec

Array = np.ndarray

SPECS = [
    ProjectionSpec(),
    ProjectionSpec(bias=True),
    ProjectionSpec(bias=True, activation="tanh"),
    ProjectionSpec(hidden=9),
    ProjectionSpec(True, 9, True, "tanh"),
]


def randomise(module: nn.Module) -> nn.Module:
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=draw)
    return module


def meaning(spec: ProjectionSpec, state: dict[str, Array], x: Array) -> Array:
    """One vector."""
    gelu = np.vectorize(lambda value: value * 0.5 * (1 + math.erf(value / math.sqrt(2))))
    matrices = [array for array in state.values() if array.ndim == 2]
    biases = [array for array in state.values() if array.ndim == 1]
    if spec.hidden is not None:
        x = gelu(matrices.pop(0) @ x + (biases.pop(0) if spec.hidden_bias else 0))
    x = matrices.pop() @ x + (biases.pop() if spec.bias else 0)
    assert not matrices
    assert not biases
    return np.tanh(x) if spec.activation == "tanh" else x


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_projection_is_its_arithmetic(spec: ProjectionSpec) -> None:
    module = randomise(spec.build(7, 5)).double()
    state = {name: parameter.detach().numpy() for name, parameter in module.named_parameters()}
    x = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = np.stack([meaning(spec, state, row) for row in x.numpy()])
    assert_close(module(x), torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


def test_every_field_changes_what_it_makes() -> None:
    base, x = ProjectionSpec(hidden=9), torch.ones(1, 7)
    changes: list[dict[str, Any]] = [{"bias": True}, {"hidden": 8}, {"hidden_bias": True}, {"activation": "tanh"}]
    assert {name for change in changes for name in change} == {f.name for f in dataclasses.fields(ProjectionSpec)}
    found = [randomise(dataclasses.replace(base, **change).build(7, 5))(x) for change in ({}, *changes)]
    assert len({tuple(vector[0].tolist()) for vector in found}) == len(found)


def test_an_encoder_projects_so() -> None:
    """BERT's pooler; and a plain projection is a matrix by the name that it always had."""
    tiny, batch = tiny_model(), tiny_batch(["a", "b c"])
    encoder = dataclasses.replace(tiny.encoders["text"], projection=ProjectionSpec(bias=True, activation="tanh"))
    model = dataclasses.replace(tiny, encoders={**tiny.encoders, "text": encoder}).build().eval()
    model.initialise(0)
    outputs, part = model(batch), model.encoders["text"]
    expected = torch.tanh(part.projection[0](part.pool(outputs.tokens["text"])))  # type: ignore[index, operator, union-attr]
    assert_close(outputs.embedding["text"], expected)
    assert outputs.embedding["text"].shape == (2, 12)
    assert "encoders.image.projection.weight" in model.state_dict()


WRONG: list[tuple[Any, str]] = [
    (lambda: ProjectionSpec(hidden=0), "ProjectionSpec.hidden must be None or at least 1, but is 0."),
    (lambda: ProjectionSpec(hidden_bias=True), "ProjectionSpec.hidden_bias must be false where hidden is None"),
    (lambda: ProjectionSpec(activation="relu"), "ProjectionSpec.activation must be 'none' or 'tanh', but is 'relu'."),  # type: ignore[arg-type]
    (
        lambda: EncoderSpec(ImagePatchesSpec(), "s", projection=ProjectionSpec(bias=True)),
        "EncoderSpec.projection must be left out where embedding is None: there is none, but is ProjectionSpec(bias=",
    ),
]


@pytest.mark.parametrize(("make", "message"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_no_projection_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value).startswith(message)
