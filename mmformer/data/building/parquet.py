"""Tables in Parquet, whose pages are looked at before any of them is unpacked.

A few bytes may stand for very many: pages are compressed, a number says how often a value comes again, and a text may
refer to another one. The footer says how much that comes to, but nobody compares; each page's own header is what
pyarrow goes by. So the headers are read first (Thrift's compact protocol, as the Parquet format has it), and texts
come as what their pages have once, until it is known how long all of them are.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmformer.errors import InputError, foreign

MOST_TIMES = 100
"""How many times as large as its file a table may be."""

ALWAYS = 2**26
"""Bytes that any table may have, however small its file is."""

VALUE = 32
"""Bytes that a value is counted as, besides its text: a table of nothing but empty cells has rows as well."""

_DELTA_BYTE_ARRAY = 7  # of the encodings
_DICTIONARY = 7  # of the fields of a page's header
_STRUCT = 12  # of the kinds of fields


def read_parquet(path: Path) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """The names of a table's columns, and its rows.

    Raises:
        InputError: pyarrow is not installed; the file is damaged; or it would unpack to more than ``MOST_TIMES`` its
            size and more than ``ALWAYS`` bytes.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise InputError(f'{path}: Parquet is read with pyarrow: pip install "mmformer[parquet]"') from error
    with foreign(path):  # names and texts that are not UTF-8, days that no calendar has
        try:
            with parquet.ParquetFile(path) as file:
                most = max(ALWAYS, MOST_TIMES * path.stat().st_size)
                leaves = [file.schema.column(number) for number in range(len(file.schema))]
                if len({leaf.path for leaf in leaves}) < len(leaves):
                    raise InputError(f"{path}: two columns have one name: {', '.join(leaf.path for leaf in leaves)}.")
                numbered = _check_pages(path, file.metadata, leaves, most)
            _check_texts(path, numbered, most)
            table = parquet.read_table(path, use_threads=False)
            return tuple(table.column_names), table.to_pylist()
        except ArrowException as error:
            raise InputError(f"{path}: not a whole Parquet file: {error}.") from error


def _check_texts(path: Path, numbered: list[str], most: int) -> None:
    """Refuse a file whose texts, of which its pages have each once, come so often that they take more than ``most``."""
    from pyarrow import parquet

    size = 0
    with parquet.ParquetFile(path, read_dictionary=numbered) as file:
        for group in range(file.num_row_groups if numbered else 0):  # in lists, several have no numbers in common
            table = file.read_row_group(group, numbered, use_threads=False)
            size += sum(_unpacked(chunk) for column in table.columns for chunk in column.chunks)
            if size > most:
                raise _too_large(path, most)


def _unpacked(array: Any) -> int:
    """The bytes of an array's values, each with its own."""
    from pyarrow import DictionaryArray, ExtensionArray, MapArray, StructArray, compute

    if isinstance(array, ExtensionArray):
        return _unpacked(array.storage)
    if isinstance(array, DictionaryArray):  # to take each length finds numbers that no value has
        return compute.sum(compute.binary_length(array.dictionary).take(array.indices)).as_py() or 0
    if isinstance(array, StructArray):
        return sum(_unpacked(field) for field in array.flatten())
    if isinstance(array, MapArray):
        first, end = array.offsets[0].as_py(), array.offsets[-1].as_py()
        return sum(_unpacked(each[first:end]) for each in (array.keys, array.items))
    if hasattr(array, "flatten"):  # lists
        return _unpacked(array.flatten())
    return int(array.nbytes)


def _too_large(path: Path, most: int) -> InputError:
    return InputError(
        f"{path}: a table of {path.stat().st_size:,} bytes that unpacks to more than {most:,} is not read. If it is "
        f"one of captions, hand it over as .jsonl, or in parts."
    )


# ------------------------------------------------------------------------------------------------ headers of pages


def _check_pages(path: Path, metadata: Any, leaves: list[Any], most: int) -> list[str]:
    """The columns whose texts come as numbers of a page that has them.

    Raises:
        InputError: the pages say that they unpack to more, or texts refer to those before them.
    """
    size, numbered = 0, set[str]()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for group in range(metadata.num_row_groups):
            for number, leaf in enumerate(leaves):
                fixed = leaf.length if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY" else 0
                for page in _pages(data, metadata.row_group(group).column(number)):
                    size += _count(page, 2)
                    for kind, encoding in ((5, 2), (_DICTIONARY, 2), (8, 4)):  # 5, 8: data, in the format's versions
                        if kind not in page:
                            continue
                        size += _count(page[kind], 1) * (VALUE + fixed)
                        if page[kind].get(encoding) == _DELTA_BYTE_ARRAY:
                            raise InputError(
                                f"{path}: the column {leaf.path} is encoded as DELTA_BYTE_ARRAY, whose texts may be "
                                f"far longer than the file. Write it as pyarrow does by itself."
                            )
                    if size > most:
                        raise _too_large(path, most)
                    if _DICTIONARY in page and leaf.physical_type == "BYTE_ARRAY":
                        numbered.add(leaf.path)
    return sorted(numbered)


def _pages(data: mmap.mmap, chunk: Any) -> Iterator[dict[int, Any]]:
    """The headers of a column's pages in a row group, by the numbers of their fields, from where pyarrow begins."""
    place, first = chunk.data_page_offset, chunk.dictionary_page_offset
    if chunk.has_dictionary_page and first is not None and 0 < first < place:
        place = first
    end = place + chunk.total_compressed_size
    if not 0 < place <= end <= len(data):
        raise ValueError("a column lies outside of the file")
    while place < end:
        header, place = _struct(data, place)
        place += _count(header, 3)
        yield header


def _count(fields: dict[int, Any], number: int) -> int:
    """A field that is no negative number, of which pyarrow reads 32 bits."""
    value = fields[number]
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError("a number in the header of a page cannot be right")
    return value


def _struct(data: mmap.mmap, place: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """The fields of a structure by their numbers, as far as they are whole numbers or structures; where it ends."""
    fields: dict[int, Any] = {}
    number = 0
    if depth > 4:
        raise ValueError("the header of a page is nested too deeply")
    while head := data[place]:
        place += 1
        step, kind = head >> 4, head & 15
        if step:
            number += step
        else:
            number, place = _whole(data, place)
        if number in fields or not 0 < number < 2**15:  # pyarrow would take the last, and 16 bits
            raise ValueError("the header of a page has a field twice, or one of no number")
        fields[number] = None
        if kind in (4, 5, 6):
            fields[number], place = _whole(data, place)
        elif kind == _STRUCT:
            fields[number], place = _struct(data, place, depth + 1)
        elif kind in (3, 7):  # one byte, a floating-point number
            place += 1 if kind == 3 else 8
        elif kind == 8:  # bytes
            length, place = _varint(data, place)
            place += length
        elif kind not in (1, 2):  # true and false have no bytes of their own
            raise ValueError("the header of a page has a field of a kind that none has")
    return fields, place + 1


def _whole(data: mmap.mmap, place: int) -> tuple[int, int]:
    """A whole number, negative ones between the others; where it ends."""
    number, place = _varint(data, place)
    return (number >> 1) ^ -(number & 1), place


def _varint(data: mmap.mmap, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first; where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, place
    raise ValueError("a number in the header of a page has no end")
