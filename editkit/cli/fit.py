"""``editkit fit`` and ``editkit validate``: LightningCLI with an Editor for a model and facts for data."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from typing_extensions import override

from editkit.callbacks.progress import edit_progress
from editkit.callbacks.report import Report
from editkit.callbacks.weight_update import WeightUpdate
from editkit.cli.arguments import check_nulls, with_nulls
from editkit.cli.messages import refusal
from editkit.covariance import check_can_keep
from editkit.data.module import FactsDataModule
from editkit.editors.closed_form.editor import Editor
from editkit.edits import Edits, load_edits
from editkit.runs.folder import RunFolder, free_folder
from editkit.utils.console import console, print_line
from editkit.utils.distributed import with_strategy
from editkit.utils.errors import InputError
from editkit.utils.progress import heartbeat
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
            trainer.callbacks[trainer.callbacks.index(bar)] = edit_progress()  # type: ignore[attr-defined]
        return trainer

    @override
    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand].as_dict()
        check_nulls("model", config["model"], Editor)
        check_nulls("data", config["data"], FactsDataModule)

    def before_fit(self) -> None:
        """Check everything that can be checked, open the run folder, measure the unedited model."""
        self._prepare()
        self.datamodule.resolve_batch_size(self.model.max_batch_size)
        check_can_keep(self.model.second_moment, self.model.edited_layers)
        _ = self.model.templates  # checked before anything is written
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
        shown = self.trainer.progress_bar_callback is not None and self.trainer.is_global_zero
        with heartbeat(f"reading {self.model.lm}", shown):
            self.model.configure_model()

    def _open(self, report: Report, update: WeightUpdate | None) -> None:
        """Open the run folder, and take over what an interrupted run left there."""
        asked = self.config[self.subcommand].get("run_dir")
        if self.trainer.global_rank:  # rank 0 alone checks and writes; the others only need to know what is done
            if asked:
                self._take_over(Path(asked).expanduser(), report, update)
            return
        folder = RunFolder(Path(asked).expanduser() if asked else free_folder(type(self.model).__name__.lower()))
        config = self._parser(self.subcommand).dump(self.config[self.subcommand], skip_none=False)
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
                batches = self.datamodule.num_batches
                print_line(console(), f"run folder: {folder} has {made} of {batches} batches: going on")

    def _finish(self, how: str) -> None:
        if self.trainer.global_rank:
            return
        report: Report = self._callback(Report)
        title, data = f"{self.model.lm}, {len(self.datamodule.selected)} facts, {how}", self.datamodule
        report.write(title, [data.batch_indices(n).stop for n in range(data.num_batches)])
        report.show(console(), title)
        print_line(console(), f"run folder: {report.folder}")
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
                args=with_nulls(argv),
            )
    except ArgumentError as error:
        raise refusal(error, argv) from error
    except SIGTERMException:
        told = "editkit: stopped by SIGTERM; fit goes on when it is given the same run_dir again"
        print_line(console(stderr=True), told)
        raise SystemExit(128 + signal.SIGTERM) from None
