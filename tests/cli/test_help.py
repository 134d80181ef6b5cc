"""``editkit COMMAND --help``: what is editkit's first, at once, and never that of another version."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from editkit.cli import kept_help
from editkit.cli.main import main

SHIPPED = json.loads(kept_help.SHIPPED.read_text(encoding="utf-8"))
ROOT = Path(__file__).resolve().parents[2]
AGAIN = "run python -m editkit.programs.ship_help"


def shown(*program: str, cache: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "EDITKIT_CACHE": str(cache), "PYTHONPATH": f"{ROOT}{os.pathsep}{path}"}
    return subprocess.run(
        [sys.executable, *program], capture_output=True, encoding="utf-8", env=environment, check=True
    )


def same_versions() -> bool:
    return all(SHIPPED["of"][name] == version(name).partition("+")[0] for name in kept_help.READERS) and SHIPPED["of"][
        "python"
    ] == ".".join(map(str, sys.version_info[:2]))


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_what_is_editkit_s_comes_first(command: str) -> None:
    text = SHIPPED["texts"][command]
    options = ("--model ", "--data ", "--config ", "--run_dir ", "--weight_update ", "--evaluation ", "--report ")
    places = [text.index(f"\n  {'-c CONFIG, ' * (option == '--config ')}{option}") for option in options]
    assert places == sorted(places)
    assert places[-1] < text.index("--trainer")
    assert len(text[: text.index("\n\n")].splitlines()) < 4  # the usage


def test_what_ships_is_of_this_source() -> None:
    if not same_versions():
        pytest.skip("the help that ships is of the versions in constraints.txt")
    assert kept_help.what_decides() == SHIPPED["of"], AGAIN


def test_what_ships_is_what_the_parser_says(tmp_path: Path) -> None:
    if not same_versions():
        pytest.skip("the help that ships is of the versions in constraints.txt")
    program = "import sys; sys.argv = ['other']; from editkit.cli.main import main; main(['fit', '--help'])"
    live = shown("-c", program, cache=tmp_path)
    assert live.stdout == SHIPPED["texts"]["fit"], AGAIN
    assert not list(tmp_path.iterdir())  # another program may know other classes


def test_it_is_shown_without_what_is_heavy_and_kept_until_something_changes(tmp_path: Path) -> None:
    if not same_versions():
        pytest.skip("the help that ships is of the versions in constraints.txt")
    command, cache = ("-X", "importtime", "-m", "editkit.cli", "fit", "-h"), tmp_path / "cache"
    first = shown(*command, cache=cache)
    assert first.stdout == SHIPPED["texts"]["fit"]
    assert "kept_help" in first.stderr
    assert not any(name in first.stderr for name in ("torch", "lightning", "transformers", "jsonargparse"))
    (kept,) = (cache / "help").iterdir()
    assert kept.read_text(encoding="utf-8") == first.stdout
    kept.write_text("kept\n", encoding="utf-8")
    assert shown(*command, cache=cache).stdout == "kept\n"
    (tmp_path / "site" / "plugin-1.0.dist-info").mkdir(parents=True)
    assert shown(*command, cache=cache, path=str(tmp_path / "site")).stdout == first.stdout


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/editkit", "export", "--help"])
    monkeypatch.setenv("EDITKIT_CACHE", str(tmp_path))


@pytest.mark.usefixtures("alone")
def test_help_that_does_not_ship_is_kept_the_first_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kept_help, "SHIPPED", tmp_path / "gone.json")
    texts = []
    for _ in range(2):
        with pytest.raises(SystemExit) as done:
            main(["export", "--help"])
        assert not done.value.code
        texts.append(capsys.readouterr().out)
        monkeypatch.setattr("editkit.cli.export.export_parser", None)  # not asked again
    assert texts[0] == texts[1]
    assert texts[0].startswith("usage: editkit export")


@pytest.mark.usefixtures("alone")
def test_a_cache_that_cannot_be_written_shows_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EDITKIT_CACHE", str(tmp_path / "file"))
    kept_help.keep_help("export", "text")
    assert kept_help.kept_help(["export", "--help"]) == kept_help.shipped_help("export")
    for argv in (["export"], ["export", "--help", "--rank=1"], ["fit", "--help"], ["export", "--edits"]):
        assert kept_help.kept_help(argv) is None


def test_signatures_and_docstrings_decide_and_the_insides_of_functions_do_not() -> None:
    def seen(text: str) -> str:
        return ast.dump(kept_help._WithoutInsides().visit(ast.parse(text)))

    text = 'class A:\n    """Doc."""\n    def __init__(self, a: int = 1):\n        """Args."""\n        self.a = a\n'
    assert seen(text) == seen(text.replace("self.a = a", "print(self, a)"))
    assert seen(text) == seen(f'"""What the module is."""\n{text}')
    for old, new in (("= 1", "= 2"), ("int", "str"), ("Doc", "Docs"), ("Args", "Arg"), ("class A", "class B")):
        assert seen(text) != seen(text.replace(old, new))
