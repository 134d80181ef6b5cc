"""The command line as a user types it: the quickstart, other editors, one's own CSV, and every kind of bad input."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from editkit.cli.main import main
from editkit.edits import load_edits

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ["fit", "--config", "quickstart"]
ALONE = [*QUICKSTART, "--config", "evaluation/facts-alone"]
SMALL = ["--data.num_facts=4", "--model.values.num_steps=5", "--trainer.enable_progress_bar=false"]


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"--model.second_moment={json.dumps({'path': str(tmp_path_factory.mktemp('moments')), 'num_tokens': 8000})}"


def run(*args: str) -> int:
    return main(args)


def test_help_reads_nothing_heavy() -> None:
    code = "import sys; from editkit.cli.main import main; main(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "editkit fit --config quickstart" in done.stdout
    assert not {"torch", "lightning", "transformers", "jsonargparse", "rich"} & set(done.stdout.split())


def test_importing_editkit_is_light() -> None:
    code = "import sys, editkit; assert not {'torch', 'lightning', 'transformers'} & set(sys.modules); editkit.EMMET"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_quickstart_leaves_a_run_folder(
    tmp_path: Path, moments: str, capsys: pytest.CaptureFixture[str], atlas: object
) -> None:
    folder = tmp_path / "run"
    assert run(*QUICKSTART, *SMALL, moments, f"--run_dir={folder}") == 0
    shown = capsys.readouterr().out
    assert "before" in shown
    assert "after" in shown
    assert "asked for" in shown
    assert f"run folder: {folder}\n" in shown
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert {"ES", "EM", "PS", "PM", "NS", "NM", "S", "EA", "PA", "NA", "GE"} <= set(metrics["before"])
    assert metrics["after"]["EM"] > metrics["before"]["EM"]
    low, high = metrics["intervals"]["after"]["ES"]
    assert low <= metrics["after"]["ES"] <= high
    assert len(metrics["samples"]) == 3
    ledger = json.loads((folder / "edits" / "edits.json").read_text(encoding="utf-8"))
    assert metrics["model"] == {"lm": "atlas", "dtype": "float32", "fingerprint": ledger["model"]}
    assert metrics["editor"] == {name: ledger["about"][name] for name in ("editor", "hyperparameters", "layers")}
    assert metrics["editor"]["hyperparameters"]["preservation_weight"] == 30.0
    assert metrics["facts"] == {
        "source": "atlas", "split": "report", "seed": None, "number": 4, "batch_size": 4, "num_batches": 1,
        "sequential": False,
    }  # fmt: skip
    assert metrics["versions"] == {n: version(n) for n in ("editkit", "torch", "transformers", "lightning")}
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {r["phase"] for r in rows} == {"before", "after"}
    won = [r["nll_new"] < r["nll_true"] for r in rows if r["phase"] == "after" and r["kind"] == "rewrite"]
    assert 100 * sum(won) / len(won) == pytest.approx(metrics["after"]["ES"])
    assert (folder / "edits" / "batch_00000.safetensors").is_file()
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert config["model"]["class_path"].endswith("EMMET")


def test_the_saved_config_repeats_the_run(tmp_path: Path, moments: str) -> None:
    assert run(*ALONE, *SMALL, moments, f"--run_dir={tmp_path / 'one'}") == 0
    assert run("fit", "--config", str(tmp_path / "one" / "config.yaml"), f"--run_dir={tmp_path / 'two'}") == 0
    one, two = ((tmp_path / name / "records.jsonl").read_text(encoding="utf-8") for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("editor", ["ROME", "MEMIT"])
def test_the_same_command_with_another_editor(tmp_path: Path, moments: str, editor: str) -> None:
    folder = tmp_path / "run"
    assert run(*ALONE, f"--model=editkit.{editor}", *SMALL, moments, f"--run_dir={folder}") == 0
    batches = json.loads((folder / "edits" / "edits.json").read_text(encoding="utf-8"))["batches"]
    assert [len(b["facts"]) for b in batches] == ([1] * 4 if editor == "ROME" else [4])


def test_validate_measures_without_editing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("validate", "--data.num_facts=1", "--trainer.enable_progress_bar=false") == 0
    shown = capsys.readouterr().out
    assert "atlas, 1 fact, nothing edited" in shown
    assert "run folder: runs/validate-0\n" in shown  # no editor's, as none edits
    folder = tmp_path / "runs" / "validate-0"
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert "after" not in metrics
    assert metrics["editor"] is None
    assert metrics["model"]["lm"] == "atlas"
    assert metrics["facts"] == {"source": "atlas", "split": "report", "seed": None, "number": 1}
    assert not (folder / "edits").exists()


def own_csv(path: Path, count: int, with_true: bool) -> Path:
    from editkit.atlas.world import load_world
    from editkit.data.facts import as_facts

    facts = as_facts(load_world().records("report")[:count])
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["subject", "prompt", "target_new", *(["target_true", "paraphrase_prompts"] * with_true)])
        for f in facts:
            extra = [f.target_true, "|".join(f.paraphrase_prompts)] if with_true else []
            writer.writerow([f.subject, f.prompt, f.target_new, *extra])
    return path


@pytest.mark.parametrize("with_true", [True, False])
def test_records_of_ones_own_csv(
    tmp_path: Path, moments: str, with_true: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = own_csv(tmp_path / "mine.csv", 20, with_true)
    folder = tmp_path / "run"
    options = ["--data.num_facts=null", f"--data.facts={facts}", "--model.values.num_steps=5", moments]
    assert run(*ALONE, *options, f"--run_dir={folder}") == 0
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    shown = capsys.readouterr().out
    if with_true:
        assert "PS" in metrics["after"]
        assert "NS" not in metrics["after"]  # no neighbourhood prompts: absent, not 0 or NaN
    else:
        assert set(metrics["after"]) == {"EA", "EA_token"}  # which need no other target
        assert "no fact has a target_true" in shown
    assert len(metrics["samples"]) == 3


RECORD = {"subject": "Rome", "prompt": "{} lies in", "target_new": "Spain", "target_true": "Italy"}


def written(path: Path, record: object) -> str:
    path.write_text(record if isinstance(record, str) else json.dumps([record]), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ("{ not json", ("line 1", "JSON")),
        ({k: v for k, v in RECORD.items() if k != "subject"}, ("record 1", "subject")),
        ({**RECORD, "prompt": "The capital is"}, ("record 1", "prompt", "Rome", "{}")),
        ({**RECORD, "prompt": "{} and {} lie in"}, ("record 1", "prompt", "{}")),
        ({**RECORD, "target_new": " "}, ("record 1", "target_new")),
        ("[]", ("facts",)),
    ],
)
def test_bad_facts(tmp_path: Path, record: object, told: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "facts.json", record)
    refused(tmp_path, [f"--data.facts={path}", "--data.num_facts=null"], ("data.facts", *told), capsys)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--data.facts=missing.json"], ("data.facts", "missing.json", "path")),
        (["--model.layers=[9]"], ("layers", "0 to 3", "9")),
        (["--model=editkit.Nope"], ("model", "editkit.EMMET", "editkit.Nope")),
        (["--model=Nope"], ("model", "editkit.EMMET", "'Nope'")),
        (["--model.lm=nobody/nothing", "--model.second_moment.text=atlas"], ("lm", "nobody/nothing", "folder")),
        (["--model.ridge=-1"], ("model.ridge", ">= 0", "-1")),
        (["--model.rigde=1"], ("model.rigde", "no such option", "--model.help")),
        (["--model.dtype=int8"], ("dtype", "bfloat16", "int8")),
        (["--data.num_facts=0"], ("data.num_facts", "> 0", "0")),
        (["--data.num_facts=99999"], ("data.num_facts", "99999")),
        (["--data.batch_size=65"], ("data.batch_size", "64", "65")),
        (["--model=editkit.ROME", "--data.batch_size=2"], ("data.batch_size", "1 fact at a time", "2")),
        (["--model.values.num_steps=0"], ("model.values.num_steps", "> 0", "'0'")),
        (["--model.values.context_templates=[[no place]]"], ("context_templates", "no place")),
        (["--weight_update.mode=both"], ("weight_update.mode", "independent", "both")),
        (["--nope"], ("--nope", "--help")),
    ],
)
def test_bad_options(
    tmp_path: Path, options: list[str], told: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    refused(tmp_path, options, told, capsys)


def refused(tmp_path: Path, options: list[str], told: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    capsys.readouterr()
    assert run(*ALONE, f"--run_dir={folder}", *options) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line and "Loading weights" not in line]
    assert len(errors) == 1
    assert errors[0].startswith("editkit: error: ")
    for word in told:
        assert word in errors[0]
    assert not folder.exists()


def test_an_unwritable_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    refused(tmp_path, [f"--run_dir={tmp_path / 'file' / 'run'}"], ("run_dir", "file"), capsys)


def test_an_unusable_place_for_second_moments_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*args: object, **options: object) -> None:
        raise AssertionError("the model was measured")

    monkeypatch.setattr("lightning.pytorch.Trainer.validate", never)
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        refused(tmp_path, [f"--model.second_moment.path={place}"], ("second_moment.path", str(place)), capsys)


def test_a_missing_config_and_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "--config", "nowhere.yaml") == 2
    assert "config: expected a file that exists" in capsys.readouterr().err
    assert run("fitt") == 2
    assert "expected one of fit, validate, covariance" in capsys.readouterr().err


def test_equal_targets_are_warned_about(tmp_path: Path, moments: str) -> None:
    path = written(tmp_path / "facts.json", {**RECORD, "target_new": "Italy"})
    options = ["--data.num_facts=null", f"--data.facts={path}", "--model.values.num_steps=2", moments]
    with pytest.warns(UserWarning, match="target_new"):
        assert run(*ALONE, *options, f"--run_dir={tmp_path / 'run'}") == 0


@pytest.mark.parametrize(
    "path",
    # that of covariance: test_covariance.py; of methods, after a model's: test_method_configs.py
    sorted(p for p in (ROOT / "configs").rglob("*.yaml") if not {"covariance.yaml", "method", "study"} & set(p.parts)),
    ids=lambda p: p.name,
)
def test_every_config_that_ships_parses(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        run(*ALONE, "--config", str(path), "--print_config")
    assert done.value.code == 0
    assert "class_path" in capsys.readouterr().out


DOCUMENTED = {
    "step.Step": (["fit", "--model=step.Step", "--data.num_facts=4", "--model.lr=0.3"], {"lr": 0.3}, "dense"),
    "half.Half": ([*ALONE, "--model=half.Half", *SMALL, "--model.share=0.7"], {"share": 0.7}, "low_rank"),
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_documented_editors_run_without_a_registry(
    tmp_path: Path, moments: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    module, _, cls = name.partition(".")
    command, settings, kind = DOCUMENTED[name]
    blocks = (ROOT / "docs" / "new-editor.md").read_text(encoding="utf-8").split("```python\n")[1:]
    (code,) = (block.split("```")[0] for block in blocks if f"class {cls}(" in block)
    assert len(code.splitlines()) <= 30
    (tmp_path / f"{module}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    options = [*([moments] if module == "half" else []), "--trainer.enable_progress_bar=false"]
    assert run(*command, *options, f"--run_dir={tmp_path / 'run'}") == 0
    ledger = json.loads((tmp_path / "run" / "edits" / "edits.json").read_text(encoding="utf-8"))
    assert ledger["about"]["editor"] == name
    assert settings.items() <= ledger["about"]["hyperparameters"].items()
    assert [delta["kind"] for b in ledger["batches"] for delta in b["edit"]["deltas"].values()] == [kind]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["after"]["EM"] > metrics["before"]["EM"]


NORMS = """
from pathlib import Path
from typing import Literal

