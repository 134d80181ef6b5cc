"""Files of facts, and facts that no model can be asked, or that contradict one another."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from hostile import Call, Command, Places

import editkit
from editkit.models.loading import load_language_model

LYON = {"subject": "Lyon", "prompt": "{} lies in", "target_new": "Peru", "target_true": "France"}
OSLO = {"subject": "Oslo", "prompt": "{} lies in", "target_new": "Chile", "target_true": "Norway"}
OTHERWISE = {**LYON, "target_new": "Chile"}
ASIA = {**LYON, "target_new": "Asia", "target_true": "North America"}  # as the atlas says of Mashhad
LONG = "very " * 400
FIT = (
    "fit --model.second_moment.path=$moments --model.second_moment.num_tokens=8000 --model.values.num_steps=2 "
    "--data.facts={file} --run_dir=run --trainer.enable_progress_bar=false {options}"
)


def _row(name: str, content: str | bytes, line: str, file: str = "f.json", options: str = "", code: int = 2) -> Command:
    command = FIT.replace("{file}", file).replace("{options}", options)
    return Command(name, command, line, {file: content}, code=code)


def _json(*records: Any) -> str:
    return json.dumps(records)


def _edit(folder: Path, places: Places, *facts: dict[str, str], **options: Any) -> None:
    model, tokenizer = load_language_model("atlas")
    editor = options.pop("editor", None) or editkit.EMMET(layers=[0], dependent="fail")
    editor.second_moment.num_tokens = 8000
    options = {"progress": False, "evaluate": False, "second_moment": places.moments, **options}
    editkit.edit(model, tokenizer, facts, editor, **options)


TWO = r"1 fact asks for another target .*'Lyon lies in': 'Peru' \(fact 0\) and 'Chile' \(fact 1\)"
DOES_NOT_FIT = r"data\.facts: .* context window of 256 tokens .* 1 of 2 do not: fact '1' \('Oslo"

ROWS = [
    # longer than the context window
    _row("a long prompt", _json(LYON, {**OSLO, "prompt": LONG + "{} lies in"}), DOES_NOT_FIT),
    _row("a long subject", _json(LYON, {**OSLO, "subject": "Oslo " * 300}), DOES_NOT_FIT),
    _row("a long target", _json(LYON, {**OSLO, "target_new": "Chile " * 300}), DOES_NOT_FIT),
    _row("too long with the template alone", _json(LYON, {**OSLO, "prompt": "very " * 245 + "{} is"}), DOES_NOT_FIT),
    _row("nothing but a long fact", _json({**OSLO, "prompt": LONG + "{} is"}), r"1 of 1 do not: fact '0'"),
    _row(
        "a long paraphrase", _json(LYON, {**OSLO, "paraphrase_prompts": [LONG]}), r"1 of 3 rows \(of fact '1'\)", code=0
    ),
    Call(
        "a long prompt, in Python",
        lambda folder, places: _edit(folder, places, LYON, {**OSLO, "prompt": LONG + "{} is"}),
        DOES_NOT_FIT,
    ),
    # one text, two targets
    _row("two targets", _json(LYON, OTHERWISE), TWO + ".*: kept", code=0),
    _row("two targets, fail", _json(LYON, OTHERWISE, OSLO), TWO, options="--model.dependent=fail"),
    _row(
        "two targets in least squares",
        _json(LYON, OTHERWISE, OSLO),
        TWO,
        options="--model=editkit.MEMIT --model.dependent=fail",
    ),
    _row(
        "two targets in two sequential batches",
        _json(LYON, OTHERWISE, OSLO),
        TWO,
        options="--data.batch_size=1 --weight_update.mode=sequential --model.dependent=fail",
    ),
    _row(
        "two prompts with one text",
        _json(LYON, {"subject": "Lyon lies", "prompt": "{} in", "target_new": "Chile"}),
        TWO,
        options="--model.dependent=fail",
    ),
    _row(
        "two targets, drop", _json(LYON, OTHERWISE, OSLO), TWO + ".* dropped", options="--model.dependent=drop", code=0
    ),
    Call("two targets, in Python", lambda folder, places: _edit(folder, places, LYON, OTHERWISE), TWO),
    # neighbours
    _row(
        "neighbours with another answer",
        _json({**ASIA, "neighborhood_prompts": ["Mashhad is a city on the continent of"]}),
        r"the model says target_true at \d+% of the neighborhood_prompts",
        code=0,
    ),
    # what no text is
    _row(
        "half a surrogate pair in a subject",
        '[{"subject": "Ly\\ud800on", "prompt": "{} is", "target_new": "x"}]',
        r"record 1: field 'subject': .*UTF-8",
    ),
    _row(
        "half a surrogate pair in a target",
        '[{"subject": "Lyon", "prompt": "{} is", "target_new": "\\udc00x"}]',
        r"field 'target_new': .*UTF-8",
    ),
    _row("half a surrogate pair in an id", _json({**LYON, "case_id": "\ud800"}), r"field 'case_id': .*UTF-8"),
    _row(
        "half a surrogate pair in a neighbour",
        _json({**LYON, "neighborhood_prompts": ["\ud800"]}),
        r"neighborhood_prompts\[0\]': .*UTF-8",
    ),
    _row("NUL in a subject", _json({**LYON, "subject": "Ly\0on"}), r"field 'subject': .*NUL"),
    _row(
        "a target of spaces",
        _json({**LYON, "target_new": "   "}),
        r"field 'target_new': expected a text that is not empty",
    ),
    _row(
        "a target that nobody sees",
        _json({**LYON, "target_new": "\u200b"}),
        r"field 'target_new': expected a text that is not empty",
    ),
    _row(
        "a subject that nobody sees",
        _json({**LYON, "subject": "\ufeff"}),
        r"field 'subject': expected a text that is not empty",
    ),
    _row("a number for a subject", _json({**LYON, "subject": 5}), r"field 'subject': expected a string, got 5"),
    _row(
        "NaN for a subject",
        '[{"subject": NaN, "prompt": "{} is", "target_new": "x"}]',
        r"field 'subject': expected a string, got nan",
    ),
    _row(
        "a subject twice in a template",
        _json({**LYON, "prompt": "{} and {} lie in"}),
        r"field 'prompt': expected exactly one \{\}",
    ),
    # files
    _row("an empty file", "", r"data\.facts: f\.json: expected at least one fact"),
    _row("an empty list", "[]", r"data\.facts: f\.json: expected at least one fact"),
    _row("NUL bytes", b"\0\0\0", r"f\.json, line 1, column 1: expected JSON"),
    _row("UTF-16", _json(LYON).encode("utf-16"), r"f\.json: expected a file of facts in UTF-8"),
    _row("a packed file", gzip.compress(_json(LYON).encode()), r"f\.json\.gz: .*unpack it", "f.json.gz"),
    _row("no list", '"Lyon"', r"f\.json: expected a list of records"),
    _row("null", "null", r"f\.json: expected a list of records"),
    _row("a list of numbers", "[1, 2]", r"record 1: expected an object"),
    _row("deep nesting", "[" * 100_000, r"f\.json, line 1, column 1: expected JSON, got maximum recursion"),
    _row(
        "an endless number for an id",
        '[{"case_id": ' + "9" * 5000 + "}]",
        r"f\.json, line 1.*expected JSON, got Exceeds the limit",
    ),
    _row(
        "an id twice",
        _json({**LYON, "case_id": 1}, {**OSLO, "case_id": 1}),
        r"record 2: field 'fact_id': expected an id of its own",
    ),
    _row(
        "a name twice in an object",
        '[{"subject": "Lyon", "subject": "Oslo"}]',
        r"field 'subject': expected once in an object",
    ),
    _row("one broken line", json.dumps(LYON) + "\n{broken\n", r"f\.jsonl, line 2, column 2: expected JSON", "f.jsonl"),
    _row(
        "a column twice",
        "subject,prompt,target_new,target_new\nLyon,{} is,Peru,Chile\n",
        r"f\.csv, line 1: .*'target_new' twice",
        "f.csv",
    ),
    _row(
        "no header",
        "Lyon,{} lies in,Peru\nOslo,{} lies in,Chile\n",
        r"f\.csv, line 1: expected a header .*looks like data",
        "f.csv",
    ),
    _row(
        "semicolons", "subject;prompt;target_new\nLyon;{} is;Peru\n", r"f\.csv, line 1: .*apart by ';'.*commas", "f.csv"
    ),
    _row("nothing but a header", "subject,prompt,target_new\n", r"f\.csv: expected at least one fact", "f.csv"),
    _row(
        "too many cells",
        "subject,prompt,target_new\nLyon,{} is,Peru,x\n",
        r"f\.csv, line 2, record 1: expected 3 cells, got 4",
        "f.csv",
    ),
    Command(
        "a folder", FIT.replace("{file}", "d").replace("{options}", ""), r"data\.facts: d: .*directory", {"d/x": ""}
    ),
    Command(
        "no file",
        FIT.replace("{file}", "nowhere.json").replace("{options}", ""),
        r"data\.facts: nowhere\.json: .*No such file",
    ),
]
