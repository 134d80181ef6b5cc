"""``editkit fit`` and ``editkit validate``: LightningCLI with an Editor for a model and facts for data."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from editkit.callbacks.evaluation import Evaluation
from editkit.callbacks.progress import edit_progress
from editkit.callbacks.report import Report, show_report, write_report
from editkit.callbacks.weight_update import WeightUpdate
from editkit.cli.arguments import check_nulls, with_nulls
from editkit.cli.help import CommandHelp
from editkit.cli.messages import refusal
from editkit.cli.trainer_options import check_trainer, refused_by_lightning
from editkit.data.module import FactsDataModule
from editkit.data.plan import Measurement, RunPlan
from editkit.editors.base import Editor
from editkit.editors.closed_form.editor import ClosedFormEditor
from editkit.edits import Edits, load_edits
from editkit.edits.same_run import check_same_run
from editkit.evaluation.about import about_run
from editkit.models.fingerprint import fingerprint
from editkit.runs.folder import RunFolder, free_folder, free_version
from editkit.runs.resume import EDITS, Resumption, read_run
from editkit.utils.console import console, print_line
from editkit.utils.distributed import with_strategy
from editkit.utils.errors import InputError, shorten
from editkit.utils.files import user_path
from editkit.utils.progress import heartbeat
from editkit.utils.quiet import plain_warnings, quiet_lightning
from editkit.utils.signals import advise, hold, leave_signals
from editkit.utils.words import counted

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


class FitParser(CommandHelp, LightningArgumentParser):
    """Shows what is editkit's first; an editor has its own defaults, not those of the one that is the default."""

    @override
    def get_defaults(self, *args: Any, **kwargs: Any) -> Namespace:
        defaults = super().get_defaults(*args, **kwargs)
        # jsonargparse would fill in EMMET's here, take them for given and hand them to whatever editor is asked for;
        # once it is known which that is, it fills in what is missing
        if isinstance(model := defaults.get("model"), Namespace):
            model.pop("init_args", None)
        return defaults


DESCRIPTIONS = {
    "fit": "Edit a model: find, apply, keep and measure the edits of facts, batch by batch.",
    "validate": "Measure a model on facts without editing it, or with the edits of a ledger.",
}


