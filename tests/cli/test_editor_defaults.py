"""An editor that is asked for on the command line has the defaults that it has in Python, whichever is the default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import editkit
from editkit.cli.fit import EditkitCLI
from editkit.cli.main import main
from editkit.editors import ClosedForm, Editor
from editkit.editors.base import setting
from editkit.utils.errors import InputError

METHODS = (
    "AlphaEdit", "ClosedForm", "CurvatureWeighted", "EMMET", "ENCORE", "LyapLock", "MEMIT", "NSE", "PMET", "ROME",
    "SequentialMEMIT", "SimIE", "SoftEMMET", "UltraEdit",
)  # fmt: skip


def settings(editor: Editor) -> dict[str, Any]:
    """All that it was made with, and its parts'; optimisers are functions, of which it is not known what they make."""
    known = {name: value for name, value in vars(editor).items() if not name.startswith(("_", "offset", "training"))}
    return {name: comparable(value) for name, value in known.items() if name not in ("optimizer", "hparams")}


def comparable(value: Any) -> Any:
    if isinstance(value, Editor):
        return {"class": type(value).__name__, **settings(value)}
    if type(value).__module__.startswith("editkit.") and hasattr(value, "__dict__"):
        own = {name: comparable(v) for name, v in vars(value).items() if not name.startswith("_")}
        return {"class": type(value).__name__, **own}
    return setting(value)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The editor that a command comes to."""

    def parse(*arguments: str) -> Editor:
        seen: list[Editor] = []

        def stop(self: EditkitCLI) -> None:
            seen.append(self.model)
            raise InputError("seen")

        monkeypatch.setattr(EditkitCLI, "before_fit", stop)
        assert main(["fit", *arguments]) == 2
        return seen[0]

    return parse


@pytest.mark.parametrize("name", METHODS)
def test_defaults_are_the_editor_s_own(name: str, parsed: Any, tmp_path: Path) -> None:
    expected = settings(getattr(editkit, name)())
    assert {"layers", "values", "earlier_keys", "residual"} <= set(expected)
    assert settings(parsed(f"--model=editkit.{name}")) == expected
    config = tmp_path / "config.yaml"
    config.write_text(f"model:\n  class_path: editkit.{name}\n", encoding="utf-8")
    assert settings(parsed(f"--config={config}")) == expected


def test_what_was_given_goes_over_to_another_editor(parsed: Any) -> None:
    alpha = parsed("--config=quickstart", "--model=editkit.AlphaEdit")
    assert isinstance(alpha, ClosedForm)
    assert (alpha.ridge, alpha.earlier_keys, alpha.layers, alpha.values.num_steps) == (1.0, "auto", [0], 30)
    memit = parsed("--config=quickstart", "--model=editkit.MEMIT")
    assert (memit.preservation_weight, memit.earlier_keys) == (30.0, 0.0)
    assert parsed("--model.ridge=2", "--model=editkit.AlphaEdit").ridge == 2.0
    assert parsed("--model.ridge=2").ridge == 2.0


def test_layers_of_the_editor_within(parsed: Any) -> None:
    simie = parsed("--model=editkit.SimIE", "--model.editor=editkit.MEMIT", "--model.editor.layers=[1]")
    assert simie.layers == simie.residual.editor.layers == [1]


def test_print_config_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--model=editkit.LyapLock", "--print_config"])
    shown = capsys.readouterr().out
    assert re.search(r"preservation_weight: 1000\.0\n", shown)
    assert re.search(r"earlier_keys: null\n", shown)  # the method's own
