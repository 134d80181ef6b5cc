"""Configs that ship are found by name, from any folder, in every command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from editkit.cli.configs import shipped_folder, shipped_names, with_shipped_configs
from editkit.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


def test_the_names_are_the_files_of_configs() -> None:
    files = [path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")]
    assert shipped_names() == sorted(str(f.with_suffix("")) for f in files if f.parts[0] != "study")
    assert {"quickstart", "covariance", "model/gpt2-xl", "experiment/singles"} <= set(shipped_names())


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", "model/gpt2-xl", "experiment/singles.yaml"])
@pytest.mark.parametrize("option", ["--config {}", "--config={}", "-c {}"])
def test_a_name_becomes_the_path_of_its_file(
    name: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = shipped_folder() / f"{name.removesuffix('.yaml')}.yaml"
    assert path.is_file()
    given = ["fit", *option.format(name).split(), "--data.num_facts=4"]
    assert with_shipped_configs(given) == ["fit", *option.format(path).split(), "--data.num_facts=4"]


def test_a_file_goes_before_a_name_and_a_folder_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "covariance").mkdir()
    assert with_shipped_configs(["--config", "covariance"]) == ["--config", str(shipped_folder() / "covariance.yaml")]
    (tmp_path / "quickstart").write_text("lm: atlas", encoding="utf-8")
    assert with_shipped_configs(["--config", "quickstart"]) == ["--config", "quickstart"]


def test_nothing_else_is_taken_for_a_name() -> None:
    given = ["export", "--edits", "quickstart", "--config", '{"lm": "atlas"}', "--output=--config"]
    assert with_shipped_configs(given) == given
    assert with_shipped_configs(["fit", "--config"]) == ["fit", "--config"]  # the parser says what is missing


@pytest.mark.parametrize("command", ["fit", "validate", "covariance", "export"])
def test_an_unknown_name_lists_those_that_ship(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--config", "quickstrat"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("editkit: error: config: ")
    assert "got quickstrat" in line
    assert all(name in line for name in shipped_names())


@pytest.mark.parametrize(
    ("command", "name", "field"),
    [("fit", "quickstart", "model"), ("validate", "experiment/singles", "data"), ("covariance", "covariance", "lm")],
)
def test_every_command_reads_them_from_any_folder(
    command: str,
    name: str,
    field: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as done:
        main([command, "--config", name, "--print_config"])
    assert done.value.code == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    asked = yaml.safe_load((shipped_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
    assert contains(shown[field], asked[field])


def contains(whole: object, part: object) -> bool:
    """Whether everything in ``part`` stands in ``whole``."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and contains(whole[key], value) for key, value in part.items())
    return whole == part


def test_help_lists_them() -> None:
    done = subprocess.run([sys.executable, "-m", "editkit.cli", "--help"], capture_output=True, text=True, check=True)
    assert "editkit fit --config quickstart\n" in done.stdout
    assert all(f"  {name}\n" in done.stdout for name in shipped_names())
