"""A study: methods × settings on one model, value vectors found once, every run kept as soon as it is done.

    python -m editkit.programs.study configs/study/methods.yaml [--out runs/methods] [--only AlphaEdit,MEMIT]

The same command goes on where it was stopped. Each run is a file of figures below ``out``; the tables (Markdown, CSV)
and the figure (PNG, SVG) are made of these files, those that are missing left out.

Of each method with something to tune, every candidate is tried on facts of the "tune" split, in one batch and in
sequential batches; the best S there is what is run on the reported facts.
"""

from __future__ import annotations

import copy
import csv
import json
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser

from editkit.api import Mode, edit
from editkit.data.facts import Fact
from editkit.data.held_out import HeldOutText, text_rows
from editkit.data.module import FactsDataModule
from editkit.data.plan import Measurement
from editkit.data.probes import Probe
from editkit.data.rows import Questions, evaluation_rows
from editkit.editors import ClosedFormEditor, Editor, ValueEditor
from editkit.editors.closed_form.of_editor import OfEditor
from editkit.edits import AppliedEdits, Edits
from editkit.evaluation.evaluator import Evaluator, in_order
from editkit.evaluation.protocol import Protocol
from editkit.evaluation.results import RunResults
from editkit.functional.scores import harmonic_mean
from editkit.models.editable import EditableModel
from editkit.models.loading import load_language_model
from editkit.models.templates import generate_templates
from editkit.utils.console import console, print_line
from editkit.utils.errors import InputError
from editkit.utils.files import atomic_write, user_path
from editkit.utils.progress import progress_bar
from editkit.utils.yaml_text import read_mapping

Spec = dict[str, Any]
SCORES = ("ES", "PS", "NS", "S")
DRAWN = 6  # points of a curve over sequential batches
OF_CURVE = 96  # facts that a point before the last is measured on, drawn from all so far


@dataclass
class Setting:
    """How many facts are edited, and how.

    Args:
        batch_size: facts per batch.
        num_batches: batches.
        mode: "independent" or "sequential".
        tune: the setting of the same study on whose tuning runs the choice is made; default: nothing is chosen by it.
    """

    batch_size: int
    num_batches: int
    mode: Literal["independent", "sequential"] = "independent"
    tune: str | None = None


@dataclass
class Method:
    """A method, as published and as tuned.

    Args:
        editor: class_path and init_args.
        published: init_args with the published settings, where those of ``editor`` are not; None: no such run.
        tune: init_args, by dotted names, to the values that are tried; all combinations.
        settings: the settings that it is run in; default all.
    """

    editor: Spec
    published: Spec | None = None
    tune: dict[str, list[Any]] = field(default_factory=dict)
    settings: list[str] | None = None


