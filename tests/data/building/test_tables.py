"""Tables of captions: every form gives the same rows, and what cannot be read says where and why."""

from __future__ import annotations

import datetime
import decimal
import json
from pathlib import Path

import pytest

from mmformer.data.building.tables import Table, read_table, sidecars, texts_of
from mmformer.errors import InputError

VALUES = [
    {"file": "a.png", "caption": 'a "red", heart', "likes": "3"},
    {"file": "b.png", "caption": "ein Grüner Baum", "likes": "0"},
]


def write(path: Path) -> Path:
    """The same table in the form that the name asks for."""
    if path.suffix == ".csv":
        path.write_text('\ufefffile,caption,likes\na.png,"a ""red"", heart",3\n\nb.png,ein Grüner Baum,0\n')
    elif path.suffix == ".tsv":
        path.write_text('file\tcaption\tlikes\na.png\ta "red", heart\t3\nb.png\tein Grüner Baum\t0\n')
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(VALUES), path)
    else:
        path.write_text("".join(f"{json.dumps(value)}\n\n" for value in VALUES))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"])
def test_every_form_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    table = read_table(write(tmp_path / f"table{suffix}"))
    assert table.columns == ("file", "caption", "likes")
    assert [row.values for row in table.rows] == VALUES
    assert not any(row.problem for row in table.rows)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_any_table_in_parquet_is_what_pyarrow_reads(tmp_path: Path, version: str, dictionary: bool) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    times = 200
    columns = {
        "text": [f"a cat {number}" for number in range(3 * times)],
        "texts": [["a cat", None, "cats"], [], None] * times,
        "lists": [[["a"], ["b", "c"]], None, []] * times,
        "fields": [{"size": [1.5], "by": "me"}, None, {"size": None, "by": "me"}] * times,
        "map": arrow.array(
            [[("en", "cat"), ("de", None)], None, []] * times, arrow.map_(arrow.string(), arrow.string())
        ),
        "none": arrow.nulls(3 * times),
        "class": arrow.array(["cat", "dog", "cat"] * times).dictionary_encode(),
        "day": [datetime.date(2024, 2, 29)] * 3 * times,
        "price": [decimal.Decimal("1.50")] * 3 * times,
        "digest": arrow.array([b"abcd"] * 3 * times, arrow.binary(4)),
        "good": [True, None, False] * times,
    }
    options = {} if dictionary else {"column_encoding": {"text": "DELTA_LENGTH_BYTE_ARRAY"}}
    parquet.write_table(
        arrow.table(columns),
        tmp_path / "t.parquet",
        row_group_size=2 * times,
        data_page_size=500,
        data_page_version=version,
        use_dictionary=dictionary,
        **options,
    )
    table = read_table(tmp_path / "t.parquet")
    assert table.columns == tuple(columns)
    assert [row.values for row in table.rows] == parquet.read_table(tmp_path / "t.parquet").to_pylist()


def test_columns_of_one_name_in_parquet_are_refused(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(arrow.table([["a"], ["b"]], ["file", "file"]), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="two columns have one name: file, file"):
        read_table(tmp_path / "t.parquet")


def test_a_column_is_the_one_asked_for_or_the_only_one_with_a_usual_name() -> None:
    table = Table(Path("t.csv"), ("File", "caption", "title"), [])
    assert table.column(None, ("file", "path"), "--image-column") == "File"
    assert table.column("title", ("caption",), "--caption-column") == "title"
    with pytest.raises(InputError, match=r"--caption-column captoin: t.csv has the columns 'File', 'caption', .* 'cap"):
        table.column("captoin", ("caption",), "--caption-column")
    with pytest.raises(InputError, match=r"caption, title could all be meant. Name one with --caption-column"):
        table.column(None, ("caption", "title"), "--caption-column")
    with pytest.raises(InputError, match=r"none is called url, link. Name one with --image-column"):
        table.column(None, ("url", "link"), "--image-column")


def test_a_table_with_another_separator_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("file;caption\na.png;a heart\n")
    with pytest.raises(InputError, match=r"Its separator seems to be ';': .csv has commas"):
        read_table(path).column("caption", (), "--caption-column")


def test_rows_that_cannot_be_read_stay_beside_those_that_can(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("file,caption\na.png,one,two\nb.png,good\nc.png\n")
    first, good, last = read_table(path).rows
    assert first.problem is not None
    assert (first.place, first.problem.detail) == ("t.csv, line 2", "it has 3 cells, but the table 2 columns")
    assert (good.values, good.problem) == ({"file": "b.png", "caption": "good"}, None)
    assert last.problem is not None
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"file": "a.png"}\n[1]\n{"file": \n{"file": "\xff"}\n')
    problems = [row.problem.detail if row.problem else "" for row in read_table(path).rows]
    assert problems[0] == ""
    assert "it holds no object but [1]" in problems[1]
    assert "t.jsonl, line 3: not JSON" in problems[2]
    assert "t.jsonl, line 4: not UTF-8" in problems[3]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "there are no rows"),
        ("t.csv", b"file,caption\n", "there are no rows"),
        ("t.csv", b'file,caption\na.png,"never closed\n', "line 2: not a table with separators"),
        ("t.csv", b"file,file\na,b\n", "two columns have one name: file, file"),
        ("t.parquet", b"PAR1 no more", "not a whole Parquet file"),
        ("t.xlsx", b"", "a table's name ends with .csv, .tsv, .jsonl, .ndjson, .parquet"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_table(tmp_path / name)


def test_a_missing_table_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("a\n1\n")
    with pytest.raises(InputError, match=r"There is no table .*caption.csv. Did you mean 'captions.csv'\?"):
        read_table(tmp_path / "caption.csv")


def test_files_beside_pictures_are_rows(tmp_path: Path) -> None:
    for name in ("deep/a.png", "b.JPG", "c.webp", "d.png", "e.png", "notes.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "deep" / "a.txt").write_text("first\n\nsecond\n")
    (tmp_path / "b.json").write_text('{"caption": "of b", "file": "elsewhere", "likes": 3}')
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "e.json").write_text("[1]")
    table = sidecars(tmp_path, ("image",))
    rows = {row.place: row for row in table.rows}
    assert table.columns == ("file", "caption", "likes")
    assert list(texts_of(rows["deep/a.png"].values["caption"])) == ["first", "second"]
    assert rows["b.JPG"].values == {"file": "b.JPG", "caption": "of b", "likes": 3}
    causes = {place: row.problem.cause for place, row in rows.items() if row.problem}
    assert causes == {"c.webp": "text that is not UTF-8", "d.png": "no file with captions", "e.png": "damaged JSON"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: there is no sound \(.wav, .flac, .ogg, .mp3\) in this folder"):
        sidecars(tmp_path / "empty", ("sound",))
