"""``editkit covariance`` as a user types it: one process, two, killed in between, and bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from editing import small_gpt2
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from editkit.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
TEXT = "--second_moment.text=atlas"
TWO = ["--trainer.devices=2", "--trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> str:
    return small_gpt2(tmp_path_factory.mktemp("lm"), tokenizer)


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "editkit.cli", "covariance", TEXT, *options]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*options), capture_output=True, text=True, timeout=120, env=environment(), check=False
    )


def difference(one: Path, two: Path, layers: tuple[int, ...] = (0, 2)) -> float:
    pairs = [
        [load_file(folder / f"layer-{layer}.safetensors")["second_moment"] for folder in (one, two)] for layer in layers
    ]
    return max(float((a - b).norm() / a.norm()) for a, b in pairs)


def test_the_config_that_ships_parses_and_one_process_reports(
    lm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ["covariance", "--config", str(ROOT / "configs" / "covariance.yaml")]
    with pytest.raises(SystemExit) as done:
        main([*config, "--print_config"])
    assert done.value.code == 0
    assert "moments/atlas" in capsys.readouterr().out
    options = [lm, "--layers=[0,2]", f"--second_moment.path={tmp_path}", "--second_moment.num_tokens=3000"]
    assert main([*config, *options]) == 0
    shown = capsys.readouterr().out
    for word in ("3,000", "condition number", "effective rank", "jitter", "kept in"):
        assert word in shown
    about = json.loads((tmp_path / "layer-2.json").read_text(encoding="utf-8"))
    assert about["condition_number"] > 1
    assert 1 <= about["effective_rank"] <= 64
    assert main([*config, *options]) == 0
    assert "kept in" not in capsys.readouterr().out  # loaded


@pytest.mark.parametrize("then", [TWO, []])
def test_two_processes_equal_one_also_when_killed_in_between(lm: str, tmp_path: Path, then: list[str]) -> None:
    options = [
        lm,
        "--layers=[0,2]",
        "--second_moment.num_tokens=40000",
        "--second_moment.max_tokens=256",
        "--second_moment.tolerance=1e-9",
    ]
    options += ["--second_moment.save_minutes=0", "--trainer.enable_progress_bar=true"]
    assert main(["covariance", TEXT, *options, f"--second_moment.path={tmp_path / 'one'}"]) == 0
    two = tmp_path / "two"
    log = (tmp_path / "log").open("w")
    going = subprocess.Popen(
        command(*options, *TWO, f"--second_moment.path={two}"),
        stdout=log, stderr=log, env=environment(), start_new_session=True,
    )  # fmt: skip
    end = time.monotonic() + 100
    while not list(two.glob(".partial*.safetensors")) and time.monotonic() < end and going.poll() is None:
        time.sleep(0.01)
    os.killpg(going.pid, signal.SIGKILL)  # both processes, at whatever they were doing
    going.wait()
    assert not (two / "layer-0.safetensors").exists(), (tmp_path / "log").read_text()
    assert list(two.glob(".partial*.safetensors")), (tmp_path / "log").read_text()
    done = run(*options, *then, f"--second_moment.path={two}")
    assert done.returncode == 0, done.stderr
    assert "going on after" in done.stdout
    assert difference(tmp_path / "one", two) < 1e-6
    abouts = [json.loads((tmp_path / n / "layer-0.json").read_text(encoding="utf-8")) for n in ("one", "two")]
    assert abouts[0]["tokens"] == abouts[1]["tokens"] == 40000
    assert abouts[0]["change"] == pytest.approx(abouts[1]["change"], rel=1e-4)
    assert not list(two.glob(".*"))


def test_a_path_that_cannot_be_is_found_before_the_work(
    lm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        assert main(["covariance", lm, TEXT, "--layers=[0]", f"--second_moment.path={place}"]) == 2
        told = capsys.readouterr()
        assert f"error: second_moment.path: expected a folder that can be written, but {place} " in told.err
        assert "estimating" not in told.out
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_where_moments_are_is_one_line_and_tables_are_whole(
    lm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = tmp_path.joinpath(*(f"folder-{i:04d}" for i in range(20)))
    options = [lm, "--layers=[0,2]", f"--second_moment.path={deep}", "--second_moment.num_tokens=3000"]
    assert main(["covariance", TEXT, *options]) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert f"second moments in {deep}" in lines
    assert any(line.endswith(f"kept in {deep}") for line in lines)
    assert sum("3,000" in line and "none" in line for line in lines) == 2
    assert "\x1b" not in shown


FAILS = """
import sys
import editkit.covariance.accumulate as a
from editkit.cli.main import main
from editkit.utils.errors import InputError
from editkit.utils.distributed import rank_and_size
real = a.SecondMoments._forward
def forward(self, batch):
    if rank_and_size()[0] == 1:
        raise InputError("disk: expected a whole file, but got half on rank 1; copy it again")
    real(self, batch)
a.SecondMoments._forward = forward
sys.exit(main(sys.argv[1:]))
"""


def test_an_error_on_one_rank_ends_all_with_its_message(lm: str, tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text(FAILS, encoding="utf-8")
    options = [lm, "--layers=[0]", "--second_moment.num_tokens=4000", "--second_moment.max_tokens=512", *TWO]
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(script), "covariance", TEXT, *options, f"--second_moment.path={tmp_path / 'm'}"],
        capture_output=True, text=True, timeout=100, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("editkit: error: disk: expected a whole file") == 1
    assert time.monotonic() - start < 90


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--layers=[7]"], ("layers", "0 to 2", "7")),
        (["--layers=null"], ("layers", "0 to 2", "none")),
        (["--second_moment.text=gone.txt"], ("second_moment.text", "gone.txt")),
        (["--second_moment.num_tokens=10"], ("second_moment.num_tokens", "64", "10")),
        (["--second_moment.num_tokens=0"], ("second_moment.num_tokens", "> 0", "0")),
        (["--second_moment.accumulate_on=disk"], ("second_moment.accumulate_on", "disk")),
        (["--second_moment.nope=1"], ("second_moment.nope",)),
        (["--trainer.accelerator=abacus"], ("trainer", "abacus")),
        (["--dtype=int3"], ("dtype", "bfloat16", "int3")),
    ],
)
def test_bad_options(
    lm: str, tmp_path: Path, options: list[str], told: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "m"
    assert main(["covariance", lm, TEXT, "--layers=[0]", f"--second_moment.path={folder}", *options]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line and "Loading weights" not in line]
    assert len(errors) == 1
    for word in told:
        assert word in errors[0]
    assert not folder.exists()
