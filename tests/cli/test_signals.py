"""SIGTERM and SIGINT stop every command soon, with one line; what goes on ends with the bits of one that was not."""

from __future__ import annotations

import importlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from editing import quiet_edit, same, weights
from interrupted import SIGNALLED_AT, arguments, contents
from safetensors.torch import load_file

from editkit import EMMET
from editkit.cli.main import main
from editkit.models.loading import load_language_model
from editkit.utils.hashes import tensor_hash
from editkit.utils.signals import AGAIN

ROOT = Path(__file__).resolve().parents[2]
SOON = 30.0  # seconds on a machine that is busy with other things; a second where it is not
#: how often each command is stopped at random moments, in the slow tier
TIMES = float(os.environ.get("EDITKIT_RANDOM_STOPS", "1"))

FACTS = 5  # batches of three and two
Point = tuple[str, str, int]  # module, name in it, and at which call of that


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped, and its second moments."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(arguments(folder / "moments", folder / "run", facts=FACTS)) == 0
    return folder


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> Callable[[Point, int], None]:
    """Let this process get a signal, as from outside, when it is about to do something for the n-th time."""

    def at(point: Point, number: int) -> None:
        owner: Any = importlib.import_module(point[0])
        *path, name = point[1].split(".")
        for part in path:
            owner = getattr(owner, part)
        real, left = getattr(owner, name), [point[2]]

        def deadly(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), number)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, deadly)

    return at


def told(text: str) -> str:
    """The one line that editkit said on standard error."""
    assert "Traceback" not in text, text
    lines = [line for line in text.splitlines() if line.startswith("editkit: ")]
    assert len(lines) == 1, text
    return lines[0]


