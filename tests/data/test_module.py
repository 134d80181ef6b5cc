"""Which facts a run takes, batch by batch, which it chooses settings by, and what each process gets of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from editkit.data.facts import Fact
from editkit.data.module import FactsDataModule, group_by_key
from editkit.data.plan import Measurement
from editkit.data.rows import EvaluationRow, GenerationRow, Questions, evaluation_rows
from editkit.utils.errors import InputError


def test_batches_of_the_paper_s_table_are_drawn_without_replacement(tmp_path: Path) -> None:
    records = [{"subject": f"S{i}", "prompt": "{} is", "target_new": "x"} for i in range(400)]
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(records), encoding="utf-8")

    def drawn(**options: object) -> list[str]:
        module = FactsDataModule(str(path), **options)  # type: ignore[arg-type]
        module.setup()
        plan = module.make_plan()
        assert all(len(plan.batch(i)) == options["batch_size"] for i in range(plan.num_batches))
        assert [f for i in range(plan.num_batches) for f in plan.batch(i)] == module.selected
        return [f.subject for f in module.selected]

    subjects = drawn(batch_size=64, num_batches="paper", seed=1)
    assert len(subjects) == len(set(subjects)) == 320
    assert subjects == drawn(batch_size=64, num_batches=5, seed=1)
    assert subjects != drawn(batch_size=64, num_batches=5, seed=2)
    assert subjects[:12] == drawn(batch_size=4, num_batches=3, seed=1)  # the same draw, whatever the batches
    for options, told in (
        ({"batch_size": 256, "num_batches": "paper"}, "5 batches of 256 would be 1,280 facts, but .* has 400"),
        ({"batch_size": 5, "num_batches": "paper"}, "4, 16, 64"),
        ({"num_batches": 2}, "batch_size None"),
        ({"batch_size": 4, "num_batches": 2, "num_facts": 8}, "num_facts 8"),
    ):
        with pytest.raises(InputError, match=rf"data\.\w+: .*{told}"):
            drawn(**options)


def test_zsre_s_target_is_an_option(tmp_path: Path) -> None:
    record = {"subject": "UniFirst", "src": "What does UniFirst make?", "alt": "aircraft", "answers": ["uniform"]}
    path = tmp_path / "zsre.json"
    path.write_text(json.dumps([record]), encoding="utf-8")
    for options, expected in (({}, ("uniform", None)), ({"zsre_target": "alt"}, ("aircraft", "uniform"))):
        module = FactsDataModule(str(path), **options)  # type: ignore[arg-type]
        module.setup()
        assert [(f.target_new, f.target_true) for f in module.selected] == [expected]
    with pytest.raises(InputError, match="zsre_target"):
        FactsDataModule(zsre_target="alt").setup()  # the built-in facts are none of zsRE's


def module(**options: Any) -> FactsDataModule:
    made = FactsDataModule(**{"num_facts": 8, "batch_size": 4, **options})
    made.setup()
    return made


# ---------------------------------------------------------------- the plan


def test_a_batch_size_is_as_asked_or_what_the_editor_can_take() -> None:
    assert module().make_plan().batch_size == 4
    assert module(batch_size=None).make_plan().batch_size == 8
    assert module(batch_size=None).make_plan(limit=3).batch_size == 3
    assert module(batch_size=None).make_plan(limit=99).batch_size == 8
    with pytest.raises(InputError, match=r"data.batch_size: .* the run's 8 facts, but got 9"):
        module(batch_size=9).make_plan()
    with pytest.raises(InputError, match=r"data.batch_size: this editor takes 1 fact at a time, but got 4"):
        module().make_plan(limit=1)


def test_the_same_arguments_make_the_same_plan() -> None:
    data = module(probe_every=2)
    settings: dict[str, Any] = {"questions": Questions(3), "folder": Path("edits"), "batches_done": 1}
    plan = data.make_plan(None, True, 1, True, **settings)
    assert data.plan is plan
    assert data.make_plan(None, True, 1, True, **settings) == plan
    assert (plan.num_batches, plan.sequential, plan.probe_every, plan.questions.generations) == (1, True, 2, 3)
    assert list(plan.facts) == data.selected
    assert data.make_plan().tuning is None


def test_without_a_plan_all_facts_are_one_batch() -> None:
    plan = module(batch_size=3).plan
    assert (len(plan.facts), plan.num_batches) == (8, 1)


# ---------------------------------------------------------------- facts to choose settings by


def test_other_facts_are_taken_where_there_are_enough() -> None:
    data = module()
    reported = list(data.selected)
    plan = data.make_plan(hold_out=True)
    assert list(plan.facts) == data.selected == reported  # nothing is taken from them
    assert plan.tuning is not None
    assert len(plan.tuning.facts) == plan.batch_size
    assert not {f.subject for f in plan.tuning.facts} & {f.subject for f in reported}
    prompts = {row.prompt for row in evaluation_rows(plan.facts, range(8))}
    assert plan.tuning.rows
    assert not prompts & {row.prompt for row in plan.tuning.rows}


def test_of_facts_without_others_half_of_the_prompts_is_held_out() -> None:
    given = module(num_facts=6).selected
    data = FactsDataModule.of(given, 4)
    plan = data.make_plan(hold_out=True)
    assert data.make_plan(hold_out=True) == plan  # a second time changes nothing
    assert data.selected == given
    assert plan.tuning is not None
    tuning = {row.prompt for row in plan.tuning.rows}
    reported = {row.prompt for row in evaluation_rows(plan.facts, range(6))}
    assert tuning
    assert not tuning & reported
    everything = {row.prompt for row in evaluation_rows(given, range(6))}
    assert tuning | reported <= everything
    kinds = [row.kind for row in plan.tuning.rows]
    assert min(kinds.count(1), kinds.count(2)) > 0
    assert not kinds.count(0)
    assert [f.text() for f in plan.facts] == [f.text() for f in given]
    assert list(plan.facts[4:]) == given[4:]  # facts of later batches keep all
    assert list(data.make_plan().facts) == given


# ---------------------------------------------------------------- loaders

FACTS = [
    Fact(
        f"S{n % 4}", "{} is", f"x{n}", "y", paraphrase_prompts=(f"is S{n}",), generation_prompts=(f"S{n} said",),
        fact_id=str(n),
    )
    for n in range(9)
]  # fmt: skip


def on(data: FactsDataModule, epoch: int = 0, rank: int = 0, world: int = 1, shards: bool = True) -> FactsDataModule:
    """As a trainer in ``fit`` has it."""
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        current_epoch=epoch, global_rank=rank, world_size=world, state=SimpleNamespace(fn="fit"),
        lightning_module=SimpleNamespace(shards_facts=shards, tokenizer=None, editable=SimpleNamespace(context=64)),
    )  # fmt: skip
    return data


def steps(data: FactsDataModule) -> list[list[Fact]]:
    return list(data.train_dataloader())


@pytest.mark.parametrize("facts_per_step", [1, 2, 5])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_facts_are_dealt_out_by_key_in_as_many_steps_on_each_process(world: int, facts_per_step: int) -> None:
    data = FactsDataModule.of(FACTS, 6)
    data.facts_per_step = facts_per_step
    plan = data.make_plan()
    for epoch in range(plan.num_batches):
        shares = [steps(on(data, epoch, rank, world)) for rank in range(world)]
        assert len({len(share) for share in shares}) == 1  # or a process would wait for ever
        dealt = [fact for share in shares for step in share for fact in step]
        assert sorted(f.fact_id for f in dealt) == [f.fact_id for f in plan.batch(epoch)]
        for group in group_by_key(plan.batch(epoch)):  # equal keys are found together
            assert sum(group[0] in step for share in shares for step in share) == 1
            assert any(all(fact in step for fact in group) for share in shares for step in share)
        everything = [steps(on(data, epoch, rank, world, shards=False)) for rank in range(world)]
        assert all([f for step in share for f in step] == [
            f for group in group_by_key(plan.batch(epoch)) for f in group
        ] for share in everything)  # fmt: skip


def test_a_batch_that_is_done_or_beyond_the_last_is_one_empty_step() -> None:
    data = FactsDataModule.of(FACTS, 4)
    data.make_plan(batches_done=2)
    assert [steps(on(data, epoch)) for epoch in (0, 1, 3)] == [[[]]] * 3
    assert steps(on(data, 2)) == [[FACTS[8]]]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_rows_are_dealt_out_once(world: int) -> None:
    data = FactsDataModule.of(FACTS, 4)
    data.generation = True
    plan = data.make_plan(sequential=True, questions=Questions(generations=2))
    for epoch, count in ((0, 4), (1, 4), (2, 9)):
        parts = [on(data, epoch, rank, world).val_dataloader() for rank in range(world)]
        assert {len(loaders) for loaders in parts} == {2}
        edits = [row for loaders in parts for batch in loaders[0] for row in batch]
        texts = [row for loaders in parts for batch in loaders[1] for row in batch]
        assert all(isinstance(row, EvaluationRow) for row in edits)
        assert all(isinstance(row, GenerationRow) for row in texts)
        facts = list(plan.after(epoch).facts)
        assert len(facts) == count
        expected = evaluation_rows([FACTS[i] for i in facts], facts)
        assert sorted(edits, key=lambda row: (row.fact, row.kind)) == expected
        assert sorted((row.fact, row.number) for row in texts) == [(i, n) for i in facts for n in (0, 1)]


def test_another_measurement_leaves_the_first_as_it_is() -> None:
    data = on(FactsDataModule.of(FACTS, 4), epoch=1)
    data.make_plan()
    other = data.measuring(Measurement({"after": [2]}, batch=0, probes=False))
    assert data.measurement == data.plan.after(1)
    rows = [row for batch in other.val_dataloader()[0] for row in batch]
    assert rows == evaluation_rows([FACTS[2]], [2])
    assert replace(other.measurement, batch=1) != data.measurement
