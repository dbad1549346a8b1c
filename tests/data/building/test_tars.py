"""Sets from tars that others wrote: webdataset's, and what img2dataset leaves."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from mmformer.data.building.draft import Span
from mmformer.data.building.tars import from_tars
from mmformer.errors import InputError


def tar(path: Path, **members: bytes) -> Path:
    """A tar with members whose names have _ for the dot."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name.replace("_", "."))
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def test_samples_keep_their_members_and_keys(tmp_path: Path) -> None:
    first = tar(tmp_path / "00000.tar", a_jpg=b"1", a_txt=b"one", a_json=b"{}", b_pkl=b"code", b_cls=b"3")
    second = tar(tmp_path / "00001.tar", c_jpg=b"22", d_pyd=b"code")
    found = from_tars([first, second], workers=1)
    read = {
        draft.key: {name: span.read() for name, span in draft.members.items() if isinstance(span, Span)}
        for draft in found.drafts
    }
    assert read == {"a": {"jpg": b"1", "txt": b"one", "json": b"{}"}, "b": {"cls": b"3"}, "c": {"jpg": b"22"}}
    assert [(one.name, one.cause) for one in found.left_out] == [
        ("00000.tar: b.pkl", "member without a decoder"),
        ("00001.tar: d.pyd", "member without a decoder"),
        ("00001.tar: d", "sample that cannot be named"),
    ]


def test_keys_that_come_in_several_tars_are_told_apart(tmp_path: Path) -> None:
    first, second = (tar(tmp_path / f"{n}.tar", a_jpg=b"1") for n in range(2))
    assert [draft.key for draft in from_tars([first, second], workers=1).drafts] == ["0/a", "1/a"]
    same = tar(tmp_path / "deep" / "0.tar", a_jpg=b"1")
    with pytest.raises(InputError, match="the same name and samples with the same keys"):
        from_tars([first, same], workers=1)


def test_tars_of_a_split_stay_in_it(tmp_path: Path) -> None:
    paths = [tar(tmp_path / f"{name}.tar", **{f"{name}_jpg": b"1"}) for name in ("cc-train", "cc-val")]
    found = from_tars(paths, workers=1, splits={"held": "*val*", "train": "*"})
    assert [(draft.key, draft.split) for draft in found.drafts] == [("cc-train", "train"), ("cc-val", "held")]
    with pytest.raises(InputError, match=r"cc-val.tar is of no split: its name matches none of train=\*train\*"):
        from_tars(paths, workers=1, splits={"train": "*train*"})


def test_a_damaged_tar_is_left_out_alone(tmp_path: Path) -> None:
    whole, cut = (tar(tmp_path / f"{n}.tar", a_jpg=b"1" * 600) for n in range(2))
    cut.write_bytes(cut.read_bytes()[:800])
    found = from_tars([cut, whole], workers=1)
    assert [draft.key for draft in found.drafts] == ["a"]
    (one,) = found.left_out
    assert (one.name, one.cause) == (str(cut), "damaged tar")
    assert "not a whole, uncompressed tar" in one.detail
