"""Small things that cost trust."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hostile import Call, Command, Places

import editkit
from editkit.models.loading import load_language_model

FIT = "fit --data.num_facts=2 --model.layers=[0] --trainer.enable_progress_bar=false"
WANTED = r"second_moment\.text: expected a text .* but got none.*; give a \.txt or \.jsonl file.*'atlas' where"


def _edit(folder: Path, places: Places, **options: Any) -> None:
    fact = {"subject": "Rome", "prompt": "{} is in", "target_new": "Asia"}
    editkit.edit(*load_language_model(str(places.tiny)), [fact], editkit.EMMET(layers=[0]), progress=False, **options)


QUICK = (
    "fit --config quickstart --config evaluation/facts-alone --data.num_facts=1 --model.values.num_steps=2 "
    "--run_dir=run --trainer.enable_progress_bar=false"
)


ROWS = [
    Command(
        "an estimate is announced without bars, and one fact is one",
        f"{QUICK} --model.second_moment.num_tokens=1600 --model.second_moment.path=m",
        r"second moments: estimating block 0 from 1,600 tokens of atlas, kept in m .*atlas, 1 fact, EMMET",
        code=0,
    ),
    Command("fit: no text for another model", f"{FIT} --model.lm=$tiny", WANTED),
    Command(
        "fit: a folder that lacks moments, and no text",
        f"{FIT} --model.lm=$tiny --model.second_moment.path=moments",
        r"second moments of block 0 of .* but got none and moments does not have them; give",
    ),
    Command("covariance: no text for another model", "covariance --lm=$tiny --layers=[0]", WANTED),
    Command("covariance: no text, before the model is read", "covariance --lm=nobody/nothing --layers=[0]", WANTED),
    Command(
        "covariance: a folder that lacks moments, and no text",
        "covariance --lm=$tiny --layers=[0,1] --second_moment.path=moments",
        r"second moments of blocks 0, 1 of .* but got none and moments does not have them; give",
    ),
    Call("edit: no text for another model", _edit, WANTED),
    Call(
        "edit: a folder that lacks moments, and no text",
        lambda folder, places: _edit(folder, places, second_moment=folder / "moments"),
        WANTED,
    ),
]
