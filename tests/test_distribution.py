"""What is installed: declared dependencies, light imports, and everything that belongs into a wheel and an sdist."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import editkit

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "editkit").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOT_IMPORTED = {"numpy"}  # torch's Tensor.numpy() needs it and torch does not declare it


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    return {normal(re.match(r"[\w.-]+", line)[0]) for line in PROJECT["dependencies"]}


def imports(nodes: Iterator[ast.AST]) -> set[str]:
    """The top-level packages that the nodes import, less the standard library and editkit."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names - {"editkit"}


def test_what_is_imported_is_declared_and_the_reverse() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in MODULES]
    names = set().union(*(imports(ast.walk(tree)) for tree in trees))
    distributions = packages_distributions()
    assert {normal(distributions[name][0]) for name in names} | NOT_IMPORTED == declared()


@pytest.mark.parametrize("heavy", ["matplotlib", "datasets"])
def test_plots_and_datasets_are_imported_where_they_are_needed(heavy: str) -> None:
    assert all(heavy not in imports(iter(ast.parse(p.read_text(encoding="utf-8")).body)) for p in MODULES)


def test_the_command_line_does_not_import_datasets() -> None:
    code = (
        "import sys, editkit.cli.fit, editkit.cli.export, editkit.cli.covariance; assert 'datasets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_version_is_the_distribution_s_and_costs_nothing() -> None:
    assert editkit.__version__ == version("editkit")
    assert "__version__" in dir(editkit)
    code = "import sys, editkit; assert 'importlib.metadata' not in set(sys.modules) - before; editkit.__version__"
    subprocess.run([sys.executable, "-c", f"import sys; before = set(sys.modules); {code}"], check=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT, check=True)
    return folder


def tracked(*folders: str) -> set[str]:
    """Files under folders of the repository that are no leftovers of running it."""
    files = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {str(p.relative_to(ROOT)) for p in files if "__pycache__" not in p.parts and "_build" not in p.parts}


def test_the_wheel_has_every_module_the_atlas_and_the_configs(built: Path) -> None:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == tracked("editkit") | {f"editkit/{name}" for name in tracked("configs")}
    assert {"editkit/py.typed", "editkit/configs/quickstart.yaml", "editkit/runs/folder.py"} <= names


def test_the_sdist_has_what_the_tests_and_the_docs_need(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames()}
    assert tracked("editkit", "configs", "docs", "tests", ".ci") <= names
    assert {"pyproject.toml", "constraints.txt", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"} <= names


def test_the_readme_stands_on_its_own_on_a_package_index() -> None:
    text = (ROOT / PROJECT["readme"]).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert all(link.startswith("https://") for link in links)  # a relative link leads nowhere there
    for path in re.findall(r"`((?:docs|tests|configs|editkit)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
    gate = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for command in ('pip install -c constraints.txt -e ".[dev]"', "pytest", "editkit fit --config quickstart"):
        assert command in text
        assert command in gate


def test_the_reference_has_a_page_for_each_public_package_and_every_public_name() -> None:
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md")}
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert all(f"\napi/{name}\n" in index for name in pages)
    assert all(f"\n{path.stem}\n" in index for path in (ROOT / "docs").glob("*.md") if path.stem != "index")
    told = set(re.findall(r"^(?:\.\. auto\w+::| +)[ ~]+editkit\.(?:[\w.]+\.)?(\w+)$", pages["editkit"], re.M))
    assert told == set(editkit.__all__)


def test_the_version_is_the_same_wherever_it_stands() -> None:
    assert f"\nversion: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"editkit-{PROJECT['version']}-py3" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_lowest_versions_are_within_those_that_are_tested_with() -> None:
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = {normal(name): number for name, number in (line.split("==") for line in constraints if "==" in line)}
    extras = PROJECT["optional-dependencies"]
    for line in [*PROJECT["dependencies"], *extras["dev"], *extras["docs"]]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(tested[normal(requirement.name)]), line
