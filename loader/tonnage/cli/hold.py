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

ENDING = {signal.SIGTERM, signal.SIGINT}
WAITED_FOR = {*ENDING, signal.SIGHUP, signal.SIGCHLD}
EXIT_USAGE = 2
NONE = "-"


def become_holder(descriptors: Sequence[int], *, ready: int | None = None, afterwards: Sequence[str] = ()) -> NoReturn:
    """Replaces this process by one that holds ``descriptors`` open, and with them the locks that they carry.

    Call it on the main thread, with no other thread that may receive signals. The environment is left behind, so that
    no credentials stay in the memory of a process that lives for months; so is every descriptor that isn't inheritable.

    Args:
        descriptors: What to keep: ``FileLock.fileno()``. They become inheritable.
        ready: A descriptor to which one byte is written, and which is closed, when the holder waits for its end.
        afterwards: The command that the holder becomes when it is told to end. No secret may be in it.

    Raises:
        OSError: The interpreter can't be executed; signals are unblocked again.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, WAITED_FOR)
    kept = [*descriptors, *([] if ready is None else [ready])]
    arguments = [sys.executable, "-I", "-S", __file__, ",".join(map(str, descriptors)) or NONE]
    if ready is not None or afterwards:
        arguments += [NONE if ready is None else str(ready), *afterwards]
    try:
        for descriptor in kept:
            os.set_inheritable(descriptor, True)  # noqa: FBT003 - positional only
        os.execve(sys.executable, arguments, library_environment())  # noqa: S606 - no shell is the point
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        raise


def library_environment() -> dict[str, str]:
    """Returns what of the environment an interpreter may need to start at all, and nothing else."""
    return {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "LC_ALL", "LANG") if name in os.environ}


def hold(descriptors: Sequence[int], ready: int | None = None) -> int:
    """Waits for a signal to end and returns the exit code. See the module."""
    signal.pthread_sigmask(signal.SIG_BLOCK, WAITED_FOR)
    for descriptor in descriptors:
        os.fstat(descriptor)
    if ready is not None:
        tell(ready)
    while True:
        received = signal.sigwait(WAITED_FOR)
        if received in ENDING:
            for descriptor in descriptors:
                os.close(descriptor)
            return 0
        if received == signal.SIGCHLD:
            reap()


def tell(ready: int) -> None:
    """Writes one byte to ``ready`` and closes it. Nobody listening any more is no reason to let the locks go."""
    try:
        os.write(ready, b"\n")
    except (BrokenPipeError, ConnectionError):
        return
    finally:
        os.close(ready)


def reap() -> None:
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
