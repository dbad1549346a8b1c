"""The pages that are made of the code: every option, every command, the Python API. A hook of mkdocs (mkdocs.yml).

Nothing of it is written to a file: what the site says is what the code says.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import inspect
import io
import itertools
import json
import os
import pkgutil
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType, NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import mmformer
from mmformer import resources
from mmformer.catalogue import catalogue
from mmformer.cli import arguments
from mmformer.cli.main import COMMANDS, GROUPS
from mmformer.config import to_data
from mmformer.docstrings import attributes, before_sections, sections_of, summary
from mmformer.evaluation.recipe import RecipeSpec
from mmformer.interop.systems import systems
from mmformer.schema import is_family, members
from mmformer.training.run import RunSpec

RESULTS = Path(__file__).parents[1] / "benchmarks/results"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def pages() -> dict[str, str]:
    """Path below docs/ -> Markdown."""
    names = [info.name for info in pkgutil.iter_modules(mmformer.__path__) if info.name not in ("cli", "__main__")]
    units = sorted(names, key=lambda name: (name != "predictor", name))  # the front door first
    api = {f"api/{unit}.md": unit_page(unit) for unit in units}
    index = "# Python API\n\nMade of the docstrings, a page for each package or module.\n\n" + "".join(
        f"- [`mmformer.{unit}`]({unit}.md): {first_sentence(importlib.import_module(f'mmformer.{unit}'))}\n"
        for unit in units
    )
    written = {"runs.md": runs_page(), "configs.md": configs_page(), "commands.md": commands_page()}
    written |= {"parts.md": parts_page(), "systems.md": systems_page()}
    written["systems_speed.md"] = (RESULTS / "systems.md").read_text(encoding="utf-8")
    measured = ("growth", "order", "peers", "beside")
    tables = [RESULTS / f"{name}.md" for name in measured] + sorted((RESULTS / "classifier").glob("*.md"))
    written |= {table.relative_to(RESULTS).as_posix(): table.read_text(encoding="utf-8") for table in tables}
    return {**written, "api/index.md": index, **api}


# Runs


def runs_page() -> str:
    """What the head comments of the run files, models and stacks say that come with mmformer."""
    parts = [
        "# Runs that come with mmformer",
        "Each is a place to begin: copy it, or change it by options. What they expect was measured; "
        "the repository's `benchmarks/` has the commands. The stacks, at the end, are parts of the literature put "
        "together, small: each has the command that puts it into a run, in place of a stack of that run.",
    ]
    for group in ("runs", "models", "stacks"):
        for file in sorted((resources.FOLDER / "configs" / group).glob("*.yaml")):
            lines = itertools.takewhile(
                lambda line: line.startswith("#"), file.read_text(encoding="utf-8").splitlines()
            )
            head = "\n".join(re.sub(r"^#( ?)( *)", r"\2\2", line) for line in lines)  # commands are indented
            parts += [
                f"## configs/{group}/{file.name}",
                re.sub(r"```text\n(?=mmformer|python)", "```sh\n", prose(head)),
            ]
    return "\n\n".join(parts) + "\n"


# Configs


def configs_page() -> str:
    """Every spec that a run file or a recipe may have, with its fields."""
    parts = [
        "# Every option",
        "A run file (`mmformer fit`) is a `RunSpec`, a recipe (`mmformer evaluate`) a `RecipeSpec`; what they hold "
        "comes after them, in the order in which it is first named. A field is also an option: "
        "`--model.stacks.trunk.depth 4`. Where a type has several classes, `class_path` says which and `init_args` has "
        "its fields; where the default class is meant its fields are enough. What is None in Python is "
        "null in YAML.",
    ]
    for spec in reached([RunSpec, RecipeSpec]):
        abstract = is_family(spec) and (inspect.isabstract(spec) or len(members(spec)) > 1)
        parts += [f"## {spec.__name__}", prose(own_docstring(spec, sections=False))]
        if abstract:
            others = ", ".join(link(member) for member in members(spec) if member is not spec)
            parts.append(f"One of {others}.")
        if not inspect.isabstract(spec) and dataclasses.fields(spec):
            parts.append(fields_table(spec))
    return "\n\n".join(parts) + "\n"


def reached(roots: list[type]) -> list[type]:
    """The specs that fields of some may hold, they first; a family is followed by its members."""
    found, queue = dict.fromkeys(roots), list(roots)
    while queue:
        spec = queue.pop(0)
        inner = [member for member in members(spec) if member is not spec] if is_family(spec) else []
        hints = get_type_hints(spec)
        for field in dataclasses.fields(spec):
            inner += specs_in(hints[field.name])
        queue += [one for one in dict.fromkeys(inner) if one not in found]
        found |= dict.fromkeys(inner)
    return list(found)


def specs_in(hint: Any) -> list[type]:
    if dataclasses.is_dataclass(hint):
        base = next((cls for cls in hint.__mro__ if cls in family_bases()), hint)  # type: ignore[union-attr]
        return [base]
    return [spec for inner in get_args(hint) for spec in specs_in(inner)]


def family_bases() -> list[type]:
    from mmformer.spec import FAMILIES

    return FAMILIES


def fields_table(spec: type) -> str:
    meanings, hints = attributes(spec), get_type_hints(spec)
    unsaid = [field.name for field in dataclasses.fields(spec) if field.name not in meanings]
    assert not unsaid, f"{spec.__name__}: its docstring says nothing of {', '.join(unsaid)}"
    rows = ["| field | type | default | |", "|---|---|---|---|"]
    for field in dataclasses.fields(spec):
        meaning = inline(meanings[field.name]).replace("|", "\\|")
        rows.append(f"| `{field.name}` | {type_name(hints[field.name])} | {default_of(field)} | {meaning} |")
    return "\n".join(rows)


def default_of(field: dataclasses.Field[Any]) -> str:
    """As a run file would have it."""
    value = field.default
    if value is dataclasses.MISSING:
        if field.default_factory is dataclasses.MISSING:
            return "required"
        value = field.default_factory()
    if dataclasses.is_dataclass(value):
        return link(type(value))
    written = yaml.safe_dump(to_data(value), default_flow_style=True, width=200, allow_unicode=True)
    return f"`{written.removesuffix('...' + chr(10)).strip()}`"


def type_name(hint: Any) -> str:
    """A type as a person would say it, with links to specs."""
    inner = [arg for arg in get_args(hint) if arg is not ...]
    if dataclasses.is_dataclass(hint):
        return link(hint)  # type: ignore[arg-type]
    if get_origin(hint) is Literal:
        return " or ".join(f"`{choice}`" for choice in inner)
    if get_origin(hint) is tuple:
        listed = type_name(inner[0])
        return f"list of {listed}" if ... in get_args(hint) else f"list of {len(inner)}: {listed}"
    if get_origin(hint) is dict:
        return f"name: {type_name(inner[1])}"
    if inner:
        return " or ".join(map(type_name, inner))
    return "null" if hint is NoneType else f"`{getattr(hint, '__name__', hint)}`"


def link(spec: type) -> str:
    return f"[`{spec.__name__}`](#{spec.__name__.lower()})"


# Parts


def parts_page() -> str:
    """What stacks and encoders can be made of."""
    text = (
        "# Parts\n\nWhat stacks and encoders can be made of, as `mmformer parts` lists it. In costs, L is the tokens "
        "of a row, D the width; the rest are options of the part, which [Every option](configs.md) explains. Abilities "
        "are those with the options that are the default.\n"
    )
    for kind, entries in itertools.groupby(catalogue(), key=lambda entry: entry.kind):
        text += f"\n## {kind}\n\n| part | cost | supports | needs | from |\n|---|---|---|---|---|\n"
        for entry in entries:
            part = f"[`{entry.name}`](configs.md#{entry.name.lower()}): {inline(entry.what)}"
            able, needed = ", ".join(entry.supports), ", ".join(entry.needs)
            text += f"| {part} | {inline(entry.cost)} | {able} | {needed} | {inline(entry.source)} |\n"
    return text


def systems_page() -> str:
    """The named systems, and how far what they compute is from what the libraries do that they come from."""
    measured = json.loads((RESULTS / "systems.json").read_text(encoding="utf-8"))
    text = (
        "# Named systems\n\nEach is a file under `configs/models/`, made of [parts](parts.md) alone. "
        "`mmformer import` takes models of these classes, of any size, with their weights, and `mmformer export` gives "
        "them back to the bit. How far outputs and gradients are from the library's own, relative to the largest, is "
        "the most that the tests measured on small models with random weights, in float32 (`make systems`); a dash: "
        "this class was not measured by itself. [Their speed](systems_speed.md) is measured too.\n\n"
        "| system | file | lines | parameters | class | largest difference |\n|---|---|---|---|---|---|\n"
    )
    for system in systems():
        for place, name in enumerate(system.classes):
            row = measured.get(name, {})
            told = ", ".join(f"{what} {error:.0e}" for what, error in sorted(row.items())) or "–"
            first = (
                f"{inline(system.title)} | `{system.file}` | {system.lines} | {system.size}" if not place else " | | | "
            )
            text += f"| {first} | {inline(name)} | {told} |\n"
    return text


# Commands


def commands_page() -> str:
    """What ``--help`` says of every command."""
    parts = ["# Commands", "`mmformer COMMAND --help` says the same. Options of run files: [every option](configs.md)."]
    for group, example in GROUPS.items():
        parts += [f"## {group}", f"```text\n{example}\n```"]
        for name, (module_name, own, what) in COMMANDS.items():
            if own == group:
                parts += [f"### {name}", f"{what[0].upper()}{what[1:]}.", *command(name, module_name)]
    return "\n\n".join(parts) + "\n"


def command(name: str, module_name: str) -> Iterator[str]:
    module = importlib.import_module(f"mmformer.cli.{module_name}")
    if hasattr(module, "OPTIONS"):  # it reads run files
        yield own_options(name, module)
    elif hasattr(module, "add_parser"):
        commands = arguments.Parser(prog="mmformer").add_subparsers(parser_class=arguments.Parser)
        module.add_parser(commands)
        yield from helps(commands.choices[name])
    else:
        told = io.StringIO()
        with columns(), contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
            module.run(name, ["--help"])
        yield f"```text\n{told.getvalue().rstrip()}\n```"


def own_options(name: str, module: ModuleType) -> str:
    """Of a command that reads run files, what is its own."""
    rows = ["| option | |", "|---|---|"]
    for option, (valued, text, *commands) in module.OPTIONS.items():
        if not commands or name in commands[0]:
            rows.append(f"| `--{option}{' …' if valued else ''}` | {inline(text)} |")
    return "\n".join(rows)


@contextlib.contextmanager
def columns(number: int = 100) -> Iterator[None]:
    """argparse's help as wide as this."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(number)
    try:
        yield
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before


