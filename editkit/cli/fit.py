"""``editkit fit`` and ``editkit validate``: LightningCLI with an Editor for a model and facts for data."""

from __future__ import annotations

import math
import re
import signal
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from typing_extensions import override

from editkit.callbacks.progress import EditProgress
from editkit.callbacks.report import Report
from editkit.callbacks.weight_update import WeightUpdate
from editkit.data.module import FactsDataModule
from editkit.editors.closed_form.editor import Editor
from editkit.edits import Edits, load_edits
from editkit.runs.folder import RunFolder, free_folder
from editkit.utils.distributed import with_strategy
from editkit.utils.errors import InputError
from editkit.utils.quiet import quiet_lightning

TRAINER_DEFAULTS: dict[str, Any] = {
    "accelerator": "auto",
    "devices": 1,
    "use_distributed_sampler": False,  # the data modules give each process its share
    "logger": False,  # the run folder's CSV logger is added once the folder exists
    "max_epochs": -1,  # one epoch per batch of edits: WeightUpdate sets it
    "num_sanity_val_steps": 0,
    "reload_dataloaders_every_n_epochs": 1,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}


class EditkitCLI(LightningCLI):
    """LightningCLI whose model is the Editor, and whose run folder appears only once all input has been checked."""

    model: Editor
    datamodule: FactsDataModule

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(WeightUpdate, "weight_update")
        parser.add_lightning_class_args(Report, "report")
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Folder for config.yaml, metrics.json, records.jsonl, edits/ and the logs. Where fit was interrupted, "
            "the same command goes on at the first batch that is missing (default: runs/EDITOR-N, the first free N).",
        )
        parser.set_defaults({"model": {"class_path": "editkit.EMMET"}})

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        kept = LightningCLI.subcommands()
        return {name: kept[name] for name in ("fit", "validate")}

    @override
    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "validate":
            parser.add_argument(
                "--edits",
                type=str | None,
                default=None,
                help="Folder of a ledger (edits/ of a run folder): the model is measured without and with these edits. "
                "Of independent batches each is measured by itself, on its own facts.",
            )
            parser.add_argument(
                "--edits_batch",
                type=int | None,
                default=None,
                help="Of independent batches the only one to apply, of sequential ones the last one; counted from 0.",
            )
        return parser

    @override
    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Trainer:
        trainer: Trainer = super()._instantiate_trainer(with_strategy(config), callbacks)
        return trainer

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        bar = trainer.progress_bar_callback
        if type(bar) in (TQDMProgressBar, RichProgressBar):  # Lightning's own choice, not the user's
            trainer.callbacks[trainer.callbacks.index(bar)] = EditProgress()  # type: ignore[attr-defined]
        return trainer

    def before_fit(self) -> None:
        """Check everything that can be checked, open the run folder, measure the unedited model."""
        self._prepare()
        self.datamodule.resolve_batch_size(self.model.max_batch_size)
        _ = self.model.edited_layers, self.model.templates  # checked before anything is written
        if math.isnan(self.model.rho):
            self.datamodule.hold_out()  # before anything is measured, since it may take prompts out of what is
        report, update = self._callback(Report), self._callback(WeightUpdate)
        self._open(report, update)
        if not report.evaluated("before"):
            self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)

    def after_fit(self) -> None:
        """Write and show the report."""
        size = self.datamodule.batch_size
        self._finish(f"{type(self.model).__name__}, layers {self.model.edited_layers}, batches of {size}")

    def before_validate(self) -> None:
        """Check the input and open the run folder."""
        self._prepare()
        self.ledger = self._ledger()
        self._open(self._callback(Report), None)

    def after_validate(self) -> None:
        """Measure the model with the edits of a ledger too, if one is given; write and show the report."""
        if self.ledger is None:
            self._finish("nothing edited")
            return
        edits, batches = self.ledger
        data, model = self.datamodule, self.model.editable.model
        data.edited, data.sequential = True, edits.sequential
        for batch in batches:
            edits.apply(model, batch)
            if len(batches) > 1:
                data.only, data.present = self._facts_of(edits, batch), batch
            self.trainer.validate(self.model, datamodule=data, verbose=False)
            edits.undo(model)
        how = "sequential" if edits.sequential else "independent"
        count = f"{len(edits.batches)} {how} batches" if len(edits.batches) > 1 else "one batch"
        chosen = self.config[self.subcommand].get("edits_batch")
        self._finish(f"edits of {count}" + (f", batch {chosen}" if chosen is not None else ""))

    def _ledger(self) -> tuple[Edits, list[int | None]] | None:
        """The ledger to apply, if any, and which of its batches at a time; checked against the model."""
        config = self.config[self.subcommand]
        path, chosen = config.get("edits"), config.get("edits_batch")
        if path is None:
            if chosen is not None:
                raise InputError(f"edits_batch: expected --edits beside it, but got {chosen} alone; give the ledger")
            return None
        edits, model = load_edits(Path(path).expanduser()), self.model.editable.model
        if not edits.batches:
            raise InputError(f"edits: expected a ledger with batches of edits, but {path} has none yet; finish its run")
        if edits.sequential or chosen is not None or len(edits.batches) == 1:
            batches: list[int | None] = [chosen]
        else:
            batches = [n for n in range(len(edits.batches)) if self._facts_of(edits, n)]
            if not batches:
                raise InputError(
                    f"edits: {path} has {len(edits.batches)} independent batches and none has a fact of data.facts; "
                    "expected the facts that were edited, or --edits_batch for the one to apply"
                )
        edits.apply(model, batches[0])
        edits.undo(model)
        return edits, batches

    def _facts_of(self, edits: Edits, batch: int | None) -> list[int]:
        """Positions of the run's facts that a batch of a ledger edited."""
        made = {fact.fact_id for fact in edits.batches[batch or 0].facts}
        return [i for i, fact in enumerate(self.datamodule.selected) if fact.fact_id in made]

    @override
    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "validate":
            kwargs["verbose"] = False  # our own table is shown instead
        return kwargs

    def _callback(self, kind: type[Any]) -> Any:
        return next(c for c in self.trainer.callbacks if isinstance(c, kind))  # type: ignore[attr-defined]

    def _prepare(self) -> None:
        self.datamodule.setup()
        self.model.configure_model()

    def _open(self, report: Report, update: WeightUpdate | None) -> None:
        """Open the run folder, and take over what an interrupted run left there."""
        asked = self.config[self.subcommand].get("run_dir")
        if self.trainer.global_rank:  # rank 0 alone checks and writes; the others only need to know what is done
            if asked:
                self._take_over(Path(asked).expanduser(), report, update)
            return
        folder = RunFolder(Path(asked).expanduser() if asked else free_folder(type(self.model).__name__.lower()))
        config = self._parser(self.subcommand).dump(self.config[self.subcommand], skip_unset=False)
        folder.check(config, resumable=update is not None)
        self._take_over(folder.path, report, update)
        folder.open(config)
        self.run_folder = folder
        version = f"after_{len(update.edits.batches)}_batches" if update is not None and folder.went_on else ""
        self.trainer.loggers = [*self.trainer.loggers, CSVLogger(folder.path, name="logs", version=version)]

    def _take_over(self, folder: Path, report: Report, update: WeightUpdate | None) -> None:
        if update is not None:
            update.keep_in(folder / "edits")
            update.check_same(self.model, self.datamodule)
        made = len(update.edits.batches) if update is not None else 0
        report.keep_in(folder, self.datamodule, made)
        if update is not None and made:
            # the last one's weights may be there without its scores
            update.resume_from(update.edits, made if report.evaluated("after", made - 1) else made - 1)
            if self.trainer.global_rank == 0:
                Console().print(f"run folder: {folder} has {made} of {self.datamodule.num_batches} batches: going on")

    def _finish(self, how: str) -> None:
        if self.trainer.global_rank:
            return
        report: Report = self._callback(Report)
        title, data = f"{self.model.lm}, {len(self.datamodule.selected)} facts, {how}", self.datamodule
        report.write(title, [data.batch_indices(n).stop for n in range(data.num_batches)])
        console = Console()
        report.show(console, title)
        console.print(f"run folder: {report.folder}", highlight=False)
        self.run_folder.close()


