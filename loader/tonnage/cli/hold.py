"""The holder: keeps inherited locks until SIGTERM or SIGINT. ``tonnage load --hold`` executes it after success.

Run as ``python -I -S hold.py FD[,FD…]|- [READY_FD]``, with ``-`` for none. It runs as long as a model
server, so it must take little memory: it is a single file that imports only modules built into the interpreter.

On SIGTERM and SIGINT it exits with 0, which releases the locks. It ignores SIGHUP, and as PID 1 of a
container it reaps orphaned processes.
Signals are blocked before ``exec`` and received with ``sigwait``, so that none is lost, or, as PID 1, ignored.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # importing typing would cost a MiB
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}
HANDLED_SIGNALS = {*STOP_SIGNALS, signal.SIGHUP, signal.SIGCHLD}
EXIT_USAGE = 2
NONE = "-"


def exec_holder(descriptors: Sequence[int], *, ready_fd: int | None = None) -> NoReturn:
    """Replaces this process by the holder, which keeps ``descriptors`` open and their locks held.

    Call it on the main thread, with no other thread that may receive signals. The holder doesn't inherit the
    environment, so that a process that may run for months has no credentials in memory, nor any other descriptor that
    isn't inheritable.

    Args:
        descriptors: The locks' descriptors, from ``FileLock.fileno()``. They become inheritable.
        ready_fd: When the holder is ready, it writes one byte to this descriptor and closes it.

    Raises:
        OSError: The interpreter can't be executed; signals are unblocked again.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
    kept = [*descriptors, *([] if ready_fd is None else [ready_fd])]
    arguments = [sys.executable, "-I", "-S", __file__, ",".join(map(str, descriptors)) or NONE]
    if ready_fd is not None:
        arguments.append(str(ready_fd))
    try:
        for descriptor in kept:
            os.set_inheritable(descriptor, True)  # noqa: FBT003 - positional only
        os.execve(sys.executable, arguments, interpreter_environment())  # noqa: S606 - no shell is the point
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        raise


def interpreter_environment() -> dict[str, str]:
    """Returns only the environment variables that an interpreter may need to start."""
    return {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "LC_ALL", "LANG") if name in os.environ}


def hold(descriptors: Sequence[int], ready_fd: int | None = None) -> int:
    """Waits for a stop signal and returns the exit code; see the module's docstring."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
    for descriptor in descriptors:
        os.fstat(descriptor)
    if ready_fd is not None:
        notify_ready(ready_fd)
    while True:
        received = signal.sigwait(HANDLED_SIGNALS)
        if received in STOP_SIGNALS:
            return 0
        if received == signal.SIGCHLD:
            reap_children()


def notify_ready(ready_fd: int) -> None:
    """Writes one byte to ``ready_fd`` and closes it. A closed pipe is ignored: the locks are kept."""
    try:
        os.write(ready_fd, b"\n")
    except (BrokenPipeError, ConnectionError):
        return
    finally:
        os.close(ready_fd)


def reap_children() -> None:
    """Reaps all children that have exited."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def main(arguments: Sequence[str]) -> int:
    """Runs the command line ``FD[,FD…]|- [READY_FD]``."""
    try:
        descriptors = [] if arguments[0] == NONE else [int(word) for word in arguments[0].split(",")]
        ready = int(arguments[1]) if arguments[1:] else None
    except (IndexError, ValueError):
        os.write(2, b"usage: hold.py FD[,FD...]|- [READY_FD]\n")
        return EXIT_USAGE
    try:
        return hold(descriptors, ready)
    except OSError as error:
        os.write(2, f"hold.py: a descriptor to hold is not open: {error.strerror}.\n".encode())
        return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
