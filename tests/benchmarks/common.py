"""What the benchmarks share: the plain baseline, a model of GPT-2-small's shape, the machine's peak, memory."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from editkit.data.facts import Fact


def shared() -> Path:
    """The folder of public data and of the plain baseline."""
    folder = Path(os.environ.get("EDITKIT_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    if not folder.is_dir():
        raise SystemExit(f"no public data at {folder}; set EDITKIT_SHARED")
    return folder


def load_plain() -> ModuleType:
    """``baselines/plain.py``, the opponent."""
    spec = importlib.util.spec_from_file_location("plain", shared() / "baselines" / "plain.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gpt2_small(dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Random weights of GPT-2-small's shape, and GPT-2's tokenizer."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval().requires_grad_(False).to(dtype)
    return model, AutoTokenizer.from_pretrained(shared() / "data" / "gpt2-tokenizer")


def counterfact(count: int) -> list[Fact]:
    """The first CounterFact records whose prompt contains the subject."""
    records = json.loads((shared() / "data" / "counterfact" / "counterfact-edit.json").read_text(encoding="utf-8"))
    return [
        Fact(r["subject"], r["prompt"].replace(r["subject"], "{}", 1), r["target_new"])
        for r in records
        if r["subject"] in r["prompt"]
    ][:count]


def seconds(job: Callable[[], Any]) -> float:
    """Wall clock of one call."""
    start = time.perf_counter()
    job()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def side_by_side(jobs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each job, the jobs in turn within each of ``repeats`` rounds, so that a slow spell hits all."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            times[name].append(seconds(job))
    return times


def matmul_peak(dtype: torch.dtype, rows: int = 768, device: str = "cpu") -> float:
    """FLOP per second of the better of GPT-2-small's two MLP products with ``rows`` rows, best of ten."""
    best = 0.0
    for inner, outer in ((768, 3072), (3072, 768)):
        a, b = torch.randn(rows, inner, device=device).to(dtype), torch.randn(inner, outer, device=device).to(dtype)
        fastest = min(seconds(lambda a=a, b=b: a @ b) for _ in range(10))  # type: ignore[misc]
        best = max(best, 2 * rows * inner * outer / fastest)
    return best


class FlopCount(TorchDispatchMode):
    """FLOP of the matrix products run inside it, by PyTorch's own formulas.

    ``FlopCounterMode`` also tracks modules, which fails where gradients are taken inside a forward pass.
    """

    total = 0

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Bytes that the block took at its peak beyond what was there before it, as the list's only item."""
    found: list[int] = []
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield found
        found.append(torch.cuda.max_memory_allocated() - before)
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier work left in the heap would hide what this one takes
    before, highest, stop = _resident(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            highest[0] = max(highest[0], _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        stop.set()
        watcher.join()
        found.append(highest[0] - before)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
    }


def write_json(path: str | None, result: dict[str, Any]) -> None:
    """Show the result, and write it where asked to."""
    text = json.dumps(result, indent=2)
    print(text)
    if path:
        Path(path).write_text(text + "\n", encoding="utf-8")


median = statistics.median
