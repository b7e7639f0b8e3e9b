"""A controller whose processes are forks of one that has imported the operator, so that each starts in milliseconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import TYPE_CHECKING

from operator_support.forked_program import run_operator
from operator_support.harness import ControllerProcess

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tonnage_operator.cli", "tonnage_operator.controller.app"])


class ForkedController(ControllerProcess):
    """For tests that start a controller often."""

    _fork: ForkServerProcess | None = None

    def start(self) -> None:
        self._fork = _FORKS.Process(target=run_operator, args=(self.arguments, str(self.log)))
        self._fork.start()

    @property
    def running(self) -> bool:
        return self._fork is not None and self._fork.is_alive()

    def kill(self) -> None:
        if self._fork and self._fork.pid and self.running:
            os.kill(self._fork.pid, signal.SIGKILL)
            self._fork.join()
