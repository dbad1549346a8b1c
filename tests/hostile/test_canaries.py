"""Files that would run something if they were trusted: none of it runs. What would run writes a file, the canary."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from attempts import SIZES, count
from bundles import change, save_classifier, save_dual
from PIL import Image
from tiny import tiny_run, write_shards

import mmformer
from mmformer.adapters.file import read_adapters
from mmformer.bundle import Transforms, read_spec, save_bundle
from mmformer.cli.options import merged
from mmformer.config import parse, read_yaml, to_data
from mmformer.data.dataset import SampleDataset
from mmformer.data.decode import decode
from mmformer.data.manifest import Manifest
from mmformer.data.opening import open_samples
from mmformer.data.order import OrderSpec
from mmformer.data.remote import open_manifest
from mmformer.data.shards import RawSample, ShardReader, ShardWriter
from mmformer.data.tar import index_shard
from mmformer.errors import InputError
from mmformer.interop.checkpoint import read_tensors
from mmformer.interop.exporting import export_model
from mmformer.interop.families.gpt2 import FAMILY as GPT2
from mmformer.interop.importing import import_model
from mmformer.models.model import ModelSpec
from mmformer.schema import class_named, members
from mmformer.spec import FAMILIES, concrete
from mmformer.tokenizers.opening import open_vocabulary
from mmformer.training.checkpoint import newest_checkpoint
from mmformer.training.fit import fit
from mmformer.training.run import CheckpointSpec, RunSpec
from mmformer.training.sealing import SEAL, content_of, seal
from mmformer.training.unpickling import as_data, check_metadata

MODULE = "stranger"


class Evil:
    """Unpickled, it would write the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.canary}'",)


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that nothing may write; a module that is found by its name, and would write it when it is imported."""
    file, modules = tmp_path / "canary", tmp_path / "modules"
    modules.mkdir()
    code = f"open({str(file)!r}, 'w').close()\nclass Spec: pass\ndef build(*_, **__): return Spec()\n"
    (modules / f"{MODULE}.py").write_text(code)
    monkeypatch.syspath_prepend(str(modules))
    monkeypatch.chdir(modules)
    return file


@pytest.fixture(autouse=True)
def nothing_ran(canary: Path) -> Any:
    yield
    assert not canary.exists(), "it ran"
    assert MODULE not in sys.modules, "it was imported"
    count("canaries that did not sing", "refused")


def test_the_canaries_sing(canary: Path) -> None:
    """Trusted, each of them does run; so that a quiet one has not just been made wrongly."""
    pickle.loads(pickle.dumps(Evil(canary)))
    assert canary.exists()
    canary.unlink()
    torch.save(Evil(canary), canary.parent / "a.pt")
    torch.load(canary.parent / "a.pt", weights_only=False)
    assert canary.exists()
    canary.unlink()
    yaml.load(f"!!python/object/apply:os.system [touch '{canary}']", Loader=yaml.UnsafeLoader)
    assert canary.exists()
    canary.unlink()
    __import__(MODULE)
    assert canary.exists()
    canary.unlink()
    del sys.modules[MODULE]


CLASSES = (
    "os.system",
    f"{MODULE}.Spec",
    MODULE,
    f"./{MODULE}.py",
    "torch.nn.Linear",
    "mmformer.training.fit.fit",
    "mmformer.cli.main.main",
    "builtins.eval",
    f"mmformer.nn.attention.AttentionSpec.{MODULE}",
)
TAGS = (
    "!!python/object/apply:os.system [touch '{canary}']",
    "!!python/object/new:os.system [touch '{canary}']",
    "!!python/name:stranger.Spec",
    "!!python/module:stranger",
    "!!python/object/apply:stranger.build []",
)


def places(data: Any, found: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in plain data a class is named."""
    here: list[tuple[Any, ...]] = []
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        here += [(*found, key)] if key == "class_path" else places(value, (*found, key))
    return here


@pytest.mark.parametrize("name", CLASSES)
def test_a_bundle_that_names_a_class(name: str, tmp_path: Path) -> None:
    """In every place where one may be named, only specs of mmformer's are known, and nothing is imported to look."""
    bundle = save_dual(tmp_path / "bundle")
    data = to_data(read_spec(bundle))
    where = places(data)
    assert len(where) > 8
    for place in where:
        changed = json.loads(json.dumps(data))
        held = changed
        for key in place[:-1]:
            held = held[key]
        held["class_path"] = name
        with pytest.raises(InputError, match=r"is no .*Spec"):
            parse(ModelSpec, changed, "model.yaml")
    change(bundle / "model.yaml", lambda model: model["model"]["stacks"]["image"].update(layer=name))
    with pytest.raises(InputError):
        mmformer.load(bundle)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("file", ["model.yaml", "transforms.yaml"])