class EditkitCLI(LightningCLI):
    """LightningCLI whose model is the Editor, and whose run folder appears only once all input has been checked."""

    model: Editor
    datamodule: FactsDataModule

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(WeightUpdate, "weight_update", subclass_mode=True)
        parser.add_lightning_class_args(Evaluation, "evaluation")
        parser.add_lightning_class_args(Report, "report")
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Folder for config.yaml, metrics.json, records.jsonl, edits/ and the logs. Where fit was interrupted, "
            "the same command goes on at the first batch that is missing (default: runs/EDITOR-N, of validate "
            "runs/validate-N, with the first free N).",
        )
        parser.set_defaults(
            {"model": {"class_path": "editkit.EMMET"}, "weight_update": {"class_path": "editkit.WeightUpdate"}}
        )

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        known = LightningCLI.subcommands()
        # Lightning's checkpoints hold nothing of an edit: a ledger does
        return {name: known[name] | {"ckpt_path", "weights_only"} for name in ("fit", "validate")}

    @override
    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        assert isinstance(parser, FitParser)
        parser.command, parser.description = subcommand, DESCRIPTIONS[subcommand]
        parser.example = (
            f"editkit {subcommand} [--config CONFIG] [--model EDITOR] [--model.OPTION VALUE]\n"
            "       [--data.OPTION VALUE] [--run_dir RUN_DIR] [other options]"
        )
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
        command = str(self.subcommand)
        check_trainer(config, command)
        with refused_by_lightning(command):
            trainer: Trainer = super()._instantiate_trainer(with_strategy(config), callbacks)
        return trainer

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        leave_signals(trainer)
        bar = trainer.progress_bar_callback
        if type(bar) in (TQDMProgressBar, RichProgressBar):  # Lightning's own choice, not the user's
            trainer.callbacks[trainer.callbacks.index(bar)] = edit_progress()  # type: ignore[attr-defined]
        return trainer

    @override
    def _set_seed(self) -> None:
        seed = self.config[self.subcommand].get("seed_everything")
        if type(seed) is int and not 0 <= seed < 2**32:
            raise InputError(f"seed_everything: expected 0 to 2^32 - 1, but got {shorten(seed)}; choose another")
        super()._set_seed()

    @override
    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand].as_dict()
        check_nulls("model", config["model"], Editor)
        check_nulls("data", config["data"], FactsDataModule)

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        self.run_folder: RunFolder | None = None
        try:
            super()._run_subcommand(subcommand)
        finally:
            if self.run_folder is not None:
                self.run_folder.close()

    def before_fit(self) -> None:
        """Check everything that can be checked, open the run folder, measure the unedited model."""
        self.model.check_settings()
        self._prepare(resumable=True)
        update, evaluation = self._callback(WeightUpdate), self._callback(Evaluation)
        resumed = read_run(self.folder)
        if self.folder is not None:
            update.write_to(self.folder / EDITS)
        if resumed.edits is not None:
            update.resume_from(resumed.edits, resumed.start)
        plan = update.make_plan(self.trainer, self.model, self.datamodule)  # checked before anything is written
        if resumed.edits is not None and resumed.edits.model:
            check_same_run(resumed.edits, self.model.editable.model, self.model.about(), plan)
        results = evaluation.begin(self.datamodule, plan.sequential, resumed.records)
        self._lock(resumed)
        if not results.has("before"):
            self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)

    def after_fit(self) -> None:
        """Write and show the report."""
        plan, made = self.datamodule.plan, len(self._callback(WeightUpdate).edits.batches)
        if made < plan.num_batches:
            rank_zero_warn(f"trainer: the run ended after {made} of {plan.num_batches} batches of edits", stacklevel=2)
        layers = f", layers {self.model.edited_layers}" if isinstance(self.model, ClosedFormEditor) else ""
        edits = self._callback(WeightUpdate).edits
        self._finish(f"{type(self.model).__name__}{layers}, batches of {plan.batch_size}", plan, edits.model, edits)

    def before_validate(self) -> None:
        """Check the input and open the run folder."""
        self._prepare(resumable=False)
        self.datamodule.make_plan(questions=self._callback(Evaluation).protocol.questions)
        self.ledger = self._ledger()
        sequential = self.ledger is not None and self.ledger[0].sequential
        self._callback(Evaluation).begin(self.datamodule, sequential)
        self.fingerprint = fingerprint(self.model.editable.model)
        self._lock(read_run(None))

    def after_validate(self) -> None:
        """Measure the model with the edits of a ledger too, if one is given; write and show the report."""
        plan = self.datamodule.plan
        if self.ledger is None:
            self._finish("nothing edited", plan, self.fingerprint, None)
            return
        edits, batches = self.ledger
        model, tokenizer = self.model.editable.model, self.model.tokenizer
        for batch in batches:
            facts: Sequence[int] = self._facts_of(edits, batch) if len(batches) > 1 else range(len(plan.facts))
            measurement = Measurement({"after": facts}, batch if len(batches) > 1 else None)
            edits.apply(model, batch, tokenizer=tokenizer)
            self.trainer.validate(self.model, datamodule=self.datamodule.measuring(measurement), verbose=False)
            edits.undo(model)
        how = "sequential" if edits.sequential else "independent"
        count = f"{len(edits.batches)} {how} batches" if len(edits.batches) > 1 else "one batch"
        chosen = self.config[self.subcommand].get("edits_batch")
        how = f"edits of {count}" + (f", batch {chosen}" if chosen is not None else "")
        self._finish(how, plan, self.fingerprint, edits)

    def _ledger(self) -> tuple[Edits, list[int | None]] | None:
        """The ledger to apply, if any, and which of its batches at a time; checked against the model."""
        config = self.config[self.subcommand]
        path, chosen = config.get("edits"), config.get("edits_batch")
        if path is None:
            if chosen is not None:
                raise InputError(f"edits_batch: expected --edits beside it, but got {chosen} alone; give the ledger")
            return None
        edits, model = load_edits(user_path(path, "edits")), self.model.editable.model
        tokenizer = self.model.tokenizer
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
        edits.apply(model, batches[0], tokenizer=tokenizer)
        edits.undo(model)
        return edits, batches

    def _facts_of(self, edits: Edits, batch: int | None) -> list[int]:
        """Positions of the run's facts that a batch of a ledger edited."""
        edited = {fact.fact_id for fact in edits.batches[batch or 0].facts}
        return [i for i, fact in enumerate(self.datamodule.selected) if fact.fact_id in edited]

    @override
    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "validate":
            kwargs["verbose"] = False  # our own table is shown instead
        return kwargs

    def _callback(self, kind: type[Any]) -> Any:
        return next(c for c in self.trainer.callbacks if isinstance(c, kind))  # type: ignore[attr-defined]

    def _prepare(self, resumable: bool) -> None:
        """Read what is there, what takes least first; nothing is written yet."""
        self.datamodule.setup()
        self._open(resumable)
        shown = self.trainer.progress_bar_callback is not None and self.trainer.is_global_zero
        with heartbeat(f"reading {self.model.lm}", shown):
            self.model.configure_model()
        self.datamodule.read_text(self.model.tokenizer, self.model.editable.context)

    def _open(self, resumable: bool) -> None:
        """Find the run folder, and check that what is there can be gone on with; nothing is written yet."""
        run_dir = self.config[self.subcommand].get("run_dir")
        self.folder: Path | None = user_path(run_dir, "run_dir") if run_dir else None
        if self.trainer.global_rank:  # rank 0 alone checks and writes; the others only need to know what is done
            return
        self.folder = self.folder or free_folder(
            type(self.model).__name__.lower() if self.subcommand == "fit" else str(self.subcommand)
        )
        self.run_config = self._parser(self.subcommand).dump(self.config[self.subcommand], skip_unset=False)
        self.run_folder = RunFolder(self.folder)
        self.run_folder.check(self.run_config, resumable=resumable)

    def _lock(self, resumed: Resumption) -> None:
        """Take the run folder, once all is checked, and say where an interrupted run goes on."""
        report = self._callback(Report)
        if self.folder is not None:
            report.write_to(self.folder)
        if self.run_folder is None:
            return
        if resumed.batches:
            batches = f"{resumed.batches} of {counted(self.datamodule.plan.num_batches, 'batch', 'batches')}"
            print_line(console(), f"run folder: {self.folder} has {batches}: going on")
        with hold():
            self.run_folder.open(self.run_config)
            again = f"the same command with --run_dir={shlex.quote(str(self.folder))}"
            advise(f"{again} {'goes on where it stopped' if self.subcommand == 'fit' else 'begins again'}")
        folder, version = self.run_folder.path, ""
        if self.run_folder.went_on:
            version = free_version(folder / "logs", f"after_{resumed.batches}_batches")
        self.trainer.loggers = [*self.trainer.loggers, CSVLogger(folder, name="logs", version=version)]

    def _finish(self, how: str, plan: RunPlan, model: str, edits: Edits | None) -> None:
        """Write and show the report."""
        if self.trainer.global_rank:
            return
        evaluation = self._callback(Evaluation)
        results, title = evaluation.results, f"{self.model.lm}, {counted(len(plan.facts), 'fact')}, {how}"
        ledger, dealt = None if edits is None else edits.about, self.subcommand == "fit"
        about = about_run(self.model.lm, self.model.dtype_name, model, ledger, self.datamodule, plan, dealt)
        if (path := self.config[self.subcommand].get("edits")) is not None:
            about["edits"] = path
        metrics = {**about, **results.metrics(evaluation.protocol)}
        assert self.folder is not None
        write_report(self.folder, results, metrics, title, plan)
        show_report(console(), results, metrics, title)
        print_line(console(), f"run folder: {self.folder}")


@plain_warnings()
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
                parser_class=FitParser,
                parser_kwargs={"exit_on_error": False, "prog": "editkit"},
                args=with_nulls(argv),
            )
    except ArgumentError as error:
        raise refusal(error, argv) from error
