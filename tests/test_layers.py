"""Imports only point down the layers of the house, and no two packages import each other (DESIGN, section 7)."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

#: from top to bottom; what stands in one tuple does not import each other
LAYERS = (
    ("programs",),
    ("cli",),
    ("api",),
    ("runs",),
    ("callbacks",),
    ("evaluation", "export"),
    ("editors",),
    ("edits",),
    ("covariance",),
    ("metrics",),
    ("data",),
    ("models",),
    ("functional",),
    ("atlas",),
    ("utils",),
)
HEIGHT = {package: -height for height, layer in enumerate(LAYERS) for package in layer}
#: packages that may import of the house only these
ONLY: dict[str, set[str]] = {"functional": {"utils"}, "atlas": {"utils"}, "utils": set()}
ROOT = Path(__file__).resolve().parents[1] / "editkit"


def package_of(module: str) -> str:
    """The layer of a module by its dotted name: ``editkit.data.facts`` is of ``data``; ``editkit`` itself of none."""
    return (module.split(".") + [""])[1]


def imports(file: Path) -> list[tuple[int, str]]:
    """Line and dotted name of all that a file imports, wherever in it, relative imports resolved."""
    here = ("editkit", *file.relative_to(ROOT).with_suffix("").parts)
    parent = here[:-1]
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(parent[: len(parent) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (start, node.module) if part)
            # "from editkit import data" names a package too
            names = [f"editkit.{alias.name}" for alias in node.names] if module == "editkit" else [module]
        else:
            continue
        found += [(node.lineno, name) for name in names]
    return found


#: (file, line, importing package, imported package) of all imports between two packages
IMPORTS = [
    (str(file.relative_to(ROOT.parent)), line, own, package_of(name))
    for file in sorted(ROOT.rglob("*.py"))
    if (own := package_of(".".join(file.relative_to(ROOT.parent).with_suffix("").parts))) != "__init__"
    for line, name in imports(file)
    if name.split(".")[0] == "editkit" and package_of(name) != own and not package_of(name).startswith("__")
]


def where(wrong: list[tuple[str, int, str, str]]) -> str:
    return "\n" + "\n".join(f"{file}:{line}: {own} imports {other}" for file, line, own, other in wrong)


def test_every_package_has_its_place() -> None:
    there = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - {"__init__"} <= HEIGHT.keys()
    assert IMPORTS, "no import was found: the test reads nothing"


def test_imports_point_down() -> None:
    up = [i for i in IMPORTS if i[3] in HEIGHT and HEIGHT[i[3]] >= HEIGHT[i[2]]]
    assert not up, where(up)


def test_no_module_goes_through_the_package_itself() -> None:
    # which resolves names of every layer at first use
    round_about = [i for i in IMPORTS if i[3] not in HEIGHT]
    assert not round_about, where(round_about)


def test_no_two_packages_import_each_other() -> None:
    pairs = {(own, other) for _, _, own, other in IMPORTS}
    both = [i for i in IMPORTS if (i[3], i[2]) in pairs]
    assert not both, where(both)


@pytest.mark.parametrize("package", ONLY)
def test_what_stands_low_imports_little(package: str) -> None:
    wrong = [i for i in IMPORTS if i[2] == package and i[3] not in ONLY[package]]
    assert not wrong, where(wrong)


def test_the_mathematics_needs_only_torch() -> None:
    known = {*sys.stdlib_module_names, "torch", "editkit"}
    wrong = [
        f"{file.name}:{line}: {name}"
        for file in sorted((ROOT / "functional").rglob("*.py"))
        for line, name in imports(file)
        if name.split(".")[0] not in known
    ]
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import editkit.data.facts", ["data"]),
        ("from editkit.cli import main", ["cli"]),
        ("from editkit import cli, __version__", ["cli", "__version__"]),
        ("def f():\n    from .rows import Row\n    from ..cli.main import main", ["data", "cli"]),
        ("if TYPE_CHECKING:\n    from editkit.runs.folder import RunFolder", ["runs"]),
        ("import editkits, torch\nfrom os import path", ["", "", ""]),
    ],
)
def test_all_ways_to_import_are_seen(
    text: str, found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path / "editkit")
    file = tmp_path / "editkit" / "data" / "facts.py"
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="utf-8")
    names = [name for _, name in imports(file)]
    assert [package_of(name) if name.startswith("editkit.") else "" for name in names] == found
