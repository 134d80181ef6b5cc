"""Second moments of output gradients: equal to a plain loop, the Fisher information, kept, told apart, resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from editing import small_gpt2
from safetensors.torch import load_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

import editkit.covariance.output_gradients
from editkit.cli.main import main
from editkit.covariance import SecondMomentSource, output_gradient_moments, second_moments
from editkit.covariance.output_gradients import OutputGradientMoments, digits_of, drawn, uniforms
from editkit.data.text import open_text
from editkit.data.windows import Window, windows, within_budget
from editkit.models.editable import EditableModel, watching
from editkit.models.loading import load_language_model
from editkit.utils.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
D_OUT = 32
of_text = partial(SecondMomentSource, text="atlas")


@pytest.fixture
def editable(tokenizer: PreTrainedTokenizerBase) -> EditableModel:
    """A random model of three blocks, whose parameters want gradients, as a user's own may."""
    sizes: dict[str, Any] = {"n_embd": D_OUT, "n_inner": 64, "n_layer": 3, "n_head": 4, "n_positions": 128}
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), initializer_range=0.2, **sizes)
    return EditableModel(GPT2LMHeadModel(config).eval())


def direct(editable: EditableModel, found: Sequence[Window], layers: Sequence[int], seed: int = 0) -> dict[int, Tensor]:
    """Σ g gᵀ / n in float64, one window at a time by the model's own logits, without padding."""
    total = {layer: torch.zeros(D_OUT, D_OUT, dtype=torch.float64) for layer in layers}

    def changed(change: Tensor) -> Callable[..., Tensor]:
        return lambda module, inputs, output: output + change.view(output.shape)

    for window in found:
        changes = {layer: torch.zeros(len(window.ids), D_OUT, requires_grad=True) for layer in layers}
        hooks = [editable.projection(layer).register_forward_hook(changed(changes[layer])) for layer in layers]
        with watching(*hooks):
            logits = editable.model(input_ids=torch.tensor([window.ids]), use_cache=False).logits[0]
        draws = uniforms(seed, window.number, len(window.ids), digits_of(logits.shape[1]))
        labels = [label(p, row) for p, row in zip(logits.detach().double().softmax(1), draws.tolist(), strict=True)]
        loss = -logits.log_softmax(1)[range(len(labels)), labels].sum()
        for layer, g in zip(layers, torch.autograd.grad(loss, list(changes.values())), strict=True):
            total[layer] += g.double().T @ g.double()
    count = sum(len(window.ids) for window in found)
    return {layer: moment / count for layer, moment in total.items()}


def label(p: Tensor, draws: Sequence[float]) -> int:
    """Binary digits, the lowest first, each by its probability given those before."""
    found = 0
    for digit, draw in enumerate(draws):
        zero, one = (float(p[found + bit * 2**digit :: 2 ** (digit + 1)].sum()) for bit in (0, 1))
        found += 2**digit * (draw >= zero / (zero + one))
    return found


def cut(tokenizer: PreTrainedTokenizerBase, source: SecondMomentSource) -> list[Window]:
    return list(within_budget(windows(tokenizer, open_text(source), source), source.num_tokens))


def difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def about(folder: Path, layer: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"layer-{layer}.output_gradients.json").read_text(encoding="utf-8"))
    return found


