"""open_clip's own list of models: those that are vision transformers come in, parameter for parameter."""

from __future__ import annotations

import copy
import dataclasses
import logging
from typing import Any

import pytest
import torch

from mmformer.errors import InputError
from mmformer.interop.open_clip import family_of
from mmformer.interop.rules import to_theirs
from mmformer.models.model import ModelSpec
from mmformer.tokenizers.text import TextTokensSpec

open_clip = pytest.importorskip("open_clip", reason="the reference")
SOME = ("ViT-M-16-alt", "ViT-SO400M-14-SigLIP-384", "coca_ViT-L-14")


def without_ids(spec: ModelSpec) -> ModelSpec:
    """A spec whose special ids are no template's, which some tables have no row for."""

    def changed(part: Any) -> Any:
        text = isinstance(part.tokenizer, TextTokensSpec)
        return dataclasses.replace(part, tokenizer=dataclasses.replace(part.tokenizer, ids=None)) if text else part

    parts = {
        kind: {name: changed(part) for name, part in getattr(spec, kind).items()} for kind in ("encoders", "decoders")
    }
    return dataclasses.replace(spec, **parts)


def check(name: str) -> None:
    """What a config says can be said again, and its parameters have the reference's names and shapes."""
    config = copy.deepcopy(open_clip.get_model_config(name))
    family = family_of(config, name)
    custom = config.get("custom_text") or config["text_cfg"].get("hf_model_name")
    layout = next(iter(family.layouts)) if len(family.layouts) == 1 else "CustomTextCLIP" if custom else "CLIP"
    spec = family.spec(config, layout, name)
    assert family.spec(family.config(spec, layout, name), layout, name) == spec
    with torch.device("meta"):
        ours = without_ids(spec).build().state_dict()
        theirs = open_clip.create_model(name, load_weights=False, device="meta").state_dict()
    written = to_theirs(family.weights(config, layout), ours)
    shapes: list[dict[str, Any]] = [{key: value.shape for key, value in state.items()} for state in (written, theirs)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", SOME)
def test_published_models_fit(name: str) -> None:
    check(name)


@pytest.mark.slow
def test_all_others_fit_or_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)  # each is told to have no weights
    fitting, names = [], open_clip.list_models()
    for name in names:
        try:
            check(name)
            fitting.append(name)
        except InputError as error:
            assert name in str(error)
    left = [name for name in names if name.startswith(("ViT-", "coca_ViT")) and name not in fitting]
    assert left == ["ViT-SO400M-16-SigLIP-i18n-256"], "its texts are not projected"
