"""``python -m tonnage`` runs the command ``tonnage``."""

from __future__ import annotations

import sys

from tonnage.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
