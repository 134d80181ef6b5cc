"""Which facts a run takes, batch by batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from editkit.data.module import FactsDataModule
from editkit.utils.errors import InputError


def test_batches_of_the_paper_s_table_are_drawn_without_replacement(tmp_path: Path) -> None:
    records = [{"subject": f"S{i}", "prompt": "{} is", "target_new": "x"} for i in range(400)]
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(records), encoding="utf-8")

    def drawn(**options: object) -> list[str]:
        module = FactsDataModule(str(path), **options)  # type: ignore[arg-type]
        module.setup()
        module.resolve_batch_size(None)
        assert all(len(module.batch_indices(i)) == options["batch_size"] for i in range(module.num_batches))
        return [f.subject for f in module.selected]

    subjects = drawn(batch_size=64, num_batches="paper", seed=1)
    assert len(subjects) == len(set(subjects)) == 320
    assert subjects == drawn(batch_size=64, num_batches=5, seed=1)
    assert subjects != drawn(batch_size=64, num_batches=5, seed=2)
    assert subjects[:12] == drawn(batch_size=4, num_batches=3, seed=1)  # the same draw, whatever the batches
    for options, told in (
        ({"batch_size": 256, "num_batches": "paper"}, "5 batches of 256 are 1280 facts, but .* has 400"),
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
