"""The ``editkit`` command. Nothing heavy is imported before it is known what is asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

HELP = """usage: editkit COMMAND [options]

Knowledge editing in language models: change what a model says about a fact by a closed-form change of a few weight
matrices, and measure what that did to everything else.

commands:
  fit         edit a model: editkit fit --config quickstart
  validate    measure a model on facts without editing it
  covariance  estimate second moments of keys over text, before many runs: editkit covariance --config covariance
              (fit does it by itself where they are missing)
  export      write an edited model as a checkpoint or a LoRA adapter: editkit export --edits RUN/edits --output DIR

editkit COMMAND --help lists a command's options; editkit COMMAND --model.help=editkit.EMMET those of an editor
(editkit.ROME, editkit.MEMIT, editkit.EMMET, or your own subclass of editkit.Editor by its import path).

--config takes a YAML file, or from any folder the name of one that ships, and may be given several times, each on top
of those before it. --print_config after it shows what it comes to. These ship:
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 on success, 2 on bad input, which is one line on standard error.
    """
    argv = list(sys.argv[1:] if args is None else args)
    commands: dict[str, Callable[[list[str]], None]] = {
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
    if argv[0] not in commands:
        sys.stderr.write(f"editkit: command: expected one of {', '.join(commands)}, but got {argv[0]!r}\n")
        return 2
    from editkit.cli.arguments import check_values
    from editkit.cli.configs import with_shipped_configs
    from editkit.utils.errors import InputError

    try:
        argv = with_shipped_configs(argv)
        check_values(argv)
        commands[argv[0]](argv)
    except InputError as error:
        from editkit.utils.distributed import reported_by_rank_zero

        if not reported_by_rank_zero(error):
            sys.stderr.write(f"editkit: error: {error}\n")
        return 2
    return 0


def _lightning(argv: list[str]) -> None:
    from editkit.cli.fit import run

    run(argv)


def _covariance(argv: list[str]) -> None:
    from editkit.cli.covariance import run

    run(argv)


def _export(argv: list[str]) -> None:
    from editkit.cli.export import run

    run(argv)


if __name__ == "__main__":
    sys.exit(main())
