"""One YAML file says everything about a run: it comes back as it was, and what it may not say is refused clearly."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import tiny_run, write_shards

from mmformer.adapters.dora import DoRASpec
from mmformer.adapters.ia3 import IA3Spec
from mmformer.adapters.lora import LoRASpec
from mmformer.adapters.whole import BitFitSpec, WholeSpec
from mmformer.config import parse, read_yaml, to_yaml
from mmformer.data import augment, augment_policy, augment_sound, caption
from mmformer.errors import InputError
from mmformer.evaluation.captions import CaptionsSpec
from mmformer.evaluation.classification import AccuracySpec
from mmformer.evaluation.few_shot import FewShotSpec
from mmformer.evaluation.neighbours import NeighboursSpec
from mmformer.evaluation.perplexity import PerplexitySpec
from mmformer.evaluation.probe import LinearProbeSpec
from mmformer.evaluation.retrieval import RetrievalSpec
from mmformer.evaluation.translation import TranslationSpec
from mmformer.evaluation.zero_shot import ZeroShotSpec
from mmformer.generation.beam import BeamSpec
from mmformer.generation.sampling import GreedySpec, SamplingSpec
from mmformer.models.exits import EarlyExitHeadSpec
from mmformer.models.head import ClassificationHeadSpec, ContrastiveHeadSpec, MeanLogitsHeadSpec
from mmformer.models.language_head import LanguageHeadSpec
from mmformer.models.model import ModelSpec
from mmformer.models.pixel_head import PixelHeadSpec
from mmformer.models.transform import TransformSpec
from mmformer.nn.feedforward import FeedForwardSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.mixer import MixerSpec
from mmformer.objectives.captioning import CaptioningSpec
from mmformer.objectives.classification import ClassificationSpec
from mmformer.objectives.contrastive import ContrastiveSpec
from mmformer.objectives.masked_pixels import MaskedPixelsSpec
from mmformer.objectives.sigmoid import SigmoidContrastiveSpec
from mmformer.spec import FAMILIES, concrete
from mmformer.tokenizers.audio import SpectrogramPatchesSpec
from mmformer.tokenizers.audio_stem import SpectrogramStemSpec
from mmformer.tokenizers.image import ConvolutionalStemSpec, ImagePatchesSpec
from mmformer.tokenizers.kaldi import KaldiFilterbankSpec
from mmformer.tokenizers.log_mel import LogMelSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.tokenizers.timm_features import TimmFeaturesSpec
from mmformer.tokenizers.whisper_mel import WhisperLogMelSpec
from mmformer.training.optimizers.adafactor import AdafactorSpec
from mmformer.training.optimizers.adamw import AdamWSpec
from mmformer.training.optimizers.lamb import LAMBSpec
from mmformer.training.optimizers.lion import LionSpec
from mmformer.training.optimizers.muon import MuonSpec
from mmformer.training.optimizers.schedule_free import ScheduleFreeAdamWSpec
from mmformer.training.parameter_groups import GroupSpec
from mmformer.training.run import RunSpec
from mmformer.training.schedule import (
    ConstantScheduleSpec,
    CosineScheduleSpec,
    InverseSquareRootScheduleSpec,
    LinearScheduleSpec,
)

FIELD = caption.FieldCaptionSpec("names.en")
MEMBERS: list[Any] = [  # those of mmformer.nn are tried in tests/nn/test_yaml.py
    ImagePatchesSpec((0.1, 0.2, 0.3), (1.0, 2.0, 3.0), 4),
    ConvolutionalStemSpec(channels=(3, 4)),
    TimmFeaturesSpec(name="convnext_atto", level=1),
    TextTokensSpec("a b.model", 32, True, False),
    SpectrogramPatchesSpec(8000, 256, 100, 32, 50.0, 3500.0, -5.0, 3.0, 40, KaldiFilterbankSpec(), (8, 16), (4, 8)),
    SpectrogramStemSpec(lowest=0.0, frames=30, spectrum=WhisperLogMelSpec()),
    LogMelSpec(),
    KaldiFilterbankSpec(),
    WhisperLogMelSpec(),
    ContrastiveHeadSpec(0.5, 0.1),
    ClassificationHeadSpec("image", 3, 0.1),
    EarlyExitHeadSpec("image", 3, 0.1, exits=(0, 4), threshold=0.7),
    MeanLogitsHeadSpec("image", 3, ("one", "other")),
    LanguageHeadSpec("text", False, TransformSpec("relu")),
    PixelHeadSpec("image", "pixels", False),
    LoRASpec(("stacks.*", "encoders.*"), None, 3, 5.0, 0.1, True),
    DoRASpec(("stacks.*",), ("query", "output"), 3),
    IA3Spec(("stacks.*.down",), None, "inputs"),
    WholeSpec(("heads.*", "*.norm.*")),
    BitFitSpec(("stacks.*.bias",)),
    ContrastiveSpec(2.0, (("a", "b"), ("b", "c")), "other", False, 7, 0.1),
    ClassificationSpec(0.5, "colour", "hue", 0.1),
    CaptioningSpec(0.5, "writer"),
    MaskedPixelsSpec(0.5, "told", 8, 0.5),
    SigmoidContrastiveSpec(2.0, (("a", "b"), ("b", "c")), "other", False, 7),
    GreedySpec(1, 9, 1.5, 3),
    SamplingSpec(1, 9, 1.5, 3, 0.7, 5, 0.9, 11),
    BeamSpec(1, 9, 1.5, 3, 6, 0.8),
    RetrievalSpec((("text", "image"), ("a", "b")), (1, 2, 3)),
    AccuracySpec("colour", "hue", only=("accuracy", "top5")),
    CaptionsSpec("writer", BeamSpec(beams=2)),
    ZeroShotSpec("colour", "classes.txt", ("a {}", "the {}"), "i", "t"),
    FewShotSpec("colour", "sound", (2, 3), 5, 7),
    LinearProbeSpec("colour", "sound", 0.3, 50, 7),
    NeighboursSpec("colour", "sound", 3, 0.1),
    PerplexitySpec("writer"),
    TranslationSpec("writer", BeamSpec(beams=2), "char", True),
    AdamWSpec(0.1, 0.2, (0.3, 0.4), 1e-9, layer_decay=0.5, groups=(GroupSpec("*.bias", 2.0), GroupSpec("*", 0.5, 0.1))),
    LionSpec(0.1, 0.2, (0.3, 0.4)),
    LAMBSpec(0.1, 0.2, (0.3, 0.4), 1e-9),
    AdafactorSpec(0.1, 0.2, None, 0.5, 0.9, None, 4),
    MuonSpec(0.1, 0.2, 0.3, 4, (0.3, 0.4), 1e-9),
    ScheduleFreeAdamWSpec(0.1, 0.2, (0.3, 0.4), 1e-9),
    CosineScheduleSpec(5, 2, 0.1),
    LinearScheduleSpec(5, 2, 0.1),
    InverseSquareRootScheduleSpec(5, 2, 100),
    ConstantScheduleSpec(6),
    FIELD,
    caption.SampledCaptionSpec("keywords.en", 2, 4, " ", "names.en"),
    caption.JoinedCaptionSpec((FIELD, caption.SampledCaptionSpec("k")), "; "),
    caption.MixedCaptionSpec((FIELD, caption.WordDropoutCaptionSpec(FIELD, 0.3)), (1.0, 2.5)),
    caption.WordDropoutCaptionSpec(caption.MixedCaptionSpec((FIELD,))),
    augment_sound.GainSpec(3.0),
    augment_sound.TimeShiftSpec(0.2),
    augment_sound.SpeedSpec((0.8, 1.2)),
    augment_sound.NoiseSpec((5.0, 50.0)),
    augment_sound.ReverberationSpec((0.2, 0.3), (0.1, 0.2)),
    augment_policy.RandAugmentSpec(3, 5),
    augment_policy.TrivialAugmentSpec(),
    augment.HorizontalFlipSpec(0.25),
    augment.RandomAffineSpec(0.2, 20.0, (0.5, 2.0), 1.5),
    augment.ColorJitterSpec(0.1, 0.2, 0.3, 0.4, 0.5),
    augment.RandomEraseSpec(0.5, (0.1, 0.3)),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def holder(spec: object) -> type:
    """A dataclass with one field of the family that a spec belongs to."""
    (base,) = [base for base in FAMILIES if isinstance(spec, base)]
    return dataclasses.make_dataclass("Holder", [("one", base), ("many", tuple[base, ...])], frozen=True)


@pytest.mark.parametrize("spec", MEMBERS, ids=lambda spec: type(spec).__name__)
def test_a_spec_comes_back_from_yaml_as_it_was(spec: object) -> None:
    held = holder(spec)(spec, (spec, spec))
    assert parse(type(held), yaml.safe_load(to_yaml(held)), "here") == held


def test_every_member_of_every_family_is_tried() -> None:
    tried = {type(spec) for spec in MEMBERS}
    waiting, known = list(FAMILIES), set()
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        tested = cls.__module__.startswith("mmformer.") and not cls.__module__.startswith("mmformer.nn.")
        known |= {cls} if tested else set()
    abstract = {cls for cls in known if cls.__subclasses__()}
    assert known - abstract - tried == set()


def test_a_run_comes_back_from_yaml_as_it_was(shards: Path) -> None:
    run = tiny_run(shards)
    assert parse(RunSpec, yaml.safe_load(to_yaml(run)), "here") == run
    assert "mmformer." not in to_yaml(run), "classes go by their short names"


REMOVED = object()
MODEL: dict[str, Any] = {
    "stacks": {"trunk": {"width": 8, "depth": 1, "layer": {"mixer": {"class_path": "AttentionSpec"}}}},
    "encoders": {"image": {"tokenizer": {"class_path": "ImagePatchesSpec"}, "stack": "trunk"}},
}


def changed(path: str, value: object) -> dict[str, Any]:
    """MODEL with another value at a dotted path."""
    data = yaml.safe_load(yaml.safe_dump(MODEL))
    place = data
    *above, last = path.split(".")
    for key in above:
        place = place[key]
    place[last] = value
    if value is REMOVED:
        del place[last]
    return data


REFUSED: list[tuple[str, object, list[str]]] = [
    ("stack", {}, ["unknown key 'stack'", "Did you mean 'stacks'?", "stacks, encoders, decoders, heads"]),
    ("stacks.trunk.dpth", 1, ["unknown key 'stacks.trunk.dpth'", "Did you mean 'depth'?"]),
    ("stacks.trunk.foo", {}, ["unknown key 'stacks.trunk.foo'"]),
    ("stacks.trunk.layer.mixer.init_args", {"head": 4}, ["'stacks.trunk.layer.mixer.head'", "Did you mean 'heads'?"]),
    ("encoders.image.tokenizer.init_args", {"pach": 4}, ["'encoders.image.tokenizer.pach'", "Did you mean 'patch'?"]),
    ("encoders.image.causl", True, ["unknown key 'encoders.image.causl'", "Did you mean 'causal'?"]),
    ("encoders.image.pool", {"class_path": "MeanPoolSpec", "init_args": {"x": 1}}, ["pool.x'", "Known here: none"]),
    ("stacks.trunk.depth", "many", ["depth", "int", "many"]),
    ("stacks.trunk.depth", 1.5, ["depth", "int", "1.5"]),
    ("stacks.trunk.depth", [1], ["depth", "int", "[1]"]),
    ("stacks.trunk.depth", "abc", ["file.yaml: stacks.trunk.depth: Expected int. Got value: 'abc'"]),
    ("stacks.trunk.depth", None, ["file.yaml: stacks.trunk.depth must be int, but is null."]),
    ("stacks.trunk.memory_width", "x", ["stacks.trunk.memory_width: Expected int or null. Got value: 'x'"]),
    ("stacks.trunk.layer.mixer.init_args", {"heads": "x"}, ["stacks.trunk.layer.mixer.heads: Expected int", "'x'"]),
    ("stacks.trunk.layer.mixer", {"heads": "x"}, ["stacks.trunk.layer.mixer.heads: Expected int. Got value: 'x'"]),
    ("stacks.trunk.layer.placement", "x", ["stacks.trunk.layer.placement: Expected one of 'pre', ", "Got value: 'x'"]),
    ("encoders.image.tokenizer.init_args", {"mean": [0, 0, "x"]}, ["encoders.image.tokenizer.mean.2: Expected float"]),
    ("encoders.image.tokenizer.init_args", {"mean": [0]}, ["image.tokenizer.mean: Expected a tuple with 3 elements"]),
    ("encoders.image.tokenizer", {}, ["encoders.image.tokenizer: class_path is required", "ConvolutionalStemSpec"]),
    ("encoders.image", {}, ["encoders.image: tokenizer, stack are required, but not given"]),
    ("encoders.image.causal", 3, ["causal", "bool", "3"]),
    ("stacks", [1], ["stacks must be a mapping, but is [1]"]),
    ("stacks.trunk", "text", ["stacks.trunk must be a mapping, but is 'text'"]),
    ("stacks.trunk.width", REMOVED, ["stacks", "required", "width"]),
    ("stacks.trunk.depth", 0, ["StackSpec.depth must be at least 1, but is 0"]),
    ("stacks.trunk.layer.mixer.init_args", {"heads": 0}, ["AttentionSpec.heads must be at least 1, but is 0"]),
    ("encoders.image.stack", "trunc", ["encoders.image.stack is 'trunc'", "Did you mean 'trunk'?"]),
    ("stacks.trunk.layer.mixer.class_path", "AttentionSpc", ["trunk.layer.mixer", "Did you mean 'AttentionSpec'?"]),
    ("stacks.trunk.layer.mixer.class_path", "LayerNormSpec", ["trunk.layer.mixer", "is no MixerSpec"]),
    ("stacks.trunk.layer.mixer.class_path", 3, ["trunk.layer.mixer", "'3' is no MixerSpec"]),
    ("stacks.trunk.layer.mixer.heads", 3, ["unknown key 'stacks.trunk.layer.mixer.heads'", "init_args alone"]),
    ("stacks.trunk.layer.mixer.dict_kwargs", {"x": 3}, ["unknown key 'stacks.trunk.layer.mixer.dict_kwargs'"]),
    ("stacks.trunk.layer.mixer.init_args", "heads: 2", ["trunk.layer.mixer must be a mapping, but is 'heads: 2'"]),
    ("stacks.trunk.layer", None, ["stacks.trunk.layer must be a mapping, but is None"]),
    # What a spec refuses itself; of a class that is named, of one that is the default, in a list's place
    (
        "stacks.trunk.layer.mixer",
        {"class_path": "AttentionSpec", "init_args": {"heads": 0}},
        [": stacks.trunk.layer.mixer: AttentionSpec.heads must be at least 1, but is 0."],
    ),
    ("stacks.trunk.layer.mixer", {"heads": 0}, [": stacks.trunk.layer.mixer: AttentionSpec.heads must be"]),
    ("stacks.trunk.depth", 0, [": stacks.trunk: StackSpec.depth must be at least 1, but is 0."]),
    # Of a class whose defaults are not those of the default class
    (
        "stacks.trunk.layer.cross",
        "MambaSpec",
        [": stacks.trunk.layer: A reader of memory", "LayerSpec.cross is Mamba"],
    ),
    ("stacks.trunk.layer.mixer", {"heads": 7}, [": stacks.trunk: AttentionSpec.heads must divide the stack's width"]),
    # What is of one class alone
    ("stacks.trunk.halting", "HaltingSpec", ["stacks.trunk.halting is always a HaltingSpec: give its options alone"]),
    ("stacks.trunk.halting", {"class_path": "HaltingSpec"}, ["trunk.halting is always a HaltingSpec"]),
]


@pytest.mark.parametrize(("path", "value", "parts"), REFUSED)
def test_what_a_file_may_not_say_is_refused(path: str, value: object, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse(ModelSpec, changed(path, value), "file.yaml")
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message
    assert message.startswith("file.yaml: ")


EVIL = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nclass AttentionSpec: pass\n"


@pytest.mark.parametrize("path", ["stacks.trunk", "stacks.trunk.layer.mixer", "encoders.image.tokenizer"])
@pytest.mark.parametrize("form", ["class_path", "text", "json", "file"])
def test_a_file_cannot_run_code(path: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_module.py").write_text(EVIL)
    (tmp_path / "evil.yaml").write_text("class_path: evil_module.AttentionSpec\n")
    monkeypatch.syspath_prepend(tmp_path)
    name = "evil_module.AttentionSpec"
    value = {
        "class_path": {"class_path": name},
        "text": name,
        "json": f'{{"class_path": "{name}"}}',
        "file": str(tmp_path / "evil.yaml"),
    }[form]
    with pytest.raises(InputError, match=r"file.yaml: .*(is no \w+Spec|must be a mapping|unknown key)"):
        parse(ModelSpec, changed(path, value), "file.yaml")
    assert not (tmp_path / "ran").exists()
    assert "evil_module" not in sys.modules


@pytest.mark.parametrize(
    "mixer", ["AttentionSpec", {"class_path": "mmformer.nn.attention.AttentionSpec"}, {"heads": 8}, {}]
)
def test_a_class_goes_by_its_name_or_by_its_arguments(mixer: object) -> None:
    assert parse(ModelSpec, changed("stacks.trunk.layer.mixer", mixer), "here") == parse(ModelSpec, MODEL, "here")


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("seed: 1\nmodel: {}\nseed: 2\n", "seed", "1 and 3"),
        ("model:\n  stacks:\n    a: {width: 1, depth: 2,\n        width: 3}\n", "width", "3 and 4"),
        ("a:\n- x: 1\n  'x': 1\n", "x", "2 and 3"),
    ],
)
def test_a_key_that_is_there_twice_is_refused(text: str, key: str, lines: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(
        InputError, match=rf"x\.yaml .* the key '{key}' is there twice, on lines {lines}: remove one\.$"
    ):
        read_yaml(tmp_path / "x.yaml")


def test_the_same_key_elsewhere_and_merged_keys_are_no_duplicates(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}\n")
    data = read_yaml(tmp_path / "x.yaml")
    assert data == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 3, "y": 4}}


def test_yaml_that_is_none_is_refused(tmp_path: Path) -> None:
    cases = {"a: [": "not valid YAML", "- 1": "must hold a mapping", "\0": "not valid YAML", "": "must hold a mapping"}
    for text, message in cases.items():
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(InputError, match=message):
            read_yaml(tmp_path / "x.yaml")
    with pytest.raises(InputError, match=r"nowhere\.yaml cannot be read: No such file"):
        read_yaml(tmp_path / "nowhere.yaml")
    (tmp_path / "x.yaml").write_bytes(b"a: \xff")
    with pytest.raises(InputError, match=r"x\.yaml cannot be read"):
        read_yaml(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_text("a: !!python/object/apply:os.system [true]")
    with pytest.raises(InputError, match="not valid YAML"):
        read_yaml(tmp_path / "x.yaml")


@pytest.mark.parametrize("named", [*concrete(MixerSpec), *concrete(FeedForwardSpec)], ids=lambda cls: cls.__name__)
def test_a_class_that_is_named_has_its_own_defaults_not_those_of_the_default_class(named: type) -> None:
    field = "mixer" if issubclass(named, MixerSpec) else "feedforward"
    assert getattr(parse(LayerSpec, {field: {"class_path": named.__name__}}, ""), field) == named()
