#!/usr/bin/env -S --block-signal=TERM --block-signal=INT /opt/tonnage/bin/python -IB
"""Starts ``tonnage`` or ``tonnage-operator``, by the name that it is called by, as a container's first process.

The kernel drops a signal to PID 1 that has no handler, and Python takes a while until one is there; whoever stops the
container in that moment would wait for the whole grace period. So ``env`` blocks the signals before Python starts, and
they are let through as soon as somebody listens.
"""

import os
import signal
import sys

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def _exit_on_signal(number: int, _: object) -> None:
    os._exit(128 + number)


for _number in _STOP_SIGNALS:
    signal.signal(_number, _exit_on_signal)
signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)

if sys.argv[0].endswith("-operator"):
    from tonnage_operator import cli

    sys.exit(cli.main())
else:
    from tonnage.cli import main

    sys.exit(main.main())
