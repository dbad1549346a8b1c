"""Texts are cleaned as open_clip cleans them; plain ones need no library for it."""

from __future__ import annotations

import itertools
import string
import sys
from typing import Any, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmformer.errors import InputError
from mmformer.tokenizers.cleaning import Cleaning, clean

ASCII = "".join(map(chr, range(128)))
PLAIN = "".join(c for c in string.printable if c not in "&\x0b\x0c")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40) | st.text(ASCII, max_size=40) | st.text("&;amplt#39 ", max_size=20))
@example("&amp;amp;lt;b&gt; “curly” cafÃ© __a__b ﬁ\x1c\u2028x İ")
def test_texts_become_what_open_clip_makes_of_them(text: str) -> None:
    open_clip = pytest.importorskip("open_clip.tokenizer", reason="its functions are what these are compared with")
    for how in get_args(Cleaning):
        assert clean(text, how) == open_clip.get_clean_fn(how)(text)


@settings(max_examples=200, deadline=None)
@given(st.text(PLAIN, max_size=40))
def test_plain_texts_are_not_mended(text: str) -> None:
    ftfy = pytest.importorskip("ftfy", reason="it says what it mends")
    assert ftfy.fix_text(text).split() == text.split()


def test_others_are_refused_where_the_library_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    missing: Any = None
    monkeypatch.setitem(sys.modules, "ftfy", missing)
    assert clean("  It's A \n PLAIN_text, (100%)! ", "canonicalize") == "its a plain text 100"
    for text in ("café", "&amp;", "a\x07b"):
        with pytest.raises(InputError, match=r"ftfy, as open_clip does; it is not installed: pip install ftfy"):
            clean(text, "lower")


def test_spaces_of_plain_texts_are_single() -> None:
    for text in map("".join, itertools.product(("", " ", "\t", "A b", "_", "'"), repeat=4)):
        assert clean(text, "whitespace") == " ".join(text.split())
        assert clean(text, "lower") == " ".join(text.lower().split())
        bare = text.lower().replace("_", " ").replace("'", "")
        assert clean(text, "canonicalize") == " ".join(bare.split())