def test_equal_to_a_plain_loop_in_every_family(
    family_name: str,
    build_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    editable = EditableModel(build_model(family_name, vocab_size=len(tokenizer)).eval())
    source = of_text(path=str(tmp_path), num_tokens=400, max_length=40, max_tokens=130)
    found = output_gradient_moments(editable, tokenizer, [2, 1], source, progress=False)
    assert set(found) == {1, 2}
    for layer, moment in direct(editable, cut(tokenizer, source), [1, 2]).items():
        assert found[layer].dtype == torch.float64
        assert difference(found[layer], moment) < 1e-6


@pytest.mark.parametrize("packing", [False, True])
def test_equal_to_a_plain_loop_whatever_the_batches(
    packing: bool, editable: EditableModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    base = partial(of_text, num_tokens=3000, max_length=48, packing=packing, seed=3)
    whole = direct(editable, cut(tokenizer, base()), [0, 1, 2], seed=3)
    batches = (
        base(path=str(tmp_path / "one"), max_tokens=1000),
        base(path=str(tmp_path / "two"), max_tokens=1, layers_at_once=1, accumulate_on="cpu"),
    )
    for source in batches:
        found = output_gradient_moments(editable, tokenizer, [0, 1, 2], source, progress=False)
        assert max(difference(found[layer], whole[layer]) for layer in whole) < 1e-6
    assert about(tmp_path / "one", 2)["tokens"] == 3000
    assert not list(tmp_path.glob("*/.partial*"))


def test_the_head_and_the_loss_go_by_chunks(
    editable: EditableModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = output_gradient_moments(
        editable, tokenizer, [0], of_text(path=str(tmp_path / "one"), num_tokens=1000), progress=False
    )[0]
    seen: list[int] = []
    real = editable.head
    monkeypatch.setattr(editable, "head", lambda hidden: seen.append(len(hidden)) or real(hidden))
    monkeypatch.setattr(editkit.covariance.output_gradients, "LOGITS", 7 * editable.vocabulary)
    chunks = of_text(path=str(tmp_path / "two"), num_tokens=1000)
    assert difference(output_gradient_moments(editable, tokenizer, [0], chunks, progress=False)[0], whole) < 1e-6
    assert max(seen) == 7
    assert sum(seen) == 1000


def test_nothing_but_what_is_wanted_gets_a_gradient(
    editable: EditableModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    wanting = {name: name.endswith("bias") for name, _ in editable.model.named_parameters()}
    for name, parameter in editable.model.named_parameters():
        parameter.requires_grad_(wanting[name])
    graph: dict[int, bool] = {}

    def keep(layer: int) -> Callable[..., None]:
        return lambda module, inputs, output: graph.update({layer: output.requires_grad})

    hooks = [editable.projection(layer).register_forward_hook(keep(layer)) for layer in range(3)]
    with watching(*hooks):
        output_gradient_moments(
            editable, tokenizer, [1], of_text(path=str(tmp_path), num_tokens=500, save_minutes=0), progress=False
        )
    assert graph == {0: False, 1: False, 2: True}
    for name, parameter in editable.model.named_parameters():
        assert parameter.requires_grad == wanting[name]
        assert parameter.grad is None


def test_labels_are_drawn_as_the_model_predicts() -> None:
    torch.manual_seed(0)
    logits = 2 * torch.randn(50)
    logits[[0, 7, 49]] = -torch.inf  # which no number can draw
    number = 200_000
    draws = torch.rand(number, digits_of(50), dtype=torch.float64)
    draws[0], draws[1] = 0, 1 - 2.0**-53
    labels = drawn(logits.expand(number, -1), draws)
    shares = torch.bincount(labels, minlength=50) / number
    expected = logits.double().softmax(0)
    assert float(((shares - expected).abs() / (expected * (1 - expected) / number).sqrt().clamp(1e-9)).max()) < 4.5
    assert not shares[[0, 7, 49]].any()


def test_uniforms_are_of_a_window_and_a_seed() -> None:
    assert torch.equal(uniforms(1, 2, 40, 7)[:9], uniforms(1, 2, 9, 7))
    all_of_them = torch.cat([uniforms(seed, number, 50, 9).flatten() for seed in range(10) for number in range(20)])
    assert len(all_of_them.unique()) == len(all_of_them)
    assert abs(float(all_of_them.mean()) - 0.5) < 4 / (12 * len(all_of_them)) ** 0.5
    # what is kept of a run must be what another machine goes on with
    assert uniforms(0, 0, 2, 1).flatten().tolist() == [0.6125364365932952, 0.14825303081664865]


def one_token(tokenizer: PreTrainedTokenizerBase, file: Path, count: int) -> int:
    """A text of so many documents, all the same single token, which is returned."""
    word = next(w for w in ("a", "the", "is") if len(tokenizer(w)["input_ids"]) == 1)
    file.write_text("\n\n".join([word] * count), encoding="utf-8")
    return int(tokenizer(word)["input_ids"][0])


def test_in_expectation_it_is_the_fisher_information(
    editable: EditableModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = one_token(tokenizer, tmp_path / "text.txt", 20_000)

    def logits(change: Tensor) -> Tensor:
        hook = editable.projection(1).register_forward_hook(lambda module, inputs, output: output + change)
        with watching(hook):
            found: Tensor = editable.model(input_ids=torch.tensor([[token]]), use_cache=False).logits[0, 0]
        return found

    zero = torch.zeros(D_OUT)
    slopes = torch.autograd.functional.jacobian(logits, zero, vectorize=True).detach().double()
    p = logits(zero).detach().double().softmax(0)
    mean = p @ slopes
    fisher = slopes.T @ (p[:, None] * slopes) - mean[:, None] * mean
    seen: list[Tensor] = []
    real = OutputGradientMoments._take
    monkeypatch.setattr(OutputGradientMoments, "_take", lambda self, *a: (seen.append(a[1].double()), real(self, *a)))
    source = SecondMomentSource(text=str(tmp_path / "text.txt"), path=str(tmp_path / "m"), max_tokens=4000)
    found = output_gradient_moments(editable, tokenizer, [1], source, progress=False)[1]
    # by default a hundred tokens for each dimension
    assert about(tmp_path / "m", 1)["tokens"] == 100 * D_OUT
    many = SecondMomentSource(
        text=str(tmp_path / "text.txt"), path=str(tmp_path / "n"), num_tokens=20_000, max_tokens=4000
    )
    seen.clear()
    found = output_gradient_moments(editable, tokenizer, [1], many, progress=False)[1]
    gradients = torch.cat(seen)
    assert len(gradients) == 20_000
    assert difference(found, fisher) < 0.05
    assert difference(found, gradients.T @ gradients / len(gradients)) < 1e-6
    # E[g] = 0: of 20,000 independent ones, the mean's squared norm is about tr B / 20,000
    assert float(gradients.mean(0).square().sum()) < 2 * float(fisher.trace()) / 20_000


def test_another_seed_draws_other_labels_and_is_refused(
    editable: EditableModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    one_token(tokenizer, tmp_path / "text.txt", 2000)
    text = partial(SecondMomentSource, text=str(tmp_path / "text.txt"))
    run = partial(output_gradient_moments, editable, tokenizer, [1], progress=False)
    zero, one = (run(text(path=str(tmp_path / f"{seed}"), seed=seed))[1] for seed in (0, 1))
    again = run(text(path=str(tmp_path / "again"), seed=1))[1]
    assert torch.equal(one, again)
    assert 1e-3 < difference(zero, one) < 0.5
    with pytest.raises(
        InputError, match=r"^second_moment\.seed: expected the label_seed that .* made with, 0, but got 1; "
    ):
        run(text(path=str(tmp_path / "0"), seed=1))


class Cut(Exception):
    pass


@pytest.mark.parametrize("tolerance", [None, 0.1])
def test_a_run_that_was_cut_short_goes_on_to_the_same_bits(
    tolerance: float | None,
    editable: EditableModel,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base: dict[str, Any] = {"num_tokens": 6000, "max_tokens": 256, "save_minutes": 0, "tolerance": tolerance}
    run = partial(output_gradient_moments, editable, tokenizer, [0, 1], progress=False)
    whole = run(of_text(path=str(tmp_path / "whole"), **base))
    ran = 0
    real = OutputGradientMoments._forward

    def counted(self: OutputGradientMoments, batch: Any) -> None:
        nonlocal ran
        ran += 1
        if ran == 18:
            raise Cut
        real(self, batch)

    source = of_text(path=str(tmp_path / "cut"), **base)
    with monkeypatch.context() as patch:
        patch.setattr(OutputGradientMoments, "_forward", counted)
        with pytest.raises(Cut):
            run(source)
    (kept,) = (tmp_path / "cut").glob(".partial*")
    assert load_file(kept)
    resumed = run(source)
    assert all(torch.equal(resumed[layer], whole[layer]) for layer in (0, 1))
    one, two = (about(tmp_path / name, 0) for name in ("cut", "whole"))
    assert one == two
    assert not list((tmp_path / "cut").glob(".*"))


def test_they_stand_beside_those_of_the_keys_and_neither_is_read_as_the_other(
    editable: EditableModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = of_text(path=str(tmp_path), num_tokens=1000)
    of_keys = partial(second_moments, editable, tokenizer, [0], source, progress=False)
    of_gradients = partial(output_gradient_moments, editable, tokenizer, [0], source, progress=False)
    keys, gradients = of_keys()[0], of_gradients()[0]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "layer-0.cholesky.safetensors", "layer-0.json", "layer-0.output_gradients.json",
        "layer-0.output_gradients.safetensors", "layer-0.safetensors",
    ]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(OutputGradientMoments, "_forward", None)  # nothing is estimated again
        assert torch.equal(of_gradients()[0], gradients)
        assert torch.equal(of_keys()[0], keys)
    ours, theirs = tmp_path / "layer-0.output_gradients.safetensors", tmp_path / "layer-0.safetensors"
    kept = ours.read_bytes(), theirs.read_bytes()
    trusted = of_text(path=str(tmp_path), num_tokens=1000, trust=True)
    for file, content, run, told in (
        (ours, kept[1], output_gradient_moments, r"second moments of output gradients, but .* has those of 'keys'"),
        (theirs, kept[0], second_moments, r"second moments of keys, but .* has those of 'output_gradients'"),
    ):
        file.unlink()  # what was read from it may be mapped
        file.write_bytes(content)
        for asked in (source, trusted):
            with pytest.raises(InputError, match=rf"^second_moment\.path: expected {told}.*; delete it") as error:
                run(editable, tokenizer, [0], asked, progress=False)
            assert str(file) in str(error.value)
        file.unlink()
        file.write_bytes(kept[0] if file == ours else kept[1])
    damaged = bytearray(kept[0])
    damaged[-100] ^= 1
    ours.unlink()
    ours.write_bytes(damaged)
    with pytest.raises(InputError, match=r"^second_moment\.path: .*could not be read"):
        of_gradients()


def test_they_are_of_all_weights(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Keys depend on what is before them; a gradient on what comes after, too."""

    def moment(editable: EditableModel, of: Callable[..., dict[int, Tensor]]) -> Tensor:
        return of(editable, tokenizer, [1], of_text(path=str(tmp_path), num_tokens=1600), progress=False)[1]

    loaded = EditableModel(load_language_model("atlas")[0])
    for of in (second_moments, output_gradient_moments):
        moment(loaded, of)
    moment(EditableModel(load_language_model("atlas", "bfloat16")[0]), output_gradient_moments)  # the same weights
    weights = [loaded.weight(1), loaded.weight(3), dict(loaded.model.named_parameters())["transformer.ln_f.weight"]]
    for weight in weights:
        before = weight.detach().clone()
        with torch.no_grad():
            weight.mul_(1.1)
        moment(loaded, second_moments)
        with pytest.raises(InputError, match=r"^lm: expected the weights"):
            moment(loaded, output_gradient_moments)
        with torch.no_grad():
            weight.copy_(before)
        moment(loaded, output_gradient_moments)


def test_fewer_tokens_than_dimensions_are_of_lower_rank(
    editable: EditableModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    source = of_text(path=str(tmp_path), num_tokens=10)
    moment = output_gradient_moments(editable, tokenizer, [0], source, progress=False)[0]
    values = torch.linalg.eigvalsh(moment)
    assert int((values > 1e-6 * values[-1]).sum()) == 10
    assert about(tmp_path, 0)["effective_rank"] < 10
    assert "jitter" not in about(tmp_path, 0) or about(tmp_path, 0)["jitter"] is None


def test_bad_input(editable: EditableModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    run = partial(output_gradient_moments, editable, tokenizer, progress=False)
    with pytest.raises(InputError, match="0 to 2"):
        run([3], of_text(path=str(tmp_path), num_tokens=100))
    (tmp_path / "empty.txt").write_text(" \n\n ", encoding="utf-8")
    with pytest.raises(InputError, match=r"^second_moment\.text: expected at least one token"):
        run([0], SecondMomentSource(path=str(tmp_path / "m"), text=str(tmp_path / "empty.txt")))
    with pytest.raises(InputError, match=r"^second_moment\.text: expected a text from which the second moments of out"):
        run([0], SecondMomentSource(path=str(tmp_path / "m")))
    with torch.no_grad():
        editable.weight(2)[0, 0] = torch.inf
    with pytest.raises(InputError, match=r"^second_moment: expected finite output gradients of block 0"):
        run([0], of_text(path=str(tmp_path / "m"), num_tokens=100))
    assert not list((tmp_path / "m").glob("layer-*"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_low_precision(
    dtype: torch.dtype, editable: EditableModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    run = partial(output_gradient_moments, tokenizer=tokenizer, layers=[1], progress=False)
    full = run(editable, source=of_text(path=str(tmp_path / "full"), num_tokens=2000))[1]
    editable.model.to(dtype)
    low = run(editable, source=of_text(path=str(tmp_path / "low"), num_tokens=2000))[1]
    assert about(tmp_path / "low", 1)["dtype"] == str(dtype)
    # a label here and there is another
    assert 1e-6 < difference(low, full) < 0.2


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> str:
    return small_gpt2(tmp_path_factory.mktemp("lm"), tokenizer)


def test_two_processes_equal_one(lm: str, tmp_path: Path) -> None:
    options = ["covariance", "--of=output_gradients", lm, "--layers=[0,2]", "--second_moment.text=atlas"]
    options += ["--second_moment.num_tokens=6000", "--second_moment.max_tokens=300", "--second_moment.tolerance=1e-9"]
    assert main([*options, f"--second_moment.path={tmp_path / 'one'}"]) == 0
    two = [*options, f"--second_moment.path={tmp_path / 'two'}", "--trainer.devices=2", "--trainer.accelerator=cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "editkit.cli", *two], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for layer in (0, 2):
        name = f"layer-{layer}.output_gradients.safetensors"
        ours, theirs = (load_file(tmp_path / number / name)["second_moment"] for number in ("one", "two"))
        assert difference(theirs, ours) < 1e-6
    one, two_ = (about(tmp_path / number, 0) for number in ("one", "two"))
    assert one["tokens"] == two_["tokens"] == 6000
    assert one["change"] == pytest.approx(two_["change"], rel=1e-4)


def test_the_atlas_as_a_user_types_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["covariance", "--of=output_gradients", "--layers=[0,3]", "--second_moment.num_tokens=2000"]
    assert main([*command, f"--second_moment.path={tmp_path / 'm'}"]) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    begun = "second moments of output gradients: estimating blocks 0, 3 from 2,000 tokens of atlas, kept in"
    assert any(line.startswith(begun) for line in lines)
    assert f"second moments of output gradients in {tmp_path / 'm'}" in lines
    for word in ("d_out", "256", "2,000", "condition number", "effective rank"):
        assert word in shown
    assert "jitter" not in shown
    assert "d_in" not in shown
    # a Trainer in inference mode makes no difference
    other = [*command, f"--second_moment.path={tmp_path / 'n'}", "--trainer.inference_mode=true"]
    assert main(other) == 0
    for layer in (0, 3):
        name = f"layer-{layer}.output_gradients.safetensors"
        ours, theirs = (load_file(tmp_path / folder / name)["second_moment"] for folder in ("m", "n"))
        assert torch.equal(ours, theirs)
    capsys.readouterr()
    assert main([*command, f"--second_moment.path={tmp_path / 'm'}"]) == 0
    assert "estimating" not in capsys.readouterr().out
    assert main(["covariance", "--of=values", f"--second_moment.path={tmp_path / 'v'}"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line]
    assert "of: " in line
    assert "output_gradients" in line
    assert not (tmp_path / "v").exists()
