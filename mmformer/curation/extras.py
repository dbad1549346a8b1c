"""Packages that only curation needs."""

from __future__ import annotations

import importlib
from typing import Any

from mmformer.errors import InputError


def extra(module: str, what: str) -> Any:
    """A module of one of them, imported when it is needed.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f'{what} needs {module.split(".")[0]}: pip install "mmformer[curation]" ({error}).') from error
