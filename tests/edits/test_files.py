"""The ledger's files: older schemas are read, applied, exported and resumed; harm is told; an index may lag behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from editing import same_state as same
from editing import state
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from editkit import Edits, Fact, InputError, export_adapter, export_checkpoint, load_edits
from editkit.cli.main import main
from editkit.edits import AppliedEdits, Context, EditBatch, PromptEdit, WeightEdit
from editkit.edits.files import SCHEMA, batch_file
from editkit.functional import Delta, DenseDelta, LowRankDelta, SparseDelta, ZeroDelta
from editkit.models.editable import EditableModel
from editkit.models.fingerprint import sampled, sampled_fingerprint
from editkit.models.loading import load_language_model
from editkit.utils.hashes import tensor_hash
from editkit.utils.sealed import is_sealed, read_about

Build = Callable[..., PreTrainedModel]
Forms = Callable[[tuple[int, int]], dict[str, Delta]]
MakeLedger = Callable[..., Edits]
ROOT = Path(__file__).resolve().parents[2]


def index_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "edits.json").read_text(encoding="utf-8"))
    return found


def write_index(folder: Path, schema: int, edits: Edits, about: Mapping[str, Any], batches: list[Any]) -> None:
    header = {"schema": schema, "sequential": edits.sequential, "model": edits.model, "about": about}
    (folder / "edits.json").write_text(json.dumps({**header, "batches": batches}), encoding="utf-8")


# ---------------------------------------------------------------- older schemas


def older(edits: Edits, unedited: PreTrainedModel) -> Edits:
    """A ledger with what older editkits recorded: fingerprint and weights by a few entries."""
    applied = AppliedEdits(EditableModel(unedited))
    batches = []
    for batch in edits.batches:
        applied.apply(batch.edit)
        samples = {name: sampled(applied.model.parameter(name)).clone() for name in batch.edit.parameters}
        batches.append(replace(batch, sketches={}, samples=samples))
    applied.restore()
    return replace(edits, model=sampled_fingerprint(unedited), batches=batches)


def write_schema_1(folder: Path, edits: Edits, unedited: PreTrainedModel) -> None:
    """Blocks for parameters, a dense change as a lone left factor, and all but tensors in edits.json."""
    folder.mkdir()
    edits, layers = older(edits, unedited), layers_of(unedited)
    for index, batch in enumerate(edits.batches):
        tensors = {}
        for name, delta in batch.edit.weight_changes().items():
            if isinstance(delta, LowRankDelta):
                tensors |= {f"{layers[name]}.left": delta.left, f"{layers[name]}.right": delta.right}
            else:
                tensors[f"{layers[name]}.left"] = delta.dense()
        save_file(tensors, batch_file(folder, index))
    batches = [
        {"facts": [asdict(f) for f in b.facts], "hashes": {str(layers[name]): v for name, v in b.hashes.items()}}
        for b in edits.batches
    ]
    write_index(folder, 1, edits, edits.about, batches)


KINDS = {LowRankDelta: "low_rank", DenseDelta: "dense", SparseDelta: "sparse", ZeroDelta: "none"}


def write_schema_2(folder: Path, edits: Edits, unedited: PreTrainedModel, about: Mapping[str, Any]) -> None:
    """Blocks for parameters, tensors "BLOCK.PART", all else of a batch in its file's header, a prompt beside deltas."""
    folder.mkdir()
    edits, layers = older(edits, unedited), layers_of(unedited)
    entries = []
    for index, batch in enumerate(edits.batches):
        edit = batch.edit
        deltas = edit.deltas if isinstance(edit, WeightEdit) else {}
        prompt = edit.contexts[0].text if isinstance(edit, PromptEdit) else None
        tensors = {f"{layers[name]}.{part}": t for name, d in deltas.items() for part, t in d.tensors().items()}
        tensors |= {f"{layers[name]}.samples": t for name, t in batch.samples.items()}
        tensors |= {f"{key.removeprefix('keys.')}.keys": t for key, t in edit.state.items()}
        entry = {
            "facts": [asdict(fact) for fact in batch.facts],
            "deltas": {str(layers[n]): {"kind": KINDS[type(d)], "shape": list(d.shape)} for n, d in deltas.items()},
            "hashes": {str(layers[name]): value for name, value in batch.hashes.items()},
            "notes": edit.notes,
            "prompt": prompt,
        }
        entries.append(entry)
        save_file(tensors, batch_file(folder, index), {"schema": "2", "batch": json.dumps(entry, ensure_ascii=False)})
    write_index(folder, 2, edits, about, entries)


