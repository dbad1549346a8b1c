"""Specs straight from plain data are those that jsonargparse makes of it, or it is left to that."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import tiny

from mmformer import config
from mmformer.bundle import Transforms
from mmformer.cli.options import merged
from mmformer.config import build, make_parser, parse, read_yaml, to_data
from mmformer.data.image_transform import ImageTransformSpec
from mmformer.errors import InputError
from mmformer.models.model import ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.mamba import MambaSpec
from mmformer.nn.stack import StackSpec
from mmformer.plain import RefusedError, straight
from mmformer.schema import check_layout, defaults_of, fields_of, has_spec, is_family, members, without_null
from mmformer.tokenizers.image import ConvolutionalStemSpec
from mmformer.tokenizers.mobilevit import MobileViTBlockSpec
from mmformer.training.run import RunSpec, TrainerSpec

CONFIGS = tiny.ROOT / "configs"
FILES = [
    *((RunSpec, file) for file in sorted((CONFIGS / "runs").glob("*.yaml"))),
    *((ModelSpec, file) for file in sorted((CONFIGS / "models").glob("*.yaml"))),
    *((StackSpec, file) for file in sorted((CONFIGS / "stacks").glob("*.yaml"))),
]


def by_the_parser(spec: type, data: dict[str, Any]) -> Any:
    """What ``parse`` would do without."""
    check_layout(spec, data, "")
    parser = make_parser(spec)
    return build(parser, parser.parse_object(copy.deepcopy(config._whole(spec, data))), spec)


def data_of(spec: type, file: Path) -> dict[str, Any]:
    return merged(spec, [("config", str(file))]) if spec is RunSpec else read_yaml(file)


@pytest.mark.parametrize(
    ("spec", "file"), FILES, ids=lambda value: getattr(value, "stem", getattr(value, "__name__", ""))
)
def test_every_file_is_taken(spec: type, file: Path) -> None:
    """And what is written of it, as bundles and runs have it."""
    made = straight(spec, data_of(spec, file))
    assert made is not None
    assert repr(straight(spec, to_data(made))) == repr(made)


@pytest.mark.parametrize(
    ("spec", "data"),
    [
        (LayerSpec, {"mixer": {"class_path": "AttentionSpec", "init_args": {"heads": 4, "dropout": 0}}}),
        (LayerSpec, {"mixer": "MambaSpec", "feedforward": None, "norm": {"eps": "1e-3"}}),
        (AttentionSpec, {"heads": "4", "bias": "false", "head_width": "null", "dropout": "0"}),
        (TrainerSpec, {"max_steps": 3, "gradient_clip_val": 1, "precision": "bf16-mixed"}),
        (TrainerSpec, {"max_steps": "3", "gradient_clip_val": "1e-1", "deterministic": "true"}),
        (ImageTransformSpec, {"size": [3, 4], "fill": [0, 1, 2]}),
        (MambaSpec, {"steps": [1, 2.5]}),
        (Transforms, {"classes": {"colour": ["red", "null", "1"]}, "image": {"size": [8, 8]}}),
    ],
)
def test_it_is_what_the_parser_makes(spec: type, data: dict[str, Any]) -> None:
    found = straight(spec, data)
    assert found is not None
    assert repr(found) == repr(by_the_parser(spec, data))


def test_arguments_alone_change_what_the_default_has() -> None:
    @dataclasses.dataclass(frozen=True)
    class Holder:
        attention: AttentionSpec = dataclasses.field(default_factory=lambda: AttentionSpec(8, dropout=0.5))

    data: dict[str, Any] = {"attention": {"bias": False}}
    assert straight(Holder, data) == Holder(AttentionSpec(8, dropout=0.5, bias=False)) == by_the_parser(Holder, data)


def test_arguments_alone_change_what_the_default_has_inside() -> None:
    """The layer of this block's stack has four heads, where a layer by itself has eight."""
    for layer in ({"dropout": 0.1}, {"mixer": {"bias": False}}):
        data = {"stack": {"layer": layer}}
        found = straight(MobileViTBlockSpec, data)
        assert isinstance(found, MobileViTBlockSpec)
        assert isinstance(found.stack.layer.mixer, AttentionSpec)
        assert found.stack.layer.mixer.heads == 4
        assert repr(found) == repr(by_the_parser(MobileViTBlockSpec, data))


def test_in_lists_they_do_too_and_are_no_mistake() -> None:
    """The parser asks for all of such an item; what is told is what is wrong."""
    block: dict[str, Any] = {"stack": {"layer": {"dropout": 0.1}}}
    data = {"channels": [8, 8], "blocks": [block, None]}
    found = straight(ConvolutionalStemSpec, data)
    assert isinstance(found, ConvolutionalStemSpec)
    assert found.blocks[0] == straight(MobileViTBlockSpec, block)
    with pytest.raises(InputError, match=r"channels.1: Expected int"):
        parse(ConvolutionalStemSpec, {**data, "channels": [8, "wide"]}, "")


