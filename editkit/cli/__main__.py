"""``python -m editkit.cli``."""

import sys

from editkit.cli.main import main

sys.exit(main())