def layers_of(model: PreTrainedModel) -> dict[str, int]:
    editable = EditableModel(model)
    return {editable.parameter_of(layer): layer for layer in range(editable.depth)}


@pytest.mark.parametrize("name", ["gpt2", "llama"])  # Conv1D and Linear
def test_a_ledger_of_schema_1_is_read(
    build_model: Build, forms: Forms, make_ledger: MakeLedger, tmp_path: Path, name: str
) -> None:
    model = build_model(name)
    made = forms((32, 128) if name == "gpt2" else (32, 48))
    edits = make_ledger(model, [{0: made["low_rank"]}, {0: made["dense"]}])
    write_schema_1(tmp_path / "old", edits, build_model(name))
    kept = load_edits(tmp_path / "old")
    assert same(kept.apply(build_model(name)), state(model))
    kept.save(tmp_path / "new")
    assert index_of(tmp_path / "new")["schema"] == SCHEMA
    assert same(load_edits(tmp_path / "new").apply(build_model(name)), state(model))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_ledger_of_schema_2_is_read_applied_and_exported(
    build_model: Build,
    forms: Forms,
    make_ledger: MakeLedger,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    name: str,
) -> None:
    model = build_model(name)
    made = forms((32, 128) if name == "gpt2" else (32, 48))
    edits = make_ledger(model, [{0: delta, 2: made["low_rank"]} for delta in made.values()])
    edits.batches[1].edit.state = {"keys.0": torch.randn(5, 2), "keys.2": torch.randn(5, 2)}
    edits.batches[2].edit.notes = {"condition_number": 3.0, "dropped": ["of no name"]}
    write_schema_2(tmp_path / "old", edits, build_model(name), edits.about)

    kept = load_edits(tmp_path / "old")
    assert [b.facts for b in kept.batches] == [b.facts for b in edits.batches]
    assert [b.edit.notes for b in kept.batches] == [b.edit.notes for b in edits.batches]
    assert list(kept.batches[1].edit.state) == ["keys.0", "keys.2"]
    for key, tensor in kept.batches[1].edit.state.items():
        assert torch.equal(tensor, edits.batches[1].edit.state[key])
    fresh = build_model(name)
    before = state(fresh)
    kept.batches[-1].hashes["block 2"] += "?"  # what was recorded is looked at: the samples too are found
    with pytest.warns(UserWarning, match="not bit for bit"):
        kept.apply(fresh)
    kept.undo(fresh)
    kept = load_edits(tmp_path / "old")
    assert same(kept.apply(fresh), state(model))
    assert same(kept.undo(fresh), before)
    kept.save(tmp_path / "new")
    assert index_of(tmp_path / "new")["schema"] == SCHEMA
    assert same(load_edits(tmp_path / "new").apply(build_model(name)), state(model))

    export_checkpoint(kept, fresh, tokenizer, tmp_path / "checkpoint")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), loaded.parameters(), strict=True))
    export_adapter(edits, fresh, tmp_path / "adapter")
    export_adapter(kept, fresh, tmp_path / "adapter-2")
    one, two = (load_file(tmp_path / f / "adapter_model.safetensors") for f in ("adapter", "adapter-2"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_batches_of_both_schemas_are_exported_as_those_of_one(
    build_model: Build, forms: Forms, make_ledger: MakeLedger, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """What a run of an older editkit leaves that is gone on with: a parameter has two names in one ledger."""
    model, fresh = build_model("gpt2"), build_model("gpt2")
    made = forms((32, 128))
    whole = make_ledger(model, [{0: made["low_rank"], 1: made["low_rank"]}, {0: made["low_rank"]}, {0: made["dense"]}])
    write_schema_2(tmp_path / "mixed", replace(whole, batches=whole.batches[:2]), fresh, whole.about)
    begun = load_edits(tmp_path / "mixed")
    replace(begun, model=whole.model).save_index(tmp_path / "mixed")  # as a run does that goes on
    whole.save(tmp_path / "whole")
    batch_file(tmp_path / "whole", 2).rename(batch_file(tmp_path / "mixed", 2))
    mixed = load_edits(tmp_path / "mixed")
    assert len(mixed.batches) == 3
    for rank in (None, 3):
        one, two = (export_adapter(e, fresh, tmp_path / f"{n}-{rank}", rank=rank) for n, e in enumerate((whole, mixed)))
        assert one == two
        tensors = [load_file(tmp_path / f"{n}-{rank}" / "adapter_model.safetensors") for n in (0, 1)]
        assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
    export_checkpoint(mixed, fresh, tokenizer, tmp_path / "checkpoint")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), loaded.parameters(), strict=True))


