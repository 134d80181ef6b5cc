"""The one solve against what the public code of closed-form methods computes (tests/reference/methods)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from editkit.functional import (
    closed_form_update,
    emmet_update,
    factor_second_moment,
    memit_update,
    preservation,
    restraint,
    rome_update,
    with_keys,
)

METHODS = Path(__file__).resolve().parents[1] / "reference" / "methods"


def read(method: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    """A method's tensors and its hyperparameters."""
    with safe_open(METHODS / f"{method}.safetensors", "pt") as file:
        values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
        return values, {n: float(v) for n, v in (file.metadata() or {}).items() if n != "init_model"}


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


# ---------------------------------------------------------------- the one solve, by its parts


def batches(values: dict[str, Tensor], count: int = 3) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Keys, residuals and the expected change of each batch."""
    return [(values[f"keys.{b}"], values[f"residuals.{b}"], values[f"delta.{b}"]) for b in range(count)]


@pytest.mark.parametrize("method", ["memit_seq", "encore"])
def test_earlier_keys_as_a_sum(method: str) -> None:
    values, given = read(method)
    past = torch.zeros(48, 48, dtype=torch.float64)
    for number, (keys, residuals, expected) in enumerate(batches(values)):
        if number == 2:
            assert relative(past, values["past"]) < 1e-12
        h = preservation.second_moment(values["second_moment"], given["lam"], given.get("mu", 0.0), past)
        assert relative(closed_form_update(keys, residuals, h, 1.0).dense(), expected) < 1e-9
        past = past + keys @ keys.T


def test_alphaedit() -> None:
    values, given = read("alphaedit")
    past = torch.zeros(48, 48, dtype=torch.float64)
    for keys, residuals, expected in batches(values):
        h = preservation.null_space(values["second_moment"], given["thr"], given["L2"], past)
        assert h.rank == int(values["rank"])
        found = closed_form_update(keys, residuals, h, 1.0).dense()
        assert relative(found, expected) < 1e-9
        past = past + keys @ keys.T
    basis = preservation.null_space_basis(values["second_moment"], given["thr"])
    assert relative(basis @ basis.T, values["projector"]) < 1e-9


def test_alphaedits_first_batch_is_the_projector_with_its_damping_as_ridge() -> None:
    values, given = read("alphaedit")
    keys, residuals, expected = batches(values)[0]
    h = preservation.in_basis(preservation.null_space_basis(values["second_moment"], given["thr"]))
    assert relative(closed_form_update(keys, residuals, h, given["L2"]).dense(), expected) < 1e-9


def test_nse() -> None:
    """Each round on the neurons and facts that its code chose."""
    values, given = read("nse")
    past = torch.zeros(48, 48, dtype=torch.float64)
    for batch, (keys, residuals, expected) in enumerate(batches(values)):
        total = torch.zeros(32, 48, dtype=torch.float64)
        for turn in range(int(given["iters"]) - 1):
            if f"facts.{batch}.{turn}" not in values:
                break
            kept, rows = values[f"facts.{batch}.{turn}"].long(), values[f"neurons.{batch}.{turn}"].long()
            h = preservation.neurons(values["second_moment"], rows, given["lam"], past)
            left = residuals - total @ keys
            delta = closed_form_update(keys[:, kept], left[:, kept], h, 1.0).dense()
            others = torch.ones(48, dtype=torch.bool).index_fill_(0, rows, False)
            assert not delta[:, others].any()
            total += delta
        assert relative(total, expected) < 1e-9
        past = past + keys @ keys.T


@pytest.mark.parametrize("kind", ["delta", "untrained_delta"])
def test_malmen(kind: str) -> None:
    values, given = read("malmen")
    residuals = values["residuals" if kind == "delta" else "untrained_residuals"]
    ridge = math.exp(given["log_ridge"]) if kind == "delta" else 1.0
    found = closed_form_update(values["keys"], residuals, preservation.identity(48), ridge)
    assert relative(found.dense(), values[kind]) < 1e-9


def test_ultraedit() -> None:
    values, _ = read("ultraedit")
    for keys, residuals, expected in batches(values, 2):
        found = closed_form_update(keys, residuals, preservation.identity(48), 1.0)
        assert relative(found.dense(), expected) < 1e-9


def test_simie() -> None:
    """What a base editor adds is the residual at its keys; the recursion is one ridge solve over all keys."""
    values, given = read("simie")
    past, run, base = (torch.zeros(n, 48, dtype=torch.float64) for n in (48, 32, 32))
    for batch, (keys, _, expected) in enumerate(batches(values)):
        base = values[f"base_delta.{batch}"]  # from the unedited weight each time
        h = preservation.identity(48, past / given["lam"])
        change = closed_form_update(keys, (base - run) @ keys, h, given["lam"]).dense()
        assert relative(change, expected) < 1e-9
        run, past = run + change, past + keys @ keys.T
    keys = torch.cat([values[f"keys.{b}"] for b in range(3)], 1)
    goals = torch.cat([values[f"base_delta.{b}"] @ values[f"keys.{b}"] for b in range(3)], 1)
    at_once = closed_form_update(keys, goals, preservation.identity(48), given["lam"]).dense()
    assert relative(at_once, run) < 1e-9


def test_lyaplock() -> None:
    values, given = read("lyaplock")
    c, weight = values["second_moment"], values["weight"]
    past, past_values, edited = torch.zeros(48, 48).double(), torch.zeros(32, 48).double(), weight.clone()
    mu, gain = given["lam"], 0.0
    floor = queue = base = 0.0

    def loss() -> float:
        return float(((edited - weight) @ c * (edited - weight)).sum())

    for batch, (keys, residuals, expected) in enumerate(batches(values)):
        assert abs(mu / float(values[f"weight_of_C.{batch}"]) - 1) < 1e-9
        h = preservation.second_moment(c, mu, past=past)
        back = mu * (weight - edited) @ c + past_values - edited @ past
        restoring = back @ h.dense() if batch else None
        delta = closed_form_update(keys, residuals, h, 1.0, restoring=restoring).dense()
        assert relative(delta, expected) < 1e-9
        edited = edited + delta
        past, past_values = past + keys @ keys.T, past_values + edited @ keys @ keys.T
        if not batch:
            base = loss()
            gain, floor = 1 / math.sqrt(given["alpha"] * base), math.sqrt(given["alpha"] * base)
            queue = floor
        queue = max(queue + gain * (loss() - given["alpha"] * base), floor)
        assert abs(queue / float(values[f"queue.{batch}"]) - 1) < 1e-9
        mu = gain * queue * given["lam"]
    assert restoring is not None
    assert relative(restoring, values["restoring_delta"]) < 1e-9


def test_nas_is_alphaedits_step_on_other_residuals() -> None:
    values, given = read("nas")
    h = preservation.null_space(values["second_moment"], given["nullspace_threshold"], given["L2"])
    found = closed_form_update(values["keys"], values["residuals"], h, 1.0)
    assert relative(found.dense(), values["delta"]) < 1e-8


def test_rect() -> None:
    values, given = read("rect")
    share = given["keep_percent"] / 100
    found = restraint.top_share(values["delta_in"], values["weight"], share).dense()
    assert relative(found, values["delta"]) < 1e-9
    assert int(found.count_nonzero()) == given["kept"]
    original = restraint.top_share(values["delta_in"], values["weight"], 1 - given["original_drop"], "rect").dense()
    assert relative(original, values["original_delta"]) < 1e-9
    assert int(original.count_nonzero()) == given["original_kept"]


@pytest.mark.parametrize(
    ("name", "base"), [("linear", "linear"), ("log", math.e), ("log2", 2), ("log1_5", 1.5), ("log1_2", 1.2)]
)
def test_prune(name: str, base: float) -> None:
    values, _ = read("prune")
    found = restraint.singular_values(values["delta_in"], values["weight"], base)
    assert relative(found.dense(), values[f"delta.{name}"]) < 1e-9


def test_sphere() -> None:
    values, given = read("sphere")
    weight, options = values["weight"], {"ratio": given["eta"], "strength": given["alpha"]}
    assert restraint.principal_directions(weight, given["eta"]).shape[1] == int(values["rank"])
    assert relative(restraint.off_principal(values["delta_in"], weight, **options).dense(), values["delta"]) < 1e-9
    as_in_gpt2 = restraint.off_principal(values["delta_in"], weight, **options, side="output")
    assert relative(as_in_gpt2.dense(), values["conv1d_delta"]) < 1e-9
    past = torch.zeros(48, 48, dtype=torch.float64)
    for keys, residuals, expected in batches(values, 2):
        h = preservation.null_space(values["second_moment"], given["nullspace_threshold"], given["L2"], past)
        delta = restraint.off_principal(closed_form_update(keys, residuals, h, 1.0), weight, **options)
        assert relative(delta.dense(), expected) < 1e-9
        weight, past = weight + delta.dense(), past + keys @ keys.T
