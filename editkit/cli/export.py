"""``editkit export``: a ledger and the model that it is for, made into a checkpoint or an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentError, ArgumentParser
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from editkit.atlas.builtin import DEFAULT
from editkit.cli.help import CommandHelp
from editkit.cli.messages import refusal
from editkit.edits import load_edits
from editkit.export.adapter import AdapterLayer, export_adapter, shown
from editkit.export.changes import changes_of
from editkit.export.checkpoint import export_checkpoint
from editkit.models.loading import load_language_model
from editkit.utils.console import console, print_line
from editkit.utils.errors import InputError
from editkit.utils.files import check_can_write, check_new_folder
from editkit.utils.progress import progress_bar
from editkit.utils.quiet import plain_warnings
from editkit.utils.signals import advise


class ExportParser(CommandHelp, ArgumentParser):
    """Keeps its help."""

    command = "export"


def export_parser() -> ArgumentParser:
    """Options of ``editkit export``."""
    parser = ExportParser(
        prog="editkit export",
        description="Write an edited model as a Hugging Face checkpoint or as a LoRA adapter of PEFT's.",
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with these options; may be given several times.")
    parser.add_argument("--edits", type=str, required=True, help="Ledger: the edits/ folder of a run.")
    parser.add_argument(
        "--lm",
        type=str | None,
        default=None,
        help='The unedited model: "atlas", a checkpoint folder, or a hub name. Default: the one that the ledger names.',
    )
    parser.add_argument(
        "--dtype",
        type=str | None,
        default=None,
        help="dtype of the weights: float32, bfloat16 or float16. Default: that of the run.",
    )
    parser.add_argument("--output", type=str, required=True, help="Folder to write; empty or not there yet.")
    parser.add_argument(
        "--format",
        type=Literal["checkpoint", "lora"],
        default="checkpoint",
        help="checkpoint: all weights, for AutoModelForCausalLM.from_pretrained. lora: the change alone, for "
        "PeftModel.from_pretrained.",
    )
    parser.add_argument(
        "--rank",
        type=int | None,
        default=None,
        help="Of lora: the most columns per block, the best approximation of that rank. Default: without loss.",
    )
    parser.add_argument(
        "--batch",
        type=int | None,
        default=None,
        help="Of independent batches the one to export, counted from 0; of sequential ones the last. Default: all.",
    )
    return parser


@plain_warnings()
def run(argv: list[str]) -> None:
    """Run ``editkit export``; every mistake of the user's is an ``InputError``."""
    try:
        options = export_parser().parse_args(argv[1:])
    except ArgumentError as error:
        raise refusal(error, argv) from error
    if options.rank is not None and options.format != "lora":
        raise InputError(
            f"rank: a checkpoint holds whole weights and has none, but got {options.rank}; leave it out, or use "
            "--format=lora"
        )
    output = check_new_folder(Path(options.output), "output")
    check_can_write(output.parent, "output")
    advise(lambda: f"{options.output} is whole" if output.is_dir() and any(output.iterdir()) else "nothing was written")
    edits = load_edits(options.edits)
    changes_of(edits, options.batch, options.rank)  # before minutes are spent on reading the model
    recorded = edits.about.get("hyperparameters") or {}
    lm = (recorded.get("lm") or DEFAULT) if options.lm is None else options.lm
    dtype = options.dtype or recorded.get("dtype") or "float32"
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with progress_bar(*columns) as progress:
        step = progress.add_task(f"reading {lm}", total=None)
        model, tokenizer = load_language_model(lm, dtype)
        if options.format == "lora":
            progress.update(step, description="factors")

            def at_layer(done: int, layers: int) -> None:
                progress.update(step, completed=done, total=layers)

            layers = export_adapter(edits, model, output, lm, options.batch, options.rank, at_layer)
        else:
            progress.update(step, description=f"writing {options.output}")
            export_checkpoint(edits, model, tokenizer, output, lm, options.batch)
            layers = []
    if layers:
        show(console(), layers)
    print_line(console(), f"{'LoRA adapter' if layers else 'checkpoint'}: {options.output}")


def show(where: Console, layers: list[AdapterLayer]) -> None:
    """Print ranks and errors."""
    table = Table(title="LoRA adapter", title_justify="left")
    for name in ("module", "rank", "rank of the edit", "relative error"):
        table.add_column(name, justify="left" if name == "module" else "right", overflow="fold")
    for layer in layers:
        table.add_row(layer.module, str(layer.rank), str(layer.full_rank), shown(layer.error))
    where.print(table)