@pytest.mark.parametrize(
    ("spec", "data", "message"),
    [
        (
            LayerSpec,
            {"mixer": {"states": 4}},
            r"mixer.states: no class is named, which means AttentionSpec, .* MambaSpec",
        ),
        (StackSpec, {"width": 8, "depth": 1, "position": {"axes": [0]}}, r"position.axes"),
    ],
)
def test_fields_of_another_class_are_refused(spec: type, data: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(spec, data, "a.yaml")


TEXTS = [
    *("0", "-0", "+0", "00", "1", "+1", "-1", "08", "+08", "010", "+010", "0o7", "0x1f", "0b1", "1_000", "1e3", "1e-3"),
    *("-0.0", ".5", "5.", "+.5", "08.5", "1:30", ".inf", "-.inf", "inf", "nan", ".nan", "1,0", "١", " 1", "1 ", "true"),
    *("True", "false", "no", "yes", "on", "null", "~", "", "None", "12345678901234567890", "1e400"),
]


@pytest.mark.parametrize("hint", [int, float, bool, str, int | None, float | None, bool | None, str | None], ids=str)
def test_texts_mean_what_they_mean_to_the_parser(hint: Any) -> None:
    """Or are left to it."""
    spec = dataclasses.make_dataclass("Leaf", [("value", hint)], frozen=True)
    taken = 0
    for value in [*TEXTS, 0, 1, -1, 0.0, 1.5, True, False, None]:
        try:
            found = straight(spec, {"value": value})
        except RefusedError:
            found = None
        if found is not None:
            taken += 1
            assert repr(found) == repr(by_the_parser(spec, {"value": value})), value
    assert taken >= 3


@pytest.mark.parametrize(
    ("spec", "data"),
    [
        (AttentionSpec, {"heads": "04"}),
        (AttentionSpec, {"heads": "4.0"}),
        (AttentionSpec, {"heads": True}),
        (AttentionSpec, {"heads": 4.0}),
        (AttentionSpec, {"heads": 4, "bias": "no"}),
        (ModelSpec, {"encoders": {}}),
        (LayerSpec, {"mixer": {"heads": 4}, "norm": None}),
        (TrainerSpec, {"max_steps": 3, "precision": "16"}),
        (ImageTransformSpec, {"size": [3, 4, 5]}),
        (ImageTransformSpec, {"size": "3"}),
    ],
)
def test_anything_else_is_left_to_the_parser(spec: type, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert straight(spec, data) is None

    def outcome() -> str:
        try:
            return repr(parse(spec, data, "a.yaml"))
        except InputError as error:
            return str(error)

    said = outcome()
    monkeypatch.setattr(config, "straight", lambda spec, data: None)
    assert outcome() == said


@pytest.mark.parametrize(
    ("spec", "data"),
    [
        (AttentionSpec, {"heads": 0}),
        (LayerSpec, {"mixer": {"class_path": "AttentionSpec", "init_args": {"heads": 0}}}),
        (StackSpec, {"width": 8, "depth": 1, "layer": {"norm": {"eps": 0}}}),
        (ModelSpec, {"stacks": {"image": {"width": 8, "depth": 1, "layer": {"dropout": 2}}}, "encoders": {}}),
        (TrainerSpec, {"max_steps": 0}),
    ],
)
def test_what_is_refused_is_told_as_the_parser_would(
    spec: type, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError) as ours:
        parse(spec, data, "a.yaml")
    monkeypatch.setattr(config, "straight", lambda spec, data: None)
    with pytest.raises(InputError) as theirs:
        parse(spec, data, "a.yaml")
    assert str(ours.value) == str(theirs.value)


def specs(found: dict[type, None], cls: type) -> None:
    """All specs that a spec may be made of."""
    if cls not in found:
        found[cls] = None
        for hint in get_type_hints(cls).values():
            for inner in inside(hint):
                for member in members(inner) if is_family(inner) else [inner]:
                    specs(found, member)


def inside(hint: Any) -> Iterator[type]:
    if dataclasses.is_dataclass(hint):
        yield hint  # type: ignore[misc]
    for inner in get_args(hint):
        yield from inside(inner)


def partly(cls: type) -> Iterator[dict[str, Any]]:
    """Each field that is a spec by itself: empty, with one of its values, by its class."""
    for name, default in defaults_of(cls).items():
        base = without_null(fields_of(cls, cls)[name])
        if not isinstance(base, type) or not has_spec(base):
            continue
        yield {name: {}}
        for sub in {type(default) if isinstance(default, base) else base, base}:
            plain = [at for at, hint in fields_of(sub, sub).items() if not has_spec(hint) and at in defaults_of(sub)]
            yield from ({name: {at: to_data(defaults_of(sub)[at])}} for at in plain[:1])
            if is_family(base) and not inspect.isabstract(sub):
                yield from ({name: sub.__name__}, {name: {"class_path": sub.__name__}})


@pytest.mark.slow
def test_both_make_the_same_of_every_spec_and_every_file() -> None:
    found: dict[type, None] = {}
    for root in (RunSpec, ModelSpec, Transforms):
        specs(found, root)
    given = {int: 4, float: 1, str: "image"}
    tried = 0
    for cls in found:
        needed = {name: fields_of(cls, cls)[name] for name in fields_of(cls, cls) if name not in defaults_of(cls)}
        if inspect.isabstract(cls) or not set(needed.values()) <= set(given):
            continue
        for data in partly(cls):
            whole = {name: given[hint] for name, hint in needed.items()} | data
            try:
                expected = by_the_parser(cls, whole)
            except (InputError, ValueError, config.ArgumentError):
                with contextlib.suppress(RefusedError):
                    assert straight(cls, whole) is None
                continue
            assert repr(straight(cls, whole)) == repr(expected), (cls, whole)
            tried += 1
    assert tried > 100
    for spec, file in FILES:
        assert repr(straight(spec, data_of(spec, file))) == repr(by_the_parser(spec, data_of(spec, file))), file


def test_a_number_that_is_too_large_is_refused() -> None:
    with pytest.raises(InputError, match=r"f\.yaml: drop_path.* more than 308 digits is too large"):
        parse(StackSpec, {"width": 16, "depth": 2, "drop_path": 10**400}, "f.yaml")
