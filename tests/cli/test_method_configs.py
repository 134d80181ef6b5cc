"""Configs of methods: each is one command, the one that stands in its first lines, and means what it says."""

from __future__ import annotations

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

import editkit
from editkit import load_edits
from editkit.cli.main import main
from editkit.editors.base import setting
from editkit.models.loading import load_language_model

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NAMES = sorted(str(file.relative_to(CONFIGS).with_suffix("")) for file in (CONFIGS / "method").rglob("*.yaml"))
OVERLAYS = {"rect": "RECT", "prune": "PRUNE", "sphere": "SPHERE", "sphere-on-alphaedit": "SPHERE", "nas": "NAS"}
#: what a method is to take over from the config of its model
OF_MODELS = {"lm", "layers", "values", "optimizer", "second_moment"}


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    return found


def commands(name: str) -> list[list[str]]:
    """What a config's first lines say to type, without what is optional."""
    lines = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    head = "\n".join(line for line in lines if line.startswith("#"))
    found = re.findall(r"^# (editkit fit .*(?:\n#   .*)*)", head, re.MULTILINE)
    return [
        shlex.split(re.sub(r"\[.*?\]$|\[--[^]]*\]", "", c.replace("\n#", ""), flags=re.MULTILINE).replace("…", ""))
        for c in found
    ]


COMMANDS = [(name, command) for name in NAMES for command in commands(name)]


def configs_of(command: list[str]) -> list[str]:
    return [value for option, value in pairwise(command) if option == "--config"]


def merged(one: Any, other: Any) -> Any:
    """Two configs, one after the other; a part of another class brings its own settings."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return other
    return {key: merged(one[key], other[key]) if key in one and key in other else {**one, **other}[key]
            for key in {**one, **other}}  # fmt: skip


def contains(whole: Any, part: Any) -> bool:
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and contains(whole[key], value) for key, value in part.items())
    if isinstance(part, list) and isinstance(whole, list):
        return len(whole) == len(part) and all(map(contains, whole, part))
    if isinstance(part, str) and isinstance(whole, dict):  # a class by its name alone
        return bool(whole.get("class_path") == part)
    return bool(whole == part)


def parsed(model: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """All settings of an editor, defaults included, and the editor."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(editkit.Editor, "model")
    config = parser.parse_object({"model": model})
    return config.clone().as_dict()["model"]["init_args"], parser.instantiate(config)["model"]


def test_each_says_how_it_is_run() -> None:
    for name in NAMES:
        assert commands(name), name
        assert any(name in configs_of(command) for command in commands(name)), name


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[f"{name} {i}" for i, (name, _) in enumerate(COMMANDS)])
def test_parses_to_the_last_key(
    name: str, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "counterfact.json").write_text("[]", encoding="utf-8")
    with pytest.raises(SystemExit) as done:
        main([*command[1:], "--print_config"])
    shown, told = capsys.readouterr()
    assert done.value.code == 0, told
    model = yaml.safe_load(shown)["model"]
    chain = configs_of(command)
    asked: dict[str, Any] = {}
    for config in chain:
        asked = merged(asked, read(config)["model"])
    class_path = asked["class_path"]
    assert model["class_path"] == class_path
    # what earlier configs ask of another class does not count where the present one has no such setting
    given, defaults = model["init_args"], parsed({"class_path": class_path})[0]
    asked = {key: value for key, value in asked["init_args"].items() if key in defaults}
    assert contains(given, asked)
    # nothing but what the model's config is for is carried over from another class
    own = {key for config in chain if "method/" in config for key in read(config)["model"]["init_args"]}
    own |= {key for config in chain if config.endswith("-spread") for key in read(config)["model"]["init_args"]}
    for key in given.keys() - own - OF_MODELS:
        assert given[key] == defaults[key], f"{key} is carried over: {given[key]}"
    _, editor = parsed(model)
    assert type(editor) is getattr(editkit, class_path.removeprefix("editkit."))
    for key in own & editor.hparams.keys():
        if not has_class(asked[key]) and key != "layers":
            assert contains(setting(editor.hparams[key]), asked[key])


def has_class(value: Any) -> bool:
    return "class_path" in str(value) or "editkit." in str(value)


def test_what_the_quickstart_leaves_out_is_the_method_s_own(capsys: pytest.CaptureFixture[str]) -> None:
    """A default of the class before is not taken for a wish."""
    for name, own in (("AlphaEdit", "auto"), ("UltraEdit", 0.0), ("PMET", 0.0), ("MEMIT", 0.0)):
        with pytest.raises(SystemExit):
            main(["fit", "--config", "quickstart", f"--model=editkit.{name}", "--print_config"])
        _, editor = parsed(yaml.safe_load(capsys.readouterr().out)["model"])
        assert editor.earlier_keys == editor.hparams["earlier_keys"] == own


# ---------------------------------------------------------------- runs on the atlas

RUNS = [
    *[[name] for name in NAMES if name.startswith("method/atlas/")],
    *[[f"method/{name}"] for name in ("rome", "r-rome", "p-rome")],
    *[["method/atlas/memit", f"method/{name}"] for name in ("rect", "prune")],
    *[["method/atlas/alphaedit", f"method/{name}"] for name in ("sphere-on-alphaedit", "nas")],
]
MORE_RUNS = [
    *[["method/atlas/memit", f"method/{name}"] for name in ("sphere", "nas")],
    *[["method/atlas/alphaedit", f"method/{name}"] for name in ("rect", "prune")],
]


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("moments")


