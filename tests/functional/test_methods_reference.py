"""The one solve against what the public code of closed-form methods computes (tests/reference/methods)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from editkit.functional import emmet_update, factor_second_moment, memit_update, rome_update, with_keys

METHODS = Path(__file__).resolve().parents[1] / "reference" / "methods"


def read(method: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    """A method's tensors and its hyperparameters."""
    with safe_open(METHODS / f"{method}.safetensors", "pt") as file:
        values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
        return values, {name: float(value) for name, value in (file.metadata() or {}).items()}


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_emmet() -> None:
    values, given = read("emmet")
    delta = emmet_update(
        values["keys"],
        values["residuals"],
        values["second_moment"],
        ridge=given["alpha"],
        preservation_weight=given["w"],
    )
    assert given["norm"] == 0  # the variant that the preset has
    assert relative(delta.dense(), values["delta"]) < 1e-9


def test_rome_with_one_key() -> None:
    values, _ = read("rome")
    delta = rome_update(values["keys"].flatten(), values["residuals"].flatten(), values["second_moment"])
    assert relative(delta.dense(), values["delta_one_key"]) < 1e-9


@pytest.mark.parametrize(("method", "power"), [("memit", 1.0), ("pmet", 0.5)])
def test_each_layer_takes_its_share(method: str, power: float) -> None:
    values, given = read(method)
    layers = int(given["L"])
    for layer in range(layers):
        keys, residuals, second_moment = (values[f"{n}.{layer}"] for n in ("keys", "residuals", "second_moment"))
        delta = memit_update(keys, residuals / (layers - layer) ** power, second_moment, given["lam"])
        assert relative(delta.dense(), values[f"delta.{layer}"]) < 1e-9


@pytest.mark.parametrize("method", ["memit_seq", "encore"])
def test_later_batches_preserve_earlier_keys(method: str) -> None:
    values, given = read(method)
    weight, damping = given["lam"], given.get("mu", 0.0)
    second_moment = factor_second_moment(values["second_moment"] + damping / weight * torch.eye(48).double())
    for batch in range(3):
        keys, residuals = values[f"keys.{batch}"], values[f"residuals.{batch}"]
        delta = memit_update(keys, residuals, second_moment, weight)
        assert relative(delta.dense(), values[f"delta.{batch}"]) < 1e-9
        second_moment = with_keys(second_moment, keys, 1 / weight)


def test_the_solve_does_not_agree_with_another_method_by_chance() -> None:
    values, given = read("memit")
    keys, residuals, second_moment = (values[f"{name}.0"] for name in ("keys", "residuals", "second_moment"))
    delta = memit_update(keys, residuals / math.sqrt(given["L"]), second_moment, given["lam"])  # PMET's share
    assert relative(delta.dense(), values["delta.0"]) > 0.1
