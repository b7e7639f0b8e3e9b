"""Keeps locks that it inherits until it is told to end: what ``tonnage load --hold`` becomes after success.

Run as ``python -I -S hold.py FD[,FD…]|- [READY_FD|- [COMMAND…]]``, with ``-`` for none. It imports only what is built
into the interpreter, for it stays as long as a model server does and is to be as small as it can be. So it is one file,
and knows nothing of Tonnage.

On SIGTERM and SIGINT it lets the locks go and leaves with 0, or becomes COMMAND. It ignores SIGHUP, and as PID 1 of a
container it reaps the children of others.
Signals are blocked before ``exec`` and waited for, not handled: there is no moment in which one could be lost, or, as
PID 1, be ignored.
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


def exec_holder(
    descriptors: Sequence[int], *, ready_fd: int | None = None, exit_command: Sequence[str] = ()
) -> NoReturn:
    """Replaces this process by one that holds ``descriptors`` open, and with them the locks that they carry.

    Call it on the main thread, with no other thread that may receive signals. The environment is left behind, so that
    no credentials stay in the memory of a process that lives for months; so is every descriptor that isn't inheritable.

    Args:
        descriptors: What to keep: ``FileLock.fileno()``. They become inheritable.
        ready_fd: A descriptor to which one byte is written, and which is closed, when the holder waits for its end.
        exit_command: The command that the holder becomes when it is told to end. No secret may be in it.

    Raises:
        OSError: The interpreter can't be executed; signals are unblocked again.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
    kept = [*descriptors, *([] if ready_fd is None else [ready_fd])]
    arguments = [sys.executable, "-I", "-S", __file__, ",".join(map(str, descriptors)) or NONE]
    if ready_fd is not None or exit_command:
        arguments += [NONE if ready_fd is None else str(ready_fd), *exit_command]
    try:
        for descriptor in kept:
            os.set_inheritable(descriptor, True)  # noqa: FBT003 - positional only
        os.execve(sys.executable, arguments, interpreter_environment())  # noqa: S606 - no shell is the point
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        raise


def interpreter_environment() -> dict[str, str]:
    """Returns what of the environment an interpreter may need to start at all, and nothing else."""
    return {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "LC_ALL", "LANG") if name in os.environ}


def hold(descriptors: Sequence[int], ready_fd: int | None = None) -> int:
    """Waits for a signal to end and returns the exit code. See the module."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
    for descriptor in descriptors:
        os.fstat(descriptor)
    if ready_fd is not None:
        notify_ready(ready_fd)
    while True:
        received = signal.sigwait(HANDLED_SIGNALS)
        if received in STOP_SIGNALS:
            for descriptor in descriptors:
                os.close(descriptor)
            return 0
        if received == signal.SIGCHLD:
            reap_children()


def notify_ready(ready_fd: int) -> None:
    """Writes one byte to ``ready_fd`` and closes it. Nobody listening any more is no reason to let the locks go."""
    try:
        os.write(ready_fd, b"\n")
    except (BrokenPipeError, ConnectionError):
        return
    finally:
        os.close(ready_fd)


def reap_children() -> None:
    """Collects all children that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def main(arguments: Sequence[str]) -> int:
    """Runs the command line ``FD[,FD…]|- [READY_FD|- [COMMAND…]]``."""
    try:
        descriptors = [] if arguments[0] == NONE else [int(word) for word in arguments[0].split(",")]
        ready = None if arguments[1:2] in ([], [NONE]) else int(arguments[1])
    except (IndexError, ValueError):
        os.write(2, b"usage: hold.py FD[,FD...]|- [READY_FD|- [COMMAND...]]\n")
        return EXIT_USAGE
    try:
        code = hold(descriptors, ready)
    except OSError as error:
        os.write(2, f"hold.py: a descriptor to hold is not open: {error.strerror}.\n".encode())
        return EXIT_USAGE
    if command := list(arguments[2:]):
        try:
            os.execv(command[0], command)  # noqa: S606 - no shell is the point
        except OSError:
            return code
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