def run(argv: list[str]) -> None:
    """Run ``fit`` or ``validate``; every mistake of the user's is an ``InputError``."""
    try:
        with quiet_lightning():
            EditkitCLI(
                Editor,
                FactsDataModule,
                subclass_mode_model=True,
                save_config_callback=None,
                trainer_defaults=TRAINER_DEFAULTS,
                seed_everything_default=False,
                auto_configure_optimizers=False,
                parser_kwargs={"exit_on_error": False, "prog": "editkit"},
                args=argv,
            )
    except ArgumentError as error:
        raise InputError(plain_message(str(error), argv[0])) from error
    except SIGTERMException:
        Console(stderr=True).print("editkit: stopped by SIGTERM; fit goes on when it is given the same run_dir again")
        raise SystemExit(128 + signal.SIGTERM) from None


def plain_message(message: str, command: str) -> str:
    """A parser's report about one option as one line: the option, what was expected, what came, the remedy."""
    text = " ".join(message.split())
    see = f"see editkit {command} --help"
    keys = re.findall(r'Parser key "([^"]+)"', text)
    given = re.findall(r"(?:Given|Got) value: (?:NestedArg\(key='([^']+)', val='?([^')]*)'?\)|(\S+))", text)
    nested, *values = given[-1] if given else ("", "")
    value = next((repr(v) for v in values if v), "another value")
    field = ".".join(dict.fromkeys(keys)) or "options"
    if nested and not field.endswith(nested):
        field = f"{field}.{nested}"
    if missing := re.search(r"File does not exist: '([^']+)'", text):
        return f"{field}: expected a file that exists, but got {missing[1]}; check the path"
    if unknown := re.search(r"class_path '([^']+)': Option '([^']+)' is not accepted", text):
        return (
            f"{keys[0]}.{nested or unknown[2]}: {unknown[1]} has no such option; expected one of those that "
            f"editkit {command} --{keys[0]}.help lists"
        )
    if field == "model":
        return (
            f"model: expected an editor, editkit.EMMET, editkit.MEMIT, editkit.ROME or the import path of a subclass "
            f"of editkit.Editor, but got {value} ({_reason(text)}); correct the name"
        )
    if restriction := re.search(r"conform to restriction v\s*([<>=]+)\s*([\w.]+)", text):
        return f"{field}: expected a number {restriction[1]} {restriction[2]}, but got {value}; {see}"
    if "unrecognized arguments" in text.lower():
        return f"{text[0].lower()}{text[1:]}; {see}"
    return f"{field}: {_reason(text)}, but got {value}; {see}" if keys else f"{field}: {text}; {see}"


def _reason(text: str) -> str:
    """The first cause that the parser names, without the list of all types that it tried."""
    causes = re.split(r" - ", re.split(r"Given value|Got value", text.split("Errors:")[-1])[0])
    told = [c.strip(" .") for c in causes if c.strip(" .") and "NoneType" not in c]
    cause = re.sub(r"^(Parser key \S+:?|Problem with given class_path '[^']+':) *", "", told[0]) if told else ""
    cause = re.sub(r"a typing\.Literal\[(.*?)\]", r"one of \1", cause).replace("a <class 'int'>", "an integer")
    return f"{cause[0].lower()}{cause[1:]}" if cause else "not a valid value"