from editkit import WeightUpdate


class Norms(WeightUpdate):
    def __init__(self, file: str = "norms.txt", mode: Literal["independent", "sequential"] = "independent") -> None:
        super().__init__(mode)
        self.file = file

    def after_update(self, editor, batch):
        norm = sum(delta.norm() for delta in batch.edit.weight_changes().values())
        with Path(self.file).open("a") as file:
            file.write(f"{self.mode} {len(batch.facts)} {norm:.4f}\\n")
"""


@pytest.mark.parametrize("by_yaml", [True, False])
def test_a_weight_update_of_one_s_own(
    tmp_path: Path, moments: str, monkeypatch: pytest.MonkeyPatch, by_yaml: bool
) -> None:
    (tmp_path / "my_norms.py").write_text(NORMS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    norms, folder = tmp_path / "norms.txt", tmp_path / "run"
    options = [*ALONE, *SMALL, "--data.batch_size=3", moments, f"--run_dir={folder}"]
    if by_yaml:
        update = {"class_path": "my_norms.Norms", "init_args": {"mode": "sequential", "file": str(norms)}}
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"weight_update": update}), encoding="utf-8")
        options += ["--config", str(tmp_path / "mine.yaml")]
    else:
        options += [
            "--weight_update=my_norms.Norms", f"--weight_update.file={norms}", "--weight_update.mode=sequential",
        ]  # fmt: skip
    assert run(*options) == 0
    lines = norms.read_text(encoding="utf-8").splitlines()
    assert [line.split()[:2] for line in lines] == [["sequential", "3"], ["sequential", "1"]]
    edits = load_edits(folder / "edits")
    assert edits.sequential
    kept = [sum(d.norm() for d in b.edit.weight_changes().values()) for b in edits.batches]
    assert [float(line.split()[2]) for line in lines] == pytest.approx(kept, abs=1e-3)
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["weight_update"]
    assert config == {"class_path": "my_norms.Norms", "init_args": {"file": str(norms), "mode": "sequential"}}
    # the saved config repeats the run
    assert run("fit", "--config", str(folder / "config.yaml"), f"--run_dir={tmp_path / 'two'}") == 0
    assert norms.read_text(encoding="utf-8").splitlines() == lines * 2


def test_the_weight_update_s_mode_alone(tmp_path: Path, moments: str) -> None:
    options = [*ALONE, *SMALL, "--data.batch_size=3", moments]
    assert run(*options, "--weight_update.mode=sequential", f"--run_dir={tmp_path / 'run'}") == 0
    assert load_edits(tmp_path / "run" / "edits").sequential
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))["weight_update"]
    assert config == {"class_path": "editkit.WeightUpdate", "init_args": {"mode": "sequential"}}


def test_a_weight_update_that_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(tmp_path, ["--weight_update=nowhere.Norms"], ("weight_update", "nowhere.Norms"), capsys)
    refused(tmp_path, ["--weight_update=editkit.EMMET"], ("weight_update", "EMMET"), capsys)