FIT: dict[str, tuple[Point, int, str]] = {
    "reading the model": (("editkit.editors.base", "load_language_model", 1), signal.SIGTERM, "begins again"),
    "evaluation before": (("editkit.callbacks.evaluation", "Evaluator.measure", 1), signal.SIGTERM, "goes on"),
    "search": (("editkit.editors.closed_form.search", "MicroBatch.losses", 14), signal.SIGINT, "goes on"),
    "solve": (("editkit.editors.closed_form.layers", "LayerSolver.solve", 2), signal.SIGINT, "goes on"),
    "ledger": (("editkit.utils.sealed", "save_file", 7), signal.SIGTERM, "goes on"),
    "evaluation after": (("editkit.callbacks.evaluation", "Evaluator.measure", 3), signal.SIGINT, "goes on"),
    "generation": (("editkit.callbacks.report", "continue_greedily", 2), signal.SIGUSR1, "goes on"),
    "report": (("editkit.callbacks.report", "atomic_write", 1), signal.SIGTERM, "goes on"),
}
QUICK = ("evaluation before", "ledger")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FIT]
)
def test_fit_stops_wherever_it_is_and_goes_on_to_the_same_bits(
    name: str,
    whole: Path,
    tmp_path: Path,
    signalled: Callable[[Point, int], None],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    point, number, goes_on = FIT[name]
    run = tmp_path / "run"
    command = arguments(whole / "moments", run, facts=FACTS)
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    monkeypatch.chdir(tmp_path)
    signalled(point, number)
    assert main(command) == 128 + number
    assert before == {n: signal.getsignal(n) for n in before}
    line = told(capfd.readouterr().err)
    assert line.startswith(f"editkit: stopped by {signal.Signals(number).name}; "), line
    assert line.endswith(f"the same command with --run_dir={run} goes on where it stopped") or goes_on != "goes on"
    assert goes_on in line
    assert run.exists() == (goes_on == "goes on")
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.part"))
    assert {path.name for path in tmp_path.iterdir()} <= {"run"}  # no checkpoint of Lightning's
    assert main(command) == 0
    assert contents(run) == contents(whole / "run")


COVARIANCE = ["covariance", "--layers=[0,1]", "--second_moment.num_tokens=9000", "--second_moment.max_tokens=700"]


def files(folder: Path) -> dict[str, bytes]:
    """What is in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tensors(folder: Path) -> dict[str, str]:
    """Hashes of all tensors in a folder; the headers of the files are written in no fixed order."""
    return {
        f"{file.name} {name}": tensor_hash(tensor)
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


@pytest.mark.parametrize(
    ("of", "forward"),
    [
        ("keys", ("editkit.covariance.accumulate", "SecondMoments._forward")),
        ("output_gradients", ("editkit.covariance.output_gradients", "OutputGradientMoments._forward")),
    ],
)
def test_covariance_keeps_its_sums_and_goes_on_to_the_same_bits(
    of: str,
    forward: tuple[str, str],
    tmp_path: Path,
    signalled: Callable[[Point, int], None],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main([*COVARIANCE, f"--of={of}", f"--second_moment.path={tmp_path / 'whole'}"]) == 0
    command = [*COVARIANCE, f"--of={of}", f"--second_moment.path={tmp_path / 'm'}"]
    ending = "" if of == "keys" else f".{of}"
    capfd.readouterr()
    # in the text, of which the first 4,096 rows are added up together: 4 batches, and one at work, are kept
    signalled((*forward, 5), signal.SIGTERM)
    assert main(command) == 128 + signal.SIGTERM
    assert told(capfd.readouterr().err) == "editkit: stopped by SIGTERM; the same command goes on"
    monkeypatch.undo()
    (partial,) = (tmp_path / "m").glob(".partial*")
    assert "rows.0" in load_file(partial)
    # with all of the text seen, and one of two blocks written
    signalled(("editkit.covariance.folder", "spectrum", 2), signal.SIGINT)
    assert main(command) == 128 + signal.SIGINT
    out, err = capfd.readouterr()
    assert "going on after" in out
    assert told(err) == "editkit: stopped by SIGINT; the same command goes on"
    assert (tmp_path / "m" / f"layer-0{ending}.json").exists()
    assert not (tmp_path / "m" / f"layer-1{ending}.safetensors").exists()
    monkeypatch.undo()
    monkeypatch.setattr(".".join(forward), None)  # nothing is run again
    assert main(command) == 0
    assert tensors(tmp_path / "m") == tensors(tmp_path / "whole")
    assert not list((tmp_path / "m").glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_export_writes_nothing_or_all(
    number: int,
    whole: Path,
    tmp_path: Path,
    signalled: Callable[[Point, int], None],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    command = ["export", f"--edits={whole / 'run' / 'edits'}"]
    assert main([*command, f"--output={tmp_path / 'whole'}"]) == 0
    capfd.readouterr()
    signalled(("transformers", "PreTrainedTokenizerBase.save_pretrained", 1), number)
    assert main([*command, f"--output={tmp_path / 'out'}"]) == 128 + number
    line = f"editkit: stopped by {signal.Signals(number).name}; nothing was written"
    assert told(capfd.readouterr().err) == line
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    monkeypatch.undo()
    assert main([*command, f"--output={tmp_path / 'out'}"]) == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_validate_begins_again_in_its_folder(
    whole: Path, tmp_path: Path, signalled: Callable[[Point, int], None], monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = tmp_path / "a run"
    edits = f"--edits={whole / 'run' / 'edits'}"
    command = ["validate", "--data.num_facts=3", edits, "--trainer.enable_progress_bar=false", f"--run_dir={run}"]
    signalled(("editkit.callbacks.evaluation", "Evaluator.measure", 1), signal.SIGTERM)
    assert main(command) == 128 + signal.SIGTERM
    line = f"editkit: stopped by SIGTERM; the same command with --run_dir='{run}' begins again"
    assert told(capfd.readouterr().err) == line
    monkeypatch.undo()
    assert main(command) == 0
    assert (run / "metrics.json").exists()
    assert main(command) == 2  # it is done now


# ---------------------------------------------------------------- as a user's processes

IMPORTING = """
import os, sys
class AtImport:
    def find_spec(self, name, path=None, target=None):
        if name == wanted:
            os.kill(os.getpid(), number)
wanted, number = sys.argv.pop(1), int(sys.argv.pop(1))
sys.meta_path.insert(0, AtImport())
from editkit.cli.main import main
sys.exit(main())
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def ignore_interrupts() -> None:
    """As a shell that starts a command in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["fit", "validate", "covariance", "export"])
def test_importing_ends_at_once(command: str, number: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING, "torch", str(int(number)), command],
        capture_output=True, text=True, timeout=100, env=environment(), check=False, cwd=tmp_path,
        preexec_fn=ignore_interrupts,
    )  # fmt: skip
    assert done.returncode == 128 + number
    name = signal.Signals(number).name
    assert done.stderr == f"editkit: stopped by {name}; nothing was at work yet; the same command begins again\n"
    assert not list(tmp_path.iterdir())


# a process whose handlers never get to run, one that swallows what they raise, and one that is to finish first
WAITING = """
import os, sys, threading, time
from editkit.utils import signals
from editkit.utils.hashes import tensor_hash
signals.UNANSWERED = signals.UNWINDING = signals.HELD = 0.5
with signals.stopping(until_exit=True) as stop:
    stop.begin()
    signals.advise("go on")
    {work}
sys.exit(signals.end(stop))
"""
READY = "print(1, flush=True)"
LOCK = "import ctypes; lock, c = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock"
DEAF = f"{LOCK}; c(lock); {READY}; c(lock)"  # waits for itself, where no signal interrupts it
SWALLOWING = f"exec('while True:\\n try: {READY}; time.sleep(60)\\n except BaseException: pass')"
HOLDING = f"exec('with signals.hold():\\n {READY}; time.sleep(60)')"


@pytest.mark.parametrize("work", [DEAF, SWALLOWING, HOLDING])
def test_what_does_not_stop_is_ended(work: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITING.format(work=work)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "1\n"
        time.sleep(0.2)  # until it is where it says
        process.terminate()
        _, err = process.communicate(timeout=SOON)
    assert process.returncode == 128 + signal.SIGTERM
    assert err == "editkit: stopped by SIGTERM; go on\n"


def test_a_second_signal_ends_what_is_held() -> None:
    code = WAITING.format(work=HOLDING).replace("= 0.5", "= 50.0")
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "1\n"
        for _ in range(2):  # as timeout(1) and terminals do: that is one
            process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(AGAIN + 0.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=SOON)
    assert process.returncode == 128 + signal.SIGINT
    assert err == "editkit: stopped by SIGINT; go on\n"


def test_copies_of_the_process_end_as_any_do() -> None:
    """Such as the workers of a pool, which is ended by SIGTERM."""
    fork = "child = os.fork() or time.sleep(60); os.kill(child, 15); print(os.waitstatus_to_exitcode(os.wait()[1]))"
    code = WAITING.format(work=f"{fork}; time.sleep(0.5)").replace("sys.exit(signals.end(stop))", "")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, env=environment(), check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "-15\n", "")


def test_what_is_done_ends_with_its_own_code() -> None:
    """While the interpreter puts itself away, which takes seconds where much is in memory."""
    late = "class Late:\n def __del__(self, kill=os.kill, me=os.getpid()): kill(me, 15)\nsys.late = Late()\n"
    code = "import os, sys\n" + late + "from editkit.cli.main import main\n"
    code += "import editkit.cli.main as m\nm._run = lambda *a: 7\nsys.argv[1:] = ['export']\nsys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, env=environment(), check=False
    )
    assert (done.returncode, done.stderr) == (7, "")


def test_nothing_is_installed_outside_the_command_line() -> None:
    code = (
        "import signal; b = [signal.getsignal(n) for n in (2, 10, 15)]\n"
        "import editkit, editkit.cli.main, editkit.utils.signals as s\n"
        "with s.hold(): assert s.stop_requested() is None\n"
        "assert b == [signal.getsignal(n) for n in (2, 10, 15)]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr


def test_a_call_leaves_the_user_s_handlers_at_work(
    whole: Path, signalled: Callable[[Point, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Enough(Exception):
        pass

    def enough(*_: object) -> None:
        raise Enough

    loaded = load_language_model("atlas")
    before = weights(loaded[0])
    handlers = {number: signal.signal(number, enough) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        for number in handlers:
            signalled(("editkit.editors.closed_form.search", "MicroBatch.losses", 2), number)
            with pytest.raises(Enough):
                quiet_edit(loaded, EMMET(layers=[0]), whole / "moments", evaluate=True)
            monkeypatch.undo()
            assert same(loaded[0], before)
            assert signal.getsignal(number) is enough
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


TWO = ["--trainer.devices=2", "--trainer.accelerator=cpu"]


def children(process: int) -> list[int]:
    """The processes that one has started, in the system's words."""
    text = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii")
    return [int(word) for word in text.split()]


def stopped_when(
    command: list[str], there: Callable[[], object], number: int, child: bool = False
) -> tuple[int, str, str]:
    """Send a signal to a command's process, or to one that it has started, once something is there."""
    with subprocess.Popen(
        [sys.executable, "-m", "editkit.cli", *command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), preexec_fn=ignore_interrupts,
    ) as process:  # fmt: skip
        timer = threading.Timer(300, process.kill)
        timer.start()
        while process.poll() is None and not there():
            time.sleep(0.01)
        started = children(process.pid) if process.poll() is None else []
        os.kill(started[-1] if child else process.pid, number)
        began = time.monotonic()
        out, err = process.communicate()
        assert time.monotonic() - began < SOON
        timer.cancel()
    assert not [n for n in started if Path(f"/proc/{n}/cmdline").exists() and Path(f"/proc/{n}/cmdline").read_bytes()]
    return process.returncode, out, err


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks Linux for the processes started")
@pytest.mark.parametrize("child", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_covariance_on_two_processes_stops_at_one_batch(
    child: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = ["covariance", "--layers=[0]", "--second_moment.num_tokens=60000", "--second_moment.max_tokens=512"]
    command = [*base, f"--second_moment.path={tmp_path / 'm'}", "--second_moment.save_minutes=0"]
    partial = (tmp_path / "m").glob
    code, _, err = stopped_when([*command, *TWO], lambda: list(partial(".partial*.safetensors")), 15, child)
    assert code == 128 + signal.SIGTERM, err
    assert told(err) == "editkit: stopped by SIGTERM; the same command goes on"
    assert list(partial(".partial*.safetensors"))
    assert main(command) == 0  # on one process now
    assert "going on after" in capfd.readouterr().out
    assert main([*base, f"--second_moment.path={tmp_path / 'whole'}"]) == 0
    ours, theirs = (load_file(tmp_path / name / "layer-0.safetensors")["second_moment"] for name in ("m", "whole"))
    assert (ours - theirs).norm() < 1e-6 * theirs.norm()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks Linux for the processes started")
@pytest.mark.parametrize("child", [True, False])
def test_fit_on_two_processes_stops_with_both(child: bool, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [*arguments(whole / "moments", run, facts=FACTS), *TWO]
    code, _, err = stopped_when(command, lambda: list((run / "edits").glob("found/*")), signal.SIGINT, child)
    assert code == 128 + signal.SIGINT, err
    assert told(err).endswith(f"--run_dir={run} goes on where it stopped")
    done = subprocess.run(
        [sys.executable, "-m", "editkit.cli", *command], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    assert (run / "metrics.json").exists()


@pytest.mark.slow
def test_a_pre_emption_on_slurm_keeps_all_and_writes_no_checkpoint(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = arguments(whole / "moments", run, facts=FACTS)
    point = ("editkit.callbacks.evaluation", "Evaluator.measure", "2", str(int(signal.SIGUSR1)))
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "edits", "SLURM_PROCID": "0",
             "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS_PER_NODE": "1"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED_AT, *point, *command], capture_output=True, text=True, check=False,
        env=environment() | slurm, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 128 + signal.SIGUSR1, done.stderr
    assert "SIGUSR1" in told(done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert main(command) == 0
    assert contents(run) == contents(whole / "run")


# ---------------------------------------------------------------- at random moments

KINDS = (
    [(signal.SIGKILL, seed) for seed in range(round(100 * TIMES))]
    + [(signal.SIGTERM, seed) for seed in range(round(30 * TIMES))]
    + [(signal.SIGINT, seed) for seed in range(round(30 * TIMES))]
)


#: what they carry from batch to batch is a null space and M; a queue, VKᵀ and the unedited weight; statistics
METHODS = {
    "AlphaEdit": ["--model=editkit.AlphaEdit", "--model.threshold=0.1", "--model.damping=0.1"],
    "LyapLock": ["--model=editkit.LyapLock", "--model.preservation_weight=10", "--model.tolerance=2"],
    "UltraEdit": ["--model=editkit.UltraEdit", "--model.lr=3e-4"],
}


@pytest.fixture(scope="module")
def cases(whole: Path) -> dict[str, tuple[Callable[[Path], list[str]], Callable[[Path], object], object, float]]:
    """Per command: it, what is compared, what an uninterrupted one gives, and how many seconds that takes."""

    def covariance(folder: Path) -> list[str]:
        return [*COVARIANCE, f"--second_moment.path={folder}", "--second_moment.save_minutes=0"]

    def export(folder: Path) -> list[str]:
        return ["export", f"--edits={whole / 'run' / 'edits'}", f"--output={folder}"]

    def fit(folder: Path) -> list[str]:
        return arguments(whole / "moments", folder, facts=FACTS)

    def method(*options: str) -> Callable[[Path], list[str]]:
        return lambda folder: [*fit(folder), *options]

    found = {}
    for name, command, result in (
        ("fit", fit, contents),
        ("covariance", covariance, tensors),
        ("export", export, files),
        *((name, method(*options), contents) for name, options in METHODS.items()),
    ):
        folder = whole / f"whole {name}"
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "editkit.cli", *command(folder)], env=environment(), check=True)
        found[name] = (command, result, result(folder), time.monotonic() - began)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("number", "seed"), KINDS, ids=lambda value: getattr(value, "name", str(value)))
def test_stopped_at_a_random_moment(
    number: int, seed: int, tmp_path: Path, cases: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    check_stopped(("fit", "covariance", "export")[seed % 3], number, seed, tmp_path, cases, capfd)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(round(20 * TIMES)))
@pytest.mark.parametrize("method", METHODS)
def test_a_method_killed_at_a_random_moment(
    method: str, seed: int, tmp_path: Path, cases: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    check_stopped(method, signal.SIGKILL, seed, tmp_path, cases, capfd)


def check_stopped(
    name: str, number: int, seed: int, tmp_path: Path, cases: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    """A command that is stopped at a random moment and given again ends as one that was not."""
    draw = random.Random(f"{number} {seed}")
    command, result, expected, seconds = cases[name]
    folder = tmp_path / name
    with subprocess.Popen(
        [sys.executable, "-m", "editkit.cli", *command(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), preexec_fn=ignore_interrupts,
    ) as process:  # fmt: skip
        timer = threading.Timer(draw.uniform(0.3, seconds), process.send_signal, [number])
        timer.start()
        _, err = process.communicate()
        timer.cancel()
    if number == signal.SIGKILL:
        assert process.returncode in (0, -signal.SIGKILL), err
    elif process.returncode:
        assert process.returncode == 128 + number, err
        assert f"stopped by {signal.Signals(number).name}; " in told(err)
    if name == "export":  # which has nothing to go on with, and takes no folder in which there is something
        assert not folder.exists() or files(folder) == expected
        shutil.rmtree(folder, ignore_errors=True)
    assert main(command(folder)) == 0
    assert result(folder) == expected
    if number != signal.SIGKILL:
        assert not list(tmp_path.rglob("*.part"))
