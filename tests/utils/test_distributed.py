"""Two processes that share errors, values and the work of second moments, without a Trainer that started them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from editkit.utils.distributed import (
    UnwrappedDDP,
    broadcast_object,
    gather,
    on_device,
    raise_on_all_ranks,
    rank_and_size,
    reported_by_rank_zero,
    with_strategy,
)
from editkit.utils.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
TOGETHER = """
import sys
import torch
from torch import distributed
from editkit.covariance import SecondMomentSource, second_moments
from editkit.utils.errors import InputError
from editkit.models.editable import EditableModel
from editkit.models.loading import load_language_model
from editkit.utils.distributed import broadcast_object, raise_on_all_ranks

rank, folder = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
raise_on_all_ranks(None)
for error in (InputError("field: expected a"), KeyError("b")):
    try:
        raise_on_all_ranks(error if rank == 1 else None)
    except Exception as caught:
        print(type(caught).__name__, caught)
print(broadcast_object(rank + 5))
editable, tokenizer = (lambda m: (EditableModel(m[0]), m[1]))(load_language_model("atlas"))
source = SecondMomentSource(path=f"{folder}/together", num_tokens=6000, max_tokens=1000)
moment = second_moments(editable, tokenizer, [0], source, progress=False)[0]
distributed.destroy_process_group()
alone = SecondMomentSource(path=f"{folder}/alone-{rank}", num_tokens=6000)
whole = second_moments(editable, tokenizer, [0], alone, progress=False)[0]
print("equal", bool((moment - whole).norm() < 1e-6 * whole.norm()))
"""


def test_two_processes(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    going = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, str(rank), str(tmp_path)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    told = [process.communicate(timeout=100) for process in going]
    lines = [out.splitlines() for out, _ in told]
    assert lines[0] == ["InputError field: expected a", "RuntimeError rank 1: KeyError: 'b'", "5", "equal True"], told
    assert lines[1] == ["InputError field: expected a", "KeyError 'b'", "5", "equal True"], told


@pytest.mark.parametrize(
    ("options", "replaced"),
    [
        ({"devices": 2, "strategy": "auto"}, True),
        ({"devices": "2", "strategy": "ddp"}, True),
        ({"devices": [0, 1]}, True),
        ({"devices": "0,1"}, True),
        ({"devices": 1, "num_nodes": 2}, True),
        ({"devices": 1, "strategy": "auto"}, False),
        ({"devices": "auto", "accelerator": "cpu"}, False),
        ({"devices": 2, "strategy": "fsdp"}, False),
    ],
)
def test_the_strategy_is_replaced_where_there_are_several_processes(options: dict[str, object], replaced: bool) -> None:
    assert isinstance(with_strategy(options).get("strategy"), UnwrappedDDP) is replaced


def test_alone_everything_is_as_it_is() -> None:
    value = {"a": torch.ones(2)}
    assert rank_and_size() == (0, 1)
    assert gather(value)[0] is value
    assert broadcast_object(value) is value
    raise_on_all_ranks(None)
    error = InputError("field: expected a")
    with pytest.raises(InputError) as told:
        raise_on_all_ranks(error)
    assert told.value is error
    assert not reported_by_rank_zero(error)  # so that it is printed here


def test_options_that_were_given_stay() -> None:
    given = {"devices": 2, "accelerator": "cpu", "max_epochs": 3}
    found = with_strategy(given)
    assert found.pop("strategy")
    assert found == given
    assert "strategy" not in given


def test_one_device_is_the_models_own() -> None:
    assert on_device(torch.device("cpu"))["accelerator"] == "cpu"
    assert on_device(torch.device("cuda", 3))["devices"] == [3]
    assert on_device(torch.device("cuda"))["devices"] == 1
