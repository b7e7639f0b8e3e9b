"""Runs ``tonnage-operator`` in a process that was forked with the operator imported. Imports nothing else."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

from tonnage_operator.cli import main

if TYPE_CHECKING:
    from collections.abc import Sequence


def run_operator(arguments: Sequence[str], log: str) -> NoReturn:
    """Runs the command with its output appended to a file."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.exit(main(arguments))
