"""The help of commands, kept: to know all options, Lightning and torch are imported, which takes seconds.

A text is shown again as long as nothing changes that it depends on. What was shown on this machine is in the user's
cache, under a name made of all of editkit's source, every installed package and Python. What ships, so that the first
time is as quick, is in ``help.json``, with what decides the text: editkit's source, of modules that are not the command
line's without the insides of functions, and the packages that read it.
``python -m editkit.programs.ship_help`` makes that file.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from typing_extensions import override

from editkit.utils.errors import InputError
from editkit.utils.files import atomic_write, cache_folder, digest

COMMANDS = ("fit", "validate", "covariance", "export")
OPTIONS = ("--help", "-h")
READERS = ("lightning", "torch", "jsonargparse", "docstring_parser", "typeshed_client")
SHIPPED = Path(__file__).with_name("help.json")
_PACKAGE = Path(__file__).resolve().parents[1]


def kept_help(argv: Sequence[str]) -> str | None:
    """The help that a command line asks for and nothing else, where it is known; else None."""
    if len(argv) != 2 or argv[1] not in OPTIONS or not _alone(argv[0]):
        return None
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return _file(argv[0]).read_text(encoding="utf-8")
    text = shipped_help(argv[0])
    if text is not None:
        _keep(argv[0], text)
    return text


def keep_help(command: str, text: str) -> None:
    """Keep a command's help, where this process was started for nothing else."""
    if _alone(command):
        _keep(command, text)


def shipped_help(command: str) -> str | None:
    """The help of a command that ships; None where it is of other versions or of another source."""
    try:
        shipped = json.loads(SHIPPED.read_text(encoding="utf-8"))
        return str(shipped["texts"][command]) if shipped["of"] == what_decides() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def what_decides() -> dict[str, str]:
    """What decides the texts: versions, and a hash of the source as far as options are made from it."""
    source = hashlib.sha256()
    for file in sorted(_PACKAGE.rglob("*.py")):
        if file.parent.name == "programs":  # which no command imports
            continue
        tree = ast.parse(file.read_bytes())
        if file.parent != Path(__file__).parent:
            tree = _WithoutInsides().visit(tree)
        source.update(f"{file.relative_to(_PACKAGE).as_posix()}\0{ast.dump(tree)}\0".encode())
    found = {"python": f"{sys.version_info.major}.{sys.version_info.minor}", "source": source.hexdigest()[:16]}
    for name in READERS:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name).partition("+")[0]
    return found | _environment()


class _WithoutInsides(ast.NodeTransformer):
    """Leaves of a function its signature and its docstring, and of a module all but its docstring."""

    @override
    def visit_Module(self, node: ast.Module) -> ast.Module:
        node.body = node.body[ast.get_docstring(node) is not None :]
        self.generic_visit(node)
        return node

    @override
    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.body = [ast.Expr(ast.Constant(ast.get_docstring(node) or ""))]
        return node


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("JSONARGPARSE_")}


def _alone(command: str) -> bool:
    """Whether this process was started for the help alone: another program may have imported classes of its own."""
    program = Path(sys.argv[0])
    ours = program.stem == "editkit" or program.absolute() == Path(__file__).with_name("__main__.py")
    return ours and len(sys.argv) == 3 and sys.argv[1] == command and sys.argv[2] in OPTIONS


def _file(command: str) -> Path:
    """Where a command's help is kept as long as nothing changes that it may depend on."""
    source = hashlib.sha256()
    for file in sorted(_PACKAGE.rglob("*.py")):
        source.update(f"{file.relative_to(_PACKAGE).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    installed = []
    for folder in sys.path:
        with contextlib.suppress(OSError):  # an archive, or a folder that is gone
            installed += [(folder, n) for n in os.listdir(folder or ".") if n.endswith((".dist-info", ".egg-info"))]
    name = digest(command, source.hexdigest(), sorted(installed), sys.version, _environment())
    return cache_folder() / "help" / f"{name}.txt"


def _keep(command: str, text: str) -> None:
    with contextlib.suppress(InputError):  # a cache that cannot be written: no quicker the next time
        atomic_write(_file(command), lambda part: part.write_text(text, encoding="utf-8"))
