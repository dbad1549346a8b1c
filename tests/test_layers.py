"""Who may import whom: imports point one way, Lightning stays in training/, and light modules stay light."""

from __future__ import annotations

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import mmformer

PACKAGE = Path(mmformer.__path__[0])

BASE = {"errors", "spec", "discovery", "types", "resources"}
"""What everything may know: it knows nothing of what stands above it."""

FILES_TOO = BASE | {"files", "config"}

KNOWS: dict[str, set[str]] = {
    "errors": set(),
    "resources": set(),
    "discovery": set(),
    "files": set(),
    "types": set(),
    "spec": {"errors"},
    "schema": {"errors", "spec"},
    "docstrings": set(),
    "catalogue": {"spec", "docstrings", "nn", "tokenizers", "models"},
    "plain": {"errors", "spec", "schema"},
    "config": {"errors", "spec", "schema", "plain"},
    "nn": BASE,
    "tokenizers": BASE | {"nn"},
    "models": BASE | {"nn", "tokenizers"},
    "collectives": set(),
    "names": {"errors"},
    "adapters": FILES_TOO | {"names", "nn", "models"},
    "objectives": BASE | {"collectives"},
    "parallel": BASE | {"nn", "models", "collectives", "adapters"},
    "generation": BASE | {"nn", "tokenizers", "models"},
    "drawing": set(),
    "data": BASE | {"files", "tokenizers", "drawing"},
    "doctor": BASE | {"files", "collectives", "data"},
    "curation": BASE | {"files", "data", "tokenizers", "predictor", "bundle"},
    "evaluation": FILES_TOO | {"models", "data", "tokenizers", "generation", "bundle", "drawing", "collectives"},
    "bundle": FILES_TOO | {"models", "data", "tokenizers", "generation"},
    "interop": FILES_TOO | {"nn", "tokenizers", "models", "data", "generation", "bundle", "interop"},
    "reader": BASE | {"bundle", "models", "data", "tokenizers"},
    "surgery": BASE | {"adapters", "names", "bundle", "data", "interop", "models", "nn", "tokenizers"},
    "inference": BASE | {"bundle", "models", "reader", "uses"},
    "uses": BASE | {"models"},
    "writing": BASE | {"data", "generation", "inference", "reader", "uses"},
    "predictor": BASE | {"bundle", "models", "data", "evaluation", "inference", "reader", "writing"},
    "scaling": BASE | {"nn", "tokenizers", "models", "parallel"},
    "training": FILES_TOO
    | {"collectives", "drawing", "parallel", "names", "adapters", "interop"}
    | {
        "nn",
        "tokenizers",
        "models",
        "generation",
        "objectives",
        "data",
        "evaluation",
        "bundle",
        "predictor",
        "scaling",
        "training",
    },
    "cli": FILES_TOO
    | {
        "schema",
        "catalogue",
        "training",
        "predictor",
        "bundle",
        "data",
        "curation",
        "doctor",
        "surgery",
        "adapters",
        "interop",
        "tokenizers",
        "evaluation",
        "generation",
        "scaling",
        "cli",
    },
    "__init__": {"predictor"},
    "__main__": {"cli"},
}
"""Unit (a module or package directly under mmformer) -> the units that its files may import."""

LIGHT = (
    *("cli/*.py", "errors.py", "config.py", "schema.py", "spec.py", "files.py"),
    *("resources/*.py", "tokenizers/vocabulary.py"),
)
LIGHT_DATA = tuple(
    f"data/{name}.py" for name in ("manifest", "shards", "order", "seeding", "decode", "caption", "sound")
)
HEAVY = {"torch", "torchvision", "torchaudio", "pytorch_lightning", "lightning_fabric", "timm", "tensorboard"}

FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def unit(path: Path) -> str:
    return path.parts[0] if len(path.parts) > 1 else path.stem


def imports(path: Path, top_level: bool = False) -> set[str]:
    """Dotted names of all modules that a file imports; ``top_level``: only those that importing it imports."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse((PACKAGE / path).read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            assert node.module is not None
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not (top_level and (inside or typing)):
            waiting += list(ast.iter_child_nodes(node))
    return found


def test_every_unit_has_a_rule() -> None:
    assert {unit(path) for path in FILES} <= set(KNOWS)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_one_way(path: Path) -> None:
    own = unit(path)
    known = {name.split(".")[1] for name in imports(path) if name.startswith("mmformer.")}
    allowed = KNOWS[own] | {own}
    modules = {name for _, name, _ in pkgutil.iter_modules([str(PACKAGE)])}
    assert (known & modules) - allowed == set(), f"{path} may import {sorted(allowed)} only"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_only_training_imports_lightning(path: Path) -> None:
    lightning = {name for name in imports(path) if name.split(".")[0] in ("pytorch_lightning", "lightning_fabric")}
    assert unit(path) == "training" or not lightning


def test_no_file_is_long() -> None:
    long = {str(path): n for path in FILES if (n := len((PACKAGE / path).read_text().splitlines())) > 360}
    assert not long


@pytest.mark.parametrize("pattern", LIGHT + LIGHT_DATA)
def test_light_modules_import_nothing_heavy_themselves(pattern: str) -> None:
    paths = sorted(PACKAGE.glob(pattern))
    assert paths
    for path in paths:
        roots = {name.split(".")[0] for name in imports(path.relative_to(PACKAGE), top_level=True)}
        assert not roots & HEAVY, path


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_light_modules_do_not_load_torch_through_others() -> None:
    paths = [path for pattern in LIGHT + LIGHT_DATA for path in sorted(PACKAGE.glob(pattern))]
    names = [".".join(("mmformer", *path.relative_to(PACKAGE).with_suffix("").parts)) for path in paths]
    blocked = "import sys; sys.modules.update(dict.fromkeys(('torch', 'pytorch_lightning')))"
    done = run(f"{blocked}\nimport importlib\nfor name in {names!r}: importlib.import_module(name)")
    assert done.returncode == 0, done.stderr


def test_everything_below_training_runs_without_lightning() -> None:
    names = [".".join(("mmformer", *path.with_suffix("").parts)) for path in FILES if unit(path) != "training"]
    names = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
    assert len(names) > 30
    blocked = "import sys; sys.modules.update(dict.fromkeys(('pytorch_lightning', 'lightning_fabric', 'lightning')))"
    check = "import mmformer; mmformer.load"  # the front door opens too
    done = run(f"{blocked}\nimport importlib\nfor name in {names!r}: importlib.import_module(name)\n{check}")
    assert done.returncode == 0, done.stderr


def test_a_config_is_read_without_the_compiler_and_lightning() -> None:
    """Each takes longer to import than all else that a command imports."""
    check = (
        "import sys; sys.exit(str([name for name in ('torch._dynamo', 'pytorch_lightning') if name in sys.modules]))"
    )
    assert run(f"import mmformer.training.run\n{check}").stderr == "[]\n"


def test_training_needs_lightning() -> None:
    """The block of the test above does block."""
    done = run("import sys; sys.modules['pytorch_lightning'] = None\nimport mmformer.training.task")
    assert done.returncode == 1
    assert "pytorch_lightning" in done.stderr
