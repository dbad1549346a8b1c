"""What open_clip does to a text before its vocabulary sees it (OpenAI's CLIP does the first of them)."""

from __future__ import annotations

import html
import re
import string
from typing import Literal

from mmformer.errors import InputError

Cleaning = Literal["lower", "whitespace", "canonicalize"]
"""``lower``: mended encoding, no HTML entities, single spaces, lower case; ``whitespace``: the same in its own case;
``canonicalize``: lower without ASCII punctuation (SigLIP)."""

_PLAIN = re.compile(r"[ -%'-~\t\n\r]*")  # ASCII without control characters and "&", which begins an entity
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def clean(text: str, how: Cleaning) -> str:
    """The text that is encoded in a text's place.

    Raises:
        InputError: its characters may need mending, and the library that does so is not installed.
    """
    printable = text.isascii() and text.isprintable() and "&" not in text  # told in less time than by the pattern
    if not printable and not _PLAIN.fullmatch(text):
        text = html.unescape(html.unescape(_mended(text)))
    if how == "canonicalize":
        text = text.replace("_", " ").translate(_NO_PUNCTUATION)
    text = text if how == "whitespace" else text.lower()
    single = printable and "  " not in text and text[:1] != " " != text[-1:]
    return text if single else " ".join(text.split())


def _mended(text: str) -> str:
    """With text that was decoded wrongly put right, curly quotes straight and so on: ftfy, Speer 2019."""
    try:
        import ftfy
    except ModuleNotFoundError as error:
        raise InputError(
            "This model mends texts beyond ASCII with ftfy, as open_clip does; it is not installed: pip install ftfy"
        ) from error
    mended: str = ftfy.fix_text(text)
    return mended