def test_a_prompt_of_schema_2_is_read(
    build_model: Build, facts: list[Fact], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    edits = Edits([EditBatch(facts, PromptEdit(contexts=(Context("Rome lies in Spain."),)))], model="m")
    write_schema_2(tmp_path / "old", edits, build_model("gpt2"), {})
    assert load_edits(tmp_path / "old").batches[0].edit == edits.batches[0].edit


def test_a_change_of_schema_2_that_does_not_fit_is_named(
    build_model: Build, forms: Forms, make_ledger: MakeLedger, tmp_path: Path
) -> None:
    model, other = build_model("gpt2"), build_model("llama")
    edits = make_ledger(model, [{0: forms((32, 128))["dense"]}])
    write_schema_2(tmp_path / "old", edits, build_model("gpt2"), {})
    before = state(other)
    with pytest.raises(InputError, match=r"shape \(32, 48\) for block 0 of LlamaForCausalLM, but got \(32, 128\)"):
        load_edits(tmp_path / "old").apply(other, force=True)
    assert same(other, before)


def older_words(about: dict[str, Any]) -> dict[str, Any]:
    """What a run recorded of itself in schema 2: the updater's settings apart, the protocol among the editor's."""
    settings = dict(about["hyperparameters"])
    beside = {name: settings.pop(name) for name in ("earlier_keys", "dependent")}
    settings["moments"] = settings.pop("second_moment")
    settings["protocol"] = {"generation_length": 40}
    name = about["editor"].rpartition(".")[2]
    return {**about, **beside, "editor": f"editkit.editors.{name.lower()}.{name}", "hyperparameters": settings}


def content_of(file: Path) -> dict[str, str]:
    """A batch's header and the hashes of its tensors."""
    header: dict[str, str] = read_about(file) if is_sealed(file) else safe_open(file, framework="pt").metadata()
    return header | {name: tensor_hash(tensor) for name, tensor in load_file(file).items()}


def emptied(folder: Path) -> Path:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    return folder


def test_a_run_of_schema_2_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Batches of both schemas lie in one folder, the keys of the older ones are preserved, and no bit differs."""
    from editkit.editors.closed_form.searcher import ValueSearcher

    moments = json.dumps({"path": str(tmp_path / "moments"), "num_tokens": 8000})
    command = [
        "fit", "--config", str(ROOT / "configs" / "quickstart.yaml"),
        "--config", str(ROOT / "configs" / "evaluation" / "facts-alone.yaml"), f"--model.second_moment={moments}",
        "--data.num_facts=6", "--data.batch_size=2", "--weight_update.mode=sequential", "--model.earlier_keys=auto",
        "--model.values.num_steps=4", "--trainer.enable_progress_bar=false", f"--run_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    assert main(command) == 0
    folder = tmp_path / "run" / "edits"
    whole, last = load_edits(folder), content_of(batch_file(folder, 2))
    records = (tmp_path / "run" / "records.jsonl").read_text(encoding="utf-8")
    model, _ = load_language_model("atlas")
    begun = replace(whole, batches=whole.batches[:2])
    other = older_words(whole.about)
    other["hyperparameters"]["ridge"] = 7.0  # settings are compared in the words of today
    write_schema_2(emptied(folder), begun, model, other)
    assert main(command) == 2
    assert "model (hyperparameters) differs" in capsys.readouterr().err
    write_schema_2(emptied(folder), begun, model, older_words(whole.about))

    searched: list[Fact] = []
    find = ValueSearcher.find

    def counted(self: ValueSearcher, groups: Any, *args: Any) -> Any:
        searched.extend(fact for group in groups for fact in group)
        return find(self, groups, *args)

    monkeypatch.setattr(ValueSearcher, "find", counted)
    assert main(command) == 0
    assert searched == list(whole.batches[2].facts)
    assert content_of(batch_file(folder, 2)) == last
    assert [content_of(batch_file(folder, n))["schema"] for n in range(3)] == ["2", "2", SCHEMA]
    assert index_of(folder)["schema"] == SCHEMA
    mixed = load_edits(folder)
    assert mixed.about == whole.about
    assert [b.facts for b in mixed.batches] == [b.facts for b in whole.batches]
    edited = state(mixed.apply(model))
    mixed.undo(model)
    assert same(whole.apply(model), edited)
    assert (tmp_path / "run" / "records.jsonl").read_text(encoding="utf-8") == records
    searched.clear()
    assert main(command) == 0  # and a third time: all is done
    assert not searched


# ---------------------------------------------------------------- the folder


def test_batches_made_after_the_index_was_written_count(kept: tuple[Path, Edits]) -> None:
    folder, edits = kept
    edits.batches, made = [], edits.batches
    edits.save_index(folder)  # as a run does when it begins
    assert [b.hashes for b in load_edits(folder).batches] == [b.hashes for b in made]


def test_a_shorter_ledger_replaces_a_longer_one(kept: tuple[Path, Edits]) -> None:
    folder, edits = kept
    replace(edits, batches=edits.batches[:1]).save(folder)
    assert len(load_edits(folder).batches) == 1


def test_tensors_are_named_by_what_they_are(kept: tuple[Path, Edits]) -> None:
    name = "transformer.h.0.mlp.c_proj.weight"
    parts = (f"edit:{name}:left", f"edit:{name}:right", f"sketch:{name}")
    assert tuple(sorted(load_file(batch_file(kept[0], 0)))) == parts
    assert index_of(kept[0])["batches"][0]["edit"] == {
        "kind": "weights", "deltas": {name: {"kind": "low_rank", "shape": [32, 128]}},
    }  # fmt: skip


@pytest.mark.parametrize("harm", ["truncated", "missing", "empty index", "newer", "no index", "foreign"])
def test_harmed_files_are_one_clear_line(kept: tuple[Path, Edits], harm: str) -> None:
    folder, _ = kept
    index, file = folder / "edits.json", batch_file(folder, 1)
    if harm == "truncated":
        file.write_bytes(file.read_bytes()[:-50])
    elif harm == "missing":
        file.unlink()
    elif harm == "foreign":
        save_file({"weight": torch.zeros(2)}, file)
    elif harm == "no index":
        index.unlink()
    elif harm == "newer":
        index.write_text(index.read_text(encoding="utf-8").replace(f'"schema": {SCHEMA}', '"schema": 99'))
    else:
        index.write_text("")
    with pytest.raises(InputError, match="edits: expected") as caught:
        load_edits(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
