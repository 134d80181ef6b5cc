"""``editkit covariance``: second moments by Lightning's Trainer on any number of devices, and how good they are."""

from __future__ import annotations

from typing import Any

import lightning as L
from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table

from editkit.atlas.builtin import DEFAULT
from editkit.cli.help import CommandHelp
from editkit.cli.messages import refusal
from editkit.cli.trainer_options import check_trainer, refused_by_lightning
from editkit.covariance import SecondMomentSource, check_has_text, check_ready, check_source, ensure
from editkit.covariance.folder import SecondMomentFolder
from editkit.covariance.progress import TokenProgress
from editkit.covariance.summand import SUMMANDS, SummandName
from editkit.models.editable import EditableModel, check_layers
from editkit.models.loading import load_language_model
from editkit.utils.console import console, print_line
from editkit.utils.distributed import rank_and_size, with_strategy
from editkit.utils.errors import InputError
from editkit.utils.progress import heartbeat
from editkit.utils.quiet import plain_warnings, quiet_lightning
from editkit.utils.signals import advise, leave_signals

TRAINER_DEFAULTS: dict[str, Any] = {
    "accelerator": "auto",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
    "inference_mode": False,
}


class CovarianceParser(CommandHelp, LightningArgumentParser):
    """Shows what is editkit's first."""

    command = "covariance"
    example = "editkit covariance [--config CONFIG] [--lm LM] [--second_moment.OPTION VALUE]\n       [other options]"


def covariance_parser() -> LightningArgumentParser:
    """Options of ``editkit covariance``."""
    parser = CovarianceParser(
        prog="editkit covariance",
        description="Estimate the second moments E[k kᵀ] of keys over text, or E[g gᵀ] of output gradients, all layers "
        "in one pass, and keep them.",
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with these options; may be given several times.")
    parser.add_argument(
        "--lm", type=str, default=DEFAULT, help='Language model: "atlas", a checkpoint folder, or a hub name.'
    )
    parser.add_argument(
        "--dtype", type=str, default="float32", help="dtype of the model's weights: float32, bfloat16 or float16."
    )
    parser.add_argument(
        "--layers",
        type=list[int] | None,
        default=None,
        help="Blocks whose MLP output projection is meant, counted from 0. Default: those that the checkpoint's config "
        "recommends.",
    )
    parser.add_argument(
        "--of",
        type=SummandName,
        default="keys",
        help="What the second moments are of: keys (inputs of the projection), or output_gradients (gradients of the "
        "model's own loss by the projection's outputs, with labels drawn from the model), which are kept beside them.",
    )
    parser.add_class_arguments(SecondMomentSource, "second_moment")
    parser.add_lightning_class_args(L.Trainer, "trainer")
    parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()})
    return parser


@plain_warnings()
def run(argv: list[str]) -> None:
    """Run ``editkit covariance``; every mistake of the user's is an ``InputError``."""
    parser = covariance_parser()
    try:
        config = parser.instantiate(parser.parse_args(argv[1:]))
    except ArgumentError as error:
        raise refusal(error, argv) from error
    check_trainer(dict(config.trainer), "covariance")
    options = with_strategy(dict(config.trainer))
    of = SUMMANDS[config.of]
    if config.layers is not None:
        check_layers(config.layers)
    check_source(config.second_moment, config.layers, of)
    bar = options["enable_progress_bar"] is not False
    options["callbacks"] = [*(options["callbacks"] or []), *([TokenProgress()] if bar else [])]
    check_has_text(config.second_moment, config.lm, config.layers, of)  # before minutes are spent on reading the model
    with heartbeat(f"reading {config.lm}", bar and rank_zero_only.rank == 0):  # type: ignore[attr-defined]
        model, tokenizer = load_language_model(config.lm, config.dtype)
    editable = EditableModel(model)
    layers = config.layers if config.layers is not None else editable.recommended_layers
    if not layers:
        raise InputError(
            f"layers: expected the blocks whose second moments are wanted, 0 to {editable.depth - 1} of this model, "
            "but got none; give --layers=[...]"
        )
    for layer in layers:
        editable.check_layer(layer)  # before any process is started
    check_ready(editable, tokenizer, layers, config.second_moment, of)
    with quiet_lightning(), refused_by_lightning("covariance"):
        trainer = L.Trainer(**options)
    leave_signals(trainer)
    advise("the same command goes on")
    folder = ensure(editable, tokenizer, layers, config.second_moment, bar, True, trainer, of)
    if rank_and_size()[0] == 0:
        show(console(), folder, sorted(set(layers)))


def show(where: Console, folder: SecondMomentFolder, layers: list[int]) -> None:
    """Print what is known of each layer's second moment, and how well it can be solved with."""
    of = folder.of
    print_line(where, f"{of.title} in {folder.folder}")
    table = Table()
    for name in ("block", of.width_name, "tokens", "condition number", "effective rank", *["jitter"] * of.factored):
        table.add_column(name, justify="right")
    for layer in layers:
        state = folder.conditioning(layer)
        table.add_row(
            str(layer),
            f"{state.width:,}",
            f"{state.tokens:,}",
            f"{state.condition_number:.2e}",
            f"{state.effective_rank:.1f}",
            *[f"{state.jitter:.1e}" if state.jitter else "none"] * of.factored,
        )
    where.print(table)
