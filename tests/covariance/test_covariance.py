"""Second moments: equal to the direct sum, whole or batched, kept and checked, resumed, within memory."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import tempfile
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

import editkit.covariance.accumulate
import editkit.covariance.estimate
import editkit.utils.progress
from editkit.atlas.builtin import BuiltIn
from editkit.atlas.corpus import documents
from editkit.covariance import (
    SecondMomentSource,
    check_can_keep,
    check_has_text,
    factored_second_moments,
    second_moments,
)
from editkit.covariance.accumulate import SecondMoments
from editkit.covariance.folder import SecondMomentFolder
from editkit.data.text import open_text
from editkit.data.windows import Window, windows, within_budget
from editkit.edits.weight_edit import apply_delta
from editkit.functional import LowRankDelta
from editkit.models.editable import EditableModel, StopForward, watching
from editkit.models.loading import load_language_model
from editkit.utils.distributed import raise_on_all_ranks
from editkit.utils.errors import InputError

D_IN = 64
of_text = partial(SecondMomentSource, text="atlas")


def tiny(name: str, tokenizer: PreTrainedTokenizerBase) -> EditableModel:
    """A random model of three blocks: gpt2 stores its projections as Conv1D, llama and gpt_neox as Linear."""
    sizes: dict[str, Any] = {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4}
    sizes |= {"n_inner": D_IN} if name == "gpt2" else {"intermediate_size": D_IN}
    config = AutoConfig.for_model(name, vocab_size=len(tokenizer), max_position_embeddings=128, **sizes)
    return EditableModel(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False))


def direct(editable: EditableModel, found: Sequence[Window], layer: int) -> Tensor:
    """Σ k kᵀ / n in float64, one window at a time, without padding."""
    total, count = torch.zeros(D_IN, D_IN, dtype=torch.float64), 0

    def keep(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal total, count
        keys = inputs[0].reshape(-1, D_IN).double()
        total, count = total + keys.T @ keys, count + len(keys)
        raise StopForward

    for window in found:
        with torch.no_grad(), watching(editable.projection(layer).register_forward_pre_hook(keep)):
            editable.model(input_ids=torch.tensor([window.ids]))
    return total / count


def cut(tokenizer: PreTrainedTokenizerBase, source: SecondMomentSource) -> list[Window]:
    return list(within_budget(windows(tokenizer, open_text(source), source), source.num_tokens))


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).norm() <= 1e-6 * theirs.norm())


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("packing", [False, True])
def test_equal_to_the_direct_sum(name: str, packing: bool, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    editable = tiny(name, tokenizer)
    source = of_text(path=str(tmp_path), num_tokens=2000, max_length=48, packing=packing, max_tokens=300)
    found = second_moments(editable, tokenizer, [2, 0], source, progress=False)
    assert set(found) == {0, 2}
    for layer, moment in found.items():
        assert close(moment, direct(editable, cut(tokenizer, source), layer))
    assert json.loads((tmp_path / "layer-2.json").read_text(encoding="utf-8"))["tokens"] == 2000


def test_batched_equals_whole_and_layers_may_come_in_turn(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    editable = tiny("gpt2", tokenizer)
    whole = second_moments(
        editable, tokenizer, [0, 1, 2], of_text(path=str(tmp_path / "one"), num_tokens=3000), progress=False
    )
    parts = of_text(path=str(tmp_path / "two"), num_tokens=3000, max_tokens=200, layers_at_once=1, accumulate_on="cpu")
    for layer, moment in second_moments(editable, tokenizer, [0, 1, 2], parts, progress=False).items():
        assert close(moment, whole[layer])
    assert not list((tmp_path / "two").glob(".partial*"))


def test_nothing_runs_after_the_last_projections_input(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    editable = tiny("gpt2", tokenizer)
    ran: list[int] = []
    for layer in range(3):
        editable.projection(layer).register_forward_hook(lambda *args, layer=layer: ran.append(layer))
    source = of_text(path=str(tmp_path), num_tokens=500, save_minutes=0)
    second_moments(editable, tokenizer, [0, 1], source, progress=False)
    assert set(ran) == {0}


def test_documents_do_not_attend_to_each_other_unless_packed(tokenizer: PreTrainedTokenizerBase) -> None:
    text = open_text(of_text())
    alone = list(within_budget(windows(tokenizer, text, of_text(max_length=64)), 3000))
    packed = list(within_budget(windows(tokenizer, text, of_text(max_length=64, packing=True)), 3000))
    joint = [token for window in packed for token in window.ids]
    first = next(text.documents())
    assert alone[0].ids == tuple(tokenizer(first)["input_ids"][:64])
    assert not any(tokenizer.eos_token_id in window.ids for window in alone)
    assert {len(window.ids) for window in packed[:-1]} == {64}
    assert joint.count(tokenizer.eos_token_id) > 5


def test_moments_are_kept_and_layers_added(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editable = tiny("gpt2", tokenizer)
    source = of_text(path=str(tmp_path), num_tokens=1000)
    first = second_moments(editable, tokenizer, [0], source, progress=False)[0]
    stamp = (tmp_path / "layer-0.safetensors").stat().st_mtime_ns
    both = second_moments(editable, tokenizer, [0, 1], source, progress=False)
    assert (tmp_path / "layer-0.safetensors").stat().st_mtime_ns == stamp
    assert torch.equal(both[0], first)
    monkeypatch.setattr(SecondMoments, "_forward", None)  # nothing is estimated again
    any_size = of_text(path=str(tmp_path))  # no num_tokens: what the folder has
    factored = factored_second_moments(editable, tokenizer, [0, 1], any_size, progress=False)
    assert close(factored[1].factor @ factored[1].factor.T, both[1])


def test_without_a_path_the_users_cache_keeps_them(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDITKIT_CACHE", str(tmp_path))
    editable = tiny("gpt2", tokenizer)
    for num_tokens in (500, 600, 500):
        second_moments(editable, tokenizer, [0], of_text(num_tokens=num_tokens), progress=False)
    assert len(list((tmp_path / "moments").glob("*/layer-0.safetensors"))) == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"max_length": 32}, ("second_moment.max_length", "128", "32")),
        ({"packing": True}, ("second_moment.packing", "False", "True")),
        ({"num_tokens": 999}, ("second_moment.num_tokens", "1000", "999")),
        ({"seed": 1}, ("second_moment.text", "text_revision", "'atlas'")),
    ],
)
def test_moments_of_something_else_are_refused_unless_trusted(
    change: dict[str, Any], told: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    editable = tiny("gpt2", tokenizer)
    options: dict[str, Any] = {"path": str(tmp_path), "num_tokens": 1000}
    kept = second_moments(editable, tokenizer, [0], of_text(**options), progress=False)[0]
    refused(editable, tokenizer, of_text(**options | change), (*told, "second_moment.trust=true", "layer-0"))
    trusted = of_text(**options | change, trust=True)
    assert torch.equal(second_moments(editable, tokenizer, [0], trusted, progress=False)[0], kept)


def refused(
    editable: EditableModel,
    tokenizer: PreTrainedTokenizerBase,
    source: SecondMomentSource,
    told: Sequence[str],
    layer: int = 0,
) -> None:
    with pytest.raises(InputError) as error:
        second_moments(editable, tokenizer, [layer], source, progress=False)
    assert "\n" not in str(error.value)
    for word in told:
        assert word in str(error.value)


def test_moments_of_other_weights_are_refused_and_layers_above_do_not_matter(
    atlas: tuple[PreTrainedModel, PreTrainedTokenizerBase], tmp_path: Path
) -> None:
    editable, tokenizer = EditableModel(atlas[0]), atlas[1]
    source = of_text(path=str(tmp_path), num_tokens=2000)
    second_moments(editable, tokenizer, [1], source, progress=False)
    change = LowRankDelta(0.1 * torch.randn(editable.hidden_size, 1), torch.randn(1536, 1))
    for layer in (2, 1):  # the keys of block 1 are as they were
        apply_delta(editable, editable.parameter_of(layer), change)
        second_moments(editable, tokenizer, [1], source, progress=False)
    apply_delta(editable, editable.parameter_of(0), change)  # an edited model is no longer what its checkpoint says
    refused(editable, tokenizer, source, ("lm:", "weights", "layer-1", "second_moment.trust=true"), layer=1)
    fresh = EditableModel(load_language_model("atlas", "bfloat16")[0])  # another dtype of the same weights is the same
    second_moments(fresh, tokenizer, [1], source, progress=False)


def test_a_checkpoint_is_hashed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase
) -> None:
    from editkit.models import content

    monkeypatch.setenv("EDITKIT_CACHE", str(tmp_path / "cache"))
    tiny("gpt2", tokenizer).model.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    for file in (tmp_path / "lm").iterdir():
        os.utime(file, (1e9, 1e9))  # one that was written just now is not remembered
    counted: list[Path] = []
    real = content.tensor_digests
    monkeypatch.setattr(content, "tensor_digests", lambda file: counted.append(file) or real(file))
    hashes = [
        content.content_hashes(EditableModel(load_language_model(str(tmp_path / "lm"))[0]), [0, 1]) for _ in range(2)
    ]
    assert hashes[0] == hashes[1]
    assert len(counted) == 1
    assert hashes[0][0] != hashes[0][1]
    loaded = EditableModel(load_language_model(str(tmp_path / "lm"))[0])
    loaded.model.save_pretrained(tmp_path / "lm", max_shard_size="40KB")  # the same weights in several files
    (tmp_path / "lm" / "model.safetensors").unlink(missing_ok=True)
    assert content.content_hashes(EditableModel(load_language_model(str(tmp_path / "lm"))[0]), [0, 1]) == hashes[0]


@pytest.mark.parametrize("damage", ["truncated", "garbage", "flipped"])
def test_a_broken_file_is_told(damage: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    editable, file = tiny("gpt2", tokenizer), tmp_path / "layer-0.safetensors"
    source = of_text(path=str(tmp_path), num_tokens=500)
    second_moments(editable, tokenizer, [0], source, progress=False)
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes({"truncated": content[:-200], "garbage": b"none", "flipped": content}[damage])
    refused(editable, tokenizer, source, ("second_moment.path", "layer-0.safetensors", "delete"))


def test_a_factor_of_another_matrix_is_made_anew(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    editable = tiny("gpt2", tokenizer)
    source = of_text(path=str(tmp_path), num_tokens=500)
    good = factored_second_moments(editable, tokenizer, [0, 1], source, progress=False)
    factors = [tmp_path / f"layer-{layer}.cholesky.safetensors" for layer in (0, 1)]
    factors[0].unlink()  # what was read from it is mapped, not copied
    factors[0].write_bytes(factors[1].read_bytes())
    again = factored_second_moments(editable, tokenizer, [0, 1], source, progress=False)
    assert torch.equal(again[0].factor, good[0].factor)
    assert torch.equal(load_file(factors[0])["factor"], good[0].factor)
    ridged = factored_second_moments(
        editable, tokenizer, [0], of_text(path=str(tmp_path), num_tokens=500, ridge=0.5), progress=False
    )
    moment = second_moments(editable, tokenizer, [0], source, progress=False)[0]
    expected = moment + 0.5 * moment.diagonal().mean() * torch.eye(D_IN, dtype=torch.float64)
    assert close(ridged[0].factor @ ridged[0].factor.T, expected)


def test_a_full_disk_leaves_what_was_there(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    editable = tiny("gpt2", tokenizer)
    kept = of_text(path=str(tmp_path), num_tokens=500)
    second_moments(editable, tokenizer, [0], kept, progress=False)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))  # no file may grow beyond: what a full disk does
    try:
        refused(editable, tokenizer, kept, ("second_moment.path", "untouched", "room"), layer=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    second_moments(editable, tokenizer, [0, 1], kept, progress=False)


def never(*args: Any, **options: Any) -> None:
    raise AssertionError("the work was begun")


@pytest.mark.parametrize("place", ["file", "file/below", "nowhere"])
def test_a_path_that_cannot_be_is_found_before_the_work(
    place: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(editkit.covariance.estimate, "_estimate", never)
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    source = of_text(path=str(tmp_path / place), num_tokens=500)
    editable = tiny("gpt2", tokenizer)
    refused(editable, tokenizer, source, ("second_moment.path", place, "choose another"))
    with pytest.raises(InputError, match=r"^second_moment\.path: "):
        check_can_keep(source, [0])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "nowhere"]


@pytest.mark.parametrize("path", [None, "new/folder"])
def test_a_place_that_cannot_be_written_is_found_before_the_work(
    path: str | None, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDITKIT_CACHE", str(tmp_path / "cache"))
    source = of_text(path=path and str(tmp_path / path), num_tokens=500)
    editable = tiny("gpt2", tokenizer)
    with monkeypatch.context() as patch:  # permissions stop nobody who may do everything, as tests may
        patch.setattr(editkit.covariance.estimate, "_estimate", never)
        patch.setattr(tempfile, "TemporaryFile", read_only)
        option = "EDITKIT_CACHE" if path is None else "second_moment.path"
        refused(editable, tokenizer, source, (option, "Read-only", "choose another"))
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "cache" / "moments").exists()
    second_moments(editable, tokenizer, [0], source, progress=False)
    with monkeypatch.context() as patch:  # what is there may be of a disk that can only be read
        patch.setattr(tempfile, "TemporaryFile", read_only)
        assert set(second_moments(editable, tokenizer, [0], source, progress=False)) == {0}
        check_can_keep(source, [0])


def read_only(*args: Any, **options: Any) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


def test_nothing_is_left_where_another_mistake_ends_it(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    source = of_text(path=str(tmp_path / "m"), text="gone.txt")
    check_can_keep(source, [0])
    refused(tiny("gpt2", tokenizer), tokenizer, source, ("second_moment.text", "gone.txt"))
    assert not (tmp_path / "m").exists()


def test_a_text_is_wanted_of_any_model_but_a_built_in_one(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(editkit.covariance.estimate, "_estimate", never)
    editable, none = tiny("gpt2", tokenizer), SecondMomentSource(path=str(tmp_path / "m"), num_tokens=500)
    told = ("second_moment.text", ".jsonl", "wikimedia/wikipedia", "'atlas'", "second_moment.path")
    refused(editable, tokenizer, none, (*told, "of block 0"))
    refused(editable, tokenizer, SecondMomentSource(), told)
    assert not (tmp_path / "m").exists()
    for name in ("atlas", str(BuiltIn.model)):
        check_has_text(SecondMomentSource(), name, [0])
    with pytest.raises(InputError, match=r"^second_moment\.text: expected a text .* of gpt2 "):
        check_has_text(SecondMomentSource(), "gpt2", [0])


def test_a_folder_that_has_the_moments_needs_no_text(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    editable = tiny("gpt2", tokenizer)
    kept = of_text(path=str(tmp_path), num_tokens=500, max_length=32, packing=True)
    moment = second_moments(editable, tokenizer, [0], kept, progress=False)[0]
    alone = SecondMomentSource(path=str(tmp_path))
    assert torch.equal(second_moments(editable, tokenizer, [0], alone, progress=False)[0], moment)
    other = tiny("gpt2", tokenizer)  # what remains checked
    torch.nn.init.normal_(other.model.get_input_embeddings().weight)
    refused(other, tokenizer, alone, ("lm: expected the weights",))
    refused(editable, tokenizer, SecondMomentSource(path=str(tmp_path), num_tokens=700), ("num_tokens",))


def test_the_atlas_s_own_text_is_the_atlas_s(atlas: Any, tmp_path: Path) -> None:
    editable = EditableModel(atlas[0])
    for place, source in (("asked", of_text), ("left", SecondMomentSource)):
        source = source(path=str(tmp_path / place), num_tokens=1600)
        second_moments(editable, atlas[1], [0], source, progress=False)
    one, two = (json.loads((tmp_path / name / "layer-0.json").read_text("utf-8")) for name in ("asked", "left"))
    assert one == two
    assert one["text"] == "atlas"


def test_a_log_says_how_far_it_is(
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(editkit.utils.progress, "EVERY", 0.0)
    source = of_text(path=str(tmp_path / "m"), num_tokens=3000, max_tokens=256)
    factored_second_moments(tiny("gpt2", tokenizer), tokenizer, [0, 2], source)
    told = capsys.readouterr()
    lines = [line for line in told.err.splitlines() if line.startswith("[0:")]
    for words in (
        r"second moments: looking for what there is",
        r"second moments of block 0, 2: [\d,]+ of 3,000 tokens \(\d+%\), \d+:\d\d:\d\d left",
        r"second moments: eigenvalues and factor of block 2",
        r"second moments: reading the factors",
    ):
        assert any(re.search(words, line) for line in lines), (words, lines)
    # where it is kept is for a person to copy
    assert f"kept in {tmp_path / 'm'}\n" in told.out
    assert not [thread for thread in threading.enumerate() if thread.name == "editkit heartbeat"]


def test_who_wants_no_progress_gets_none(
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(editkit.utils.progress, "EVERY", 0.0)
    source = of_text(path=str(tmp_path / "m"), num_tokens=500)
    factored_second_moments(tiny("gpt2", tokenizer), tokenizer, [0], source, progress=False)
    assert not [line for line in capsys.readouterr().err.splitlines() if "second moments" in line]


def test_memory_is_checked_before_the_start(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editable = tiny("gpt2", tokenizer)
    room = 2 * 8 * D_IN**2
    monkeypatch.setattr(editkit.covariance.accumulate, "free_bytes", lambda device: room)
    told = ("needs", "3 layers of 64", "are free", "second_moment.layers_at_once=2")
    with pytest.raises(InputError) as error:
        second_moments(editable, tokenizer, [0, 1, 2], of_text(path=str(tmp_path), num_tokens=500), progress=False)
    assert all(word in str(error.value) for word in told)
    fits = of_text(path=str(tmp_path), num_tokens=500, layers_at_once=2)
    assert len(second_moments(editable, tokenizer, [0, 1, 2], fits, progress=False)) == 3


def test_it_stops_once_converged(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    editable = tiny("gpt2", tokenizer)
    base: dict[str, Any] = {"num_tokens": 20_000, "max_tokens": 256}
    loose = of_text(path=str(tmp_path / "loose"), tolerance=0.2, **base)
    second_moments(editable, tokenizer, [0, 1], loose, progress=False)
    about = json.loads((tmp_path / "loose" / "layer-1.json").read_text(encoding="utf-8"))
    assert about["tokens"] < 20_000
    assert about["change"] < 0.2
    tight = of_text(path=str(tmp_path / "tight"), tolerance=1e-9, **base)
    second_moments(editable, tokenizer, [0], tight, progress=False)
    about = json.loads((tmp_path / "tight" / "layer-0.json").read_text(encoding="utf-8"))
    assert about["tokens"] == 20_000
    assert about["change"] > 1e-9


class Cut(Exception):
    pass


@pytest.mark.parametrize("tolerance", [None, 0.1])
def test_a_run_that_was_cut_short_goes_on(
    tolerance: float | None, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editable = tiny("gpt2", tokenizer)
    base: dict[str, Any] = {"num_tokens": 6000, "max_tokens": 256, "save_minutes": 0, "tolerance": tolerance}
    whole = second_moments(editable, tokenizer, [0, 1], of_text(path=str(tmp_path / "whole"), **base), progress=False)
    ran = 0
    real = SecondMoments._forward

    def counted(self: SecondMoments, batch: Any) -> None:
        nonlocal ran
        ran += 1
        if ran == 8:
            raise Cut
        real(self, batch)

    monkeypatch.setattr(SecondMoments, "_forward", counted)
    source = of_text(path=str(tmp_path / "cut"), **base)
    with pytest.raises(Cut):
        second_moments(editable, tokenizer, [0, 1], source, progress=False)
    (partial,) = (tmp_path / "cut").glob(".partial*")
    assert load_file(partial)
    resumed = second_moments(editable, tokenizer, [0, 1], source, progress=False)
    for layer in (0, 1):
        assert close(resumed[layer], whole[layer])
    abouts = [json.loads((tmp_path / n / "layer-0.json").read_text(encoding="utf-8")) for n in ("cut", "whole")]
    assert abouts[0]["tokens"] == abouts[1]["tokens"]
    assert abouts[0]["documents"] == abouts[1]["documents"]
    assert not list((tmp_path / "cut").glob(".*"))


def test_too_few_tokens(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    editable = tiny("gpt2", tokenizer)
    refused(editable, tokenizer, of_text(num_tokens=63), ("second_moment.num_tokens", "d_in = 64", "63", "ridge"))
    (tmp_path / "short.txt").write_text("A few words only.", encoding="utf-8")
    short = of_text(path=str(tmp_path / "m"), text=str(tmp_path / "short.txt"))
    refused(editable, tokenizer, short, ("second_moment.num_tokens", "64", "second_moment.text"))
    (tmp_path / "empty.txt").write_text(" \n\n ", encoding="utf-8")
    empty = of_text(path=str(tmp_path / "m"), text=str(tmp_path / "empty.txt"))
    refused(editable, tokenizer, empty, ("second_moment.text", "at least one token", "empty.txt"))
    refused(editable, tokenizer, of_text(), ("layers", "0 to 2", "3"), layer=3)
    few = of_text(path=str(tmp_path / "f"), num_tokens=40, ridge=1e-2)
    assert factored_second_moments(editable, tokenizer, [0], few, progress=False)[0].factor.isfinite().all()


def test_documents_can_be_the_budget(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    editable = tiny("gpt2", tokenizer)
    second_moments(editable, tokenizer, [0], of_text(path=str(tmp_path), num_documents=30), progress=False)
    about = json.loads((tmp_path / "layer-0.json").read_text(encoding="utf-8"))
    import random
    from itertools import islice

    texts = list(islice(documents(random.Random("moments 0")), 30))
    assert about["documents"] == 30
    assert about["tokens"] == sum(map(len, tokenizer(texts)["input_ids"]))


def test_an_error_alone_is_raised_as_it_is() -> None:
    raise_on_all_ranks(None)
    with pytest.raises(InputError, match="here"):
        raise_on_all_ranks(InputError("here"))


def test_trust_needs_no_text(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    editable = tiny("gpt2", tokenizer)
    second_moments(editable, tokenizer, [0], of_text(path=str(tmp_path), num_tokens=500), progress=False)
    gone = of_text(path=str(tmp_path), text="gone.txt", trust=True)
    assert second_moments(editable, tokenizer, [0], gone, progress=False)[0].shape == (D_IN, D_IN)
    wide = SecondMomentFolder(tmp_path, {0: {"d_in": 65}}, trust=True)
    with pytest.raises(InputError, match="d_in"):
        wide.missing([0])