def helps(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The help of a parser, and of those below it."""
    with columns():
        yield f"```text\n{parser.format_help().rstrip()}\n```"
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action.choices.values():
                yield from helps(choice)


# Python


def unit_page(unit: str) -> str:
    """A package or module of mmformer, with all that is public in it."""
    parts = [f"# mmformer.{unit}"]
    for module in modules(unit):
        if module.__name__ != f"mmformer.{unit}":
            parts.append(f"## {module.__name__}")
        parts.append(markdown(inspect.getdoc(module) or ""))
        own = [value for name, value in vars(module).items() if is_public(name, value, module)]
        for value in own:
            parts += [f"### {value.__name__}", *entry(value)]
    return "\n\n".join(filter(None, parts)) + "\n"


def modules(unit: str) -> Iterator[ModuleType]:
    root = importlib.import_module(f"mmformer.{unit}")
    yield root
    for info in pkgutil.walk_packages(getattr(root, "__path__", []), f"{root.__name__}."):
        if not info.name.rpartition(".")[2].startswith("_"):
            yield importlib.import_module(info.name)


def is_public(name: str, value: Any, module: ModuleType) -> bool:
    made = inspect.isclass(value) or inspect.isfunction(value)
    return made and not name.startswith("_") and value.__module__ == module.__name__ and value.__name__ == name


def entry(value: Any) -> Iterator[str]:
    """A class with its methods, or a function."""
    yield signature(value)
    yield markdown(own_docstring(value))
    if inspect.isclass(value):
        for name, member in vars(value).items():
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if not name.startswith("_") and inspect.isfunction(function) and function.__doc__:
                yield f"#### {value.__name__}.{name}"
                yield "" if isinstance(member, property) else signature(function)
                yield markdown(inspect.getdoc(function) or "")


def signature(value: Any) -> str:
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):  # a class that only C knows how to make
        return ""
    given = [one for name, one in found.parameters.items() if name not in ("self", "cls")]
    bare = inspect.Parameter.empty
    made = [one if one.annotation is bare else one.replace(annotation=Written(one.annotation)) for one in given]
    returned = "" if found.return_annotation in (inspect.Signature.empty, "None", None) else found.return_annotation
    end = f" -> {Written(returned)!r}" if returned else ""
    inside = str(inspect.Signature(made)).replace("<factory>", "…")
    line = f"{value.__qualname__}{inside}{end}"
    if len(line) > 100:
        marks = ["/" for one in made if one.kind is one.POSITIONAL_ONLY][:1]
        assert not marks, "no function here has parameters without names"
        starred = [one for one in made if one.kind is one.KEYWORD_ONLY][:1]
        lines = [part for one in made for part in (["*"] if one in starred else []) + [str(one)]]
        inside = "".join(f"    {part},\n" for part in lines).replace("<factory>", "…")
        line = f"{value.__qualname__}(\n{inside}){end}"
    return f"```python\n{line}\n```"


class Written:
    """An annotation as it stands in the code."""

    def __init__(self, annotation: Any) -> None:
        self.text = getattr(annotation, "__forward_arg__", annotation)

    def __repr__(self) -> str:
        return self.text if isinstance(self.text, str) else inspect.formatannotation(self.text)


def own_docstring(value: Any, sections: bool = True) -> str:
    """What a class or function says itself; not what dataclass or a base would say in its place."""
    text = inspect.cleandoc(vars(value).get("__doc__") or "") if inspect.isclass(value) else inspect.getdoc(value) or ""
    text = "" if inspect.isclass(value) and text.startswith(f"{value.__name__}(") else text
    return text if sections else before_sections(text)


def first_sentence(module: ModuleType) -> str:
    return inline(summary(module))


# Docstrings


def markdown(docstring: str) -> str:
    """A docstring with sections as Google writes them."""
    parts = [prose(before_sections(docstring))]
    for section, items in sections_of(docstring):
        parts.append(f"**{section}**")
        parts.append("\n".join(f"- {f'`{name}`: ' if name else ''}{inline(text)}" for name, text in items))
    return "\n\n".join(filter(None, parts))


def prose(text: str) -> str:
    """Paragraphs; those that are indented or laid out in columns stay as they are."""
    parts: Iterable[str] = (part for part in re.split(r"\n[ ]*\n", text.strip("\n")) if part.strip())
    return "\n\n".join(
        f"```text\n{textwrap.dedent(part)}\n```"
        if part.startswith("    ") or re.search(r"\S {3,}\S", part)
        else inline(" ".join(part.split()))
        for part in parts
    )


def inline(text: str) -> str:
    """Code stays code, and nothing else is Markdown by accident."""
    text = re.sub(r":\w+:`([^`]+)`", r"``\1``", text)
    pieces = re.split(r"(``.+?``)", text)
    return "".join(
        f"`{piece[2:-2]}`" if piece.startswith("``") else re.sub(r"([\\*_<>\[\]`])", r"\\\1", piece) for piece in pieces
    )
