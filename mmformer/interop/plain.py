"""Places in plain data: ``stacks.text.layer.mixer.heads``, whatever classes stand on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from mmformer.spec import FAMILIES, concrete

Data = dict[str, Any]


class Named(NamedTuple):
    """A class of a family, and what is said of it; its other arguments are left as they are, where it has them."""

    name: str
    arguments: Mapping[str, Any] = {}

    def over(self, node: Any) -> Data:
        """Plain data of this class in place of a node's."""
        known = {field.name for field in dataclasses.fields(_spec(self.name))}
        kept = {key: value for key, value in (node or {}).get("init_args", {}).items() if key in known}
        return {"class_path": self.name, "init_args": kept | dict(self.arguments)}

    def describes(self, node: Any) -> bool:
        """Whether a node is of this class, with these arguments."""
        if not isinstance(node, dict) or node.get("class_path") != self.name:
            return False
        return all(node["init_args"].get(key) == value for key, value in self.arguments.items())


def get(data: Any, path: str) -> Any:
    """What stands at a dotted path.

    Raises:
        KeyError: nothing does; it has the path.
    """
    node = data
    for part in path.split("."):
        node = _inside(node)
        try:
            node = node[int(part)] if isinstance(node, list) else node[part]
        except (KeyError, IndexError, TypeError) as error:
            raise KeyError(path) from error
    return node


def put(data: Data, path: str, value: Any) -> None:
    """Put a value at a dotted path; what it stands in has to be there.

    Raises:
        KeyError: there is no such place.
    """
    *before, last = path.split(".")
    node = _inside(get(data, ".".join(before)) if before else data)
    place = int(last) if isinstance(node, list) else last
    if isinstance(value, Named):
        value = value.over(node[place])
    node[place] = value


def drop(data: Data, path: str) -> None:
    """Take away what stands at a dotted path."""
    *before, last = path.split(".")
    node = _inside(get(data, ".".join(before)) if before else data)
    del node[last]


def _inside(node: Any) -> Any:
    return node["init_args"] if isinstance(node, dict) and "class_path" in node else node


def _spec(name: str) -> Any:
    return next(spec for base in FAMILIES for spec in concrete(base) if spec.__name__ == name)
