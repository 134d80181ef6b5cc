"""Evaluation as a user runs it: before, after and at the end of a run, probes on the way, any ledger afterwards."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from editkit.atlas.world import load_world
from editkit.cli.main import main
from editkit.data.facts import as_facts
from editkit.edits import load_edits
from editkit.models.loading import load_language_model

ROOT = Path(__file__).resolve().parents[2]
EVALUATION = [
    "--data.num_facts=5", "--data.batch_size=2", "--data.probe_every=2", "--data.text.num_tokens=300",
    "--evaluation.protocol.generation_length=32", "--trainer.enable_progress_bar=false",
    '--data.probes=[{task: sst2, examples: 6, shots: 1}, {task: cola, examples: 6, scored: both}]',
]  # fmt: skip


def arguments(folder: Path) -> list[str]:
    moments = json.dumps({"path": str(folder / "moments"), "num_tokens": 8000})
    return [
        "--config", str(ROOT / "configs" / "quickstart.yaml"), *EVALUATION, f"--model.second_moment={moments}",
        "--model.values.num_steps=8",
    ]  # fmt: skip


def metrics_of(folder: Path) -> dict[str, Any]:
    text = (folder / "metrics.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    found: dict[str, Any] = json.loads(text)
    return found


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def sequential(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three sequential batches: two facts, two, and one."""
    folder = tmp_path_factory.mktemp("sequential")
    assert main(["fit", *arguments(folder), "--weight_update.mode=sequential", f"--run_dir={folder / 'run'}"]) == 0
    return folder / "run"


def test_before_after_and_final(sequential: Path) -> None:
    metrics, rows = metrics_of(sequential), records_of(sequential)
    assert {"ES", "PS", "NS", "S", "EA", "PA", "NA", "EA_token", "GE"} <= set(metrics["before"])
    assert set(metrics["before"]) == set(metrics["after"]) == set(metrics["final"])
    assert metrics["protocol"]["name"] == "own" and metrics["protocol"]["generation_length"] == 32
    facts = [f.fact_id for f in as_facts(load_world().records("report")[:5])]
    for phase, batches in (("before", [None] * 5), ("after", [0, 0, 1, 1, 2]), ("final", [2] * 5)):
        rewrites = [r for r in rows if r["phase"] == phase and r["kind"] == "rewrite"]
        assert [(r["fact"], r["batch"]) for r in rewrites] == list(zip(facts, batches, strict=True))
        score = 100 * sum(r["nll_new"] < r["nll_true"] for r in rewrites) / 5
        assert metrics[phase]["ES"] == pytest.approx(score)
        assert metrics[phase]["EA"] == pytest.approx(20 * sum(r["right_tokens"] == 1 for r in rewrites))
        assert all(r["greedy"] for r in rewrites)
        texts = [r for r in rows if r["phase"] == phase and r["kind"] == "generation"]
        assert len(texts) == 15 and all(r["text"] for r in texts)
    last = [r["nll_new"] for r in rows if r["kind"] == "rewrite" and r["fact"] == facts[4] and r["phase"] != "before"]
    assert last[0] == last[1]  # measured once, right after its batch and at the end