def combinations(tune: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """All choices of one value each.

    >>> combinations({"a": [1, 2], "b": [3]})
    [{'a': 1, 'b': 3}, {'a': 2, 'b': 3}]
    """
    found: list[dict[str, Any]] = [{}]
    for name, values in tune.items():
        found = [{**chosen, name: value} for chosen in found for value in values]
    return found


def with_arguments(editor: Spec, changes: Mapping[str, Any]) -> Spec:
    """An editor's class_path and init_args with other values for some, by dotted names.

    >>> with_arguments({"class_path": "A", "init_args": {"x": 1}}, {"b.init_args.y": 2})
    {'class_path': 'A', 'init_args': {'x': 1, 'b': {'init_args': {'y': 2}}}}
    """
    made: Spec = json.loads(json.dumps(editor))
    for name, value in changes.items():
        at = made.setdefault("init_args", {})
        *parents, last = name.split(".")
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = value
    return made


def make_editor(spec: Spec) -> Editor:
    """The editor of a class_path and its init_args."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--editor", type=Editor)
    made: Editor = parser.instantiate(parser.parse_object({"editor": copy.deepcopy(spec)})).editor
    return made


class Bench:
    """One model, and what is measured on it.

    Args:
        lm: the language model.
        out: where values, second moments and figures are kept.
        values: search settings of all editors.
        probes: asked after edits.
        text: whose perplexity is measured.
    """

    def __init__(self, lm: str, out: Path, values: Spec, probes: list[Probe], text: HeldOutText) -> None:
        self.model, self.tokenizer = load_language_model(lm)
        self.editable = EditableModel(self.model, self.tokenizer)
        self.out, self.values = out, values
        self.data = FactsDataModule(facts=lm, num_facts=1, probes=probes, text=text)
        self.data.setup()
        self.evaluator = Evaluator(self.editable, self.tokenizer, Protocol(), self.data.probe_sets)
        self.windows = text_rows(text, self.tokenizer, self.editable.context)
        self.templates = [["{}"], generate_templates(self.editable, self.tokenizer, 10, 0)]
        self._facts: dict[str, list[Fact]] = {}
        self.lm = lm

    def facts(self, split: str) -> list[Fact]:
        """The facts of a split, in an order that is drawn once."""
        if split not in self._facts:
            module = FactsDataModule(facts=self.lm, split=split, seed=0)
            module.setup()
            self._facts[split] = module.selected
        return self._facts[split]

    def editor(self, spec: Spec, store: bool = True) -> Editor:
        """An editor that finds values as all do, on the unedited model and once for all."""
        editor = make_editor(spec)
        rule = editor.residual if isinstance(editor, ClosedFormEditor) else None
        for one in (editor, rule.editor if isinstance(rule, OfEditor) else None):
            if isinstance(one, ValueEditor):
                kept = str(self.out / "values") if store else None
                own: Spec = {"context_templates": self.templates, "weights": "unedited", "store": kept}
                one.values = replace(one.values, **self.values, **own)
            if isinstance(one, ClosedFormEditor):
                one.second_moment.path = str(self.out / "second_moments")
        return editor

    def edits(self, spec: Spec, facts: Sequence[Fact], setting: Setting, store: bool = True) -> tuple[Edits, float]:
        """The ledger of a run, and the seconds that it took; the model is then as before."""
        began = time.perf_counter()
        mode: Mode = setting.mode
        edited = edit(
            self.model, self.tokenizer, facts, self.editor(spec, store), batch_size=setting.batch_size, mode=mode,
            evaluate=False, progress=False,
        )  # fmt: skip
        took = time.perf_counter() - began
        edited.undo()
        return edited.edits, took

    def figures(self, facts: Sequence[Fact], probes: bool = False, text: bool = False) -> dict[str, float]:
        """Scores of some facts on the model as it is; of its other abilities too, where they are asked for."""
        results = RunResults(facts, self.data.probe_sets)
        rows: list[Any] = [
            evaluation_rows(facts[n : n + 64], range(n, min(n + 64, len(facts))), Questions().locality)
            for n in range(0, len(facts), 64)
        ]
        rows += [list(probe.rows) for probe in self.data.probe_sets] if probes else []
        rows += [self.windows] if text else []
        found = in_order(result for part in rows for result in self.evaluator.measure(part))
        seen = results.add(found, Measurement({"after": range(len(facts))}, 0))
        figures = {name: seen.scores["after"][name]["mean"] for name in SCORES if name in seen.scores["after"]}
        for title, measured in (seen.point.figures if seen.point is not None else {}).items():
            figures[title] = next(iter(measured.values()))["mean"]
        return figures


def mean_of(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each figure, over the rows that have it."""
    names = {name: None for row in rows for name in row}
    return {n: sum(r[n] for r in rows if n in r) / sum(n in r for r in rows) for n in names}


def harmonic(row: Mapping[str, float]) -> float:
    """S of ES, PS and NS."""
    parts = [row[name] for name in SCORES[:3] if name in row]
    return float(harmonic_mean(torch.tensor(parts, dtype=torch.float64)))


def run(bench: Bench, spec: Spec, setting: Setting, split: str, curve: bool) -> dict[str, Any]:
    """One run: edits made, then measured.

    Returns:
        "figures": after each independent batch on its own facts, or after the last sequential one on all; "curve":
        after some of the sequential batches, on facts drawn from all so far; "norm": ‖Δ‖/‖W‖ over the edited layers.
    """
    count = setting.batch_size * setting.num_batches
    facts = bench.facts(split)[:count]
    edits, _ = bench.edits(spec, facts, setting)
    sequential, last = setting.mode == "sequential", len(edits.batches) - 1
    applied = AppliedEdits(bench.editable, "study")
    points: list[dict[str, float]] = []
    figures: list[dict[str, float]] = []
    marks = {round((last + 1) ** (i / (DRAWN - 1))) - 1 for i in range(DRAWN)} if curve else set()
    norm = 0.0
    reported = split == "report"
    try:
        for number, batch in enumerate(edits.batches):
            if not sequential:
                applied.restore()
            applied.apply(batch.edit)
            start = 0 if sequential else number * setting.batch_size
            present = facts[start : (number + 1) * setting.batch_size]
            if not sequential:
                figures.append(bench.figures(present, *[reported and number in (0, last)] * 2))  # of many, two
                norm += relative_norm(bench, edits, [number]) / len(edits.batches)
            elif number == last or number in marks:
                drawn = present if number == last else random.Random(0).sample(present, min(len(present), OF_CURVE))
                point = bench.figures(drawn, reported and number == last, reported)
                points.append({"edits": len(present), **point})
    finally:
        applied.restore()
    if sequential:
        figures, norm = [points[-1]], relative_norm(bench, edits, range(last + 1))
    means = mean_of(figures)
    means["S"] = harmonic(means)
    return {
        "figures": {k: v for k, v in means.items() if k != "edits"}, "curve": points if sequential else [],
        "norm": norm,
    }  # fmt: skip


def relative_norm(bench: Bench, edits: Edits, batches: Sequence[int]) -> float:
    """‖ΣΔ‖ / ‖W‖ in Frobenius norms, over all edited weights."""
    together: dict[str, Any] = {}
    for number in batches:
        for name, delta in edits.batches[number].edit.weight_changes().items():
            wide = delta.dense(torch.float64)
            together[name] = together[name] + wide if name in together else wide
    squares = sum(float(change.norm()) ** 2 for change in together.values())
    weights = sum(float(bench.editable.parameter(name).double().norm()) ** 2 for name in together)
    return float((squares / weights) ** 0.5) if weights else 0.0


@dataclass
class Study:
    """What is run.

    Args:
        lm: language model, with facts of its own.
        values: settings of the search for values, the same for all methods.
        probes: asked after edits.
        text: whose perplexity is measured after edits.
        settings: by name; those named in another one's ``tune`` are for choosing.
        methods: by name.
        curve: the sequential setting whose course is drawn.
        published: settings in which methods are run with their published settings, too.
    """

    lm: str
    values: Spec
    probes: list[Probe]
    text: HeldOutText
    settings: dict[str, Setting]
    methods: dict[str, Method]
    curve: str
    published: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Study:
        """From what stands in a file.

        Raises:
            InputError: there is something that a study has not, or lacks something.
        """
        known = {f.name for f in fields(cls)}
        if wrong := sorted(set(given) - known | known - {"published"} - set(given)):
            raise InputError(f"study: expected {', '.join(sorted(known))}, but {wrong[0]} is missing or none of these")
        own = dict(given)
        own["probes"] = [Probe(**probe) for probe in own["probes"]]
        own["text"] = HeldOutText(**own["text"])
        own["settings"] = {name: Setting(**setting) for name, setting in own["settings"].items()}
        own["methods"] = {name: Method(**method) for name, method in own["methods"].items()}
        return cls(**own)


@dataclass(frozen=True)
class Job:
    """One run of a study, and where its figures are kept."""

    method: str
    setting: str
    variant: str
    spec: Spec
    split: str
    file: Path

    def done(self) -> dict[str, Any] | None:
        """Its figures, where they are there and of the same settings."""
        try:
            kept: dict[str, Any] = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return kept if kept.get("editor") == self.spec else None


class Runner:
    """A study at work.

    Args:
        study: what is run.
        out: where everything is kept.
        only: methods to run; default all.
    """

    def __init__(self, study: Study, out: Path, only: Sequence[str] = ()) -> None:
        self.study, self.out = study, out
        self.methods = {n: m for n, m in study.methods.items() if not only or n in only}
        self._bench: Bench | None = None

    @property
    def bench(self) -> Bench:
        """The model, once something is run on it."""
        if self._bench is None:
            s = self.study
            self._bench = Bench(s.lm, self.out, s.values, s.probes, s.text)
        return self._bench

    def result(self, job: Job) -> dict[str, Any]:
        """A run's figures; it is done where they are not there yet."""
        if (known := job.done()) is not None:
            return known
        setting = self.study.settings[job.setting]
        try:
            found = run(
                self.bench, job.spec, setting, job.split, job.setting == self.study.curve and job.split == "report"
            )
        except InputError as error:  # a setting that its method refuses is a result, too
            found = {"refused": str(error)}
        made = {"method": job.method, "setting": job.setting, "variant": job.variant, "editor": job.spec, **found}
        text = json.dumps(made, indent=1, ensure_ascii=False)
        atomic_write(job.file, lambda part: part.write_text(text, encoding="utf-8"))
        return made

    def jobs(self, setting_name: str, name: str) -> Iterator[Job]:
        """A method's runs on the reported facts in one setting; those by which they are chosen are done before."""
        setting, method = self.study.settings[setting_name], self.methods[name]
        if method.settings is not None and setting_name not in method.settings:
            return
        folder = self.out / name / setting_name
        spec = method.editor
        if method.tune and setting.tune is not None:
            spec = with_arguments(spec, self.best(name, method, setting.tune))
        yield Job(name, setting_name, "tuned", spec, "report", folder / "tuned.json")
        if method.published is not None and setting_name in self.study.published:
            spec = with_arguments(method.editor, method.published)
            yield Job(name, setting_name, "published", spec, "report", folder / "published.json")

    def best(self, name: str, method: Method, setting: str) -> dict[str, Any]:
        """The choice with the best S on the tuning facts; of equals the first."""
        tried = []
        for number, chosen in enumerate(combinations(method.tune)):
            spec = with_arguments(method.editor, chosen)
            file = self.out / name / f"tune-{setting}" / f"{number}.json"
            tried.append((self.result(Job(name, setting, "tune", spec, "tune", file)), chosen))
        return max(tried, key=lambda pair: pair[0].get("figures", {}).get("S", -1.0))[1]

    def seconds(self, name: str, method: Method) -> float:
        """Seconds a fact, values found anew: 32 facts in sequential batches of 16 (or one by one), a warm-up before."""
        file = self.out / name / "seconds.json"
        try:
            return float(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            editor = self.bench.editor(method.editor, store=False)
            size = min(16, editor.max_batch_size or 16)
            facts, setting = self.bench.facts("report")[:32], Setting(size, 32 // size, "sequential")
            self.bench.edits(method.editor, facts[:size], replace(setting, num_batches=1), store=False)
            took = self.bench.edits(method.editor, facts, setting, store=False)[1] / len(facts)
            atomic_write(file, lambda part: part.write_text(json.dumps(took), encoding="utf-8"))
            return took

    def go(self) -> None:
        """All runs, setting by setting, so that there is something to compare early."""
        for_choice = {setting.tune for setting in self.study.settings.values()}
        places = [(s, name) for s in self.study.settings if s not in for_choice for name in self.methods]
        self.unedited()
        with progress_bar() as bar:
            task = bar.add_task("study", total=len(places) + len(self.methods))
            for setting, name in places:
                bar.update(task, description=f"{setting}: {name}")
                for job in self.jobs(setting, name):
                    self.result(job)
                bar.advance(task)
            for name, method in self.methods.items():
                bar.update(task, description=f"seconds: {name}")
                self.seconds(name, method)
                bar.advance(task)

    def unedited(self) -> dict[str, Any]:
        """The model before any edit, on the facts of the curve's setting."""
        file = self.out / "unedited.json"
        try:
            kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return kept
        except (OSError, ValueError):
            setting = self.study.settings[self.study.curve]
            facts = self.bench.facts("report")[: setting.batch_size * setting.num_batches]
            made = {
                "method": "unedited",
                "setting": "",
                "variant": "",
                "figures": self.bench.figures(facts, True, True),
            }
            atomic_write(file, lambda part: part.write_text(json.dumps(made, indent=1), encoding="utf-8"))
            return made


def collected(study: Study, out: Path) -> list[dict[str, Any]]:
    """All runs that are there, whoever made them, in the study's order; the unedited model last."""
    found = []
    for setting in study.settings:
        for variant in ("tuned", "published"):
            for name in study.methods:
                file = out / name / setting / f"{variant}.json"
                if file.exists():
                    result = json.loads(file.read_text(encoding="utf-8"))
                    timed = out / name / "seconds.json"
                    result["seconds"] = json.loads(timed.read_text(encoding="utf-8")) if timed.exists() else None
                    found.append(result)
    return [*found, json.loads((out / "unedited.json").read_text(encoding="utf-8"))]


HEADING = ["method", "settings", *SCORES, "probes", "perplexity", "norm", "s a fact"]


def table(results: Sequence[Mapping[str, Any]], setting: str) -> list[list[str]]:
    """Rows of text of one setting, those of the unedited model first."""
    rows = []
    for result in [results[-1], *(result for result in results if result["setting"] == setting)]:
        first = [result["method"], settings_of(result)]
        if "refused" in result:
            rows.append([*first, "refused", *[""] * (len(HEADING) - 3)])
            continue
        figures = result["figures"]
        probes = [value for title, value in figures.items() if title not in (*SCORES, "text")]
        text = figures.get("text", math.inf)
        rows.append(
            [
                *first,
                *(f"{figures[name]:.1f}" for name in SCORES),
                f"{sum(probes) / len(probes):.1f}",
                f"{text:.2f}" if text < 1e4 else f"{text:.0e}",
                f"{result['norm']:.2f}" if "norm" in result else "",
                f"{result['seconds']:.2f}" if result.get("seconds") else "",
            ]
        )
    return rows


def settings_of(result: Mapping[str, Any]) -> str:
    """What was chosen for a run, in short."""
    chosen = ", ".join(leaves(result.get("editor", {}).get("init_args", {})))
    return f"published: {chosen}" if result["variant"] == "published" else chosen


def leaves(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Numbers among an editor's arguments, with their names."""
    for name, value in arguments.items():
        if isinstance(value, dict):
            yield from leaves(value.get("init_args", {}))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for part in value:
                yield from leaves(part.get("init_args", {}))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{name} {value:g}"


def draw(study: Study, results: Sequence[Mapping[str, Any]], file: Path) -> None:
    """S and perplexity against the number of sequential edits, a line per method."""
    import matplotlib.pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 9), sharex=True, layout="constrained")
    lines = [r for r in results if r["setting"] == study.curve and r["variant"] == "tuned" and r.get("curve")]
    colors = plt.get_cmap("tab20")
    for number, result in enumerate(lines):
        edits = [point["edits"] for point in result["curve"]]
        marker = "osD^v"[number // 4 % 5]
        look: dict[str, Any] = {
            "label": result["method"], "color": colors(number % 20), "marker": marker, "markersize": 4,
        }  # fmt: skip
        above.plot(edits, [harmonic(point) for point in result["curve"]], **look)
        below.plot(edits, [point["text"] for point in result["curve"]], **look)
    unedited = results[-1]["figures"]["text"]
    below.axhline(unedited, color="grey", linewidth=0.8, linestyle=":", label="unedited")
    above.set(ylabel="S of all facts so far (higher is better)", xscale="log")
    below.set(ylabel="perplexity of held-out text (lower is better)", xlabel="sequential edits", yscale="log")
    counts = [point["edits"] for result in lines[:1] for point in result["curve"]]
    below.set_xticks(counts, [str(count) for count in counts])
    below.minorticks_off()
    above.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    for suffix in (".png", ".svg"):
        figure.savefig(file.with_suffix(suffix), dpi=130)
    plt.close(figure)


def write(study: Study, results: Sequence[Mapping[str, Any]], out: Path) -> None:
    """The tables as Markdown and CSV, and the figure."""
    text: list[str] = []
    with (out / "table.csv").open("w", newline="", encoding="utf-8") as file:
        sheet = csv.writer(file)
        sheet.writerow(["setting", *HEADING])
        for setting in study.settings:
            if len(rows := table(results, setting)) > 1:
                sheet.writerows([setting, *row] for row in rows)
                lines = ["| " + " | ".join(row) + " |" for row in [HEADING, *rows]]
                text += [f"**{setting}**", "", lines[0], "|" + "---|" * len(HEADING), *lines[1:], ""]
    (out / "table.md").write_text("\n".join(text), encoding="utf-8")
    draw(study, results, out / "figure")


def main(argv: list[str] | None = None) -> None:
    """Run a study, or go on with it."""
    parser = ArgumentParser(prog="python -m editkit.programs.study", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("study", type=str, help="YAML file of the study, such as configs/study/methods.yaml")
    parser.add_argument("--out", type=str, default="runs/methods", help="folder of all that is kept")
    parser.add_argument("--only", type=str, default="", help="methods, separated by commas; default all")
    parser.add_argument("--run", type=bool, default=True, help="false: tables and figure of what is there")
    options = parser.parse_args(argv)
    out = user_path(options.out, "out")
    study = Study.read(read_mapping(user_path(options.study, "study").read_bytes(), options.study))
    out.mkdir(parents=True, exist_ok=True)
    if options.run:
        Runner(study, out, [name for name in options.only.split(",") if name]).go()
    results = collected(study, out)
    write(study, results, out)
    print_line(console(), f"{len(results)} runs in {out}: table.md, table.csv, figure.png, figure.svg")


if __name__ == "__main__":
    main()
