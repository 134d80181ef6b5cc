"""Free memory is what the system says is available, or a share of what there is where it says nothing."""

from __future__ import annotations

import builtins
import io
import os
from typing import Any

import pytest
import torch

from editkit.utils.memory import free_bytes

MEMINFO = "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:    7000000 kB\n"


def reading(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    real = builtins.open

    def fake(file: Any, *args: Any, **options: Any) -> Any:
        if file != "/proc/meminfo":
            return real(file, *args, **options)
        if text is None:
            raise FileNotFoundError(file)
        return io.StringIO(text)

    monkeypatch.setattr(builtins, "open", fake)


def test_what_is_available_counts_not_what_is_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    reading(monkeypatch, MEMINFO)
    assert free_bytes(torch.device("cpu")) == 7_000_000 * 1024


@pytest.mark.parametrize("text", [None, "MemTotal: 16000000 kB\n"])
def test_half_of_all_memory_where_the_system_does_not_say(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    reading(monkeypatch, text)
    pages = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    assert free_bytes(torch.device("cpu")) == 1000 * 4096 // 2


def test_what_torch_holds_but_does_not_use_is_free_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 60)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    assert free_bytes(torch.device("cuda", 0)) == 140


def test_there_is_some_on_this_machine() -> None:
    assert 0 < free_bytes(torch.device("cpu")) < 1 << 50
