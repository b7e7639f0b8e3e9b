#!/usr/bin/env -S --block-signal=TERM --block-signal=INT /opt/tonnage/bin/python -IB
"""Runs ``tonnage`` or ``tonnage-operator``, depending on argv[0], as PID 1 of a container.

The kernel drops signals to PID 1 that have no handler. Without this file, a container that is stopped while Python
starts would run until the end of its grace period. So ``env`` blocks the signals before Python starts, and they are
unblocked when handlers are installed.
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

    main.command()