def fit(folder: Path, moments: Path, *more: str, facts: int = 4, size: int = 2) -> Path:
    """Two sequential batches on the atlas, as a user types it, with few steps."""
    options = ["--config", "quickstart", "--config", "evaluation/facts-alone", *more]
    small = [
        f"--data.num_facts={facts}", f"--data.batch_size={size}", "--weight_update.mode=sequential",
        "--model.values.num_steps=3", f"--model.second_moment.path={moments}",
        "--model.second_moment.num_tokens=8000", "--trainer.enable_progress_bar=false", f"--run_dir={folder}",
    ]  # fmt: skip
    assert main(["fit", *options, *small]) == 0
    return folder


def within(moments: Path) -> list[str]:
    """Second moments of an editor within another, which are its own."""
    return [f"--model.editor.second_moment.{x}" for x in (f"path={moments}", "num_tokens=8000")]


def check_run(folder: Path) -> Any:
    """Metrics, ledger and export of a run that went through; returns the ledger."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    for phase in ("before", "after", "final"):
        assert {"ES", "PS", "NS", "S"} <= metrics[phase].keys()
    edits = load_edits(folder / "edits")
    assert len(edits.batches) == 2
    model, _ = load_language_model("atlas")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    edits.apply(model)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed == ["transformer.h.0.mlp.c_proj.weight"]
    output = folder / "exported"
    assert main(["export", f"--edits={folder / 'edits'}", f"--output={output}", "--lm=atlas"]) == 0
    exported, _ = load_language_model(str(output))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in exported.state_dict().items())
    return edits


@pytest.mark.parametrize(
    "chain", [*RUNS, *(pytest.param(chain, marks=pytest.mark.slow) for chain in MORE_RUNS)], ids=" ".join
)
def test_is_one_command(chain: list[str], tmp_path: Path, moments: Path, atlas: object) -> None:
    single = chain[0] in ("method/rome", "method/r-rome", "method/p-rome")
    more = [word for name in chain for word in ("--config", name)]
    if chain == ["method/atlas/simie"]:
        more += ["--model.editor.init_args.values.num_steps=3", *within(moments)]
    folder = fit(tmp_path / "run", moments, *more, facts=2 if single else 4, size=1 if single else 2)
    edits = check_run(folder)
    asked: dict[str, Any] = {}
    for name in chain:
        asked = merged(asked, read(name)["model"])
    about = edits.about
    assert about["editor"].endswith(asked["class_path"].removeprefix("editkit"))
    plain = {k: v for k, v in asked["init_args"].items() if not has_class(v) and k != "values"}
    assert contains(about["hyperparameters"], plain)
    for name in chain[1:]:
        recorded = json.dumps([about["hyperparameters"]["restraints"], about["hyperparameters"]["residual"]])
        kind = "RescaledValues" if name == "method/nas" else OVERLAYS[name.removeprefix("method/")]
        assert f".{kind}" in recorded
    # the keys of earlier batches are in the ledger exactly where later ones are to preserve them
    assert ("keys.0" in edits.batches[0].edit.state) == (about["hyperparameters"]["earlier_keys"] != 0)


COMBINATIONS = {
    "exact in the null space": (
        ["--model=editkit.AlphaEdit", "--model.threshold=0.1", "--model.ridge=0"],
        ["AlphaEdit", '"ridge": 0.0'],
    ),
    "RECT on MEMIT": (
        ["--model=editkit.MEMIT", "--model.restraints=[{class_path: editkit.RECT, init_args: {share: 0.3}}]"],
        ["RECT", "0.3"],
    ),
    "one more restraint": (
        ["--config", "method/atlas/memit", "--config", "method/rect", "--model.restraints+=editkit.SPHERE"],
        ["RECT", "SPHERE"],
    ),
    "UltraEdit's residual under a second moment": (
        ["--model=editkit.UltraEdit", "--model.lr=0.01", "--model.preservation=editkit.SecondMoment"],
        ["UltraEdit", "SecondMoment"],
    ),
    "NAS on MEMIT": (["--model=editkit.MEMIT", "--model.residual=editkit.RescaledValues"], ["RescaledValues"]),
    "a closed form of parts": (
        [
            "--model=editkit.ClosedForm", "--model.preservation=editkit.NullSpace",
            "--model.preservation.threshold=0.2", "--model.spread=editkit.SquareRootSpread",
        ],
        ["NullSpace", "0.2", "SquareRootSpread"],
    ),
    "SimIE around another editor": (
        [
            "--model=editkit.SimIE",
            "--model.editor={class_path: editkit.AlphaEdit, init_args: {layers: [0], threshold: 0.3, damping: 1, "
            "values: {num_steps: 2}}}",
        ],
        ["OfEditor", "0.3"],
    ),
    "SimIE's editor by its name": (
        ["--model=editkit.SimIE", "--model.editor=editkit.MEMIT", "--model.editor.layers=[0]",
         "--model.editor.values.num_steps=2"],
        ["MEMIT"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COMBINATIONS)
def test_combinations_from_the_command_line(name: str, tmp_path: Path, moments: Path, atlas: object) -> None:
    words, recorded = COMBINATIONS[name]
    edits = check_run(fit(tmp_path / "run", moments, *words, *(within(moments) if "SimIE" in name else ())))
    about = json.dumps(edits.about)
    assert all(word in about for word in recorded), about[:2000]
