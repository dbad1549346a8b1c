"""Names on the hub, by a library that stands in for huggingface_hub: what is asked of it, and what it may answer."""

from __future__ import annotations

import sys
import types
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from mmformer.errors import InputError
from mmformer.interop.importing import open_source
from mmformer.interop.open_clip import MERGES
from mmformer.interop.source import hub_folder
from mmformer.interop.vocabularies import KEPT


class Hub(types.ModuleType):
    """Attributes: asked: of it, call by call; answer: what it gives, or raises."""

    def __init__(self, answer: Any) -> None:
        super().__init__("huggingface_hub")
        self.answer, self.asked = answer, list[dict[str, Any]]()

    def snapshot_download(self, name: str, **options: Any) -> str:
        self.asked.append({"name": name, **options})
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


def hub(monkeypatch: pytest.MonkeyPatch, answer: Any) -> Hub:
    made = Hub(answer)
    monkeypatch.setitem(sys.modules, "huggingface_hub", made)
    return made


def taken(asked: dict[str, Any], file: str) -> bool:
    """Whether a file of the name's would be copied."""
    wanted, unwanted = (asked[f"{kind}_patterns"] for kind in ("allow", "ignore"))
    return any(fnmatch(file, each) for each in wanted) and not any(fnmatch(file, each) for each in unwanted)


def test_a_name_gives_a_copy_with_all_that_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = hub(monkeypatch, tmp_path)
    assert hub_folder("owner/name") == tmp_path
    (asked,) = made.asked
    assert asked["name"] == "owner/name"
    read = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
    read += ["preprocessor_config.json", "generation_config.json", "open_clip_pytorch_model.bin", MERGES, *KEPT]
    assert all(taken(asked, file) for file in read)
    others = ["modeling_own.py", "tf_model.h5", "onnx/model.json", "original/consolidated.00.bin", "training_args.pt"]
    assert not any(taken(asked, file) for file in others)


def test_timms_names_may_leave_their_owner_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = hub(monkeypatch, tmp_path)
    with pytest.raises(InputError, match=r"has no config\.json: it is no folder of a timm model"):
        open_source("timm:vit_base_patch16_224.augreg_in1k")
    assert made.asked[0]["name"] == "timm/vit_base_patch16_224.augreg_in1k"


def test_where_there_is_no_network_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, OSError("We couldn't connect to the hub.\nLong advice follows."))
    with pytest.raises(
        InputError, match=r"no folder owner/name, and the hub did not give it: We couldn't connect .* Copy it here\.$"
    ):
        open_source("hf:owner/name")


def test_where_the_library_is_not_installed_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"no folder owner/name; .* pip install 'mmformer\[hub\]', or copy it here"):
        open_source("hf:owner/name")


@pytest.mark.parametrize("name", ["gpt2", "models/of/mine", "./owner/name", "/owner"])
def test_what_is_no_name_is_not_asked_for(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    made = hub(monkeypatch, tmp_path)
    with pytest.raises(
        InputError, match=r"There is no folder .*\. Names on the hub are owner/name, such as openai-com"
    ):
        open_source(f"hf:{name}")
    assert not made.asked
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is a file, but a folder is expected"):
        open_source("hf:file")
