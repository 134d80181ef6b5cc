"""The ``editkit`` command. Nothing heavy is imported before it is known what is asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from editkit.utils.signals import Stop

from editkit.utils.quiet import plain_warnings

HELP = """usage: editkit COMMAND [options]

Knowledge editing in language models: change what a model says about a fact by a closed-form change of a few weight
matrices, and measure what that did to everything else.

commands:
  fit         edit a model: editkit fit --config quickstart
  validate    measure a model on facts without editing it
  covariance  estimate second moments of keys over text, before many runs: editkit covariance --config covariance
              (fit does it by itself where they are missing); --of=output_gradients: those of the loss's gradients
  export      write an edited model as a checkpoint or a LoRA adapter: editkit export --edits RUN/edits --output DIR

editkit COMMAND --help lists a command's options; editkit COMMAND --model.help=editkit.EMMET those of an editor
(editkit.ROME, editkit.MEMIT, editkit.EMMET, or your own subclass of editkit.Editor by its import path).

--config takes a YAML file, or from any folder the name of one that ships, and may be given several times, each on top
of those before it. --print_config after it shows what it comes to. These ship:
"""


@plain_warnings()
def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: the command and its options; default those of this process, whose end then is the end of the command.

    Returns:
        0 on success, 2 on bad input, 128 and the signal's number (143 of SIGTERM, 130 of SIGINT) where it was asked to
        stop; the latter two with one line on standard error.
    """
    argv = list(sys.argv[1:] if args is None else args)
    commands: dict[str, Callable[[], Callable[[list[str]], None]]] = {
        "fit": _lightning,
        "validate": _lightning,
        "covariance": _covariance,
        "export": _export,
    }
    if not argv or argv[0] in ("-h", "--help", "help"):
        from editkit.cli.configs import shipped_names

        sys.stdout.write(HELP + "".join(f"  {name}\n" for name in shipped_names()))
        return 0
    if argv[0] == "--version":
        from importlib.metadata import version

        sys.stdout.write(f"editkit {version('editkit')}\n")
        return 0
    if argv[1:] in (["--help"], ["-h"]):
        from editkit.cli.kept_help import kept_help

        if (text := kept_help(argv)) is not None:
            sys.stdout.write(text)
            raise SystemExit(0)  # as from a parser
    if argv[0] not in commands:
        sys.stderr.write(f"editkit: command: expected one of {', '.join(commands)}, but got {argv[0]!r}\n")
        return 2
    from editkit.utils.signals import end, stopping  # before all that is heavy

    code = 0
    with stopping(until_exit=args is None) as stop:
        code = _run(commands[argv[0]], argv, stop)
    return code if stop.signal is None else end(stop)


def _run(command: Callable[[], Callable[[list[str]], None]], argv: list[str], stop: Stop) -> int:
    from editkit.cli.arguments import check_values
    from editkit.cli.configs import with_shipped_configs
    from editkit.utils.errors import InputError

    try:
        argv = with_shipped_configs(argv)
        check_values(argv)
        run = command()
        stop.begin()
        run(argv)
    except InputError as error:
        if stop.signal is not None:
            raise
        from editkit.utils.distributed import reported_by_rank_zero

        if not reported_by_rank_zero(error):
            sys.stderr.write(f"editkit: error: {error}\n")
        return 2
    return 0


def _lightning() -> Callable[[list[str]], None]:
    from editkit.cli.fit import run

    return run


def _covariance() -> Callable[[list[str]], None]:
    from editkit.cli.covariance import run

    return run


def _export() -> Callable[[list[str]], None]:
    from editkit.cli.export import run

    return run


if __name__ == "__main__":
    sys.exit(main())