def test_probes_along_the_way(sequential: Path) -> None:
    metrics, rows = metrics_of(sequential), records_of(sequential)
    assert set(metrics["probes"]) == {"sst2", "cola", "cola (generated)", "text"}
    assert [(p["phase"], p["batch"]) for p in metrics["probe_path"]] == [("before", None), ("after", 1), ("after", 2)]
    assert metrics["probes"]["sst2"]["after"] == metrics["probe_path"][-1]["sst2"]  # sequential: after the last
    asked = [r for r in rows if r["kind"] == "probe" and r["probe"] == "sst2" and r["phase"] == "before"]
    right = 100 * sum(r["predicted"] == r["label"] for r in asked) / len(asked)
    assert len(asked) == 6 and metrics["probes"]["sst2"]["before"]["accuracy"] == pytest.approx(right)
    assert metrics["probes"]["text"]["before"]["perplexity"] > 1
    with (sequential / "probes.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert {(r["batch"], r["edits"]) for r in table} == {("0", "0"), ("2", "4"), ("3", "5")}
    assert (sequential / "probes.png").read_bytes().startswith(b"\x89PNG")
    logged = (sequential / "logs" / "metrics.csv").read_text(encoding="utf-8").splitlines()[0]
    assert {"val/ES", "val/final/ES", "val/sst2/accuracy", "val/text/perplexity"} <= set(logged.split(","))


def test_validate_measures_a_ledger_without_its_run(sequential: Path, tmp_path: Path) -> None:
    options = ["validate", *arguments(tmp_path), f"--edits={sequential / 'edits'}"]
    assert main([*options, f"--run_dir={tmp_path / 'all'}"]) == 0
    whole, run = metrics_of(tmp_path / "all"), metrics_of(sequential)
    assert whole["edits"] == str(sequential / "edits")
    assert all(whole[name] == run[name] for name in ("model", "editor", "versions"))
    assert whole["before"] == pytest.approx(run["before"], abs=1e-3)
    assert whole["after"] == pytest.approx(run["final"], abs=1e-3)
    assert whole["probes"]["cola"]["after"] == pytest.approx(run["probes"]["cola"]["after"], abs=1e-3)
    assert main([*options, "--edits_batch=0", f"--run_dir={tmp_path / 'first'}"]) == 0
    first = [r for r in records_of(tmp_path / "first") if r["kind"] == "rewrite" and r["phase"] == "after"][:2]
    same = [r for r in records_of(sequential) if r["kind"] == "rewrite" and r["phase"] == "after"][:2]
    assert [r["nll_new"] for r in first] == pytest.approx([r["nll_new"] for r in same], abs=1e-4)


def test_validate_measures_an_exported_checkpoint(sequential: Path, tmp_path: Path) -> None:
    model, tokenizer = load_language_model("atlas")
    load_edits(sequential / "edits").apply(model).save_pretrained(tmp_path / "exported")
    tokenizer.save_pretrained(tmp_path / "exported")
    options = [f"--model.lm={tmp_path / 'exported'}", "--data.probes=null", "--data.text=null"]
    assert main(["validate", *arguments(tmp_path), *options, f"--run_dir={tmp_path / 'run'}"]) == 0
    found, run = metrics_of(tmp_path / "run"), metrics_of(sequential)
    assert found["before"] == pytest.approx(run["final"], abs=1e-3) and "probes" not in found


def test_independent_batches_of_a_ledger(tmp_path: Path) -> None:
    assert main(["fit", *arguments(tmp_path), f"--run_dir={tmp_path / 'run'}"]) == 0
    run = metrics_of(tmp_path / "run")
    assert "final" not in run
    measured = [p["sst2"]["accuracy"] for p in run["probe_path"] if p["phase"] == "after"]
    assert run["probes"]["sst2"]["after"]["accuracy"] == pytest.approx(sum(measured) / 2)  # the mean of batches
    options = ["validate", *arguments(tmp_path), f"--edits={tmp_path / 'run' / 'edits'}"]
    assert main([*options, f"--run_dir={tmp_path / 'again'}"]) == 0
    again = metrics_of(tmp_path / "again")
    assert again["after"] == pytest.approx(run["after"], abs=1e-3)
    assert [p["batch"] for p in again["probe_path"]] == [None, 0, 1, 2]


def refused(options: list[str], told: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main([*options, f"--run_dir={folder}"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line and "Loading weights" not in line]
    assert len(errors) == 1 and all(word in errors[0] for word in told), errors
    assert not folder.exists()


def test_bad_input_is_one_line(sequential: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"sentence": "good", "label": 1}\n{"sentence": "odd", "label": "mixed"}\n', encoding="utf-8")
    base = ["validate", *arguments(tmp_path)]
    for options, told in [
        ([f"--data.probes=[{{task: sst2, source: {bad}}}]"], ("probes.sst2", "line 2", "'label'", "'mixed'", "remove")),
        (["--data.probes=[{task: sst3}]"], ("probes.task", "sst2", "'sst3'")),
        (["--data.probes=[{task: sst2}, {task: sst2}]"], ("probes", "'sst2' twice", "name")),
        (["--evaluation.protocol=papre"], ("protocol", "easyedit", "'papre'")),
        ([f"--edits={tmp_path / 'none'}"], ("edits", "none")),
        (["--edits_batch=1"], ("edits_batch", "--edits")),
        ([f"--edits={sequential / 'edits'}", "--edits_batch=7"], ("batch", "0 to 2", "7")),
        ([f"--edits={sequential / 'edits'}", "--model.dtype=bfloat16"], ("edits", "fingerprint")),
    ]:
        refused([*base, *options], told, tmp_path / "run", capsys)


def test_the_run_goes_on_where_it_can(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "In the shops of Rome people say many things about many other things and places. " * 40
    facts = [
        {"subject": "Rome", "prompt": "{} lies in", "target_new": "Spain", "target_true": "Italy"},
        {"subject": "Oslo", "prompt": "{} lies in", "target_new": "Spain", "target_true": "Norway",
         "paraphrase_prompts": [long + "Oslo lies in", "Oslo is in"], "unrelated_prompts": ["Paris is in"],
         "unrelated_answers": ["France"]},
    ]  # fmt: skip
    (tmp_path / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    examples = "".join(
        json.dumps({"sentence": long * (i == 9) + f"it is {i}", "label": i % 2}) + "\n" for i in range(40)
    )
    (tmp_path / "sst2.jsonl").write_text(examples, encoding="utf-8")
    options = [
        "validate", f"--data.facts={tmp_path / 'facts.json'}", f"--run_dir={tmp_path / 'run'}",
        f"--data.probes=[{{task: sst2, source: {tmp_path / 'sst2.jsonl'}, pool: 0, scored: both}}]",
        "--trainer.enable_progress_bar=false", "--evaluation.protocol=public",
    ]  # fmt: skip
    told = "2 of .* rows .of fact .1.. are longer than the model's context window of 256 tokens"
    with pytest.warns(UserWarning, match=told):
        assert main(options) == 0
    metrics = metrics_of(tmp_path / "run")
    assert metrics["skipped"] == {"before": 1} and metrics["probes"]["sst2"]["skipped"] == {"before": 1}
    assert {"ES", "PS", "EA", "UA"} <= set(metrics["before"]) and not {"NS", "S", "GE"} & set(metrics["before"])
    assert metrics["protocol"]["name"] == "public"
    assert "invalid" in metrics["probes"]["sst2 (generated)"]["before"]


def test_a_probe_without_room_is_reported_and_shots_are_drawn_to_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "In the shops of Rome people say many things about many other things and places. "
    facts = [{
        "subject": "Rome", "src": "Where is Rome?", "answers": ["Italy"], "alt": "Spain", "rephrase": "Rome is in?",
        "loc": "nq question: where is Paris", "loc_ans": "France",
    }]  # fmt: skip
    (tmp_path / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    for name, lengths in (("long", [30] * 20), ("mixed", [9] * 10 + [0] * 10)):
        records = [{"sentence": long * n + f"it is {i}", "label": str(i % 2)} for i, n in enumerate(lengths)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    probes = [
        {"task": "sst2", "name": "long", "source": str(tmp_path / "long.jsonl"), "pool": 4, "scored": "both"},
        {"task": "sst2", "name": "mixed", "source": str(tmp_path / "mixed.jsonl"), "pool": 12, "shots": 4},
    ]
    options = [
        "validate", f"--data.facts={tmp_path / 'facts.json'}", f"--run_dir={tmp_path / 'run'}",
        "--data.zsre_target=alt", "--evaluation.protocol=rome", f"--data.probes={json.dumps(probes)}",
        "--trainer.enable_progress_bar=false",
    ]  # fmt: skip
    with pytest.warns(UserWarning, match="probes.mixed: .* shown instead") as caught:
        assert main(options) == 0
    assert sum("shown instead" in str(w.message) for w in caught) == 1
    assert not any("indexing errors" in str(w.message) for w in caught)
    out, err = capsys.readouterr()
    for name in ("long", "long (generated)"):
        assert f"{name}: 16 of 16 questions skipped, as they are longer than the model's context window\n" in out
    assert out.count("higher is better: ES efficacy score") == 1 and "indexing errors" not in out + err
    metrics, rows = metrics_of(tmp_path / "run"), records_of(tmp_path / "run")
    assert metrics["probes"]["long"]["skipped"] == metrics["probes"]["long (generated)"]["skipped"] == {"before": 16}
    assert "before" not in metrics["probes"]["long"] and "accuracy" in metrics["probes"]["mixed"]["before"]
    assert {r["fits"] for r in rows if r["kind"] == "probe" and r["probe"] == "mixed"} == {True, False}
    assert {(r["target_new"], r["target_true"]) for r in rows if r["kind"] == "rewrite"} == {("Spain", "Italy")}
    assert [r["prompt"] for r in rows if r["kind"] == "unrelated"] == ["nq question: where is Paris?"]
    with (tmp_path / "run" / "probes.csv").open(encoding="utf-8") as file:
        skipped = {r["probe"]: r["mean"] for r in csv.DictReader(file) if r["metric"] == "skipped"}
    assert skipped["long"] == skipped["long (generated)"] == "16" and set(skipped) <= {
        "long",
        "long (generated)",
        "mixed",
    }


def test_the_documented_task_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8").split("```yaml\n")[1:]
    (example,) = (block.split("```")[0] for block in blocks if "name: topic" in block)
    (tmp_path / "topic.yaml").write_text(example, encoding="utf-8")
    texts = ("The match ended two to one", "The minister spoke of taxes")
    records = [{"text": f"{texts[i % 2]} on day {i}.", "class": "sp"[i % 2]} for i in range(24)]
    (tmp_path / "topics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    options = ["--data.num_facts=1", "--run_dir=run", "--trainer.enable_progress_bar=false"]
    assert main(["validate", "--config", "topic.yaml", *options]) == 0
    metrics, rows = metrics_of(tmp_path / "run"), records_of(tmp_path / "run")
    about = metrics["probes"]["topic"]["about"]
    assert about["task"]["words"] == ["sport", ["politics", "government"]] and about["asked"] == 8
    assert "f1" in metrics["probes"]["topic"]["before"] and "f1" in metrics["probes"]["topic (generated)"]["before"]
    asked = [r for r in rows if r["kind"] == "probe"]
    assert len(asked) == 8 and all(r["prompt"].count("\nTopic:") == 3 and len(r["nll"]) == 2 for r in asked)
    for row in asked:
        question = row["prompt"].split("\n\n")[-1]
        assert texts[row["label"]] in question and "\nTopic: sport\n" in row["prompt"]


def test_bad_descriptions_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = {"name": "topic", "prompt": "{text}:", "words": ["a", "b"]}
    for changes, told in [
        ({"words": ["a"]}, ("probes.task.words", "'topic'", "two classes")),
        ({"main": "recall"}, ("probes.task.main", "accuracy", "'recall'")),
        ({"prompt": "{text"}, ("probes.task.prompt", "braces")),
        ({"word": ["a"]}, ("data.probes", "word", "no such option")),
        ({}, ("probes.topic", "line 1", "'text'")),
    ]:
        source = tmp_path / "texts.jsonl"
        source.write_text('{"label": 0}\n', encoding="utf-8")
        probes = json.dumps([{"task": {**good, **changes}, "source": str(source)}])
        refused(["validate", f"--data.probes={probes}"], told, tmp_path / "run", capsys)
