"""``python -m tonnage`` runs the command ``tonnage``."""

from __future__ import annotations

from tonnage.cli.main import command

if __name__ == "__main__":
    command()
