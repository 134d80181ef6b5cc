"""``python -m editkit.programs.ship_help`` makes the help texts that ship, after options or docstrings changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

from editkit.cli.kept_help import COMMANDS, SHIPPED, what_decides
from editkit.utils.files import atomic_write


def main() -> None:
    """Ask each command for its help, and write ``help.json``."""
    SHIPPED.unlink(missing_ok=True)  # else it would be shown
    texts = {}
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "EDITKIT_CACHE": cache}
        for command in COMMANDS:
            program = [sys.executable, "-m", "editkit.cli", command, "--help"]
            done = subprocess.run(program, env=environment, stdout=subprocess.PIPE, encoding="utf-8", check=True)
            texts[command] = done.stdout
    text = json.dumps({"of": what_decides(), "texts": texts}, indent=1, ensure_ascii=False) + "\n"
    atomic_write(SHIPPED, lambda part: part.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