def test_a_bundle_whose_yaml_has_tags(tag: str, file: str, canary: Path, tmp_path: Path) -> None:
    bundle = save_classifier(tmp_path / "bundle")
    text = (bundle / file).read_text()
    (bundle / file).write_text(text + f"\nmore: {tag.format(canary=canary)}\n")
    with pytest.raises(InputError, match="is not valid YAML"):
        mmformer.load(bundle)


def test_a_bundle_of_pickles_and_code(canary: Path, tmp_path: Path) -> None:
    """Weights, a vocabulary and transforms that are pickles; modules of all names that Python looks for."""
    whole = save_dual(tmp_path / "whole")
    evil = pickle.dumps(Evil(canary))
    for name in ("model.safetensors", "text.model", "model.yaml", "transforms.yaml"):
        bundle = Path(shutil.copytree(whole, tmp_path / "bundle", dirs_exist_ok=True))
        change(bundle / "model.yaml", lambda data: data.pop("files"))
        (bundle / name).write_bytes(evil)
        with pytest.raises(InputError):
            mmformer.load(bundle)
    code = f"open({str(canary)!r}, 'w')\n"
    bundle = Path(shutil.copytree(whole, tmp_path / "bundle", dirs_exist_ok=True))
    for name in ("__init__.py", "conftest.py", "sitecustomize.py", "torch.py", "mmformer.py", "modeling.py"):
        (bundle / name).write_text(code)
    mmformer.load(bundle).embed(text="a cat")


def test_only_specs_of_mmformers_can_be_named() -> None:
    """No option trusts a file further: what a class path may name is a list, of classes that are loaded already."""

    @dataclasses.dataclass(frozen=True)
    class StrangeSpec(FAMILIES[0]):  # type: ignore[misc]
        pass

    assert FAMILIES and all(base.__module__.startswith("mmformer.") for base in FAMILIES)
    for base in FAMILIES:
        assert all(spec.__module__.startswith("mmformer.") for spec in concrete(base))
    name = f"{StrangeSpec.__module__}.{StrangeSpec.__qualname__}"
    assert StrangeSpec not in members(FAMILIES[0])
    for named in (name, "StrangeSpec"):
        with pytest.raises(InputError):
            class_named(FAMILIES[0], named, "a.yaml", "key")


