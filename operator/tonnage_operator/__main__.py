"""``python -m tonnage_operator`` runs the command ``tonnage-operator``."""

from __future__ import annotations

import sys

from tonnage_operator.cli import main

if __name__ == "__main__":
    sys.exit(main())
