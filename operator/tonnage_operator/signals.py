"""Stops a process in order on SIGTERM and SIGINT."""

from __future__ import annotations

import asyncio
import signal
import threading


def stop_on_signals(stopping: asyncio.Event) -> None:
    """Sets ``stopping`` on SIGTERM and SIGINT, in place of any other handler of the running loop.

    Does nothing outside of the main thread, which alone receives signals.
    """
    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signum, stopping.set)
