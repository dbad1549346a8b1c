"""One YAML file says everything about a run: it comes back as it was, and what it may not say is refused clearly."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import ROOT, VOCABULARY, tiny_run, write_shards

from mmformer.cli.main import main
from mmformer.config import parse, read_yaml, to_data, to_yaml
from mmformer.data import augment, caption
from mmformer.errors import InputError
from mmformer.evaluation.classification import AccuracySpec, ZeroShotSpec
from mmformer.evaluation.retrieval import RetrievalSpec
from mmformer.models.head import ClassificationHeadSpec, ContrastiveHeadSpec
from mmformer.models.model import ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.feedforward import GELUFeedForwardSpec, SwiGLUFeedForwardSpec
from mmformer.nn.norm import LayerNormSpec, RMSNormSpec
from mmformer.nn.pool import AttentionPoolSpec, ClassTokenPoolSpec, LastPoolSpec, MeanPoolSpec
from mmformer.nn.position import LearnedPositionSpec, PositionSpec, RotaryPositionSpec, SinusoidalPositionSpec
from mmformer.objectives.classification import ClassificationSpec
from mmformer.objectives.contrastive import ContrastiveSpec
from mmformer.spec import FAMILIES
from mmformer.tokenizers.image import ConvolutionalStemSpec, ImagePatchesSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.training.optimizer import AdamWSpec, ConstantScheduleSpec, CosineScheduleSpec
from mmformer.training.run import RunSpec

FIELD = caption.FieldCaptionSpec("names.en")
MEMBERS: list[Any] = [
    AttentionSpec(4, key_value_heads=2, qk_norm=True, bias=False, dropout=0.1),
    GELUFeedForwardSpec(2.5, multiple=4, approximate="tanh"),
    SwiGLUFeedForwardSpec(dropout=0.2),
    LayerNormSpec(1e-5, bias=False),
    RMSNormSpec(1e-7),
    ClassTokenPoolSpec(),
    LastPoolSpec(),
    MeanPoolSpec(),
    AttentionPoolSpec(AttentionSpec(2), SwiGLUFeedForwardSpec(), RMSNormSpec()),
    PositionSpec(),
    LearnedPositionSpec((1, 2), (4, 5)),
    SinusoidalPositionSpec((0, 2), 100.0),
    RotaryPositionSpec((1, 2), 50.0, 0.5),
    ImagePatchesSpec((0.1, 0.2, 0.3), (1.0, 2.0, 3.0), 4),
    ConvolutionalStemSpec(channels=(3, 4)),
    TextTokensSpec("a b.model", 32, True, False),
    ContrastiveHeadSpec(0.5, 0.1),
    ClassificationHeadSpec("image", 3, 0.1),
    ContrastiveSpec(2.0, (("a", "b"), ("b", "c")), "other", False, 7),
    ClassificationSpec(0.5, "colour", "hue", 0.1),
    RetrievalSpec(("text", "image"), (1, 2, 3)),
    AccuracySpec("colour", "hue"),
    ZeroShotSpec("colour", "classes.txt", ("a {}", "the {}"), "i", "t"),
    AdamWSpec(0.1, 0.2, (0.3, 0.4), 1e-9),
    CosineScheduleSpec(5, 0.1),
    ConstantScheduleSpec(6),
    FIELD,
    caption.SampledCaptionSpec("keywords.en", 2, 4, " ", "names.en"),
    caption.JoinedCaptionSpec((FIELD, caption.SampledCaptionSpec("k")), "; "),
    caption.MixedCaptionSpec((FIELD, caption.WordDropoutCaptionSpec(FIELD, 0.3)), (1.0, 2.5)),
    caption.WordDropoutCaptionSpec(caption.MixedCaptionSpec((FIELD,))),
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
        known |= {cls} if cls.__module__.startswith("mmformer.") else set()
    abstract = {cls for cls in known if cls.__subclasses__() and cls is not PositionSpec}
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
    ("stack", {}, ["unknown key 'stack'", "Did you mean 'stacks'?", "stacks, encoders, heads"]),
    ("stacks.trunk.dpth", 1, ["unknown key 'stacks.trunk.dpth'", "Did you mean 'depth'?"]),
    ("stacks.trunk.foo", {}, ["unknown key 'stacks.trunk.foo'"]),
    ("stacks.trunk.layer.mixer.init_args", {"head": 4}, ["'stacks.trunk.layer.mixer.head'", "Did you mean 'heads'?"]),
    ("encoders.image.tokenizer.init_args", {"pach": 4}, ["'encoders.image.tokenizer.pach'", "Did you mean 'patch'?"]),
    ("encoders.image.causl", True, ["unknown key 'encoders.image.causl'", "Did you mean 'causal'?"]),
    ("encoders.image.pool", {"class_path": "MeanPoolSpec", "init_args": {"x": 1}}, ["pool.x'", "Known here: none"]),
    ("stacks.trunk.depth", "many", ["depth", "int", "many"]),
    ("stacks.trunk.depth", 1.5, ["depth", "int", "1.5"]),
    ("stacks.trunk.depth", [1], ["depth", "int", "[1]"]),
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
]


@pytest.mark.parametrize(("path", "value", "parts"), REFUSED)
def test_what_a_file_may_not_say_is_refused(path: str, value: object, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse(ModelSpec, changed(path, value), "file.yaml")
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message
    own = "Spec." in message or "encoders." in message  # a spec's own refusal knows no file
    assert message.startswith("file.yaml: ") or own


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


@pytest.fixture
def file(shards: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(tiny_run(shards)))
    return path


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["fit", *words, "--print_config"]) == 0
    data = yaml.safe_load(capsys.readouterr().out)
    assert isinstance(data, dict)
    return data


OVERRIDES: list[tuple[list[str], str, object]] = [
    (["--model.stacks.image.depth", "9"], "model.stacks.image.depth", 9),
    (["--model.stacks.image.layer.mixer.heads=4"], "model.stacks.image.layer.mixer.init_args.heads", 4),
    (
        ["--model.encoders.text.tokenizer.context_length", "8"],
        "model.encoders.text.tokenizer.init_args.context_length",
        8,
    ),
    (["--optimizer.lr", "0.5"], "optimizer.init_args.lr", 0.5),
    (["--optimizer.init_args.lr", "0.5"], "optimizer.init_args.lr", 0.5),
    (["--objectives.contrastive.weight", "2"], "objectives.contrastive.init_args.weight", 2.0),
    (["--schedule", "ConstantScheduleSpec"], "schedule.class_path", "ConstantScheduleSpec"),
    (["--data.image.augment", "[]"], "data.image.augment", []),
    (["--evaluation.metrics.retrieval.recall", "[5]"], "evaluation.metrics.retrieval.init_args.recall", [5]),
    (["--trainer.gradient_clip_val", "null"], "trainer.gradient_clip_val", None),
    (["--seed", "7", "--trainer.max_steps", "3"], "trainer.max_steps", 3),
]


@pytest.mark.parametrize(("words", "path", "value"), OVERRIDES, ids=lambda value: str(value)[:40])
def test_an_option_overrides_the_file(
    words: list[str], path: str, value: object, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found: Any = printed(["--config", str(file), *words], capsys)
    for key in path.split("."):
        found = found[key]
    assert found == value


def test_print_config_is_the_file_again(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(["--config", str(file)], capsys) == yaml.safe_load(file.read_text())


def test_a_later_file_overrides_an_earlier_one(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = file.with_name("other.yaml")
    other.write_text("trainer: {max_steps: 77}\n")
    data = printed(["--config", str(file), "--config", str(other)], capsys)
    assert data["trainer"]["max_steps"] == 77
    assert data["trainer"]["log_every_n_steps"] == 2


def test_a_model_may_be_a_file_of_its_own(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = yaml.safe_load(file.read_text())
    file.with_name("model.yaml").write_text(yaml.safe_dump(whole["model"]))
    file.write_text(yaml.safe_dump({**whole, "model": str(file.with_name("model.yaml"))}))
    assert printed(["--config", str(file)], capsys) == whole
    deeper = printed(["--config", str(file), "--model.stacks.image.depth", "5"], capsys)
    assert deeper["model"]["stacks"]["image"] == {**whole["model"]["stacks"]["image"], "depth": 5}
    assert deeper["model"]["encoders"] == whole["model"]["encoders"]


WRONG: list[tuple[str, list[str]]] = [
    ("--trainr.max_steps 5", ["trainr.max_steps'", "Did you mean 'trainer'?"]),
    ("--trainer.max_step 5", ["trainer.max_step'", "Did you mean 'max_steps'?"]),
    ("--model.stack.image.depth 9", ["model.stack.image.depth'", "Did you mean 'stacks'?"]),
    ("--model.stacks.image.dpth 9", ["dpth'", "Did you mean 'depth'?"]),
    ("--optimizer.lrr 1", ["lrr'", "Did you mean 'lr'?"]),
    ("--objectives.contrastive.wieght 2", ["wieght'", "Did you mean 'weight'?"]),
    ("--optimizer AdamSpec", ["optimizer", "'AdamSpec'", "Did you mean 'AdamWSpec'?"]),
    ("--resum", ["resum'"]),
    ("extra", ["extra'"]),
    ("--trainer.max_steps five", ["trainer.max_steps", "int", "five"]),
    ("--trainer.precision fp8", ["trainer.precision", "32-true", "fp8"]),
    ("--trainer.max_steps 0", ["TrainerSpec.max_steps must be at least 1, but is 0"]),
    ("--data.workers -1", ["DataSpec.workers must be at least 0, but is -1"]),
    ("--config nowhere.yaml", ["nowhere.yaml cannot be read: No such file"]),
    ("--evaluation.every_steps 2 --data.validation null", ["data.validation names no split"]),
    ("--checkpoint.best x", ["checkpoint.best needs scores"]),
    ("--trainer.accumulate_grad_batches 3", ["accumulate_grad_batches is 3", "batch_size, 8"]),
    ("--objectives.contrastive.head colour", ["head 'colour'", "contrastive"]),
    ("--objectives.contrastive.pairs [[image,txt]]", ["'txt'", "Did you mean 'text'?"]),
    ("--model.encoders.text.embedding 7", ["12", "7", "same embedding"]),
    ("--data.text null", ["The model reads text, but data.text is absent"]),
]


@pytest.mark.parametrize(("words", "parts"), WRONG)
def test_a_wrong_option_is_one_clear_line(
    words: str, parts: list[str], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", str(file), *words.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("mmformer: ")
    assert captured.err.count("\n") == 1
    assert all(part in captured.err for part in parts), captured.err


FILES: list[tuple[str, object, list[str]]] = [
    ("trainr", {}, ["unknown key 'trainr'", "Did you mean 'trainer'?"]),
    ("trainer.max_step", 5, ["unknown key 'trainer.max_step'", "Did you mean 'max_steps'?"]),
    ("trainer", None, ["trainer must be a mapping, but is None"]),
    ("data.image.transform.siz", [1, 1], ["unknown key 'data.image.transform.siz'", "Did you mean 'size'?"]),
    ("optimizer.class_path", "AdamSpec", ["optimizer", "'AdamSpec'", "Did you mean 'AdamWSpec'?"]),
    ("optimizer.dict_kwargs", {"x": 1}, ["unknown key 'optimizer.dict_kwargs'"]),
    ("data.image.augment", ["HorizontalFlip"], ["data.image.augment.0", "Did you mean 'HorizontalFlipSpec'?"]),
    ("data.labels", {"colour": 3}, ["data.labels.colour must be a mapping, but is 3"]),
    ("resume", True, ["unknown key 'resume'"]),
]


@pytest.mark.parametrize(("path", "value", "parts"), FILES)
def test_a_wrong_file_is_one_clear_line(
    path: str, value: object, parts: list[str], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = place = yaml.safe_load(file.read_text())
    *above, last = path.split(".")
    for key in above:
        place = place[key]
    place[last] = value
    file.write_text(yaml.safe_dump(data))
    assert main(["fit", "--config", str(file), "--print_config"]) == 2
    captured = capsys.readouterr().err
    assert captured.startswith(f"mmformer: {file}: ")
    assert captured.count("\n") == 1
    assert all(part in captured for part in parts), captured


def test_a_wrong_type_deep_inside_is_told_shortly(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(file.read_text().replace("      - 16\n      - 16\n", "      - 16\n"))
    assert main(["fit", "--config", str(file)]) == 2
    message = capsys.readouterr().err
    assert message == "mmformer: data.image.transform.size: Expected a tuple with 2 elements. Got value: [16]\n"


def test_fit_alone_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit"]) == 2
    assert capsys.readouterr().err == "mmformer: fit needs --config FILE; configs/runs/ has some to begin with.\n"


RUNS = sorted((ROOT / "configs" / "runs").glob("*.yaml"))
MODELS = sorted((ROOT / "configs" / "models").glob("*.yaml"))


def test_there_are_runs_to_begin_with() -> None:
    assert RUNS, "configs/runs is empty"


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_model_parses_and_builds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    spec = parse(ModelSpec, read_yaml(path), str(path))
    with torch.device("meta"):
        model = spec.build()
    assert all(parameter.is_meta for parameter in model.parameters())
    assert path.read_text().startswith("#"), "a config begins with what it is"


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_run_parses_builds_and_takes_a_step(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert path.read_text().startswith("#"), "a config begins with the command, the result and the time"
    data = printed(["--config", str(path)], capsys)
    run = parse(RunSpec, data, str(path))
    assert to_data(run) == data
    with torch.device("meta"):
        run.model.build()
    from mmformer.training.fit import fit

    parts = run.trainer.accumulate_grad_batches
    stacks = {name: dataclasses.replace(stack, depth=1) for name, stack in run.model.stacks.items()}
    tiny = dataclasses.replace(
        run,
        model=dataclasses.replace(run.model, stacks=stacks),
        data=dataclasses.replace(run.data, batch_size=2 * parts, workers=0, test=None),
        trainer=dataclasses.replace(run.trainer, max_steps=1, accelerator="cpu", enable_progress_bar=False),
        evaluation=dataclasses.replace(run.evaluation, every_steps=None),
        checkpoint=dataclasses.replace(run.checkpoint, best=None),
    )
    fit(tiny, tmp_path / "run")
    assert (tmp_path / "run" / "bundle" / "model.safetensors").is_file()


def test_the_vocabulary_of_the_tests_is_there() -> None:
    assert Path(VOCABULARY).is_file()