@pytest.mark.parametrize("name", CLASSES)
def test_a_run_file_that_names_a_class(name: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    run = to_data(tiny_run(tmp_path))
    for key in ("optimizer", "schedule"):
        file.write_text(yaml.safe_dump(run | {key: {"class_path": name, "init_args": {}}}))
        with pytest.raises(InputError, match=r"is no .*Spec"):
            parse(RunSpec, merged(RunSpec, [("config", str(file))]), "")
        with pytest.raises(InputError):
            merged(RunSpec, [(f"{key}.class_path", name)])
        with pytest.raises(InputError):
            parse(RunSpec, merged(RunSpec, [(key, name)]), "")


@pytest.mark.parametrize("tag", TAGS)
def test_yaml_tags_in_files_and_options(tag: str, canary: Path, tmp_path: Path) -> None:
    text = tag.format(canary=canary)
    (tmp_path / "run.yaml").write_text(f"optimizer: {text}\n")
    (tmp_path / "adapters.yaml").write_text(f"base: x\nadapters: {text}\n")
    for attempt in (
        lambda: merged(RunSpec, [("config", str(tmp_path / "run.yaml"))]),
        lambda: merged(RunSpec, [("optimizer", text)]),
        lambda: merged(RunSpec, [("optimizer.init_args", text)]),
        lambda: parse(RunSpec, merged(RunSpec, [("trainer.max_steps", text)]), ""),
        lambda: read_yaml(tmp_path / "run.yaml"),
        lambda: read_adapters(tmp_path),
    ):
        with pytest.raises(InputError):
            attempt()


def test_members_of_shards_that_would_run(canary: Path, tmp_path: Path) -> None:
    """Pickles, Python's and NumPy's and torch's, beside a picture: they are bytes, of which none is decoded."""
    evil, tensor, array = pickle.dumps(Evil(canary)), tmp_path / "a.pth", tmp_path / "a.png"
    torch.save(Evil(canary), tensor)
    Image.new("RGB", (4, 4)).save(array)
    code = f"open({str(canary)!r}, 'w')".encode()
    kinds = {"pyd": evil, "pickle": evil, "pkl": evil, "pth": tensor.read_bytes(), "npy": evil, "npz": evil, "py": code}
    with ShardWriter(tmp_path / "set", "s") as writer:
        writer.write(
            RawSample(
                "a", {**kinds, "png": array.read_bytes(), "json": b'{"names": {"en": "a"}, "keywords": {"en": ["a"]}}'}
            )
        )
    reader = ShardReader(Manifest.load(tmp_path / "set"), "train")
    assert reader[0].members["pyd"] == evil
    for extension, data in kinds.items():
        with pytest.raises(InputError, match="there is no decoder for"):
            decode(extension, data, "a")
    spec = tiny_run(tmp_path / "set").data
    spec = dataclasses.replace(spec, labels={})
    dataset = SampleDataset(spec, "train", OrderSpec(lanes=1), 0, training=True)
    assert dataset[0].key == "a"
    assert index_shard(tmp_path / "set" / "s-train-000000.tar").extensions == reader.extensions(0)


@pytest.mark.parametrize(
    "kind", ["pipe:touch '{0}'", "pipe:touch '{0}' |", "|touch '{0}'", "$(touch '{0}')", "`touch {0}`"]
)
def test_sources_that_are_commands(kind: str, canary: Path, tmp_path: Path) -> None:
    """As webdataset runs them; as a source, and as the path in a manifest."""
    command = kind.format(canary)
    for source in (command, f"{command}.tar", f"{command}::s3://bucket"):
        with pytest.raises(InputError):
            open_samples(source, "train")
    folder = write_shards(tmp_path / "set")
    rows = json.loads((folder / "manifest.json").read_text())
    rows["shards"][0]["path"] = command.lstrip("/")
    (folder / "manifest.json").write_text(json.dumps(rows))
    reader = ShardReader(Manifest.load(folder), rows["shards"][0]["split"])
    with pytest.raises(InputError):
        reader[0]


@pytest.mark.parametrize(
    "path",
    [
        *("reference://a.tar::https://example.org/a.json", "simplecache::https://example.org/a.tar"),
        *("git://x:main@a.tar", "dask://worker/a.tar", "jupyter://host/a.tar", "pipe:ls://a", "s3://a::reference://b"),
    ],
)
def test_manifests_name_files_of_plain_stores_alone(path: str, tmp_path: Path) -> None:
    """fsspec opens much more by an address; some of it renders templates that a file brings, or asks other programs."""
    folder = write_shards(tmp_path / "set")
    rows = json.loads((folder / "manifest.json").read_text())
    rows["shards"][0]["path"] = path
    (folder / "manifest.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match="alone a manifest may name files"):
        open_manifest(folder)


@pytest.mark.parametrize("name", ["../../secret.json", "/etc/passwd", "a/../../secret.json"])
def test_indexes_lie_beside_their_manifest(name: str, tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set")
    rows = json.loads((folder / "manifest.json").read_text())
    rows["shards"][0]["index"] = name
    (folder / "manifest.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match="index must lie below the manifest's folder"):
        Manifest.load(folder)


@pytest.mark.parametrize("suffix", [".model", ".zip", ".json"])
def test_vocabularies_that_are_pickles(suffix: str, canary: Path, tmp_path: Path) -> None:
    file = tmp_path / f"a{suffix}"
    for content in (pickle.dumps(Evil(canary)), pickle.dumps(Evil(canary), protocol=0)):
        file.write_bytes(content)
        with pytest.raises(InputError):
            open_vocabulary(file)


def test_weights_of_pytorch_that_are_pickles(canary: Path, tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    for write in (
        lambda: torch.save({"a": torch.zeros(2), "b": Evil(canary)}, file),
        lambda: torch.save({"a": Evil(canary)}, file, _use_new_zipfile_serialization=False),
        lambda: file.write_bytes(pickle.dumps(Evil(canary))),
        lambda: torch.save(torch.nn.Linear(2, 2), file),  # a module, whose class would be imported
    ):
        write()
        with pytest.raises(InputError, match="Code in such files is never run"):
            read_tensors(file)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as transformers keeps it."""
    model = GPT2.spec(SIZES["gpt2"], next(iter(GPT2.layouts)), "gpt2").build()
    model.initialise(0)
    folder = tmp_path_factory.mktemp("gpt2")
    save_bundle(folder / "bundle", model, Transforms(), "")
    export_model(folder / "bundle", "hf", folder / "out")
    return folder / "out"


def test_folders_of_other_libraries_that_bring_code(gpt2: Path, canary: Path, tmp_path: Path) -> None:
    """``auto_map`` and modules, which transformers runs with trust_remote_code; templates of chats; pickles."""
    folder = Path(shutil.copytree(gpt2, tmp_path / "folder"))
    code = f"open({str(canary)!r}, 'w')\nclass Model: pass\n"
    for name in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py", "__init__.py"):
        (folder / name).write_text(code)
    template = "{{ cycler.__init__.__globals__.os.system(\"touch '" + str(canary) + "'\") }}"
    (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    import_model(f"hf:{folder}", tmp_path / "bundle")
    mmformer.load(tmp_path / "bundle")
    config = json.loads((folder / "config.json").read_text())
    names = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "modeling_evil.Model")
    for more in ({"auto_map": names}, {"architectures": ["modeling_evil.Model"]}, {"custom_pipelines": names}):
        (folder / "config.json").write_text(json.dumps(config | more))
        refused_or_read(lambda: import_model(f"hf:{folder}", tmp_path / "bundle"))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    torch.save({"a": Evil(canary)}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="Code in such files is never run"):
        import_model(f"hf:{folder}", tmp_path / "bundle")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "../evil.bin"}}))
    (folder / "pytorch_model.bin").unlink()
    torch.save({"a": Evil(canary)}, tmp_path / "evil.bin")
    with pytest.raises(InputError, match="not beside it"):
        import_model(f"hf:{folder}", tmp_path / "bundle")


@pytest.mark.parametrize("name", ["checkpoint_path", "pretrained_cfg_overlay", "cache_dir", "scriptable"])
def test_arguments_of_timm_that_load_files(name: str, canary: Path, tmp_path: Path) -> None:
    """timm's ``create_model`` would load what a stranger's ``model_args`` name, older ones whatever it is."""
    folder, evil = tmp_path / "folder", tmp_path / "evil.pth"
    folder.mkdir()
    torch.save({"state_dict": Evil(canary)}, evil)
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 3, "model_args": {"depth": 1, name: str(evil)}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"no vision transformer has the model_args {name}"):
        import_model(f"timm:{folder}", tmp_path / "bundle")


def refused_or_read(attempt: Callable[[], object]) -> None:
    try:
        attempt()
    except InputError:
        return


def test_checkpoints_that_are_pickles(canary: Path, tmp_path: Path) -> None:
    """One that a run would go on from, sealed as its own are."""
    run = dataclasses.replace(tiny_run(write_shards(tmp_path / "set"), steps=2), checkpoint=CheckpointSpec(1))
    fit(run, tmp_path / "run")
    state = newest_checkpoint(tmp_path / "run").newest
    assert state is not None
    content = torch.load(state, weights_only=True)
    torch.save(content | {"callbacks": Evil(canary)}, state)
    (state.parent / SEAL).unlink()
    seal(state.parent, {state.name: content_of(state)})
    longer = dataclasses.replace(run, trainer=dataclasses.replace(run.trainer, max_steps=4))
    with pytest.raises(InputError, match="Code in such files is never run"):
        fit(longer, tmp_path / "run", resume=True)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_checkpoints_of_several_processes_that_are_pickles(canary: Path, tmp_path: Path) -> None:
    """The table of contents that torch.distributed.checkpoint unpickles, and what is no tensor in its parts."""
    folder = tmp_path / "state.ckpt"
    dcp.save({"a": torch.zeros(2), "rate": 0.5}, checkpoint_id=folder, no_dist=True)
    check_metadata(folder)
    loaded: dict[str, Any] = {"a": torch.ones(2), "rate": 0.0}
    with as_data(folder):
        dcp.load(loaded, checkpoint_id=folder, no_dist=True)
    assert loaded["rate"] == 0.5 and not loaded["a"].any()

    table = (folder / ".metadata").read_bytes()
    own = pickle.loads(table)
    own.planner_data = Evil(canary)
    for content in (pickle.dumps(Evil(canary)), pickle.dumps(own), table[:-9], b"", b"cos\nsystem\n(S'ls'\ntR."):
        (folder / ".metadata").write_bytes(content)
        with pytest.raises(InputError, match="Code in such files is never run"), as_data(folder):
            raise AssertionError("it is refused before anything is loaded")
    own = pickle.loads(table)
    for index, info in own.storage_data.items():
        own.storage_data[index] = dataclasses.replace(info, relative_path="../evil.distcp")
    (folder / ".metadata").write_bytes(pickle.dumps(own))
    with pytest.raises(InputError, match="not beside it"):
        check_metadata(folder)

    shutil.rmtree(folder)
    dcp.save({"a": torch.zeros(2), "rate": Evil(canary)}, checkpoint_id=folder, no_dist=True)
    with pytest.raises((InputError, dcp.api.CheckpointException)), as_data(folder):
        dcp.load({"a": torch.ones(2), "rate": 0.0}, checkpoint_id=folder, no_dist=True)
