"""null on the command line: it arrives where it means something, alone, and is refused elsewhere."""

from __future__ import annotations

import contextlib
import copy
import io
from pathlib import Path
from typing import Any

import pytest
import yaml

from editkit.cli.arguments import check_nulls
from editkit.cli.main import main
from editkit.data.module import FactsDataModule
from editkit.editors import EMMET, Editor
from editkit.utils.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
XL = ["fit", "--config", str(ROOT / "configs" / "model" / "gpt2-xl.yaml")]
#: a config in which every number that may be null is one
SET = """
model:
  init_args:
    layers: [17]
    second_moment: {num_documents: 5, num_tokens: 7, tolerance: 0.5, max_tokens: 9, layers_at_once: 1, path: moments}
    values: {context_templates: [["{}"]], seed: 3}
    optimizer: {class_path: torch.optim.Adam, init_args: {fused: true}}
data:
  num_facts: 8
  batch_size: 4
  probe_every: 2
  seed: 1
"""


def parsed(*options: str) -> dict[str, Any]:
    """The config that a command would run with."""
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as done:
        main([*XL, *options, "--print_config"])
    assert done.value.code == 0
    config: dict[str, Any] = yaml.safe_load(out.getvalue())
    return config


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    file = tmp_path_factory.mktemp("config") / "set.yaml"
    file.write_text(SET, encoding="utf-8")
    return ["--config", str(file)]


@pytest.fixture(scope="module")
def as_set(numbers: list[str]) -> dict[str, Any]:
    return parsed(*numbers)


def without(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A config in which one number is null."""
    config = copy.deepcopy(config)
    root, *path = name.split(".")
    place = config[root]["init_args"] if root == "model" else config[root]
    for part in path[:-1]:
        place = place[part]
    assert place[path[-1]] is not None
    place[path[-1]] = None
    return config


@pytest.mark.parametrize(
    "name",
    [
        "model.second_moment.num_documents",
        "model.second_moment.num_tokens",
        "model.second_moment.tolerance",
        "model.second_moment.max_tokens",
        "model.second_moment.layers_at_once",
        "model.second_moment.path",
        "model.values.context_templates",
        "model.optimizer.init_args.fused",
        "model.layers",
        "data.num_facts",
        "data.batch_size",
        "data.probe_every",
        "data.seed",
        "trainer.max_epochs",
    ],
)
def test_a_number_is_set_back_to_null(name: str, numbers: list[str], as_set: dict[str, Any]) -> None:
    assert parsed(*numbers, f"--{name}=null") == without(as_set, name)


@pytest.mark.parametrize(
    "typed",
    [
        ["--model.second_moment.num_documents", "null"],
        ["--model.init_args.second_moment.num_documents=null"],
        ["--model.second_moment.num_documents=~"],
        ["--model.second_moment.num_documents=12", "--model.second_moment.num_documents=null"],
    ],
)
def test_however_it_is_typed(typed: list[str], numbers: list[str], as_set: dict[str, Any]) -> None:
    assert parsed(*numbers, *typed) == without(as_set, "model.second_moment.num_documents")


def test_the_last_of_several_counts(numbers: list[str], as_set: dict[str, Any]) -> None:
    name = "--model.second_moment.num_documents"
    assert parsed(*numbers, f"{name}=null", f"{name}=5") == as_set


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--model.values.num_steps=null"], "model.values.num_steps"),
        (["--model.second_moment.max_length=null"], "model.second_moment.max_length"),
        (["--model.ridge=null"], "model.ridge"),
        (["--model.optimizer.lr=null"], "model.optimizer.lr"),
        (["--data.facts_per_step=null"], "data.facts_per_step"),
        (["--data.text={num_tokens: null}"], "data.text.num_tokens"),
        (["--data.probes=[{task: sst2}, {task: cola, shots: null}]"], "data.probes[1].shots"),
    ],
)
def test_null_is_refused_where_it_means_nothing(
    options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*XL, *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"editkit: error: {told}: expected ")
    assert "null" in error
    assert error.count("\n") == 1


def test_an_option_that_is_not_there_is_told_by_its_whole_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*XL, "--model.second_moment.nope=null"]) == 2
    assert "error: model.second_moment.nope: " in capsys.readouterr().err


def test_null_from_yaml_is_looked_at_too() -> None:
    check_nulls("model", {"class_path": "editkit.EMMET", "init_args": {"layers": None, "spread": None}}, Editor)
    check_nulls("data", {"num_facts": None, "probes": None}, FactsDataModule)
    with pytest.raises(InputError, match=r"^model\.ridge: "):
        check_nulls("model", {"class_path": "editkit.EMMET", "init_args": {"ridge": None}}, Editor)
    with pytest.raises(InputError, match=r"^model\.dtype: "):  # an argument of the class below
        check_nulls("model", {"dtype": None}, EMMET)


def test_what_is_not_known_is_let_through() -> None:
    class Loose:
        def __init__(self, anything, *rest, **more) -> None:  # type: ignore[no-untyped-def]
            pass

    check_nulls("model", {"anything": None, "more": None, "nested": {"x": None}}, Loose)
