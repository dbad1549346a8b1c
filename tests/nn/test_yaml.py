"""Every part comes back from YAML as it was: those of the contract's space, which has all."""

from __future__ import annotations

import dataclasses

import pytest
import yaml
from contract import TABLES

from mmformer.config import parse, to_yaml
from mmformer.spec import FAMILIES

PARTS = {f"{name}[{key}]": spec for name, table in TABLES.values() for key, spec in table.items() if spec is not None}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_comes_back_from_yaml_as_it_was(name: str) -> None:
    spec = PARTS[name]
    (base,) = [base for base in FAMILIES if isinstance(spec, base)]
    holder = dataclasses.make_dataclass("Holder", [("one", base), ("many", tuple[base, ...])], frozen=True)
    held = holder(spec, (spec, spec))
    assert parse(holder, yaml.safe_load(to_yaml(held)), "here") == held
